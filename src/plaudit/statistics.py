"""Means with honest intervals: pure numpy, 95 % unless said otherwise.

A missing score is NaN. It is dropped and counted, never read as zero; what cannot be estimated is NaN as well.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from plaudit.errors import DataError

Z_95 = 1.96
RESAMPLES = 5_000


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimated mean between two bounds, from `count` values; `missing` more were absent."""

    mean: float
    low: float
    high: float
    count: int
    missing: int = 0


@dataclass(frozen=True, kw_only=True)
class Items:
    """One score an item. Ids may repeat: a small pool of captions is drawn again with other noise."""

    ids: tuple[str, ...]
    scores: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.scores):
            raise DataError(f"items: {len(self.ids)} ids but {len(self.scores)} scores; give one score for each id")


@dataclass(frozen=True, kw_only=True)
class Gain:
    """Mean of after minus before over `count` pairs; `missing` pairs lack a score, `unpaired` items lack a partner."""

    mean: float
    low: float
    high: float
    count: int
    missing: int
    unpaired: int


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How a number differs between seeds; `std` has n - 1 below it and is NaN for one seed."""

    mean: float
    std: float
    low: float
    high: float
    count: int
    missing: int


def wilson(successes: float, count: int, z: float = Z_95) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927; Brown, Cai and DasGupta 2001, eq. 4)."""
    if not 0 <= successes <= count:
        raise DataError(f"wilson: {successes} successes of {count}; successes must lie between 0 and the count")
    if count == 0:
        return Interval(mean=math.nan, low=math.nan, high=math.nan, count=0)
    p = successes / count
    shrink = 1 + z**2 / count
    centre = (p + z**2 / (2 * count)) / shrink
    half = z / shrink * math.sqrt(p * (1 - p) / count + z**2 / (4 * count**2))
    # The bounds at p = 0 and p = 1 are exactly 0 and 1; rounding must not push the estimate outside its own interval.
    return Interval(mean=p, low=min(max(centre - half, 0.0), p), high=max(min(centre + half, 1.0), p), count=count)


def is_binary(values: Sequence[float] | np.ndarray) -> bool:
    """Whether there is a value and every value present is 0 or 1, so that the mean is an accuracy."""
    present = _present(values)
    return present.size > 0 and bool(np.isin(present, (0.0, 1.0)).all())


def mean_interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Mean with its 95 % interval: Wilson's for scores that are all 0 or 1, Student's t otherwise.

    One value that is neither 0 nor 1 has a mean but no interval: its bounds are NaN.
    """
    present = _present(values)
    missing = len(values) - present.size
    if is_binary(present):
        interval = wilson(float(present.sum()), present.size)
        return Interval(mean=interval.mean, low=interval.low, high=interval.high, count=present.size, missing=missing)
    if present.size == 0:
        return Interval(mean=math.nan, low=math.nan, high=math.nan, count=0, missing=missing)
    mean, half = float(present.mean()), math.nan
    if present.size > 1:
        half = student_t_975(present.size - 1) * float(present.std(ddof=1)) / math.sqrt(present.size)
    return Interval(mean=mean, low=mean - half, high=mean + half, count=present.size, missing=missing)


def crossed_interval(values: np.ndarray) -> Interval:
    """Mean of [S, I] values, no one missing, where both the S seeds and the I items stand for more of their kind.

    The margin is that of the seeds' means and that of the items' means, less what neither explains and the seeds' means hold
    already, each with its own Student's t, added in quadrature. With one item there are the seeds alone. Equal differences of
    scores that are 0 or 1 get the interval of Agresti and Min.
    """
    seeds, items = values.shape
    mean = float(values.mean())
    if seeds < 2:
        return Interval(mean=mean, low=math.nan, high=math.nan, count=values.size)
    if np.ptp(values) == 0 and items > 1 and mean in (-1.0, 0.0, 1.0):
        low, high = _agresti_min(mean, items)
        return Interval(mean=mean, low=low, high=high, count=values.size)
    by_seed, by_item = values.mean(axis=1), values.mean(axis=0)
    margin = student_t_975(seeds - 1) * float(by_seed.std(ddof=1)) / math.sqrt(seeds)
    if items > 1:
        rest = float(((values - by_seed[:, None] - by_item + mean) ** 2).sum()) / (
            (seeds - 1) * (items - 1) * values.size
        )
        of_items = max(float(by_item.var(ddof=1)) / items - rest, 0.0)
        margin = math.hypot(margin, student_t_975(items - 1) * math.sqrt(of_items))
    return Interval(mean=mean, low=mean - margin, high=mean + margin, count=values.size)


def student_t_975(degrees: int) -> float:
    """The 0.975 quantile of Student's t, within 0.2 %: exact for 1 and 2 degrees of freedom, then the expansion in
    1 / degrees of Abramowitz and Stegun 26.7.5."""
    assert degrees >= 1, degrees
    if degrees == 1:
        return math.tan(0.475 * math.pi)
    if degrees == 2:
        return 0.95 / math.sqrt(2 * 0.975 * 0.025)
    z = 1.959963984540054
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92_160,
    )
    return z + math.fsum(term / degrees**power for power, term in enumerate(terms, start=1))


def paired_gain(before: Items, after: Items, seed: int = 0) -> Gain:
    """Mean gain with its 95 % percentile interval from a bootstrap over pairs of items, paired as in `matched`.

    Pairs are resampled, not ids: the interval is about new noise on this mix of prompts. A bootstrap of equal differences
    has no width, however few they are; where the scores are 0 or 1 they get the interval of Agresti and Min instead.
    """
    first, second = matched(before, after)
    differences = np.array(second.scores, dtype=np.float64) - np.array(first.scores, dtype=np.float64)
    present = _present(differences)
    if present.size and np.ptp(present) == 0 and is_binary((*first.scores, *second.scores)):
        low, high = _agresti_min(float(present[0]), present.size)
    else:
        low, high = _bootstrap(present, np.random.default_rng(seed))
    return Gain(
        mean=float(present.mean()) if present.size else math.nan,
        low=low,
        high=high,
        count=present.size,
        missing=differences.size - present.size,
        unpaired=len(before.ids) + len(after.ids) - 2 * len(first.ids),
    )


def matched(before: Items, after: Items) -> tuple[Items, Items]:
    """The items that both sides have, in the order of `before`: the k-th occurrence of an id with the k-th."""
    first, second = _by_occurrence(before), _by_occurrence(after)
    common = [key for key in first if key in second]
    ids = tuple(identity for identity, _ in common)
    return (
        Items(ids=ids, scores=tuple(first[key] for key in common)),
        Items(ids=ids, scores=tuple(second[key] for key in common)),
    )


def spread(values: Sequence[float] | np.ndarray) -> Spread:
    """Mean, standard deviation, smallest and largest over seeds; NaN is dropped and counted."""
    present = _present(values)
    missing = len(values) - present.size
    if present.size == 0:
        return Spread(mean=math.nan, std=math.nan, low=math.nan, high=math.nan, count=0, missing=missing)
    return Spread(
        mean=float(present.mean()),
        std=float(present.std(ddof=1)) if present.size > 1 else math.nan,
        low=float(present.min()),
        high=float(present.max()),
        count=present.size,
        missing=missing,
    )


def _present(values: Sequence[float] | np.ndarray) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    return array[~np.isnan(array)]


def _by_occurrence(items: Items) -> dict[tuple[str, int], float]:
    """Scores by (id, how many times the id was seen before)."""
    return dict(zip(_occurrences(items.ids), items.scores, strict=True))


def _occurrences(ids: Sequence[str]) -> Iterator[tuple[str, int]]:
    seen: Counter[str] = Counter()
    for identity in ids:
        yield identity, seen[identity]
        seen[identity] += 1


def _bootstrap(values: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """The 2.5 % and 97.5 % points of the resampled mean. Drawing how often each distinct value is picked is the same
    bootstrap, and fast where there are few distinct values."""
    if values.size < 2:
        return math.nan, math.nan
    distinct, counts = np.unique(values, return_counts=True)
    picked = rng.multinomial(values.size, counts / values.size, size=RESAMPLES)
    low, high = np.quantile(picked @ distinct / values.size, (0.025, 0.975))
    return float(low), float(high)


def _agresti_min(difference: float, count: int) -> tuple[float, float]:
    """Interval of a difference of paired proportions when all pairs differ by the same -1, 0 or 1: half a pair is added
    to each of the four cells (Agresti and Min 2005, Statistics in Medicine 24:729-740)."""
    total = count + 2
    centre = difference * count / total
    half = Z_95 * math.sqrt(abs(difference) * count + 1 - total * centre**2) / total
    return max(centre - half, -1.0), min(centre + half, 1.0)
