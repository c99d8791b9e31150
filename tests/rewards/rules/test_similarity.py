"""Comparisons with a reference picture, against scikit-image, a slow transport and numbers known by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.errors import RewardError
from plaudit.rewards.base import Score, Status
from plaudit.rewards.calling.call import call_reward
from plaudit.rewards.pinned.media import make
from plaudit.rewards.rules.similarity import (
    PatchTransport,
    Psnr,
    RestorationQuality,
    cosine_distances,
    frnr_fusion,
    negative_l2,
    ssim,
    ssim_map,
    transport_similarity,
    within_group_range,
)

PIXELWISE = (negative_l2, Psnr(), ssim)


def random_pictures(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scored(reward, outputs, references, **rest) -> list[Score]:
    prompts = [Prompt(id=str(i), text="", inputs={"reference": wanted}) for i, wanted in enumerate(references)]
    return call_reward("mine", reward, prompts, outputs, **rest)


# --- pixel by pixel --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ((3, 11, 11), (3, 32, 32), (3, 17, 40)))
def test_ssim_and_psnr_equal_scikit_image(shape: tuple[int, ...]) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    clean = random_pictures(*shape)
    for noisy in (random_pictures(*shape, seed=1), (clean + 0.1 * random_pictures(*shape, seed=2)).clamp(0, 1)):
        expected = metrics.structural_similarity(
            noisy.numpy(), clean.numpy(), channel_axis=0, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False, data_range=1,
        )  # fmt: skip
        assert float(ssim([""], noisy[None], [clean])[0]) == pytest.approx(expected, abs=1e-9)
        expected = metrics.peak_signal_noise_ratio(clean.numpy(), noisy.numpy(), data_range=1)
        assert float(Psnr()([""], noisy[None], [clean])[0]) == pytest.approx(expected, abs=1e-9)


def test_ssim_of_flat_float32_pictures_is_exact() -> None:
    """In float32 the variances of flat pictures would be rounding, and 0.98377 would come out."""
    dark, light = torch.full((1, 3, 16, 16), 0.5), torch.full((3, 16, 16), 0.6)
    assert float(ssim([""], dark, [light])[0]) == pytest.approx((0.6 + 1e-4) / (0.61 + 1e-4), abs=1e-6)


def test_ssim_sees_structure_where_the_error_is_equal() -> None:
    """Two distortions of one mean squared error: a shift of brightness keeps the structure, noise does not."""
    picture = make({"scene": "three white squares", "seed": 2}) * 0.8
    noise = (make({"checks": 1}) - 0.5) * 0.2
    shifted, noisy = (picture + 0.1)[None], (picture + noise)[None]
    assert negative_l2([""], shifted, [picture])[0] == pytest.approx(float(negative_l2([""], noisy, [picture])[0]))
    assert ssim([""], shifted, [picture])[0] > ssim([""], noisy, [picture])[0] + 0.1


def test_equal_pictures_are_0_apart_and_pull_nowhere() -> None:
    picture = torch.full((1, 3, 4, 4), 0.3, requires_grad=True)
    score = negative_l2([""], picture, [picture.detach()[0]])
    assert score.item() == 0 and str(score.item()) == "0.0"
    assert torch.autograd.grad(score.sum(), picture)[0].eq(0).all()
    near = negative_l2([""], picture, [picture.detach()[0] + 1e-7])
    assert -1.1e-7 < near.item() < 0 and torch.autograd.grad(near.sum(), picture)[0].isfinite().all()


@pytest.mark.parametrize("reward", PIXELWISE)
def test_gradients_equal_finite_differences(reward) -> None:
    clean, outputs = list(random_pictures(2, 3, 12, 11)), random_pictures(2, 3, 12, 11, seed=1).requires_grad_()
    assert reward.card.differentiable
    assert torch.autograd.gradcheck(lambda x: reward(["", ""], x, clean), outputs, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("reward", PIXELWISE)
def test_equal_pictures_are_best_symmetric_and_have_finite_gradients(reward) -> None:
    one, other = random_pictures(3, 16, 16), random_pictures(3, 16, 16, seed=1)
    same = one[None].clone().requires_grad_()
    best = reward([""], same, [one])
    best.sum().backward()
    assert float(best.detach()) == pytest.approx(reward.card.high, abs=1e-5) and same.grad.isfinite().all()
    there, back = reward([""], one[None], [other]), reward([""], other[None], [one])
    assert float(there) == pytest.approx(float(back)) and float(there) < float(best.detach())


def test_each_picture_meets_its_own_reference() -> None:
    references = list(random_pictures(4, 3, 16, 16))
    outputs = torch.stack(references[::-1])
    for reward in (*PIXELWISE, PatchTransport()):
        values = [score.value for score in scored(reward, outputs, references)]
        alone = [float(reward([""], outputs[i][None], [references[i]])[0]) for i in range(4)]
        np.testing.assert_allclose(values, alone, atol=1e-9)
        assert all(
            score.value == pytest.approx(reward.card.high, abs=1e-5) for score in scored(reward, outputs, outputs)
        )


def test_ceilings() -> None:
    picture = random_pictures(1, 3, 16, 16)
    assert float(Psnr(40)([""], picture, [picture[0]])[0]) == pytest.approx(40)


# --- patches ---------------------------------------------------------------------------------------------------------


def test_transport_equals_the_best_of_all_assignments() -> None:
    x, y = random_pictures(5, 6) - 0.5, random_pictures(5, 6, seed=1) - 0.5
    cosine = torch.nn.functional.cosine_similarity(x[:, None], y[None], dim=2)
    best = max(sum(cosine[i, j] for i, j in enumerate(order)) / 5 for order in itertools.permutations(range(5)))
    assert transport_similarity(x, y) == pytest.approx(float(best))
    assert transport_similarity(x, y) > float(cosine.diagonal().mean()) + 0.01, "patches may move"


def test_unlike_numbers_of_patches_split_their_mass() -> None:
    """Two patches against the first of them: half of the mass matches, half is at a right angle."""
    x = torch.eye(2, dtype=torch.float64)
    assert transport_similarity(x, x[:1]) == pytest.approx(0.5)


def test_patches_may_stand_anywhere() -> None:
    """The measure is of sets: pictures with the same patches in other places are equal, as the formula has it."""
    picture = random_pictures(3, 16, 16)
    turned = torch.cat([picture[:, 8:], picture[:, :8]], dim=1)
    reward = PatchTransport(grid=4, patch=4)
    assert reward([""], turned[None], [picture])[0] == pytest.approx(1)
    assert reward([""], random_pictures(1, 3, 16, 16, seed=1), [picture])[0] < 0.5


def test_zero_vectors_have_a_distance() -> None:
    zero, one = torch.zeros(1, 3), torch.ones(1, 3)
    assert cosine_distances(zero, zero).item() == 0 and cosine_distances(zero, one).item() == 1
    assert cosine_distances(one, -one).item() == pytest.approx(2)


def test_sizes_may_differ_between_picture_and_reference() -> None:
    reward = PatchTransport()
    assert reward([""], make({"checks": 4})[None], [make({"checks": 8, "size": 64})])[0] == pytest.approx(1)


# --- with and without a reference ------------------------------------------------------------------------------------


def test_fusion_by_hand() -> None:
    """Three full-reference metrics against one without: each side has half the weight (S005)."""
    full = {"a": torch.tensor([0.0, 5.0, 10.0]), "b": torch.tensor([1.0, 1.0, 3.0]), "c": torch.tensor([2.0, 0.0, 1.0])}
    none = {"d": torch.tensor([0.3, 0.2, 0.1])}
    expected = [0.5 * (0 + 0 + 1) / 3 + 0.5, 0.5 * (0.5 + 0 + 0) / 3 + 0.25, 0.5 * (1 + 1 + 0.5) / 3]
    assert frnr_fusion(full, none, [0, 0, 0]).tolist() == pytest.approx(expected)


def test_ranges_are_those_of_the_group_whatever_its_place() -> None:
    values = torch.tensor([0.0, 100.0, 1.0, 300.0, 2.0, 200.0])
    assert within_group_range(values, [7, 3, 7, 3, 7, 3]).tolist() == [0, 0, 0.5, 1, 1, 0.5]
    rescaled = within_group_range(values * 1000 - 5, [7, 3, 7, 3, 7, 3])
    assert rescaled.tolist() == pytest.approx([0, 0, 0.5, 1, 1, 0.5]), "units do not matter"


def test_rounding_is_not_stretched_to_a_range() -> None:
    noise = torch.tensor([0.7, 0.7 + 1e-9, 0.7 - 1e-9], dtype=torch.float64)
    assert within_group_range(noise, [0, 0, 0]).tolist() == [0.5] * 3
    assert within_group_range(torch.tensor([5.0]), [0]).tolist() == [0.5]


def test_fusion_needs_both_sides() -> None:
    with pytest.raises(RewardError, match="at least one metric with and one without"):
        frnr_fusion({"a": torch.zeros(2)}, {}, [0, 0])


def test_quality_is_fused_within_groups_and_leaves_out_what_cannot_be_judged() -> None:
    clean = make({"scene": "three white squares", "seed": 2})
    outputs = [make({"scene": "three white squares", "seed": 2, "noise": level}) for level in (0.05, 0.1, 0.3)]
    nan = torch.full_like(clean, float("nan"))
    two_groups = scored(RestorationQuality(), [*outputs, *outputs], [clean] * 6, group=[0, 0, 0, 1, 1, 1])
    assert [s.value for s in two_groups[:3]] == [s.value for s in two_groups[3:]]
    scores = scored(RestorationQuality(), [*outputs, nan, clean], [clean, clean, clean, clean, None], group=[0] * 5)
    assert [score.status for score in scores] == [Status.OK] * 3 + [Status.ERRORED, Status.NOT_APPLICABLE]
    assert [s.value for s in scores[:3]] == [s.value for s in two_groups[:3]], "what is missing moves no range"
    assert set(scores[0].components) == {"psnr", "ssim", "sharpness", "contrast"}
    assert scores[0].value != scores[1].value != scores[2].value


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reward", PIXELWISE)
def test_what_cannot_be_compared_is_missing_and_harms_no_other(reward) -> None:
    pictures = random_pictures(4, 3, 16, 16).float()
    pictures[3, 0, 0, 0] = float("nan")
    references = [pictures[0], None, torch.zeros(3, 8, 8), torch.zeros(3, 16, 16)]
    scores = scored(reward, pictures, references)
    statuses = [Status.OK, Status.NOT_APPLICABLE, Status.ERRORED, Status.ERRORED]
    assert [score.status for score in scores] == statuses
    assert scores[0].value == pytest.approx(reward.card.high, abs=1e-5)
    assert "[3, 8, 8], the picture [3, 16, 16]" in scores[2].note


def test_a_reference_that_is_no_picture_is_refused() -> None:
    with pytest.raises(RewardError, match="`reference` is a str"):
        scored(ssim, random_pictures(1, 3, 16, 16), ["clean.png"])


def test_too_small_pictures_are_refused() -> None:
    with pytest.raises(RewardError, match="at least 11 pixels"):
        ssim([""], torch.zeros(1, 3, 8, 8), [torch.zeros(3, 8, 8)])
    assert ssim_map(torch.zeros(1, 3, 11, 12), torch.zeros(1, 3, 11, 12)).shape == (1, 3, 1, 2)
