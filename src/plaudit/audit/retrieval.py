"""Retrieval that must also show where: average precision in which a hit counts only if its mask fits (S024).

The ROxford/RParis protocol: every database image is easy, hard, unclear or negative for a query. What a setup ignores is
taken out of the ranking before precision is measured. A positive whose mask fits less than the threshold stays in the
ranking as a miss and stays among the positives that should have been found. Metric details are from the protocol's
family, not from released code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plaudit.errors import DataError


class Grade(StrEnum):
    EASY = "easy"
    HARD = "hard"
    UNCLEAR = "unclear"
    NEGATIVE = "negative"


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Which grades should be found and which are ignored; the others are wrong."""

    positive: frozenset[Grade]
    ignored: frozenset[Grade]


EASY = Setup(positive=frozenset({Grade.EASY}), ignored=frozenset({Grade.HARD, Grade.UNCLEAR}))
MEDIUM = Setup(positive=frozenset({Grade.EASY, Grade.HARD}), ignored=frozenset({Grade.UNCLEAR}))
HARD = Setup(positive=frozenset({Grade.HARD}), ignored=frozenset({Grade.EASY, Grade.UNCLEAR}))

THRESHOLDS = tuple(n / 100 for n in range(50, 100, 5))


@dataclass(frozen=True, kw_only=True)
class Retrieved:
    """One query's ranking of the database, best first: grades, and how well each returned mask fits the true one.

    Overlaps of images that are not positive are never read. Positives may be left out of the ranking (a cut-off list);
    `num_unranked` counts them by grade, so that they are missed rather than forgotten.
    """

    grades: tuple[Grade, ...]
    overlaps: tuple[float, ...]
    num_unranked: tuple[tuple[Grade, int], ...] = ()

    def __post_init__(self) -> None:
        if len(self.grades) != len(self.overlaps):
            raise DataError(f"retrieved: {len(self.grades)} grades but {len(self.overlaps)} overlaps; give one of each")
        for rank, (grade, overlap) in enumerate(zip(self.grades, self.overlaps, strict=True), start=1):
            if grade in MEDIUM.positive and not 0 <= overlap <= 1:
                raise DataError(f"retrieved: the {grade} image at rank {rank} has overlap {overlap}; allowed: 0 to 1")


def average_precision(hits: Sequence[bool], num_positive: int) -> float:
    """Area under precision over recall by trapezoids, as in the ROxford evaluation; NaN without positives.

    `hits [R]` says, from the best rank down, which images are found positives.
    """
    if not num_positive:
        return math.nan
    ranks = np.nonzero(np.asarray(hits, dtype=bool))[0]
    found = np.arange(len(ranks))
    before = np.where(ranks == 0, 1.0, found / np.maximum(ranks, 1))
    after = (found + 1) / (ranks + 1)
    return float((before + after).sum() / 2 / num_positive)


def localised_precision(retrieved: Retrieved, setup: Setup, threshold: float) -> float:
    """Average precision of one query in which a positive is a hit only from this mask overlap on (0: image level)."""
    ranked = [
        (grade in setup.positive, overlap)
        for grade, overlap in zip(retrieved.grades, retrieved.overlaps, strict=True)
        if grade not in setup.ignored
    ]
    missed = sum(count for grade, count in retrieved.num_unranked if grade in setup.positive)
    hits = [positive and overlap >= threshold for positive, overlap in ranked]
    return average_precision(hits, sum(positive for positive, _ in ranked) + missed)


@dataclass(frozen=True, kw_only=True)
class RetrievalReport:
    """Means over the queries that have a positive; `without_positive` have none and are left out, not counted as 0.

    `image_map` asks only for the image, `pixel_map` also for its mask, averaged over thresholds (mAP@50:5:95);
    `mask_iou` is the mean overlap over known positive pairs, the second task.
    """

    image_map: float
    pixel_map: float
    by_threshold: tuple[float, ...]
    mask_iou: float
    queries: int
    without_positive: int

    @property
    def gap(self) -> float:
        """What knowing the image but not its pixels hides."""
        return self.image_map - self.pixel_map


def retrieval_report(
    queries: Sequence[Retrieved], setup: Setup = MEDIUM, thresholds: Sequence[float] = THRESHOLDS
) -> RetrievalReport:
    usable = [query for query in queries if not math.isnan(localised_precision(query, setup, 0.0))]
    by_threshold = [_mean([localised_precision(query, setup, n) for query in usable]) for n in thresholds]
    positive = [
        overlap
        for query in usable
        for grade, overlap in zip(query.grades, query.overlaps, strict=True)
        if grade in setup.positive
    ]
    return RetrievalReport(
        image_map=_mean([localised_precision(query, setup, 0.0) for query in usable]),
        pixel_map=_mean(by_threshold),
        by_threshold=tuple(by_threshold),
        mask_iou=_mean(positive),
        queries=len(usable),
        without_positive=len(queries) - len(usable),
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def mask_overlap(found: ArrayLike, true: ArrayLike) -> float:
    """IoU of a returned mask with the true one, which must show something."""
    found_HW, true_HW = np.asarray(found, dtype=bool), np.asarray(true, dtype=bool)
    if found_HW.shape != true_HW.shape or not true_HW.any():
        raise DataError(
            f"masks of shapes {list(found_HW.shape)} and {list(true_HW.shape)}, {int(true_HW.sum())} true pixels; give "
            "equal shapes and, for a positive, at least one true pixel"
        )
    return float((found_HW & true_HW).sum() / (found_HW | true_HW).sum())


def consensus(masks: ArrayLike) -> NDArray[np.bool_]:
    """The pixels `[H, W]` that more than half of the annotators `[K, H, W]` marked."""
    masks_KHW = np.asarray(masks, dtype=bool)
    if masks_KHW.ndim != 3 or not len(masks_KHW):
        raise DataError(f"masks have shape {list(masks_KHW.shape)}; give [annotators, H, W]")
    return np.asarray(masks_KHW.sum(0) * 2 > len(masks_KHW))
