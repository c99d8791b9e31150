"""One element of a screen, found by its box: hit + overlap + closeness (S072) and Gaussian closeness (S078).

The first box a text names is its answer; naming more is a fault of the format.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from plaudit.recipe.base import PositiveFloat
from plaudit.rewards.base import Score, Status, card, missing
from plaudit.rewards.rules.boxes import sizes_of, true_box, true_boxes, without_size
from plaudit.rewards.rules.boxtext import legal, parse
from plaudit.rewards.rules.geometry import (
    Box,
    Coordinates,
    Size,
    coordinate_closeness,
    gaussian_coverage,
    gaussian_point,
    iou,
    match,
    to_pixels,
)

LEAST_IOU = 0.5  # of a pair that counts, among several targets


def is_plain_box(text: str) -> bool:
    """Whether a text is one list of four numbers that span an area, and nothing else."""
    data = parse(text).data
    return isinstance(data, list) and len(data) == 4 and all(map(legal, data)) and Box(*data).valid


def judge_box(
    text: str, true: Any, size: Size | None, coordinates: Coordinates, score: Callable[[Box, Box], dict[str, float]]
) -> Score | dict[str, float]:
    """`score` of the answer and the target in pixels; an empty dict where the text names no box that spans an area."""
    if true is None:
        return missing(Status.NOT_APPLICABLE, "no column 'box'")
    if (unknown := without_size(coordinates, size)) is not None:
        return unknown
    target = true_box(true, "box")
    if not target.valid:
        return missing(Status.NOT_APPLICABLE, f"the true box {list(target)} has no area")
    boxes = parse(text).boxes
    if not boxes or not boxes[0].box.valid:
        return {}
    return score(to_pixels(boxes[0].box, coordinates, size), target)


IOU_WEIGHT, CLOSENESS_WEIGHT = 0.25, 0.125


@card(kind="text", low=0, high=1 + IOU_WEIGHT + CLOSENESS_WEIGHT, systems=("S072",), cost_ms=0.06)
def box_hit(
    prompts: Sequence[str],
    outputs: Sequence[str],
    box: Sequence[Any],
    size: Sequence[Any],
    coordinates: Coordinates = "pixel",
) -> list[Score]:
    """Centre inside the target, plus a quarter of the IoU and an eighth of the coordinates' closeness.

    Columns: `box` [x1, y1, x2, y2] and `size` [width, height], in pixels. A text without a box earns 0.
    """

    def one(text: str, true: Any, picture: Size | None) -> Score:
        if picture is None:
            return missing(Status.NOT_APPLICABLE, "no column 'size'")

        def parts_of(predicted: Box, target: Box) -> dict[str, float]:
            return {
                "hit": float(target.contains(predicted.centre)),
                "iou": float(iou([predicted], [target])[0, 0]),
                "closeness": coordinate_closeness(predicted, target, picture),
            }

        judged = judge_box(text, true, picture, coordinates, parts_of)
        if isinstance(judged, Score):
            return judged
        parts = {"format": float(bool(judged)), "hit": 0.0, "iou": 0.0, "closeness": 0.0} | judged
        value = parts["hit"] + IOU_WEIGHT * parts["iou"] + CLOSENESS_WEIGHT * parts["closeness"]
        return Score(value=value, components=parts)

    return [one(*row) for row in zip(outputs, box, sizes_of(size, len(outputs)), strict=True)]


@card(kind="text", low=0, high=3, systems=("S078",), cost_ms=0.06)
def box_gaussian(
    prompts: Sequence[str],
    outputs: Sequence[str],
    box: Sequence[Any],
    size: Sequence[Any] | None = None,
    coordinates: Coordinates = "pixel",
    alpha: PositiveFloat = 0.5,
    sigma: PositiveFloat | None = None,
) -> list[Score]:
    """Closeness of centres and overlap of Gaussians, as wide as the boxes, plus the format.

    Column: `box` [x1, y1, x2, y2] in pixels. `alpha` is the Gaussians' width in box sides; `sigma` fixes it in pixels
    for all sizes, the paper's ablation. Scores are not rounded (the released code keeps three decimals).
    """

    def parts_of(predicted: Box, target: Box) -> dict[str, float]:
        return gaussian_parts(predicted, target, alpha, sigma)

    def one(text: str, true: Any, picture: Size | None) -> Score:
        judged = judge_box(text, true, picture, coordinates, parts_of)
        if isinstance(judged, Score):
            return judged
        parts = {"format": float(is_plain_box(text)), "point": 0.0, "coverage": 0.0} | judged
        return Score(value=sum(parts.values()), components=parts)

    return [one(*row) for row in zip(outputs, box, sizes_of(size, len(outputs)), strict=True)]


def gaussian_parts(predicted: Box, target: Box, alpha: float = 0.5, sigma: float | None = None) -> dict[str, float]:
    return {
        "point": gaussian_point(predicted, target, alpha, sigma),
        "coverage": gaussian_coverage(predicted, target, alpha, sigma),
    }


@card(kind="text", low=0, high=2, systems=("S078",), cost_ms=0.1)
def boxes_gaussian(
    prompts: Sequence[str],
    outputs: Sequence[str],
    boxes: Sequence[Any],
    size: Sequence[Any] | None = None,
    coordinates: Coordinates = "pixel",
    alpha: PositiveFloat = 0.5,
) -> list[Score]:
    """Gaussian closeness and overlap of several boxes with several targets, as an F-measure.

    Column: `boxes`, the targets in pixels. Pairs minimise 1 - IoU, and count from an IoU of one half on; the sum of
    their scores, doubled, is divided by the number of predicted plus true boxes. No boxes where there are none earn all.
    """

    def one(text: str, true: Any, picture: Size | None) -> Score:
        if true is None:
            return missing(Status.NOT_APPLICABLE, "no column 'boxes'")
        if (unknown := without_size(coordinates, picture)) is not None:
            return unknown
        targets = [found.box for found in true_boxes(true, "boxes")]
        if not all(target.valid for target in targets):
            return missing(Status.NOT_APPLICABLE, "a true box has no area")
        found = parse(text)
        predicted = [to_pixels(entry.box, coordinates, picture) for entry in found.boxes]
        parts = {"point": 0.0, "coverage": 0.0}
        if found.boxes or isinstance(found.data, list):  # an empty list is an answer, prose without a box is not
            parts = set_gaussian(predicted, targets, alpha)
        return Score(value=sum(parts.values()), components=parts)

    return [one(*row) for row in zip(outputs, boxes, sizes_of(size, len(outputs)), strict=True)]


def set_gaussian(predicted: Sequence[Box], targets: Sequence[Box], alpha: float = 0.5) -> dict[str, float]:
    """Mean scores of matched pairs, in which every unmatched box of either side counts as half a pair of score 0."""
    count = len(predicted) + len(targets)
    if not count:
        return {"point": 1.0, "coverage": 1.0}
    overlap = iou(predicted, targets)
    kept = [(i, j) for i, j in zip(*match(1 - overlap), strict=True) if overlap[i, j] >= LEAST_IOU]
    parts = [gaussian_parts(predicted[i], targets[j], alpha) for i, j in kept]
    return {name: 2 * sum(part[name] for part in parts) / count for name in ("point", "coverage")}
