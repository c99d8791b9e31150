"""A plan with boxes against what the picture shows (S022's R_RI).

Consistency alone is not quality: a wrong plan that is carried out earns 1. The paper multiplies this with scores of the
plan and of the picture; alone it collapses.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from plaudit.lab.scenes.check import SceneObject, detect
from plaudit.lab.scenes.grammar import COLORS, SHAPES
from plaudit.rewards.base import Score, Status, card, missing
from plaudit.rewards.rules.boxes import sizes_of, true_boxes, without_size
from plaudit.rewards.rules.boxtext import FoundBox, parse
from plaudit.rewards.rules.geometry import Box, Coordinates, Size, iou, match, to_pixels

LAB_LABELS = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)


def read_plan(text: str, labels: Sequence[str], coordinates: Coordinates, size: Size | None) -> list[FoundBox]:
    """The boxes of a plan in pixels. One without a label of its own is what the words before it name last."""
    return [
        FoundBox(
            box=to_pixels(found.box, coordinates, size),
            label=_plain(found.label) if found.label else last_named(found.before, labels),
        )
        for found in parse(text, pairs="box").boxes
    ]


def last_named(text: str, labels: Sequence[str]) -> str | None:
    """The label that ends last in a text, the longest of these; None where none is named."""
    words = f" {_plain(text)} "
    found = {plain: words.rfind(f" {plain} ") for plain in map(_plain, labels) if plain}
    ends = [(at + len(plain), len(plain), plain) for plain, at in found.items() if at >= 0]
    return max(ends)[2] if ends else None


def _plain(text: str) -> str:
    words = re.findall(r"\w+", text.casefold())
    return " ".join(words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words)


def plan_overlap(plan: Sequence[FoundBox], outcome: Sequence[FoundBox]) -> float:
    """Mean over planned boxes of the IoU with the outcome of the same label, paired at best; a missing one counts 0."""
    if not plan:
        return 0.0
    boxes, seen = [found.box for found in plan], [found.box for found in outcome]
    same = [[a.label is not None and a.label == _plain(b.label or "") for b in outcome] for a in plan]
    overlap = iou(boxes, seen) * np.array(same, dtype=float).reshape(len(boxes), len(seen))
    return float(overlap[match(1 - overlap)].sum() / len(boxes))


def _judged(plan: Sequence[FoundBox], outcome: Sequence[FoundBox]) -> Score:
    return Score(
        value=plan_overlap(plan, outcome),
        components={"planned": float(len(plan)), "found": float(len(outcome))},
        note="" if plan else "no box in the plan",
    )


@card(kind="text", low=0, high=1, systems=("S022",), cost_ms=0.1)
def plan_matches_outcome(
    prompts: Sequence[str],
    outputs: Sequence[str],
    outcome: Sequence[Any],
    size: Sequence[Any] | None = None,
    coordinates: Coordinates = "pixel",
) -> list[Score]:
    """Mean IoU of the boxes planned in a text with those found in its picture; a planned object not found counts 0.

    Column: `outcome`, the labelled boxes found, `[{"label": ..., "bbox": [...]}, ...]`, in pixels.
    """

    def one(text: str, seen: Any, picture: Size | None) -> Score:
        if seen is None:
            return missing(Status.NOT_APPLICABLE, "no column 'outcome'")
        if (unknown := without_size(coordinates, picture)) is not None:
            return unknown
        found = true_boxes(seen, "outcome")
        labels = [entry.label for entry in found if entry.label]
        return _judged(read_plan(text, labels, coordinates, picture), found)

    return [one(*row) for row in zip(outputs, outcome, sizes_of(size, len(outputs)), strict=True)]


@card(kind="image", low=0, high=1, systems=("S022",), cost_ms=0.6)
def picture_matches_plan(
    prompts: Sequence[str], outputs: Tensor, plan: Sequence[Any], coordinates: Coordinates = "pixel"
) -> list[Score]:
    """Mean IoU of the boxes planned (column `plan`, a text) with the objects that the exact checker finds in the lab
    picture; a planned object not found counts 0."""
    scenes = detect(outputs)
    size = Size(float(outputs.shape[-1]), float(outputs.shape[-2]))

    def one(text: Any, things: Sequence[SceneObject]) -> Score:
        if text is None:
            return missing(Status.NOT_APPLICABLE, "no column 'plan'")
        found = [FoundBox(box=object_box(thing), label=f"{thing.color} {thing.shape}") for thing in things]
        return _judged(read_plan(str(text), LAB_LABELS, coordinates, size), found)

    return [one(text, scene.objects) for text, scene in zip(plan, scenes, strict=True)]


def object_box(thing: SceneObject) -> Box:
    """The box around a detected object: its shape drawn at its centroid with its area."""
    if thing.shape == "circle":
        radius = math.sqrt(thing.area / math.pi)
        left, up, down = radius, radius, radius
    elif thing.shape == "square":
        left = up = down = math.sqrt(thing.area) / 2
    else:
        circumradius = math.sqrt(thing.area / (0.75 * math.sqrt(3)))
        left, up, down = circumradius * math.sqrt(3) / 2, circumradius, circumradius / 2
    return Box(thing.x - left, thing.y - up, thing.x + left, thing.y + down)
