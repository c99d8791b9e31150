"""How far two figures agree, without running anything."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from plaudit.rewards.rules.figures import (
    ROLES,
    Figure,
    attribute_jaccards,
    field_scores,
    near,
    num_matched,
    read_figure,
    read_source,
    series_agreement,
    text_agreement,
)

EMPTY = {role: () for role in ROLES}
BARS = Figure(
    types=("bar",),
    rows=1,
    columns=2,
    places=("1x2x0x0", "1x2x1x1"),
    texts=EMPTY | {"title": ("Sales",), "ticks": ("a", "b")},
    colors=frozenset({"#ff0000", "#0000ff"}),
    series=((0.0, 1.0), (10.0, 20.0)),
)


def most_pairs(left: list[float], right: list[float], tolerance: float) -> int:
    """By trying everything."""
    if not left:
        return 0
    best = most_pairs(left[1:], right, tolerance)
    for j, other in enumerate(right):
        if near(left[0], other, tolerance):
            best = max(best, 1 + most_pairs(left[1:], right[:j] + right[j + 1 :], tolerance))
    return best


def test_greedy_matching_finds_the_most_pairs() -> None:
    generator = random.Random(0)
    for _ in range(300):
        left, right = ([round(generator.uniform(-3, 3), 1) for _ in range(generator.randint(0, 5))] for _ in "ab")
        for tolerance in (0, 0.05, 0.4):
            assert num_matched(left, right, tolerance) == most_pairs(left, right, tolerance)


def test_tolerance_is_relative_and_has_an_edge() -> None:
    assert near(100, 95, 0.05) and not near(100, 94.9, 0.05) and near(-100, -95, 0.05) and not near(1, -1, 0.05)
    assert near(0, 0, 0) and not near(0, 0.01, 0.05)
    assert num_matched([1, 1.01, 1.02], [1], 0.05) == 1


def test_sets_by_hand() -> None:
    other = replace(
        BARS,
        places=("1x1x0x0",),
        texts=EMPTY | {"title": ("Sales",), "legend": ("c",)},
        colors=frozenset({"#ff0000"}),
        series=((0.0, 1.0), (10.2, 25.0)),
    )
    expected = {"texts": 1 / 4, "numbers": 3 / 5, "colors": 1 / 2, "layout": 0}
    assert attribute_jaccards(other, BARS, 0.05) == pytest.approx(expected)
    assert attribute_jaccards(BARS, other, 0.05) == pytest.approx(expected)
    assert set(attribute_jaccards(BARS, BARS, 0.05).values()) == {1}
    nothing = Figure(texts=EMPTY)
    assert set(attribute_jaccards(nothing, nothing, 0.05).values()) == {1}  # both empty
    assert attribute_jaccards(nothing, BARS, 0.05) == {"texts": 0, "numbers": 0, "colors": 0, "layout": 0}


def test_fields_by_hand() -> None:
    assert set(field_scores(BARS, BARS, 0.05).values()) == {1}
    other = replace(BARS, types=("barh",), columns=1, colors=frozenset(), series=((0.0, 1.0), (10.0, 22.0)))
    found = field_scores(replace(other, texts=EMPTY | {"title": ("Sale",), "ticks": ("a", "b")}), BARS, 0.05)
    assert found == pytest.approx({"data": 3 / 4, "type": 0, "layout": 0, "text": (0.8 + 1) / 2, "colors": 0})


def test_series_are_paired_whatever_their_order_and_extra_values_cost() -> None:
    one, other = [1.0, 2, 3], [7.0, 8, 9]
    assert series_agreement([one, other], [other, one], 0.05) == 1
    assert series_agreement([one], [[3.0, 2, 1]], 0.05) == pytest.approx(1 / 3)  # places count
    assert series_agreement([one, other], [one], 0.05) == 0.5
    assert series_agreement([one * 10], [one], 0.05) == pytest.approx(0.1)
    assert series_agreement([], [], 0.05) == 1 and series_agreement([], [one], 0.05) == 0


def test_texts_are_compared_role_by_role() -> None:
    title, label = EMPTY | {"title": ("abcd",)}, EMPTY | {"xlabel": ("abcd",)}
    assert text_agreement(title, title) == 1 and text_agreement(EMPTY, EMPTY) == 1
    assert text_agreement(title, label) == 0 and text_agreement(title, EMPTY) == 0
    assert text_agreement(EMPTY | {"title": ("abxd",)}, title) == 0.75


AXES = {role: [] for role in ROLES[1:]} | {"types": [], "colors": [], "series": []}


@pytest.mark.parametrize(
    "change",
    [
        {"axes": None},
        {"axes": [{}]},
        {"axes": [AXES | {"title": [3]}]},
        {"axes": [AXES | {"series": [["x"]]}]},
        {"axes": [AXES | {"series": [[float("inf")]]}]},
        {"layout": {"rows": "many", "columns": 1, "places": []}},
    ],
)
def test_what_a_program_hands_in_must_be_of_its_form(change: dict[str, object]) -> None:
    facts = {"axes": [AXES], "layout": {"rows": 1, "columns": 1, "places": []}, "texts": []}
    assert read_figure(facts) == Figure(texts=EMPTY)
    with pytest.raises((KeyError, TypeError, ValueError)):
        read_figure(facts | change)


def test_a_program_can_be_read_without_being_run() -> None:
    found = read_source(
        "fig, ax = plt.subplots(2, 3)\nax.bar([1, 2], [3.5, -4], color='red', label='north')\n"
        "ax.set_title('Sales')\nax.text(0, 1, 'here')\nplt.show(1 / 0)\n"
    )
    assert found == Figure(
        types=("bar",),
        rows=2,
        columns=3,
        texts=EMPTY | {"title": ("Sales",), "legend": ("north",), "notes": ("here",)},
        colors=frozenset({"#ff0000"}),
        series=((1, 2), (3.5, -4)),
    )
    broken = read_source("plt.plot([1, 2\nplt.title('Sales')")
    assert broken is not None and broken.types == ("plot",) and broken.texts["title"] == ("Sales",)


@pytest.mark.parametrize("text", ["", "print('a plot')", "plt.title('Sales')", "(" * 5000, "\0", "no code at all"])
def test_a_text_that_plots_nothing_has_no_fields(text: str) -> None:
    """Not even the layout, which an empty text would share with most figures."""
    assert read_source(text) is None
