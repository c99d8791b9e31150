"""The detection reward: its staircase, its stages, and its published traits."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest

from plaudit.data.prompt import Prompt
from plaudit.errors import RewardError
from plaudit.rewards.base import Score, Status
from plaudit.rewards.calling.call import call_reward
from plaudit.rewards.rules.boxes import (
    FIRST_STAGE,
    SECOND_STAGE,
    DetectionReward,
    Stage,
    follows_template,
    matched_overlaps,
    staircase,
)
from plaudit.rewards.rules.boxtext import FoundBox, write
from plaudit.rewards.rules.geometry import Box, giou, iou, l1

TRUE = [{"bbox": [0, 0, 100, 100], "label": "cat"}, {"bbox": [200, 200, 300, 300], "label": "dog"}]
EXACT = [FoundBox(box=Box(0, 0, 100, 100), label="cat"), FoundBox(box=Box(200, 200, 300, 300), label="dog")]


def score(text: str, boxes: Any = TRUE, step: int = 0, size: Any = None, **options: Any) -> Score:
    prompt = Prompt(id="p", text="", facts={"boxes": boxes, "size": size})
    return call_reward("box_detection", DetectionReward(**options), [prompt], [text], step=step)[0]


def parts(scored: Score) -> tuple[float, float, float]:
    assert scored.components is not None
    assert scored.value == pytest.approx(sum(scored.components.values()))
    return tuple(scored.components[name] for name in ("format", "recall", "precision"))  # type: ignore[return-value]


def cut(height: float) -> str:
    """The cat's box cut to a height, so that its IoU and GIoU are height / 100, and the dog's."""
    return write([FoundBox(box=Box(0, 0, 100, height), label="cat"), EXACT[1]])


def test_the_staircase_has_a_dead_zone_and_saturates() -> None:
    values = np.array([-0.3, 0.0, 0.49, 0.5, 0.6, 0.75, 0.76, 1.0])
    assert staircase(values, FIRST_STAGE).tolist() == [0, 0, 0, 0.5, 0.6, 0.75, 1, 1]
    assert staircase(values, SECOND_STAGE).tolist() == [0, 0, 0, 0, 0, 0.75, 0.76, 1]


@pytest.mark.parametrize(
    ("height", "first", "second"),
    [
        (40, (1, 0.5, 0.5), (1, 0.5, 0.5)),  # dead in both
        (50, (1, 1, 0.75), (1, 0.5, 0.5)),  # the thresholds themselves are enough
        (75, (1, 1, 0.875), (1, 1, 0.875)),
        (60, (1, 1, 0.8), (1, 0.5, 0.5)),  # a hit, then none
        (80, (1, 1, 1), (1, 1, 0.9)),  # saturated, then graded
        (95, (1, 1, 1), (1, 1, 1)),
    ],
)
def test_thresholds_tighten_at_the_stage(height: float, first: tuple[float, ...], second: tuple[float, ...]) -> None:
    assert parts(score(cut(height), step=1499)) == pytest.approx(first)
    assert parts(score(cut(height), step=1500)) == pytest.approx(second)
    assert parts(score(cut(height), step=10**6, tighten_at=None)) == pytest.approx(first)
    assert parts(score(cut(height), step=10, tighten_at=10)) == pytest.approx(second)


def test_the_recalls_own_map_does_not_tighten() -> None:
    true = [{"bbox": [100 * i, 0, 100 * i + 50, 50], "label": "a"} for i in range(5)]
    three = write([FoundBox(box=Box(100 * i, 0, 100 * i + 50, 50), label="a") for i in range(3)])
    assert parts(score(three, true, step=0))[1] == parts(score(three, true, step=2000))[1] == pytest.approx(0.6)
    two = write([FoundBox(box=Box(100 * i, 0, 100 * i + 50, 50), label="a") for i in range(2)])
    assert parts(score(two, true))[1] == 0  # 2 of 5 lies in the dead zone


def test_giou_and_iou_differ_where_the_hull_is_larger_than_the_union() -> None:
    shifted = write([FoundBox(box=Box(20, 20, 120, 120), label="cat"), EXACT[1]])  # IoU 6400/13600, GIoU less 800/14400
    assert parts(score(shifted, overlap="giou", first=Stage(match=0, dead=0, full=1)))[2] == pytest.approx(
        (6400 / 13600 - 800 / 14400 + 1) / 2
    )
    assert parts(score(shifted, overlap="iou", first=Stage(match=0, dead=0, full=1)))[2] == pytest.approx(
        (6400 / 13600 + 1) / 2
    )
    assert giou([Box(0, 0, 1, 1)], [Box(5, 5, 6, 6)])[0, 0] < 0
    far = write([FoundBox(box=Box(500, 500, 600, 600), label="cat")])
    assert parts(score(far)) == (1, 0, 0)  # negative overlaps pay nothing, thanks to the dead zone


def test_matching_minimises_the_stated_cost() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        predicted, true = (
            [
                FoundBox(box=Box(x, y, x + w, y + h), label=str(rng.integers(2)))
                for x, y, w, h in rng.uniform(1, 3, size=(count, 4))
            ]
            for count in (3, 4)
        )
        boxes, targets = [p.box for p in predicted], [t.box for t in true]
        same = np.array([[p.label == t.label for t in true] for p in predicted])
        cost = l1(boxes, targets) - same - giou(boxes, targets)
        best = min(itertools.permutations(range(4), 3), key=lambda js: sum(cost[i, j] for i, j in enumerate(js)))
        expected = [iou(boxes, targets)[i, j] for i, j in enumerate(best)]
        assert matched_overlaps(predicted, true, "iou") == pytest.approx(expected)


def test_labels_decide_between_equal_boxes_but_never_against_pixels() -> None:
    same_place = [{"bbox": [0, 0, 100, 100], "label": "cat"}, {"bbox": [0, 0, 100, 60], "label": "dog"}]
    near = [FoundBox(box=Box(0, 0, 100, 80), label="dog"), FoundBox(box=Box(0, 0, 100, 80), label="cat")]
    first = Stage(match=0, dead=0, full=1)
    assert parts(score(write(near), same_place, overlap="iou", first=first))[2] == pytest.approx((0.75 + 0.8) / 2)
    wrong = [FoundBox(box=EXACT[0].box, label="dog"), FoundBox(box=EXACT[1].box, label="cat")]
    assert score(write(wrong)).value == 3  # published: a wrong label costs nothing where boxes are right


def test_surplus_boxes_are_not_punished() -> None:
    """Published: the mean runs over min(predicted, true) pairs."""
    surplus = [FoundBox(box=Box(400 + i, 400, 450 + i, 450), label="cat") for i in range(5)]
    assert score(write([*surplus, *EXACT])).value == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("There is none.", (1, 1, 1)),
        ("[]", (0, 1, 1)),
        (write(EXACT), (0, 0, 0)),
        ("", (1, 1, 1)),
        ("I see [0, 0, 9, 9]", (1, 0, 0)),
    ],
)
def test_the_format_counts_inverted_where_there_is_nothing(text: str, expected: tuple[float, ...]) -> None:
    assert parts(score(text, [])) == expected


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (write(EXACT), True),
        (f"```json\n{write(EXACT)}\n```", True),
        ("[]", True),
        ('[{"bbox_2d": [5, 5, 1, 1], "label": "cat"}]', True),  # four legal numbers; the box itself is dropped
        (f"Here: {write(EXACT)}", False),
        ('[{"bbox_2d": [0, 0, 1, 1]}]', False),
        ('[{"bbox_2d": [0, 0, 1], "label": "cat"}]', False),
        ('[{"bbox_2d": [0, 0, 1, NaN], "label": "cat"}]', False),
        ('[{"bbox_2d": [0, 0, 1, 1], "label": "cat"}, {"label": "dog"}]', False),
        ('[{"bbox_2d": [0, 0, 1, 1], "label": "cat"}', False),
        ('{"bbox_2d": [0, 0, 1, 1], "label": "cat"}', False),
        ("猫", False),
        ("", False),
    ],
)
def test_the_template(text: str, right: bool) -> None:
    assert follows_template(text) is right
    assert parts(score(text))[0] == right


def test_degenerate_boxes_are_dropped() -> None:
    swapped = json.dumps([{"bbox_2d": [100, 100, 0, 0], "label": "cat"}])
    assert parts(score(swapped)) == (1, 0, 0)


def test_units_need_the_pictures_size() -> None:
    halves = write(
        [FoundBox(box=Box(0, 0, 500, 250), label="cat"), FoundBox(box=Box(1000, 500, 1500, 750), label="dog")]
    )
    assert score(halves, size=[200, 400], coordinates="thousand").value == 3
    assert score(halves).value < 3
    assert score(halves, coordinates="thousand").status is Status.NOT_APPLICABLE


def test_what_cannot_be_judged_is_missing_and_bad_data_is_an_error() -> None:
    assert score(write(EXACT), None).status is Status.NOT_APPLICABLE
    assert score(write(EXACT), [[5, 5, 5, 9]]).status is Status.NOT_APPLICABLE
    with pytest.raises(RewardError, match="no box"):
        score(write(EXACT), [[1, 2, 3]])
    with pytest.raises(RewardError, match="list of boxes"):
        score(write(EXACT), "everywhere")
