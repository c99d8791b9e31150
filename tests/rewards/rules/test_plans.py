"""Planned boxes against those found in the picture."""

from __future__ import annotations

import numpy as np
import pytest

from plaudit.lab.scenes.check import detect
from plaudit.lab.scenes.grammar import sample_prompts
from plaudit.lab.scenes.render import SQUARE_HALF_SIDE, TRIANGLE_CIRCUMRADIUS, rasterise, sample_scenes
from plaudit.rewards.base import Status
from plaudit.rewards.rules.boxtext import FoundBox
from plaudit.rewards.rules.geometry import Box, iou
from plaudit.rewards.rules.plans import (
    LAB_LABELS,
    last_named,
    object_box,
    picture_matches_plan,
    plan_matches_outcome,
    plan_overlap,
)


def true_box(slot: np.ndarray) -> Box:
    """From the numbers a scene is drawn from."""
    x, y, radius = (slot[1] + 1) * 16, (slot[2] + 1) * 16, 3.5 + (slot[3] + 1) * 0.75
    side = radius * SQUARE_HALF_SIDE
    outer = radius * TRIANGLE_CIRCUMRADIUS
    wide = outer * np.sqrt(3) / 2
    shapes = [
        Box(x - radius, y - radius, x + radius, y + radius),
        Box(x - side, y - side, x + side, y + side),
        Box(x - wide, y - outer, x + wide, y + outer / 2),
    ]
    return shapes[int(slot[7:].argmax())]


def test_boxes_of_detected_objects_are_those_that_were_drawn() -> None:
    rng = np.random.default_rng(0)
    prompts = sample_prompts("train", 40, rng)
    slots = sample_scenes(prompts, rng)
    for scene, numbers in zip(detect(rasterise(slots)), slots.numpy(), strict=True):
        drawn = [true_box(slot) for slot in numbers if slot[0] > 0]
        overlap = iou([object_box(thing) for thing in scene.objects], drawn)
        assert len(scene.objects) == len(drawn)
        assert overlap.max(1).min() > 0.93


def box(label: str | None, *corners: float) -> FoundBox:
    return FoundBox(box=Box(*corners), label=label)


def test_overlap_pairs_equal_labels_at_best_and_counts_missing_ones_as_zero() -> None:
    outcome = [box("red circle", 0, 0, 10, 10), box("red circle", 20, 0, 30, 10)]
    plan = [box("red circle", 20, 0, 30, 5), box("red circle", 0, 0, 10, 10)]
    assert plan_overlap(plan, outcome) == pytest.approx(0.75)
    assert plan_overlap(plan[1:], outcome) == 1  # surplus in the picture is for other parts of the reward to punish
    assert plan_overlap(plan, outcome[:1]) == 0.5
    assert plan_overlap(plan, []) == plan_overlap([], outcome) == 0
    assert plan_overlap([box(None, 0, 0, 10, 10)], outcome) == 0
    assert plan_overlap([box("blue circle", 0, 0, 10, 10)], outcome) == 0


def test_a_wrong_plan_carried_out_is_consistent() -> None:
    """Why the paper multiplies this with other scores: alone it pays for a wrong picture."""
    text = "For 'a blue square' I draw a red circle (0, 0), (10, 10)."
    outcome = [{"label": "red circle", "bbox": [0, 0, 10, 10]}]
    assert plan_matches_outcome(["a blue square"], [text], [outcome])[0].value == 1


def test_the_words_before_a_box_name_it() -> None:
    assert last_named("a red circle left of a Blue   square, at ", LAB_LABELS) == "blue square"
    assert last_named("red, then a circle", LAB_LABELS) is None
    assert last_named("a catfish", ["cat"]) is None
    assert last_named("the big dog", ["dog", "big dog", "elephant in the room"]) == "big dog"
    assert last_named("", LAB_LABELS) is None and last_named("circle", []) is None


def test_units_and_absent_columns() -> None:
    outcome = [{"label": "red circle", "bbox": [0, 0, 32, 16]}]
    text = "a red circle (0, 0), (1000, 500)"
    assert plan_matches_outcome([""], [text], [outcome], [[32, 32]], coordinates="thousand")[0].value == 1
    assert plan_matches_outcome([""], [text], [outcome])[0].value < 0.01
    unknown = plan_matches_outcome([""], [text], [outcome], coordinates="thousand")[0]
    assert unknown.status is Status.NOT_APPLICABLE
    rng = np.random.default_rng(0)
    picture = rasterise(sample_scenes(sample_prompts("train", 1, rng), rng))
    thing = detect(picture)[0].objects[0]
    relative = [round(1000 * value / 32) for value in object_box(thing)]
    plan = f"a {thing.color} {thing.shape}: {relative}"
    assert picture_matches_plan([""], picture, [plan], coordinates="thousand")[0].value > 0.9
    assert picture_matches_plan([""], picture, [plan])[0].value < 0.1
