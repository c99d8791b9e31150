"""Key frames: the answer's schema, areas, boxes, and a tracker on shapes of known motion."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from plaudit.errors import RecipeError, RewardError
from plaudit.rewards.base import Score, Status
from plaudit.rewards.rules.frames import (
    KeyFrameGrounding,
    box_of,
    carry_by_appearance,
    key_frame_ratio,
    mask_iou,
    propagation_iou,
    read_key_frame,
)
from plaudit.rewards.rules.geometry import Box

IDS = [0, 12, 24, 36]


def clip() -> tuple[np.ndarray, np.ndarray]:
    """Two squares of 4 and 3 pixels moving right and down; the first enters from the left edge. Video and masks."""
    masks, video = np.zeros((2, 4, 20, 20), dtype=bool), np.full((4, 3, 20, 20), 0.1)
    for t in range(4):
        left = 3 * t - 2
        masks[0, t, 2:6, max(left, 0) : left + 4] = True
        masks[1, t, 8 + 2 * t : 11 + 2 * t, 14:17] = True
        video[t, 0][masks[0, t]] = 0.9
        video[t, 2][masks[1, t]] = 0.8
    return video, masks


VIDEO, MASKS = clip()


def answer(frame: Any, boxes: Any) -> str:
    return f"<think>so</think><answer>{json.dumps({'keyframe_timestamp': frame, 'bbox_2d_list': boxes})}</answer>"


def score(text: str, masks: Any = MASKS, ids: Any = IDS, video: Any = VIDEO, **options: Any) -> Score:
    return KeyFrameGrounding(**options)([""], [text], [masks], [ids], [video])[0]


def boxes_at(t: int) -> list[list[int]]:
    return [[int(x) for x in box] for mask in MASKS[:, t] if (box := box_of(mask))]


def test_a_perfect_answer_earns_four() -> None:
    perfect = score(answer(24, boxes_at(2)))
    assert perfect.components == {"format": 1, "key_frame": 1, "boxes": 1, "propagation": 1}
    assert perfect.value == 4


def test_the_key_frame_is_worth_its_share_of_the_largest_area() -> None:
    areas = MASKS.any(0).sum((1, 2))
    assert areas.tolist() == [17, 25, 25, 25]
    assert score(answer(0, boxes_at(0))).components["key_frame"] == pytest.approx(17 / 25)
    assert key_frame_ratio(MASKS, 1) == 1


def test_frames_are_named_by_their_absolute_index() -> None:
    """The control of the card: an index among the sampled frames is no answer."""
    for relative in (1, 2, 3, -1):
        assert score(answer(relative, boxes_at(2))).components == {
            "format": 1,
            "key_frame": 0,
            "boxes": 0,
            "propagation": 0,
        }


def test_boxes_are_judged_as_a_set_at_the_chosen_frame() -> None:
    one, two = boxes_at(2)
    assert score(answer(24, [two, one])).components["boxes"] == 1
    assert score(answer(24, [one])).components["boxes"] == 0.5
    assert score(answer(24, [one, two, [0, 0, 20, 20], [0, 0, 1, 1]])).components["boxes"] == 0.5
    assert score(answer(12, [one, two])).components["boxes"] < 1  # right boxes in the wrong frame


def test_one_box_of_two_carries_one_mask_of_two() -> None:
    alone = score(answer(24, boxes_at(2)[:1])).components["propagation"]
    expected = np.mean([MASKS[0, t].sum() / MASKS[:, t].sum() for t in range(4)])
    assert alone == pytest.approx(expected)


def test_the_tracker_follows_both_ways_and_shows_parts_at_the_edge() -> None:
    for at in (2, 3):
        carried = carry_by_appearance(VIDEO, at, [box_of(mask) for mask in MASKS[:, at]])
        assert (carried == MASKS.any(0)).all()
    nothing = carry_by_appearance(VIDEO, 1, [Box(12, 0, 19, 2)])
    assert not nothing.any()


def test_propagation_is_the_mean_overlap_over_frames() -> None:
    carried = MASKS[0].copy()
    assert propagation_iou(carried, MASKS[:1]) == 1
    carried[0] = False
    assert propagation_iou(carried, MASKS[:1]) == 0.75
    assert mask_iou(np.zeros((2, 2), bool), np.zeros((2, 2), bool)) == 1


def test_any_propagator_fits() -> None:
    def everything(video: np.ndarray, at: int, boxes: Any) -> np.ndarray:
        return np.ones((len(video), *video.shape[2:]), dtype=bool)

    found = score(answer(24, boxes_at(2)), propagator=everything).components["propagation"]
    assert found == pytest.approx(np.mean([17, 25, 25, 25]) / 400)
    named = score(answer(24, boxes_at(2)), propagator="plaudit.rewards.rules.frames:carry_by_appearance")
    assert named.value == 4
    without = KeyFrameGrounding(propagator=None)
    assert without.card.high == 3 and KeyFrameGrounding.card.high == 4
    assert without([""], [answer(24, boxes_at(2))], [MASKS], [IDS])[0].value == 3
    with pytest.raises(RecipeError, match="propagator"):
        KeyFrameGrounding(propagator="nowhere:tracker")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "猫",
        answer(24, boxes_at(2)).replace("<think>so</think>", ""),
        answer(24, boxes_at(2)) + " and more",
        answer(24, []),
        answer(24, boxes_at(2)[0]),
        answer(24, [[1, 2, 3]]),
        answer(24, [[1, 2, 3, "4"]]),
        answer(24, [[1, 2, 3, float("nan")]]),
        answer("24", boxes_at(2)),
        answer(24.5, boxes_at(2)),
        answer(True, boxes_at(2)),
        '<think>a</think><answer>{"keyframe_timestamp": 24}</answer>',
        '<think>a</think><answer>{"keyframe_timestamp": 24, "bbox_2d_list": [[1,2,3,4]], "why": 1}</answer>',
        "<think>" * 2000,
    ],
)
def test_a_broken_schema_earns_nothing(text: str) -> None:
    assert read_key_frame(text) is None
    assert score(text).value == 0


def test_boxes_without_area_are_in_the_schema_but_worth_nothing() -> None:
    assert score(answer(24, [[9, 9, 3, 3]])).components == {"format": 1, "key_frame": 1, "boxes": 0, "propagation": 0}


def test_what_cannot_be_judged() -> None:
    good = answer(24, boxes_at(2))
    for absent in ({"masks": None}, {"ids": None}, {"video": None}, {"masks": np.zeros_like(MASKS)}):
        assert score(good, **absent).status is Status.NOT_APPLICABLE  # type: ignore[arg-type]
    with pytest.raises(RewardError, match=r"\[N, 4, H, W\]"):
        score(good, masks=MASKS[0])
