"""Detection as text: the boxes a model lists against those that are there (S053)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from plaudit.errors import RewardError
from plaudit.rewards.base import Card, Score, Status, missing
from plaudit.rewards.rules.boxtext import BOX_KEYS, LABEL_KEYS, FoundBox, legal, parse
from plaudit.rewards.rules.geometry import (
    Array,
    Box,
    Coordinates,
    Size,
    giou,
    iou,
    l1,
    match,
    to_pixels,
)

OVERLAPS: dict[str, Callable[[Sequence[Box], Sequence[Box]], Array]] = {"giou": giou, "iou": iou}


# --- columns ---------------------------------------------------------------------------------------------------------


def true_box(value: Any, column: str) -> Box:
    """A box of the data, in pixels; anything but four numbers is an error of the data."""
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    if len(values) != 4 or not all(legal(number) for number in values):
        raise RewardError(f"column {column!r}: {value!r} is no box; give [x1, y1, x2, y2] in pixels")
    return Box(*map(float, values))


def true_boxes(entries: Any, column: str) -> list[FoundBox]:
    """Boxes of the data: lists of four numbers, or mappings with a box and perhaps a label."""
    if isinstance(entries, Mapping | str) or not isinstance(entries, Sequence):
        raise RewardError(f"column {column!r}: {entries!r}; give a list of boxes, empty where there is no object")
    found = []
    for entry in entries:
        named = isinstance(entry, Mapping)
        box = next((entry[key] for key in BOX_KEYS if key in entry), None) if named else entry
        label = next((str(entry[key]) for key in LABEL_KEYS if key in entry), None) if named else None
        found.append(FoundBox(box=true_box(box, column), label=label))
    return found


def true_size(value: Any) -> Size | None:
    """A picture's width and height; None where it is not known."""
    if value is None:
        return None
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    if len(values) != 2 or not all(legal(number) and number > 0 for number in values):
        raise RewardError(f"column 'size': {value!r}; give [width, height] in pixels")
    return Size(*map(float, values))


def sizes_of(column: Sequence[Any] | None, count: int) -> list[Size | None]:
    return [true_size(value) for value in column] if column is not None else [None] * count


def without_size(coordinates: Coordinates, size: Size | None) -> Score | None:
    """Why a text cannot be judged whose coordinates are relative to a picture of unknown size."""
    if coordinates == "pixel" or size is not None:
        return None
    return missing(Status.NOT_APPLICABLE, f"coordinates {coordinates!r} need the column 'size'")


# --- detection -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Thresholds of overlap: `match` for a hit of the recall; less than `dead` pays 0, more than `full` pays 1."""

    match: float
    dead: float
    full: float


FIRST_STAGE = Stage(match=0.5, dead=0.5, full=0.75)
SECOND_STAGE = Stage(match=0.75, dead=0.75, full=0.9)


def staircase(values: Array, stage: Stage) -> Array:
    """Nothing under the dead zone, everything above saturation, the value itself between them."""
    return np.where(values < stage.dead, 0.0, np.where(values > stage.full, 1.0, values))


def follows_template(text: str) -> bool:
    """Whether a text is one JSON list whose entries each have a label and a box of four legal numbers."""
    found = parse(text)
    if not isinstance(found.data, list):
        return False
    return len(found.boxes) == len(found.data) and all(
        isinstance(entry, dict) and any(isinstance(entry.get(key), str) for key in LABEL_KEYS) for entry in found.data
    )


def matched_overlaps(predicted: Sequence[FoundBox], true: Sequence[FoundBox], overlap: str) -> Array:
    """Overlaps of the pairs of least cost `L1 - same label - GIoU`; L1 is in pixels, so labels hardly decide."""
    boxes, targets = [found.box for found in predicted], [found.box for found in true]
    same = [[float(_label(a) is not None and _label(a) == _label(b)) for b in true] for a in predicted]
    pairs = match(l1(boxes, targets) - np.array(same) - giou(boxes, targets))
    return OVERLAPS[overlap](boxes, targets)[pairs]


def _label(found: FoundBox) -> str | None:
    return None if found.label is None else found.label.strip().casefold()


def detection_score(text: str, predicted: Sequence[FoundBox], true: Sequence[FoundBox], detection: Detection) -> Score:
    """Format + recall + precision of the boxes predicted, in pixels, at the stage that `detection` names."""
    legible = float(follows_template(text))
    if not predicted or not true:
        right = float(not predicted and not true)
        parts = {"format": legible if true else 1 - legible, "recall": right, "precision": right}
    else:
        overlaps = matched_overlaps(predicted, true, detection.overlap)
        recall = np.array([(overlaps >= detection.stage.match).sum() / len(true)])
        parts = {
            "format": legible,
            "recall": float(staircase(recall, detection.recall_map)[0]),
            "precision": float(staircase(overlaps, detection.stage).mean()),
        }
    return Score(value=sum(parts.values()), components=parts)


@dataclass(frozen=True, kw_only=True)
class Detection:
    """What a detection is judged by. The map of the recall does not tighten with the stage."""

    stage: Stage = FIRST_STAGE
    recall_map: Stage = FIRST_STAGE
    overlap: str = "giou"


class DetectionReward:
    """Format, recall and precision of a list of labelled boxes, with thresholds that tighten during training.

    Outputs are JSON lists of `{"bbox_2d": [x1, y1, x2, y2], "label": ...}`; the column `boxes` lists the true ones, in
    pixels. `overlap` is GIoU as in the released code (negative for boxes apart, where the dead zone pays 0) or IoU as
    in the paper. From step `tighten_at` on the second stage's thresholds hold; None keeps the first.
    Published traits: on a picture without objects the format counts inverted, so that prose earns it and even `[]` does
    not; the precision is over min(predicted, true) pairs, so that surplus boxes cost nothing. Boxes listed where there
    is none earn no recall and no precision (not stated in the paper).
    """

    card = Card(
        summary="Format, recall and precision of listed boxes, thresholds tightening during training.",
        kind="text",
        low=0,
        high=3,
        systems=("S053",),
        cost_ms=0.2,
    )

    def __init__(
        self,
        overlap: Literal["giou", "iou"] = "giou",
        coordinates: Coordinates = "pixel",
        tighten_at: int | None = 1500,
        first: Stage = FIRST_STAGE,
        second: Stage = SECOND_STAGE,
    ) -> None:
        self.overlap, self.coordinates, self.tighten_at = overlap, coordinates, tighten_at
        self.first, self.second = first, second

    def stage(self, step: int) -> Stage:
        return self.first if self.tighten_at is None or step < self.tighten_at else self.second

    def __call__(
        self,
        prompts: Sequence[str],
        outputs: Sequence[str],
        boxes: Sequence[Any],
        step: int = 0,
        size: Sequence[Any] | None = None,
    ) -> list[Score]:
        detection = Detection(stage=self.stage(step), recall_map=self.first, overlap=self.overlap)
        return [
            self._score(text, true, box_size, detection)
            for text, true, box_size in zip(outputs, boxes, sizes_of(size, len(outputs)), strict=True)
        ]

    def _score(self, text: str, true: Any, size: Size | None, detection: Detection) -> Score:
        if true is None:
            return missing(Status.NOT_APPLICABLE, "no column 'boxes'")
        if (unknown := without_size(self.coordinates, size)) is not None:
            return unknown
        targets = [found for found in true_boxes(true, "boxes") if found.box.valid]
        if len(targets) < len(true):
            return missing(Status.NOT_APPLICABLE, "a true box has no area")
        predicted = [
            FoundBox(box=to_pixels(found.box, self.coordinates, size), label=found.label) for found in parse(text).valid
        ]
        return detection_score(text, predicted, targets, detection)
