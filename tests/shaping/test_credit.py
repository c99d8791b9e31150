"""Credit against loops over exact fractions, and the properties every convention must have."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.reference.advantages import group_advantage as by_loops
from tests.reference.losses import optimality as optimality_by_hand
from torch import Tensor

from plaudit.recipe.objectives import Shaping
from plaudit.shaping.credit import Credit, group_advantage, optimality

KINDS = ("group", "batch", "global", "pooled", "none", "loo")
LAYOUTS = {
    "even": [0, 0, 0, 1, 1, 1],
    "uneven and interleaved": [7, -3, 7, 2, 7, -3, 2, 7, 900_000_000_000],
    "pairs": [5, 5, 4, 4, 9, 9],
    "one group": [0] * 11,
}
scores_and_groups = st.lists(
    st.tuples(st.one_of(st.floats(-100, 100, width=32), st.just(math.nan)), st.integers(-3, 3)), min_size=1, max_size=24
)


def advantages(scores: list[float] | Tensor, groups: list[int], **rest) -> Credit:
    return group_advantage(torch.as_tensor(scores, dtype=torch.float64), torch.tensor(groups), **rest)


def values(scores: list[float] | Tensor, groups: list[int], **rest) -> list[float]:
    return advantages(scores, groups, **rest).value.tolist()


def random_scores(count: int, seed: int = 0) -> list[float]:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("std", KINDS)
@pytest.mark.parametrize("clip", (None, 0.5))
def test_every_convention_is_the_loops(std: str, layout: str, clip: float | None) -> None:
    groups = LAYOUTS[layout]
    scores = random_scores(len(groups))
    expected = by_loops(scores, groups, std=std, floor=1e-3, clip=clip)
    assert values(scores, groups, std=std, clip=clip) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert any(abs(e) > 0.1 for e in expected)


@settings(max_examples=150, deadline=None)
@given(rows=scores_and_groups, std=st.sampled_from(KINDS), floor=st.sampled_from((1e-3, 0.5)))
def test_any_scores_with_gaps_are_the_loops(rows: list[tuple[float, int]], std: str, floor: float) -> None:
    scores, groups = map(list, zip(*rows, strict=True))
    found = advantages(scores, groups, std=std, floor=floor)
    expected = by_loops(scores, groups, std=std, floor=floor, clip=None)
    assert found.value.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-8)
    for index, (score, group) in enumerate(zip(scores, groups, strict=True)):
        present = [s for s, g in zip(scores, groups, strict=True) if g == group and math.isfinite(s)]
        assert bool(found.valid[index]) == (math.isfinite(score) and len(present) >= 2)
    assert found.groups == len(set(groups))


@settings(max_examples=60, deadline=None)
@given(rows=scores_and_groups, std=st.sampled_from(KINDS), order=st.randoms(use_true_random=False))
def test_permuting_samples_permutes_advantages(rows: list[tuple[float, int]], std: str, order) -> None:
    mixed = list(range(len(rows)))
    order.shuffle(mixed)
    scores, groups = map(list, zip(*rows, strict=True))
    straight = values(scores, groups, std=std)
    moved = values([scores[i] for i in mixed], [groups[i] for i in mixed], std=std)
    assert moved == pytest.approx([straight[i] for i in mixed], rel=1e-9, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(rows=scores_and_groups, std=st.sampled_from(KINDS))
def test_a_missing_member_counts_as_little_as_an_absent_one(rows: list[tuple[float, int]], std: str) -> None:
    """Missing is not zero: adding a NaN changes nobody else's advantage."""
    scores, groups = map(list, zip(*rows, strict=True))
    kept = [i for i, s in enumerate(scores) if math.isfinite(s)]
    found = values(scores, groups, std=std)
    assert all(found[i] == 0 for i in range(len(scores)) if i not in kept)
    if kept:
        alone = values([scores[i] for i in kept], [groups[i] for i in kept], std=std)
        assert [found[i] for i in kept] == pytest.approx(alone, rel=1e-12, abs=1e-15)


def test_a_nan_is_not_a_zero() -> None:
    with_gap = values([1.0, 2.0, 3.0, math.nan], [0] * 4)
    with_zero = values([1.0, 2.0, 3.0, 0.0], [0] * 4)
    assert with_gap[:3] == pytest.approx([-1, 0, 1]) and with_gap[3] == 0
    assert with_zero[0] != pytest.approx(-1)


@pytest.mark.parametrize("missing", (math.nan, math.inf, -math.inf))
def test_scores_that_are_not_finite_are_missing(missing: float) -> None:
    found = advantages([1.0, 3.0, missing], [0] * 3)
    assert found.valid.tolist() == [True, True, False] and found.value[2] == 0
    assert found.value[:2].tolist() == pytest.approx([-math.sqrt(0.5), math.sqrt(0.5)])


@pytest.mark.parametrize("std", KINDS)
def test_shifting_scores_changes_nothing(std: str) -> None:
    groups, scores = LAYOUTS["uneven and interleaved"], random_scores(9)
    assert values([s + 1000 for s in scores], groups, std=std) == pytest.approx(
        values(scores, groups, std=std), rel=1e-9
    )


def test_shifting_one_group_changes_nothing() -> None:
    groups, scores = LAYOUTS["even"], random_scores(6)
    moved = [s + 50 * (g == 1) for s, g in zip(scores, groups, strict=True)]
    for std in KINDS:
        same = values(moved, groups, std=std) == pytest.approx(values(scores, groups, std=std), rel=1e-9)
        assert same == (std not in ("batch", "global")), "whose deviation is that of the raw scores"


@pytest.mark.parametrize("scale", (1e-2, 3.0, 1e6))
def test_scaling_scores_scales_only_what_is_not_divided(scale: float) -> None:
    groups, scores = LAYOUTS["even"], random_scores(6)
    for std, factor in {kind: scale if kind in ("none", "loo") else 1.0 for kind in KINDS}.items():
        expected = [factor * a for a in values(scores, groups, std=std)]
        assert values([scale * s for s in scores], groups, std=std) == pytest.approx(expected, rel=1e-9), std


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("std", KINDS)
@pytest.mark.parametrize("constant", (0.0, 0.1, 1000.1, -3e7))
def test_a_constant_group_is_exactly_zero(constant: float, std: str, dtype: torch.dtype) -> None:
    """0.1 seven times has a float mean that is not 0.1; the advantage is exactly 0 all the same."""
    score = torch.tensor([constant] * 7 + [1.0, 2.0], dtype=dtype)
    found = group_advantage(score, torch.tensor([4] * 7 + [8] * 2), std=std, floor=1e-12)
    assert torch.equal(found.value[:7], torch.zeros(7, dtype=dtype))
    assert (found.value[7:] != 0).all() and found.valid.all()
    assert (found.groups, found.constant_groups) == (2, 1)


def test_noise_below_the_floor_stays_small() -> None:
    """Pitfall 30: a group that differs by 1e-7 is not a signal."""
    noisy = [0.5 + 1e-7 * n for n in random_scores(8)]
    assert max(map(abs, values(noisy, [0] * 8, floor=1e-3))) < 5e-4
    assert max(map(abs, values(noisy, [0] * 8, floor=1e-12))) > 0.5, "without a floor it would be as loud as any other"
    loud = [0.5 + 1e-2 * n for n in random_scores(8)]
    assert max(map(abs, values(loud, [0] * 8, floor=1e-3))) > 0.5, "and the floor leaves real contrast alone"


@pytest.mark.parametrize("std", KINDS)
def test_a_large_mean_costs_no_precision(std: str) -> None:
    """Pitfall 31: E[x^2] - E[x]^2 in float32 is 15 % off at mean 1000, deviation 0.5."""
    score = (1000 + 0.5 * torch.tensor(random_scores(64))).float()
    groups = [i // 16 for i in range(64)]
    expected = by_loops(score.double().tolist(), groups, std=std, floor=1e-3, clip=None)
    found = group_advantage(score, torch.tensor(groups), std=std)
    assert found.value.dtype == torch.float32
    assert found.value.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("std", KINDS)
def test_a_group_sums_to_zero(std: str) -> None:
    groups, scores = LAYOUTS["uneven and interleaved"], random_scores(9)
    found = advantages(scores, groups, std=std).value
    for group in set(groups):
        assert found[torch.tensor(groups) == group].sum().item() == pytest.approx(0, abs=1e-9)


def test_normalised_groups_have_deviation_one() -> None:
    found = advantages(random_scores(12), [0] * 5 + [1] * 7).value
    assert found[:5].std().item() == pytest.approx(1) and found[5:].std().item() == pytest.approx(1)


def test_singletons_are_not_valid_and_zero() -> None:
    for std in KINDS:
        found = advantages([5.0, 1.0, 2.0, math.nan], [0, 1, 1, 0], std=std)
        assert found.valid.tolist() == [False, True, True, False]
        assert found.value[0] == 0 and found.value[3] == 0
        assert found.value.isfinite().all()
        assert (found.groups, found.constant_groups) == (2, 1)


def test_a_batch_without_any_score_is_all_zero() -> None:
    for std in KINDS:
        found = advantages([math.nan] * 4, [0, 0, 1, 1], std=std)
        assert found.value.tolist() == [0] * 4 and not found.valid.any()
        assert (found.groups, found.constant_groups) == (2, 0)


def test_pairs_always_get_the_same_two_magnitudes() -> None:
    """Pitfall 35: with two members, dividing by the group's deviation leaves only the sign."""
    assert values([0.1, 0.9], [0, 0]) == pytest.approx([-math.sqrt(0.5), math.sqrt(0.5)])
    assert values([3.0, -800.0], [0, 0]) == pytest.approx([math.sqrt(0.5), -math.sqrt(0.5)])
    assert values([0.1, 0.9], [0, 0], std="none") == pytest.approx([-0.4, 0.4])
    assert values([0.1, 0.9], [0, 0], std="loo") == pytest.approx([-0.8, 0.8])


def test_leave_one_out_is_the_mean_of_the_others() -> None:
    found = values([1.0, 2.0, 6.0, 10.0, 20.0], [0, 0, 0, 1, 1], std="loo")
    assert found == pytest.approx([1 - 4, 2 - 3.5, 6 - 1.5, 10 - 20, 20 - 10])


def test_the_pooled_deviation_is_that_around_the_groups_means() -> None:
    """Far apart groups do not inflate it, and every group is divided by the same number."""
    found = values([0.0, 2.0, 100.0, 106.0], [0, 0, 1, 1], std="pooled")
    pooled = math.sqrt((1 + 1 + 9 + 9) / 2)
    assert found == pytest.approx([-1 / pooled, 1 / pooled, -3 / pooled, 3 / pooled])


def test_clipping_bounds_both_sides() -> None:
    scores = [0.0] * 30 + [10.0]
    assert max(values(scores, [0] * 31)) > 5
    assert max(values(scores, [0] * 31, clip=2.0)) == 2.0
    assert min(values([-s for s in scores], [0] * 31, clip=2.0)) == -2.0
    assert values(random_scores(6), [0] * 6, clip=50.0) == values(random_scores(6), [0] * 6)


@pytest.mark.parametrize("std", KINDS)
def test_a_clip_counts_deviations(std: str) -> None:
    """In reward units it would take the contrast out of rewards beyond it and bias leave-one-out."""
    assert Shaping(std=std).clip is None
    if std not in ("none", "loo"):
        assert Shaping(std=std, clip=2.0).clip == 2.0
        return
    with pytest.raises(ValidationError, match=f"shaping.clip: 2 with std {std}, .* set clip to null"):
        Shaping(std=std, clip=2.0)


def test_group_ids_are_labels() -> None:
    scores = random_scores(6)
    assert values(scores, [10**12, -5, 10**12, -5, 3, 3]) == values(scores, [0, 1, 0, 1, 2, 2])


def test_an_unknown_convention_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed: group, batch, global, pooled, none, loo"):
        advantages([1.0, 2.0], [0, 0], std="rank")


@settings(max_examples=50, deadline=None)
@given(advantage=st.floats(-20, 20), clip=st.sampled_from((0.5, 1.0, 5.0)))
def test_optimality_is_the_papers(advantage: float, clip: float) -> None:
    found = optimality(torch.tensor([advantage], dtype=torch.float64), clip).item()
    assert found == pytest.approx(optimality_by_hand(advantage, clip), abs=1e-12)
