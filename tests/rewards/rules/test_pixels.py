"""Pixel statistics against scikit-image, SciPy and numbers known by hand."""

from __future__ import annotations

import colorsys
import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.errors import RewardError
from plaudit.rewards.base import Status
from plaudit.rewards.calling.call import Caller, call_reward
from plaudit.rewards.load import find_reward
from plaudit.rewards.pinned.media import make
from plaudit.rewards.rules.pixels import (
    EdgeDensity,
    GridEnergy,
    JpegSize,
    PngSize,
    as_bytes,
    brightness,
    contrast,
    grey_entropy,
    luminance,
    saturation,
    sharpness,
)

NAMES = (
    "brightness", "saturation", "contrast", "grey_entropy", "sharpness", "edge_density", "grid_energy", "jpeg_size", "png_size",
)  # fmt: skip
SMOOTH = {"brightness": brightness, "saturation": saturation, "contrast": contrast, "sharpness": sharpness}
SMOOTH["grid_energy"] = GridEnergy()


def random_pictures(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def one(reward, spec) -> float:
    return float(reward([""], make(spec)[None])[0])


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ((2, 3, 7, 5), (1, 3, 32, 32), (3, 3, 16, 40)))
def test_statistics_equal_slow_ones(shape: tuple[int, ...]) -> None:
    pictures = random_pictures(*shape)
    for picture in pictures:
        grey = np.tensordot(np.array([0.299, 0.587, 0.114]), picture.numpy(), axes=1)
        np.testing.assert_allclose(luminance(picture[None])[0], grey)
        laplacian = ndimage.convolve(grey, np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]]))[1:-1, 1:-1]
        gradient = np.hypot(ndimage.sobel(grey, 0) / 8, ndimage.sobel(grey, 1) / 8)[1:-1, 1:-1]
        hsv = [colorsys.rgb_to_hsv(*pixel)[1] for pixel in picture.permute(1, 2, 0).reshape(-1, 3).tolist()]
        for reward, expected in (
            (contrast, grey.std()),
            (sharpness, laplacian.var()),
            (EdgeDensity(0.2), (gradient > 0.2).mean()),
            (saturation, np.mean(hsv)),
        ):
            assert float(reward([""], picture[None])[0]) == pytest.approx(expected, abs=1e-9)


def test_entropy_equals_scikit_image() -> None:
    measure = pytest.importorskip("skimage.measure")
    for picture in random_pictures(3, 3, 20, 30):
        levels = np.rint(luminance(picture[None])[0].numpy() * 255).astype(int)
        assert float(grey_entropy([""], picture[None])[0]) == pytest.approx(measure.shannon_entropy(levels), abs=1e-9)


def test_red_is_not_blue() -> None:
    """Channels in the order red, green, blue: a swap would exchange 0.299 and 0.114."""
    assert luminance(make({"shade": [1, 0, 0]})[None]).mean() == pytest.approx(0.299)
    assert luminance(make({"shade": [0, 0, 1]})[None]).mean() == pytest.approx(0.114)


def test_a_grid_shows_at_its_period_only() -> None:
    """Stripes of period p, half white and half black, have their first harmonic at 1 / p."""
    for period in (2, 4, 8):
        stripes = ((torch.arange(64) // (period // 2)) % 2).double().expand(1, 3, 64, 64)
        for probed in (2, 4, 8):
            share = float(GridEnergy(probed, width=0.04)([""], stripes)[0])
            assert share > 0.8 if probed == period else share < 0.2, (period, probed, share)


def test_a_faint_checkerboard_on_a_picture_shows() -> None:
    picture = make({"scene": "three white squares", "seed": 2})
    grid = make({"checks": 1}) - 0.5
    clean, faint, strong = (GridEnergy()([""], (picture + a * grid)[None].clamp(0, 1)).item() for a in (0, 0.05, 0.2))
    assert clean < 0.01 < faint < strong
    white_noise = random_pictures(8, 3, 64, 64)
    assert GridEnergy()([""] * 8, white_noise).mean() == pytest.approx(0.25, abs=0.03)


def test_unlike_borders_are_no_grid() -> None:
    """A ramp jumps where its right border meets its left; without the taper the jump would be in every frequency."""
    assert one(GridEnergy(), {"ramp": [0, 1]}) < 1e-5


def test_sharpness_falls_with_blur_and_rises_with_noise() -> None:
    scene = {"scene": "three white squares", "seed": 2}
    values = [one(sharpness, scene | change) for change in ({"blur": 2}, {"blur": 1}, {}, {"noise": 0.2})]
    assert values == sorted(values) and len(set(values)) == 4


# --- compression -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reward", "form", "options"), [(JpegSize(), "JPEG", {"quality": 95}), (PngSize(), "PNG", {})])
def test_sizes_are_those_of_files(reward, form: str, options: dict) -> None:
    pictures = torch.stack([make({"scene": "a red circle", "seed": 1}), make({"checks": 4, "noise": 0.3})])
    for picture, kilobytes in zip(pictures, reward(["", ""], pictures), strict=True):
        file = io.BytesIO()
        pixels = np.rint(picture.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
        Image.fromarray(pixels).save(file, form, **(options or {"compress_level": 9}))
        assert kilobytes == len(file.getvalue()) / 1000


def test_png_bytes_decode_to_the_picture() -> None:
    """Rows, columns and channels are in their places."""
    picture = random_pictures(1, 3, 5, 9)
    file = io.BytesIO()
    PngSize().encode(Image.fromarray(as_bytes(picture)[0]), file)
    np.testing.assert_allclose(np.asarray(Image.open(file)) / 255, picture[0].permute(1, 2, 0), atol=0.5 / 255 + 1e-9)


def test_what_is_preferred_has_its_sign_and_its_range() -> None:
    picture = make({"checks": 4})[None]
    large, small = JpegSize(), JpegSize(prefer="small")
    assert small([""], picture)[0] == -large([""], picture)[0] < 0
    assert (large.card.low, large.card.high) == (0, float("inf")) and small.card.high == 0
    assert JpegSize(per="pixel")([""], picture)[0] == pytest.approx(large([""], picture)[0] * 1000 / 1024)
    assert JpegSize(quality=10)([""], picture)[0] < large([""], picture)[0]
    assert JpegSize.card.high == float("inf"), "one reward's option is not another's"


# --- laws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_mirrored_picture_scores_the_same(name: str) -> None:
    if name in ("jpeg_size", "png_size"):
        pytest.skip("compression reads from left to right")
    reward, pictures = find_reward(name, name, {}), random_pictures(2, 3, 16, 16)
    for flipped in (pictures.flip(3), pictures.flip(2), pictures.transpose(2, 3)):
        np.testing.assert_allclose(reward(["", ""], flipped), reward(["", ""], pictures), atol=1e-9)


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_equal_finite_differences(name: str) -> None:
    reward, pictures = SMOOTH[name], random_pictures(2, 3, 6, 5).requires_grad_()
    assert reward.card.differentiable
    assert torch.autograd.gradcheck(lambda x: reward(["", ""], x), pictures, eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_of_flat_pictures_are_finite(name: str) -> None:
    for value in (0.0, 0.5, 1.0):
        flat = torch.full((1, 3, 8, 8), value, requires_grad=True)
        SMOOTH[name]([""], flat).sum().backward()
        assert flat.grad.isfinite().all()


def test_cards_tell_which_are_differentiable() -> None:
    assert {name for name in NAMES if Caller(name, find_reward(name, name, {})).card.differentiable} == set(SMOOTH)


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_that_is_not_finite_has_no_score_and_harms_no_other(name: str) -> None:
    pictures = random_pictures(3, 3, 8, 8).float()
    pictures[1, 0, 2, 2] = float("nan")
    scores = call_reward(name, find_reward(name, name, {}), [Prompt(id="", text="")] * 3, pictures)
    assert [score.status for score in scores] == [Status.OK, Status.ERRORED, Status.OK]


def test_pictures_too_small_are_refused() -> None:
    with pytest.raises(RewardError, match=r"sharpness: pictures are \(2, 8\); they need at least 3 pixels a side"):
        sharpness([""], torch.zeros(1, 3, 2, 8))
