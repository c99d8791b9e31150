"""What models write, read without guessing and without ever raising."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit.rewards.rules.boxtext import LONGEST, Fault, FoundBox, parse, write
from plaudit.rewards.rules.geometry import Box, Point

B = Box(1, 2, 3, 4)


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2, 3, 4]",
        "[[1, 2, 3, 4]]",
        "(1, 2, 3, 4)",
        "[1 2 3 4]",
        "[01, 2., +3, 4e0]",
        "The button is at [1, 2, 3, 4].",
        "```json\n[1, 2, 3, 4]\n```",
        "```\n[1, 2, 3, 4]```",
        "Sure!\n```json\n[1, 2, 3, 4]\n```\nDone.",
        '{"bbox_2d": [1, 2, 3, 4]}',
        '{"x1": 1, "y1": 2, "x2": 3, "y2": 4}',
        '{"objects": [{"bbox": [1, 2, 3, 4]}]}',
        "{'bbox_2d': [1, 2, 3, 4]}",
        "<box>1, 2, 3, 4</box>",
        "<box>(1,2),(3,4)</box>",
        "<box>[[1, 2], [3, 4]]</box>",
        "<|box_start|>(1,2),(3,4)<|box_end|>",
        "［1，2，3，4］",
        "<think>maybe [9, 9, 19, 19]</think>[1, 2, 3, 4]",
        "<think>[9, 9, 19, 19]</think><answer>[1, 2, 3, 4]</answer>",
        "[9, 9, 19, 19]? <answer>no</answer> <answer>[1, 2, 3, 4]</answer>",
        "see note [7] or (8): [1, 2, 3, 4]",
    ],
)
def test_one_box_however_it_is_packed(text: str) -> None:
    assert [found.box for found in parse(text).boxes] == [B]
    assert parse(text).points == ()


def test_labels_and_confidences_come_along() -> None:
    found = parse(
        '[{"bbox_2d": [1, 2, 3, 4], "label": "猫", "score": 0.5}, {"bbox_2d": [5, 6, 7, 8], "label": "a dog"}]'
    )
    assert [(entry.label, entry.confidence) for entry in found.boxes] == [("猫", 0.5), ("a dog", None)]
    assert not found.faults
    tagged = parse("<ref>cat</ref><box>(1,2),(3,4)</box><ref>dog</ref><box>[[5,6,7,8],[6,6,9,9]]</box>")
    assert [entry.label for entry in tagged.boxes] == ["cat", "dog", "dog"]


def test_a_list_cut_off_keeps_its_complete_entries() -> None:
    found = parse('[{"bbox_2d": [1, 2, 3, 4], "label": "cat"}, {"bbox_2d": [5, 6')
    assert [(entry.box, entry.label) for entry in found.boxes] == [(B, "cat")]
    assert Fault.NOT_DATA in found.faults


def test_two_points_are_a_box_only_where_that_is_said() -> None:
    text = "a circle (1, 2), (3, 4) and then (5, 6)"
    assert parse(text).points == (Point(1, 2), Point(3, 4), Point(5, 6))
    assert parse(text).boxes == ()
    paired = parse(text, pairs="box")
    assert [(found.box, found.before) for found in paired.boxes] == [(B, "a circle ")]
    assert paired.points == (Point(5, 6),)
    assert parse("(1, 2) is left of (3, 4)", pairs="box").points == (Point(1, 2), Point(3, 4))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", Fault.NOTHING),
        ("somewhere on the left", Fault.NOTHING),
        ("[1, 2, 3]", Fault.COUNT),
        ("[1, 2, 3, 4, 0.9]", Fault.COUNT),
        ("<box>1, 2, 3</box>", Fault.COUNT),
        ('{"bbox": "1, 2, 3, 4"}', Fault.COUNT),
        ("[NaN, 2, 3, 4]", Fault.NUMBER),
        ("[1, 2, Infinity, 4]", Fault.NUMBER),
        ("(1, 2, inf, nan)", Fault.NUMBER),
        ("[1e999, 2, 3, 4]", Fault.NUMBER),
        (f"[{'9' * 400}, 2, 3, 4]", Fault.NUMBER),
        (f"[{'9' * 5000}, 2, 3, 4]", Fault.NUMBER),
        ("[2000000, 2, 3, 4]", Fault.NUMBER),
        ("[true, 2, 3, 4]", Fault.NUMBER),
        ("[1, null, 3, 4]", Fault.NUMBER),
        ("<think>it may be [1, 2, 3, 4]", Fault.THINKING),
        ("[" * 20 + "1, 2, 3, 4" + "]" * 20, Fault.DEPTH),
        ('{"box_2d": [1, 2, 3, 4]}', Fault.NOTHING),  # another order of axes: not to be guessed
        ('["1", "2", "3", "4"]', Fault.NOTHING),
    ],
)
def test_what_is_no_box_is_a_fault_and_not_a_box(text: str, fault: Fault) -> None:
    found = parse(text)
    assert found.boxes == () and fault in found.faults


def test_swapped_corners_are_kept_as_written_and_said() -> None:
    found = parse("[3, 4, 1, 2]")
    assert [entry.box for entry in found.boxes] == [Box(3, 4, 1, 2)]
    assert found.faults == (Fault.CORNERS,) and found.valid == ()


def test_units_are_never_guessed() -> None:
    assert parse("[0.1, 0.2, 0.3, 0.4]").boxes[0].box == Box(0.1, 0.2, 0.3, 0.4)
    assert parse("[100, 200, 300, 999]").boxes[0].box == Box(100, 200, 300, 999)


coordinate = st.one_of(st.integers(-(10**6), 10**6), st.floats(-1e6, 1e6).filter(lambda x: abs(x) > 1e-6 or x == 0))
found_boxes = st.builds(
    lambda values, label, confidence: FoundBox(box=Box(*map(float, values)), label=label, confidence=confidence),
    st.lists(coordinate, min_size=4, max_size=4),
    st.none() | st.text(max_size=12),
    st.none() | st.floats(0, 1),
)


@settings(deadline=None)
@given(st.lists(found_boxes, max_size=6))
def test_what_is_written_is_read_back(boxes: list[FoundBox]) -> None:
    found = parse(write(boxes))
    assert list(found.boxes) == boxes
    assert set(found.faults) <= {Fault.CORNERS, Fault.NOTHING}


@settings(deadline=None)
@given(st.lists(found_boxes, min_size=1, max_size=4), st.text(alphabet="abc .:!\n", max_size=30))
def test_prose_around_a_list_changes_no_box(boxes: list[FoundBox], prose: str) -> None:
    around = parse(f"{prose}\n```json\n{write(boxes)}\n```\n{prose}")
    assert [(entry.box, entry.label) for entry in around.boxes] == [(entry.box, entry.label) for entry in boxes]


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.text(max_size=80),
        st.text(alphabet="[](){}<>box/|\"',.:;0123456789-+eE nainfthk`\n\u2212［１", max_size=80),
        st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=3), st.lists, max_leaves=10).map(str),
    ),
    st.sampled_from(["points", "box"]),
)
def test_nothing_raises_and_every_number_is_finite(text: str, pairs: str) -> None:
    found = parse(text, pairs)  # type: ignore[arg-type]
    assert all(abs(number) <= 1e6 for entry in found.boxes for number in entry.box)
    assert all(abs(number) <= 1e6 for point in found.points for number in point)
    assert bool(found.boxes or found.points) == (Fault.NOTHING not in found.faults)


@pytest.mark.parametrize("piece", ["[", "[1,", '["', "<box>", "{", '{"a":', "([1", "(1,1", "```", "[1 ", " ", "1"])
def test_garbage_costs_no_more_than_its_length(piece: str) -> None:
    """Processor time, the least of several: eight times as much text may cost eight times as much, not sixty-four."""

    def cost(length: int) -> float:
        text, spent = "[" + piece * (length // len(piece)), []
        for _ in range(5):
            started = time.process_time()
            parse(text)
            spent.append(time.process_time() - started)
        return min(spent)

    assert cost(LONGEST) < 24 * max(cost(LONGEST // 8), 0.001)
