"""The verdict on synthetic outcomes: all four, too few, and what is missing."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from plaudit.audit.claim import Point, effect_of, judged, verdict_of

Sides = tuple[dict[int, Point | None], dict[int, Point | None]]


def sides(gain: float, scatter: float = 0.1, seeds: int = 3, items: int = 200) -> Sides:
    rng = np.random.default_rng(5)
    level = rng.normal(size=items)

    def side(shift: float) -> dict[int, Point | None]:
        return {
            seed: {f"item{i}": float(level[i] + shift + scatter * rng.normal()) for i in range(items)}
            for seed in range(seeds)
        }

    return side(gain), side(0.0)


@pytest.mark.parametrize(
    ("gain", "scatter", "by", "verdict"),
    [
        (0.5, 0.1, 0.0, "shown"),
        (0.5, 0.1, 0.4, "shown"),
        (0.5, 0.1, 0.9, "mixed"),  # better, and not by so much
        (-0.5, 0.1, 0.0, "negative"),
        (0.0, 0.1, 0.5, "negative"),  # the interval leaves the claim out
        (0.1, 9.0, 0.0, "inconclusive"),
        (0.0, 0.1, -0.5, "shown"),  # no worse than by half
        (-0.9, 0.1, -0.5, "negative"),
        (0.0, 90.0, -0.5, "inconclusive"),
    ],
)
def test_the_verdict_follows_from_the_interval(gain: float, scatter: float, by: float, verdict: str) -> None:
    effect = effect_of(*sides(gain, scatter), by=by)
    assert effect.verdict == verdict
    assert effect.low is not None and effect.mean is not None and effect.high is not None
    assert effect.low < effect.mean < effect.high
    assert (effect.seeds, effect.items, effect.missing) == (3, 200, 0)


def test_a_metric_that_is_better_lower_turns_the_difference_round() -> None:
    better, than = sides(-0.5)
    assert effect_of(better, than).verdict == "negative"
    assert effect_of(better, than, sign=-1.0).verdict == "shown"
    assert effect_of(than, better, sign=-1.0).mean == -(effect_of(better, than, sign=-1.0).mean or math.nan)


def test_pairs_take_out_what_items_have_in_common() -> None:
    """Unpaired, a scatter of 1 between items would hide a gain of 0.05; between two seeds that are unlike it still counts."""
    assert effect_of(*sides(0.05, 0.02)).verdict == "shown"
    better, than = sides(0.05, 0.02)
    better[0] = {item: value + 5 for item, value in (better[0] or {}).items()}
    assert effect_of(better, than).verdict == "inconclusive"


@pytest.mark.parametrize(
    "lost", [lambda b, t: b.update({2: None}), lambda b, t: t.pop(0), lambda b, t: t.update({1: None})]
)
def test_two_seeds_are_too_few_however_clear_they_are(lost: Callable[..., object]) -> None:
    better, than = sides(50.0)
    lost(better, than)
    effect = effect_of(better, than)
    assert (effect.verdict, effect.seeds, effect.mean) == ("inconclusive", 2, None)
    assert effect.why == "2 seeds have both figures; 3 are needed"


def test_a_missing_score_is_left_out_and_counted_and_too_many_decide_nothing() -> None:
    better, than = sides(0.5)
    first = dict(better[0] or {})
    better[0] = first | {"item0": math.nan}
    del first["item1"]
    than[1] = {item: value for item, value in (than[1] or {}).items() if item != "item1"}
    effect = effect_of(better, than)
    assert (effect.verdict, effect.items, effect.missing) == ("shown", 198, 2)
    better[0] = first | {f"item{i}": math.nan for i in range(40)}
    effect = effect_of(better, than)
    assert (effect.verdict, effect.why) == ("inconclusive", "40 of 200 items lack a score in a seed")
    better[0] = dict.fromkeys(first, math.nan)
    assert effect_of(better, than).why == "no item has a score in every seed of both"


def test_a_figure_without_items_has_its_seeds_alone() -> None:
    better: dict[int, Point | None] = {0: {"": 1.0}, 1: {"": 1.1}, 2: {"": 0.9}}
    effect = effect_of(better, {seed: {"": 0.0} for seed in range(3)})
    assert effect.low == pytest.approx(1 - 4.3027 * 0.1 / math.sqrt(3), abs=1e-4)
    assert effect.verdict == "shown"
    assert effect_of(better, better).verdict == "negative"  # no difference at all, exactly


def test_bounds_belong_to_the_verdict_that_the_table_says() -> None:
    assert judged(0.0, 1.0, 0.0) == "inconclusive"
    assert judged(0.1, 0.3, 0.3) == "shown"
    assert judged(-1.0, 0.0, 0.0) == "negative"
    assert judged(-0.02, 0.1, -0.02) == "inconclusive"


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [
        (["shown", "shown"], "shown"),
        (["shown", "negative"], "mixed"),
        (["shown", "inconclusive"], "mixed"),
        (["mixed", "negative"], "mixed"),
        (["negative", "inconclusive"], "negative"),
        (["inconclusive", "inconclusive"], "inconclusive"),
    ],
)
def test_a_claim_with_several_parts(verdicts: list, whole: str) -> None:
    assert verdict_of(verdicts) == whole
