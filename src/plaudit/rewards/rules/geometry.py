"""Boxes, how much they overlap and how they pair up: pure functions, in float64.

A box is `(x1, y1, x2, y2)` with x to the right and y downwards, in any one unit. Shape legend: N and M boxes, A axes (x, y).
Boxes without area overlap nothing: their IoU is 0, never NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plaudit.errors import RewardError

Array = NDArray[np.float64]
Coordinates = Literal["pixel", "unit", "thousand"]
WHOLE: Mapping[Coordinates, float] = {"unit": 1.0, "thousand": 1000.0}  # what a picture's side measures in them


class Point(NamedTuple):
    x: float
    y: float


class Box(NamedTuple):
    """Corners as they were written; `valid` says whether they span an area."""

    x1: float
    y1: float
    x2: float
    y2: float

    @property
    def valid(self) -> bool:
        return self.x1 < self.x2 and self.y1 < self.y2

    @property
    def width(self) -> float:
        return self.x2 - self.x1

    @property
    def height(self) -> float:
        return self.y2 - self.y1

    @property
    def centre(self) -> Point:
        return Point((self.x1 + self.x2) / 2, (self.y1 + self.y2) / 2)

    def contains(self, point: Point) -> bool:
        return self.x1 <= point.x <= self.x2 and self.y1 <= point.y <= self.y2


class Size(NamedTuple):
    width: float
    height: float


class Matching(NamedTuple):
    """Pairs `rows[k], columns[k]` of least total cost, min(N, M) of them."""

    rows: NDArray[np.intp]
    columns: NDArray[np.intp]


def to_pixels(box: Box, coordinates: Coordinates, size: Size | None) -> Box:
    """A box written in pixels, in 0..1 or in 0..1000, in the pixels of a picture of this size."""
    if coordinates == "pixel":
        return box
    if size is None:
        raise RewardError(f"coordinates {coordinates!r} need the picture's size; add `size: [width, height]`")
    x, y = (length / WHOLE[coordinates] for length in size)
    return Box(box.x1 * x, box.y1 * y, box.x2 * x, box.y2 * y)


# --- overlap ---------------------------------------------------------------------------------------------------------


def as_array(boxes: ArrayLike | Sequence[Box]) -> Array:
    return np.asarray(boxes, dtype=np.float64).reshape(-1, 4)


def area(boxes_N4: ArrayLike) -> Array:
    """Areas `[N]`; a box with swapped corners has none."""
    boxes = as_array(boxes_N4)
    return (boxes[:, 2:] - boxes[:, :2]).clip(0).prod(1)


def _intersection(a_N4: Array, b_M4: Array) -> Array:
    low = np.maximum(a_N4[:, None, :2], b_M4[None, :, :2])
    high = np.minimum(a_N4[:, None, 2:], b_M4[None, :, 2:])
    return (high - low).clip(0).prod(2)


def _ratio(part: Array, whole: Array) -> Array:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def iou(a: ArrayLike | Sequence[Box], b: ArrayLike | Sequence[Box]) -> Array:
    """Intersection over union `[N, M]`, in 0..1."""
    a_N4, b_M4 = as_array(a), as_array(b)
    both = _intersection(a_N4, b_M4)
    return _ratio(both, area(a_N4)[:, None] + area(b_M4)[None] - both)


def giou(a: ArrayLike | Sequence[Box], b: ArrayLike | Sequence[Box]) -> Array:
    """IoU minus the part of the common hull that neither covers `[N, M]`, in -1..1."""
    a_N4, b_M4 = as_array(a), as_array(b)
    both = _intersection(a_N4, b_M4)
    union = area(a_N4)[:, None] + area(b_M4)[None] - both
    low = np.minimum(a_N4[:, None, :2], b_M4[None, :, :2])
    high = np.maximum(a_N4[:, None, 2:], b_M4[None, :, 2:])
    hull = (high - low).clip(0).prod(2)
    return _ratio(both, union) - _ratio(hull - union, hull)


def l1(a: ArrayLike | Sequence[Box], b: ArrayLike | Sequence[Box]) -> Array:
    """Sum of the four coordinates' distances `[N, M]`."""
    return np.abs(as_array(a)[:, None] - as_array(b)[None]).sum(2)


# --- pairs -----------------------------------------------------------------------------------------------------------


def match(cost_NM: ArrayLike) -> Matching:
    """The one-to-one pairs of least total cost (Hungarian)."""
    from scipy.optimize import linear_sum_assignment

    return Matching(*linear_sum_assignment(np.asarray(cost_NM, dtype=np.float64)))


def set_iou(predicted: Sequence[Box], true: Sequence[Box]) -> float:
    """Total IoU of the best pairs over the larger number of boxes: surplus and missing boxes both cost. Two empty sets
    have none."""
    if not predicted or not true:
        return 0.0
    overlap = iou(predicted, true)
    return float(overlap[match(1 - overlap)].sum() / max(len(predicted), len(true)))


# --- closeness -------------------------------------------------------------------------------------------------------

LEAST_TERM = 1e-3  # of the harmonic mean: a coordinate off by the whole picture or more


def coordinate_closeness(predicted: Box, true: Box, size: Size) -> float:
    """Harmonic mean of 1 - |difference| / picture side over the four coordinates (S072's R_box)."""
    sides = (size.width, size.height) * 2
    terms = [max(1 - abs(p - t) / side, LEAST_TERM) for p, t, side in zip(predicted, true, sides, strict=True)]
    return 4 / sum(1 / term for term in terms)


def spreads(box: Box, alpha: float, sigma: float | None = None) -> Array:
    """Standard deviations `[A]` of a box's Gaussian: `alpha` times its sides, or `sigma` whatever its size."""
    return np.array([box.width, box.height]) * alpha if sigma is None else np.array([sigma, sigma])


def gaussian_point(predicted: Box, true: Box, alpha: float = 0.5, sigma: float | None = None) -> float:
    """The target's Gaussian, scaled to peak 1, at the predicted centre (S078's R_pt)."""
    offset = np.subtract(predicted.centre, true.centre) / spreads(true, alpha, sigma)
    return math.exp(-0.5 * float(offset @ offset))


def gaussian_coverage(predicted: Box, true: Box, alpha: float = 0.5, sigma: float | None = None) -> float:
    """Bhattacharyya coefficient of the two boxes' Gaussians (S078's R_cov); 1 exactly when they coincide.

    The determinants are products over axes, so their ratio needs no epsilon. The released code adds 1e-8 under the
    root, which is invisible in pixels and wrong in 0..1 coordinates.
    """
    p, t = spreads(predicted, alpha, sigma), spreads(true, alpha, sigma)
    mean_square = (p**2 + t**2) / 2
    offset = np.subtract(predicted.centre, true.centre)
    distance = float((offset**2 / mean_square).sum()) / 8 + 0.5 * float(np.log(mean_square / (p * t)).sum())
    return math.exp(-distance)


def difficulty_weights(boxes: Sequence[Box], sizes: Sequence[Size], low: float = 0.5, high: float = 2.0) -> Array:
    """Loss weight of every question, larger for relatively smaller targets (S072; not published, our choice).

    `clip(h / mean(h), low, high)` with `h = 1 / sqrt(box area / picture area)`; the mean is over the whole set.
    """
    share = area(boxes) / np.array([size.width * size.height for size in sizes])
    if not len(share) or not (share > 0).all():
        raise RewardError("difficulty weights need at least one box, and boxes and pictures with an area")
    hardness = 1 / np.sqrt(share)
    return np.clip(hardness / hardness.mean(), low, high)
