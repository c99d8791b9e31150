"""Localisation-aware precision: worked examples, and a slow walk down the ranking."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit.audit.retrieval import (
    EASY,
    HARD,
    MEDIUM,
    THRESHOLDS,
    Grade,
    Retrieved,
    Setup,
    average_precision,
    consensus,
    localised_precision,
    mask_overlap,
    retrieval_report,
)
from plaudit.errors import DataError

E, H, U, N = Grade.EASY, Grade.HARD, Grade.UNCLEAR, Grade.NEGATIVE


def query(*ranking: tuple[Grade, float], unranked: tuple[tuple[Grade, int], ...] = ()) -> Retrieved:
    return Retrieved(grades=tuple(g for g, _ in ranking), overlaps=tuple(o for _, o in ranking), num_unranked=unranked)


def slow_precision(retrieved: Retrieved, setup: Setup, threshold: float) -> float:
    """Walk down the ranking, recompute precision before and after every hit, add trapezoids of width 1 / positives."""
    total = sum(g in setup.positive for g in retrieved.grades)
    total += sum(n for g, n in retrieved.num_unranked if g in setup.positive)
    if total == 0:
        return math.nan
    seen = hits = 0
    area = 0.0
    for grade, overlap in zip(retrieved.grades, retrieved.overlaps, strict=True):
        if grade in setup.ignored:
            continue
        before = hits / seen if seen else 1.0
        seen += 1
        if grade in setup.positive and overlap >= threshold:
            hits += 1
            area += (before + hits / seen) / 2 / total
    return area


rankings = st.lists(st.tuples(st.sampled_from([E, H, U, N]), st.floats(0, 1)), max_size=12)
unranked = st.lists(st.tuples(st.sampled_from([E, H, U, N]), st.integers(0, 3)), max_size=2)


@settings(deadline=None)
@given(rankings, unranked, st.sampled_from([EASY, MEDIUM, HARD]), st.sampled_from((0.0, *THRESHOLDS)))
def test_precision_is_what_a_slow_walk_gives(
    ranking: list[tuple[Grade, float]], missed: list[tuple[Grade, int]], setup: Setup, threshold: float
) -> None:
    retrieved = query(*ranking, unranked=tuple(missed))
    found = localised_precision(retrieved, setup, threshold)
    assert found == pytest.approx(slow_precision(retrieved, setup, threshold), nan_ok=True)
    assert math.isnan(found) or 0 <= found <= localised_precision(retrieved, setup, 0.0) <= 1 + 1e-12


def test_worked_examples_of_the_trapezoids() -> None:
    assert average_precision([True, True, False], 2) == 1
    assert average_precision([False, True], 1) == pytest.approx((0 / 1 + 1 / 2) / 2)
    assert average_precision([True, False, True], 2) == pytest.approx((1 + (1 / 2 + 2 / 3) / 2) / 2)
    assert average_precision([True], 4) == 0.25
    assert average_precision([False, False], 3) == 0
    assert math.isnan(average_precision([False], 0))


def test_junk_leaves_the_ranking_before_precision_is_measured() -> None:
    retrieved = query((U, 0.0), (E, 0.9), (N, 0.0), (H, 0.9))
    assert localised_precision(retrieved, MEDIUM, 0.5) == pytest.approx((1 + (1 / 2 + 2 / 3) / 2) / 2)
    assert localised_precision(retrieved, HARD, 0.5) == pytest.approx(1 / 4)  # U and E gone: a miss, then the hit
    assert localised_precision(retrieved, EASY, 0.5) == 1


def test_a_positive_with_a_bad_mask_is_a_miss_that_still_counts() -> None:
    """It is neither junk (the ranking keeps it) nor forgotten (recall still wants it)."""
    retrieved = query((E, 0.4), (E, 0.8))
    assert localised_precision(retrieved, MEDIUM, 0.0) == 1
    assert localised_precision(retrieved, MEDIUM, 0.5) == pytest.approx((0 + 1 / 2) / 2 / 2)
    assert localised_precision(retrieved, MEDIUM, 0.4) == 1  # the threshold itself is enough
    assert localised_precision(retrieved, MEDIUM, 0.85) == 0


def test_the_report_averages_thresholds_and_queries_and_leaves_out_what_has_no_positive() -> None:
    queries = [query((E, 0.72)), query((E, 1.0), (N, 0.0)), query((N, 0.0), (U, 0.0))]
    report = retrieval_report(queries)
    assert THRESHOLDS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
    assert report.by_threshold == pytest.approx((1,) * 5 + (0.5,) * 5)
    assert (report.image_map, report.pixel_map) == pytest.approx((1, 0.75))
    assert report.gap == pytest.approx(0.25)
    assert report.mask_iou == pytest.approx(0.86)
    assert (report.queries, report.without_positive) == (2, 1)
    assert math.isnan(retrieval_report([]).pixel_map)


def test_ranking_by_how_sure_the_mask_is_raises_only_the_pixel_score() -> None:
    """The card's demonstration, on positives whose mask is right for every second one."""
    rng = np.random.default_rng(0)
    overlaps = [0.9 if i % 2 else 0.1 for i in range(20)]
    queries = [[(E, overlaps[i]) for i in rng.permutation(20)] for _ in range(20)]
    by_image = retrieval_report([query(*ranking) for ranking in queries])
    by_mask = retrieval_report([query(*sorted(ranking, key=lambda entry: -entry[1])) for ranking in queries])
    assert by_image.image_map == by_mask.image_map == 1
    assert by_image.pixel_map < 0.3 < 0.44 < by_mask.pixel_map


def test_masks() -> None:
    true = np.zeros((4, 4), bool)
    true[:2, :2] = True
    found = np.zeros((4, 4), bool)
    found[:2, 1:3] = True
    assert mask_overlap(found, true) == pytest.approx(2 / 6)
    assert mask_overlap(np.zeros((4, 4)), true) == 0 and mask_overlap(true, true) == 1
    with pytest.raises(DataError, match="true pixel"):
        mask_overlap(found, np.zeros((4, 4)))
    votes = np.array([[[1, 1, 0]], [[1, 0, 0]], [[1, 1, 0]], [[0, 0, 0]]])
    assert consensus(votes).tolist() == [[True, False, False]]  # two of four are not a majority
    with pytest.raises(DataError, match="annotators"):
        consensus(true)


def test_bad_rankings_are_refused() -> None:
    with pytest.raises(DataError, match="one of each"):
        Retrieved(grades=(E,), overlaps=())
    for overlap in (math.nan, -0.1, 1.1):
        with pytest.raises(DataError, match="rank 2"):
            query((N, math.nan), (H, overlap))
