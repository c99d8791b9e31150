from __future__ import annotations

import math

import numpy as np
import pytest

from plaudit.errors import DataError
from plaudit.statistics import (
    Items,
    crossed_interval,
    is_binary,
    matched,
    mean_interval,
    paired_gain,
    spread,
    student_t_975,
    wilson,
)


def items(scores: list[float], ids: list[str] | None = None) -> Items:
    return Items(ids=tuple(ids or [f"item{i}" for i in range(len(scores))]), scores=tuple(scores))


# --- Wilson --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    # Newcombe (1998), Statistics in Medicine 17:857-872, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_agrees_with_published_intervals(successes: int, count: int, low: float, high: float) -> None:
    interval = wilson(successes, count)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=6e-5)
    assert interval.mean == successes / count
    assert interval.count == count


def test_wilson_bounds_solve_the_score_equation() -> None:
    interval = wilson(7, 40, z=2.5)
    for bound in (interval.low, interval.high):
        assert abs(interval.mean - bound) / math.sqrt(bound * (1 - bound) / 40) == pytest.approx(2.5)


@pytest.mark.parametrize("count", [1, 3, 17, 600])
def test_wilson_is_symmetric_and_holds_its_estimate(count: int) -> None:
    for successes in range(count + 1):
        interval, mirrored = wilson(successes, count), wilson(count - successes, count)
        assert 0 <= interval.low <= interval.mean <= interval.high <= 1
        assert (interval.low, interval.high) == pytest.approx((1 - mirrored.high, 1 - mirrored.low))


def test_wilson_of_nothing_is_unknown_and_the_impossible_is_refused() -> None:
    nothing = wilson(0, 0)
    assert math.isnan(nothing.mean)
    assert math.isnan(nothing.low)
    with pytest.raises(DataError, match="5 successes of 4"):
        wilson(5, 4)


@pytest.mark.parametrize("count", [10, 30, 200])
def test_wilson_covers_the_truth_95_times_in_100_on_average(count: int) -> None:
    """By enumeration of all outcomes. For a single proportion the coverage swings around 95 %, as counts are whole."""
    intervals = [wilson(k, count) for k in range(count + 1)]

    def coverage(p: float) -> float:
        chances = [math.comb(count, k) * p**k * (1 - p) ** (count - k) for k in range(count + 1)]
        return sum(c for c, found in zip(chances, intervals, strict=True) if found.low <= p <= found.high)

    covered = [coverage(p) for p in np.linspace(0.05, 0.95, 181)]
    assert 0.945 < np.mean(covered) < 0.962
    assert min(covered) > 0.89


# --- means ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [
        (1, 12.706),
        (2, 4.303),
        (3, 3.182),
        (4, 2.776),
        (5, 2.571),
        (10, 2.228),
        (30, 2.042),
        (100, 1.984),
        (10**6, 1.960),
    ],
)
def test_t_quantiles_agree_with_the_table(degrees: int, quantile: float) -> None:
    assert student_t_975(degrees) == pytest.approx(quantile, rel=2e-3)


def test_mean_interval_of_plain_numbers_is_students() -> None:
    interval = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    # 3 -+ 2.7764 * sqrt(2.5 / 5)
    assert (interval.mean, interval.low, interval.high) == pytest.approx((3.0, 1.0368, 4.9632), rel=1e-3)


def test_mean_interval_of_zeros_and_ones_is_wilsons() -> None:
    interval = mean_interval([0.0] * 19 + [1.0] * 10 + [math.nan])
    expected = wilson(10, 29)
    assert (interval.mean, interval.low, interval.high) == (expected.mean, expected.low, expected.high)
    assert (interval.count, interval.missing) == (29, 1)
    assert is_binary([0.0, 1.0, math.nan])
    assert not is_binary([0.0, 0.5])
    assert not is_binary([math.nan])


def test_missing_values_are_dropped_and_counted_not_read_as_zero() -> None:
    full, holed = mean_interval([0.2, 0.4, 0.9]), mean_interval([math.nan, 0.2, 0.4, math.nan, 0.9])
    assert (holed.mean, holed.low, holed.high) == (full.mean, full.low, full.high)
    assert (holed.count, holed.missing) == (3, 2)
    empty = mean_interval([math.nan, math.nan])
    assert math.isnan(empty.mean)
    assert (empty.count, empty.missing) == (0, 2)


def test_one_value_has_a_mean_but_no_interval() -> None:
    interval = mean_interval([0.7])
    assert interval.mean == 0.7
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)


@pytest.mark.parametrize("count", [3, 5, 40])
def test_mean_interval_covers_the_truth_in_95_of_100_samples(count: int) -> None:
    draws = np.random.default_rng(1).normal(3.0, 2.0, size=(4000, count))
    covered = np.mean([(i := mean_interval(row)).low <= 3.0 <= i.high for row in draws])
    assert 0.935 < covered < 0.965


# --- paired gain ---------------------------------------------------------------------------------------------------


def test_paired_gain_agrees_with_the_normal_approximation() -> None:
    before = [0.0] * 30 + [1.0] * 10 + [0.0] * 30 + [1.0] * 30
    after = [1.0] * 30 + [0.0] * 10 + [0.0] * 30 + [1.0] * 30
    gain = paired_gain(items(before), items(after), seed=3)
    # Differences: 30 x +1, 10 x -1, 60 x 0; mean 0.2, standard error sqrt((0.4 - 0.04) / 100) = 0.06
    assert gain.mean == pytest.approx(0.2)
    assert (gain.low, gain.high) == pytest.approx((0.2 - 1.96 * 0.06, 0.2 + 1.96 * 0.06), abs=0.015)
    assert (gain.count, gain.missing, gain.unpaired) == (100, 0, 0)


def test_paired_gain_pairs_by_id_and_occurrence_whatever_the_order() -> None:
    before = items([0.0, 1.0, 0.0, 5.0], ["a", "a", "b", "only before"])
    after = items([9.0, 1.0, 3.0, 1.0], ["only after", "b", "a", "a"])
    first, second = matched(before, after)
    assert first == items([0.0, 1.0, 0.0], ["a", "a", "b"])
    assert second == items([3.0, 1.0, 1.0], ["a", "a", "b"])
    gain = paired_gain(before, after)
    assert gain.mean == pytest.approx((3 + 0 + 1) / 3)
    assert (gain.count, gain.unpaired) == (3, 2)


def test_a_pair_with_a_missing_score_is_counted_and_left_out() -> None:
    gain = paired_gain(items([0.0, math.nan, 0.0, 0.0]), items([1.0, 1.0, math.nan, 0.0]))
    assert gain.mean == pytest.approx(0.5)
    assert (gain.count, gain.missing) == (2, 2)
    nothing = paired_gain(items([math.nan]), items([1.0]))
    assert math.isnan(nothing.mean)
    assert math.isnan(nothing.low)


def test_equal_differences_of_few_pairs_are_not_certain() -> None:
    """Agresti and Min add half a pair to each cell: 16 unchanged pairs are 18 with one moved each way by halves."""
    unchanged = paired_gain(items([0.0, 1.0] * 8), items([0.0, 1.0] * 8))
    assert unchanged.mean == 0.0
    assert (unchanged.low, unchanged.high) == pytest.approx((-1.96 / 18, 1.96 / 18))
    # All 16 solved: 16.5 and 0.5 discordant of 18; difference 16 / 18, variance (17 / 18 - (16 / 18) ** 2) / 18
    solved = paired_gain(items([0.0] * 16), items([1.0] * 16))
    half = 1.96 * math.sqrt((17 / 18 - (16 / 18) ** 2) / 18)
    assert (solved.mean, solved.low, solved.high) == pytest.approx((1.0, 16 / 18 - half, 1.0))
    lost = paired_gain(items([1.0] * 16), items([0.0] * 16))
    assert (lost.low, lost.high) == pytest.approx((-1.0, -solved.low))


def test_paired_gain_is_repeatable_and_changes_sign_with_its_sides() -> None:
    rng = np.random.default_rng(0)
    before, after = items(rng.normal(0, 1, 80).tolist()), items(rng.normal(0.5, 1, 80).tolist())
    gain, again, reverse = (
        paired_gain(*sides, seed=7) for sides in ((before, after), (before, after), (after, before))
    )
    assert gain == again
    assert reverse.mean == pytest.approx(-gain.mean)
    assert (reverse.low, reverse.high) == pytest.approx((-gain.high, -gain.low), abs=0.03)
    assert paired_gain(before, after, seed=8) != gain


def test_pairing_makes_the_interval_narrower_where_items_agree() -> None:
    rng = np.random.default_rng(2)
    ease = rng.normal(0, 5, 100)
    before, after = items(ease.tolist()), items((ease + 1 + rng.normal(0, 0.1, 100)).tolist())
    gain = paired_gain(before, after)
    shuffled = paired_gain(before, items(rng.permutation(np.array(after.scores)).tolist()))
    assert 0.95 < gain.low < gain.high < 1.05
    assert shuffled.high - shuffled.low > 20 * (gain.high - gain.low)


def test_paired_gain_covers_the_truth_in_95_of_100_samples() -> None:
    rng = np.random.default_rng(4)
    covered = []
    for trial in range(400):
        before = (rng.random(150) < 0.4).astype(float)
        after = np.where(rng.random(150) < 0.3, 1.0, before)  # the truth: 0.3 * (1 - 0.4)
        gain = paired_gain(items(before.tolist()), items(after.tolist()), seed=trial)
        covered.append(gain.low <= 0.18 <= gain.high)
    assert 0.92 < np.mean(covered) < 0.98


def test_items_of_unequal_length_are_refused() -> None:
    with pytest.raises(DataError, match="2 ids but 1 scores"):
        Items(ids=("a", "b"), scores=(1.0,))


# --- seeds ---------------------------------------------------------------------------------------------------------


def test_spread_over_seeds() -> None:
    found = spread([2.0, 4.0, math.nan, 9.0])
    assert found.mean == 5.0
    assert found.std == pytest.approx(math.sqrt((9 + 1 + 16) / 2))
    assert (found.low, found.high, found.count, found.missing) == (2.0, 9.0, 3, 1)


def test_one_seed_has_no_deviation_and_none_has_nothing() -> None:
    one, none = spread([0.5]), spread([math.nan])
    assert (one.mean, one.low, one.high) == (0.5, 0.5, 0.5)
    assert math.isnan(one.std)
    assert math.isnan(none.mean)
    assert (none.count, none.missing) == (0, 1)


# --- seeds and items -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("of_seeds", "of_items", "rest"),
    [(0.0, 1.0, 1.0), (1.0, 0.0, 1.0), (1.0, 1.0, 1.0), (0.1, 2.0, 0.5), (0.0, 0.0, 1.0)],
)
def test_intervals_over_seeds_and_items_hold_the_mean_as_often_as_they_say(
    of_seeds: float, of_items: float, rest: float
) -> None:
    """With seeds and items drawn anew each time, whichever of the two the scatter comes from; and no wider than it must be."""
    rng, trials, held, widths = np.random.default_rng(0), 1500, 0, []
    for _ in range(trials):
        values = (
            0.3
            + of_seeds * rng.normal(size=(4, 1))
            + of_items * rng.normal(size=(1, 30))
            + rest * rng.normal(size=(4, 30))
        )
        interval = crossed_interval(values)
        held += interval.low <= 0.3 <= interval.high
        widths.append(interval.high - interval.low)
    assert held / trials >= 0.935  # 0.95 less three deviations of the trials' count
    deviation = math.sqrt(of_seeds**2 / 4 + of_items**2 / 30 + rest**2 / 120)
    assert np.median(widths) < 2 * 3.4 * deviation


def test_one_item_leaves_the_seeds_and_one_seed_leaves_no_interval() -> None:
    seeds = np.array([[0.1], [0.4], [0.7]])
    expected = mean_interval(seeds[:, 0])
    found = crossed_interval(seeds)
    assert (found.mean, found.low, found.high) == pytest.approx((expected.mean, expected.low, expected.high))
    assert math.isnan(crossed_interval(np.array([[1.0, 0.0]])).low)


def test_equal_differences_of_answers_still_have_a_width_and_exact_ones_of_a_number_have_none() -> None:
    answers = crossed_interval(np.ones((3, 5)))
    assert 0 < answers.low < answers.mean == 1.0
    exact = crossed_interval(np.full((3, 1), 0.25))
    assert (exact.low, exact.high) == (0.25, 0.25)
