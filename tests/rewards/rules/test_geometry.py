"""Overlaps against counted pixels, matching against all permutations, Gaussians against integrals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit.errors import RewardError
from plaudit.rewards.rules.geometry import (
    Box,
    Point,
    Size,
    area,
    coordinate_closeness,
    difficulty_weights,
    gaussian_coverage,
    gaussian_point,
    giou,
    iou,
    l1,
    match,
    set_iou,
    to_pixels,
)

GRID = 12


def counted(box: Box) -> np.ndarray:
    mask = np.zeros((GRID, GRID), dtype=bool)
    mask[int(box.y1) : int(box.y2), int(box.x1) : int(box.x2)] = True
    return mask


@st.composite
def pixel_boxes(draw: st.DrawFn) -> Box:
    x1, y1 = draw(st.integers(0, GRID - 1)), draw(st.integers(0, GRID - 1))
    return Box(x1, y1, draw(st.integers(x1 + 1, GRID)), draw(st.integers(y1 + 1, GRID)))


@settings(deadline=None)
@given(pixel_boxes(), pixel_boxes())
def test_overlaps_are_what_counting_pixels_gives(a: Box, b: Box) -> None:
    in_a, in_b = counted(a), counted(b)
    union = (in_a | in_b).sum()
    hull = counted(Box(min(a.x1, b.x1), min(a.y1, b.y1), max(a.x2, b.x2), max(a.y2, b.y2))).sum()
    expected = (in_a & in_b).sum() / union
    assert iou([a], [b])[0, 0] == pytest.approx(expected)
    assert giou([a], [b])[0, 0] == pytest.approx(expected - (hull - union) / hull)
    assert area([a])[0] == in_a.sum()


@settings(deadline=None)
@given(pixel_boxes(), pixel_boxes(), st.floats(0.1, 10), st.floats(-50, 50))
def test_overlaps_are_symmetric_and_ignore_unit_and_origin(a: Box, b: Box, scale: float, shift: float) -> None:
    moved = [np.asarray(box) * scale + shift for box in (a, b)]
    for overlap in (iou, giou):
        value = overlap([a], [b])[0, 0]
        assert overlap([b], [a])[0, 0] == pytest.approx(value)
        assert overlap(moved[:1], moved[1:])[0, 0] == pytest.approx(value, abs=1e-9)
        assert overlap([a], [a])[0, 0] == 1
    assert -1 < giou([a], [b])[0, 0] <= iou([a], [b])[0, 0] <= 1


def test_giou_falls_with_distance_where_iou_is_flat() -> None:
    unit = Box(0, 0, 1, 1)
    apart = [Box(x, 0, x + 1, 1) for x in (1, 2, 999)]
    assert iou([unit], apart).tolist() == [[0, 0, 0]]
    assert giou([unit], apart)[0] == pytest.approx([0, -1 / 3, -0.998])


def test_boxes_without_area_overlap_nothing() -> None:
    flat = [Box(1, 1, 1, 1), Box(0, 0, 0, 5), Box(3, 3, 1, 1)]
    for overlap in (iou, giou):
        assert np.isfinite(overlap(flat, [*flat, Box(0, 0, 4, 4)])).all()
    assert not iou(flat, [*flat, Box(0, 0, 4, 4)]).any()
    assert iou([], [Box(0, 0, 1, 1)]).shape == (0, 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 10_000))
def test_matching_is_the_cheapest_of_all_permutations(n: int, m: int, seed: int) -> None:
    cost = np.random.default_rng(seed).normal(size=(n, m))
    small, large = (cost, m) if n <= m else (cost.T, n)
    cheapest = min(
        sum(small[i, j] for i, j in enumerate(columns)) for columns in itertools.permutations(range(large), len(small))
    )
    pairs = match(cost)
    assert len(pairs.rows) == min(n, m) == len(set(pairs.columns.tolist()))
    assert cost[pairs].sum() == pytest.approx(cheapest)


def test_set_iou_charges_for_surplus_and_for_missing_boxes() -> None:
    a, b, half = Box(0, 0, 2, 2), Box(10, 10, 12, 12), Box(0, 0, 2, 1)
    assert set_iou([b, a], [a, b]) == 1
    assert set_iou([half, b], [a, b]) == pytest.approx(0.75)
    assert set_iou([a, a, a, a], [a]) == 0.25
    assert set_iou([a], [a, b]) == 0.5
    assert set_iou([], [a]) == set_iou([a], []) == set_iou([], []) == 0


def test_l1_adds_all_four_coordinates() -> None:
    assert l1([Box(0, 0, 1, 1)], [Box(1, 2, 4, 8)]).tolist() == [[1 + 2 + 3 + 7]]


# --- closeness -------------------------------------------------------------------------------------------------------


def bhattacharyya_by_integration(predicted: Box, true: Box, alpha: float) -> float:
    """The integral of sqrt(p q), one axis after the other, on a fine grid."""
    total = 1.0
    for low, high in ((0, 2), (1, 3)):
        x = np.linspace(-400, 400, 200_001)

        def density(box: Box, x: np.ndarray = x, low: int = low, high: int = high) -> np.ndarray:
            centre, sigma = (box[low] + box[high]) / 2, alpha * (box[high] - box[low])
            return np.exp(-0.5 * ((x - centre) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))

        total *= float(np.trapezoid(np.sqrt(density(predicted) * density(true)), x))
    return total


@pytest.mark.parametrize("alpha", [0.5, 0.25])
@pytest.mark.parametrize("predicted", [Box(0, 0, 20, 10), Box(5, -3, 45, 9), Box(30, 30, 34, 70), Box(-9, 0, 1, 2)])
def test_coverage_is_the_integral_of_the_root_of_both_densities(predicted: Box, alpha: float) -> None:
    true = Box(0, 0, 20, 10)
    closed = gaussian_coverage(predicted, true, alpha)
    assert closed == pytest.approx(bhattacharyya_by_integration(predicted, true, alpha), rel=1e-6)
    assert closed == pytest.approx(gaussian_coverage(true, predicted, alpha))
    assert (closed == 1) == (predicted == true)


def coverage_with_published_epsilons(p: Box, g: Box, alpha: float = 0.5, eps: float = 1e-8) -> float:
    cov_p, cov_g = (np.diag([(alpha * box.width) ** 2, (alpha * box.height) ** 2]) for box in (p, g))
    mean, d = (cov_p + cov_g) / 2, np.subtract(p.centre, g.centre)
    ratio = np.linalg.det(mean) / np.sqrt(np.linalg.det(cov_p) * np.linalg.det(cov_g) + eps)
    return float(np.exp(-(d @ np.linalg.inv(mean + eps * np.eye(2)) @ d / 8 + 0.5 * np.log(ratio))))


def test_the_published_epsilons_vanish_in_pixels_and_mislead_in_unit_coordinates() -> None:
    p, g = Box(3, 4, 25, 16), Box(0, 0, 20, 10)
    assert gaussian_coverage(p, g) == pytest.approx(coverage_with_published_epsilons(p, g), rel=1e-6)
    tiny = Box(0.5, 0.5, 0.51, 0.51)
    assert gaussian_coverage(tiny, tiny) == 1
    assert coverage_with_published_epsilons(tiny, tiny) > 1.5


def test_the_point_reward_is_the_targets_gaussian_with_peak_one() -> None:
    true = Box(0, 0, 20, 10)
    assert gaussian_point(Box(9, 4, 11, 6), true) == 1
    assert gaussian_point(Box(19, 4, 21, 6), true) == pytest.approx(math.exp(-0.5))  # one sigma to the right
    assert gaussian_point(Box(9, 9, 11, 11), true) == pytest.approx(math.exp(-0.5))  # one sigma down
    assert gaussian_point(Box(14, 4, 16, 6), true, alpha=0.25) == pytest.approx(math.exp(-0.5))


@settings(deadline=None)
@given(pixel_boxes(), pixel_boxes(), st.floats(0.1, 10))
def test_adaptive_widths_make_the_reward_independent_of_size_and_fixed_ones_do_not(a: Box, b: Box, k: float) -> None:
    larger = [Box(*(np.asarray(box) * k)) for box in (a, b)]
    for reward in (gaussian_point, gaussian_coverage):
        assert reward(*larger) == pytest.approx(reward(a, b), abs=1e-9)
    if abs(k - 1) > 0.1 and a.centre != b.centre:
        assert (gaussian_point(*larger, sigma=5) > gaussian_point(a, b, sigma=5)) == (k < 1)


def test_closeness_is_a_harmonic_mean_and_survives_coordinates_outside_the_picture() -> None:
    true, size = Box(10, 10, 30, 30), Size(100, 200)
    assert coordinate_closeness(true, true, size) == 1
    assert coordinate_closeness(Box(10, 10, 30, 130), true, size) == pytest.approx(4 / (3 + 1 / 0.5))
    assert coordinate_closeness(Box(60, 10, 30, 30), true, size) == pytest.approx(4 / (3 + 1 / 0.5))
    assert 0 < coordinate_closeness(Box(-1e6, 0, 1e6, 1e6), true, size) < 0.002


def test_difficulty_weights_favour_small_targets_within_limits() -> None:
    sizes = [Size(100, 100)] * 3
    boxes = [Box(0, 0, 50, 50), Box(0, 0, 25, 25), Box(0, 0, 100, 100)]  # 1/sqrt(share) = 2, 4, 1
    assert difficulty_weights(boxes, sizes) == pytest.approx([6 / 7, 12 / 7, 0.5])
    assert difficulty_weights([Box(0, 0, 100, 100)] * 9 + [Box(0, 0, 1, 1)], [Size(100, 100)] * 10)[-1] == 2
    with pytest.raises(RewardError, match="area"):
        difficulty_weights([Box(1, 1, 1, 1)], sizes[:1])


def test_units_are_converted_only_as_said() -> None:
    size = Size(200, 100)
    assert to_pixels(Box(0.1, 0.2, 0.5, 1), "unit", size) == Box(20, 20, 100, 100)
    assert to_pixels(Box(100, 200, 500, 1000), "thousand", size) == Box(20, 20, 100, 100)
    assert to_pixels(Box(0.1, 0.2, 0.5, 1), "pixel", None) == Box(0.1, 0.2, 0.5, 1)
    with pytest.raises(RewardError, match="size"):
        to_pixels(Box(0, 0, 1, 1), "unit", None)


def test_a_box_knows_its_centre_and_what_it_contains() -> None:
    box = Box(0, 0, 4, 2)
    assert box.centre == Point(2, 1) and box.valid
    assert box.contains(Point(4, 2)) and not box.contains(Point(4.1, 1))
    assert not Box(4, 0, 0, 2).valid and not Box(0, 0, 0, 2).valid
