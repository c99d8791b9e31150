"""Whether a claim holds: an expected difference between two arms, its interval, and the verdict that follows by rule.

docs/experiments.md states the rule. An item without a score in any seed of either arm is left out and counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from plaudit.audit.record import Effect, Verdict
from plaudit.statistics import crossed_interval

Point = Mapping[str, float]  # a figure of one run by item; a figure without items has one, called ""

FEWEST = 3  # seeds
MISSING = 0.1  # share of the items that may lack a score


def effect_of(
    better: Mapping[int, Point | None], than: Mapping[int, Point | None], *, sign: float = 1.0, by: float = 0.0
) -> Effect:
    """The difference between figures by seed, paired by seed and by item."""
    seeds = [seed for seed in better if better[seed] is not None and than.get(seed) is not None]
    pairs = [(better[seed], than[seed]) for seed in seeds]
    every = list(dict.fromkeys(item for pair in pairs for side in pair for item in side or ()))
    table = np.array(
        [[sign * (first.get(i, math.nan) - second.get(i, math.nan)) for i in every] for first, second in pairs]  # type: ignore[union-attr]
    ).reshape(len(seeds), len(every))
    whole = ~np.isnan(table).any(axis=0)
    counts = {"seeds": len(seeds), "items": int(whole.sum()), "missing": int((~whole).sum())}
    if len(seeds) < FEWEST:
        return Effect(
            verdict="inconclusive", why=f"{len(seeds)} seeds have both figures; {FEWEST} are needed", **counts
        )
    if not whole.any():
        return Effect(verdict="inconclusive", why="no item has a score in every seed of both", **counts)
    found = crossed_interval(table[:, whole])
    figures = {"mean": found.mean, "low": found.low, "high": found.high}
    if counts["missing"] > MISSING * len(every):
        why = f"{counts['missing']} of {len(every)} items lack a score in a seed"
        return Effect(verdict="inconclusive", why=why, **figures, **counts)
    return Effect(verdict=judged(found.low, found.high, by), **figures, **counts)


def judged(low: float, high: float, by: float) -> Verdict:
    """What an interval says of the claim that a difference is at least `by`; below 0 that it is not worse by more."""
    if by < 0:
        return "shown" if low > by else "negative" if high < by else "inconclusive"
    if low > 0:
        return "shown" if high >= by else "mixed"
    return "negative" if high < by or high <= 0 else "inconclusive"


def verdict_of(verdicts: Sequence[Verdict]) -> Verdict:
    """Of a claim with several expectations."""
    if len(set(verdicts)) == 1:
        return verdicts[0]
    return "mixed" if {"shown", "mixed"} & set(verdicts) else "negative"
