"""One box for one target: hit + IoU + closeness, and Gaussians."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from plaudit.data.prompt import Prompt
from plaudit.errors import RewardError
from plaudit.rewards.base import Score, Status
from plaudit.rewards.calling.call import call_reward
from plaudit.rewards.rules.geometry import Box
from plaudit.rewards.rules.grounding import box_gaussian, box_hit, boxes_gaussian, set_gaussian

TARGET = [40, 40, 60, 60]


def hit(text: str, box: Any = TARGET, size: Any = (100, 100), **options: Any) -> Score:
    return box_hit([""], [text], [box], [size], **options)[0]


def gaussian(text: str, box: Any = TARGET, **options: Any) -> Score:
    return box_gaussian([""], [text], [box], **options)[0]


# --- hit, overlap, closeness -----------------------------------------------------------------------------------------


def test_a_hit_does_not_see_the_boxs_size_and_overlap_does() -> None:
    """Why hit alone lets boxes shrink, and why IoU comes with it."""
    small, right, large = (hit(str([50 - r, 50 - r, 50 + r, 50 + r])) for r in (1, 10, 40))
    assert small.components["hit"] == right.components["hit"] == large.components["hit"] == 1
    assert right.components["iou"] == 1 and small.components["iou"] == pytest.approx(0.01)
    assert right.value > max(small.value, large.value)


def test_closeness_alone_would_pay_for_boxes_that_miss() -> None:
    beside = hit("[62, 40, 82, 60]")
    assert beside.components["hit"] == beside.components["iou"] == 0
    assert beside.components["closeness"] > 0.85 and beside.value == pytest.approx(beside.components["closeness"] / 8)


def test_the_centre_may_lie_on_the_edge_and_no_further() -> None:
    assert hit("[55, 45, 65, 55]").components["hit"] == 1
    assert hit("[56, 45, 66, 55]").components["hit"] == 0


@pytest.mark.parametrize(
    "text", ["", "nowhere", "(50, 50)", "[40, 40, 60]", "[60, 60, 40, 40]", "[50, 50, 50, 50]", "🖱️"]
)
def test_no_box_earns_nothing_in_any_part(text: str) -> None:
    assert hit(text).value == 0 and set(hit(text).components.values()) == {0}
    assert gaussian(text).value == 0 and set(gaussian(text).components.values()) == {0}


def test_the_first_box_is_the_answer_so_that_listing_many_does_not_help() -> None:
    listed = "[0, 0, 5, 5] or [40, 40, 60, 60]"
    assert hit(listed).components["hit"] == 0
    assert gaussian(listed).components == pytest.approx({"format": 0, "point": 0, "coverage": 0}, abs=1e-4)


def test_units_are_taken_as_said() -> None:
    assert hit("[0.4, 0.4, 0.6, 0.6]", coordinates="unit").value == 1.375
    assert hit("[400, 400, 600, 600]", coordinates="thousand").value == 1.375
    assert hit("[400, 400, 600, 600]").value < 0.1
    assert gaussian("[1, 2, 3, 4]", coordinates="unit").status is Status.NOT_APPLICABLE


@pytest.mark.parametrize("function", [box_hit, box_gaussian])
def test_absent_columns_are_missing_and_bad_ones_errors(function: Any) -> None:
    def call(box: Any, size: Any = (100, 100)) -> Score:
        return function([""], ["[1, 2, 3, 4]"], [box], [size])[0]

    assert call(None).status is Status.NOT_APPLICABLE
    assert call([5, 5, 5, 5]).status is Status.NOT_APPLICABLE
    for wrong in ("left", [1, 2, 3], [1, 2, 3, math.nan]):
        with pytest.raises(RewardError, match="column 'box'"):
            call(wrong)
    with pytest.raises(RewardError, match="column 'size'"):
        call([1, 2, 3, 4], [0, 5])


def test_a_prompt_without_the_column_is_refused_by_the_caller() -> None:
    with pytest.raises(RewardError, match="'box'"):
        call_reward("box_hit", box_hit, [Prompt(id="p", text="", facts={"size": [9, 9]})], ["[1, 2, 3, 4]"])


# --- Gaussians -------------------------------------------------------------------------------------------------------


def test_gaussians_grade_where_hit_and_overlap_are_flat() -> None:
    texts = [str([40 + d, 40, 60 + d, 60]) for d in (0, 25, 30, 35)]
    assert [hit(text).components["hit"] + hit(text).components["iou"] for text in texts[1:]] == [0, 0, 0]
    values = [gaussian(text).value for text in texts]
    assert values == sorted(values, reverse=True) and len(set(values)) == 4


def test_coverage_prefers_the_right_size_where_the_point_is_blind() -> None:
    sizes = [gaussian(str([50 - r, 50 - r, 50 + r, 50 + r])) for r in (3, 10, 30)]
    assert [score.components["point"] for score in sizes] == [1, 1, 1]
    assert sizes[1].components["coverage"] == 1 > max(sizes[0].components["coverage"], sizes[2].components["coverage"])
    assert sizes[0].components["coverage"] == pytest.approx(2 * 3 * 10 / (3**2 + 10**2))  # same centre: closed form


def test_a_fixed_width_is_harder_on_large_targets_and_softer_on_small_ones() -> None:
    def off_by_half_a_side(side: int, **options: Any) -> float:
        shifted = str([side / 2, 0, 1.5 * side, side])
        return gaussian(shifted, [0, 0, side, side], **options).components["point"]

    assert off_by_half_a_side(4) == pytest.approx(off_by_half_a_side(400)) == pytest.approx(math.exp(-0.5))
    assert off_by_half_a_side(4, sigma=20) > 0.99 and off_by_half_a_side(400, sigma=20) < 1e-6


# --- several ---------------------------------------------------------------------------------------------------------


def test_set_scores_are_an_f_measure_of_single_ones() -> None:
    a, b, c = Box(0, 0, 20, 10), Box(100, 100, 120, 110), Box(50, 50, 60, 60)
    assert set_gaussian([b, a], [a, b]) == {"point": 1, "coverage": 1}
    assert set_gaussian([a], [a, b])["point"] == pytest.approx(2 / 3)
    assert set_gaussian([a, b, c], [a, b])["coverage"] == pytest.approx(4 / 5)
    assert set_gaussian([], []) == {"point": 1, "coverage": 1}
    assert set_gaussian([], [a]) == set_gaussian([a], []) == {"point": 0, "coverage": 0}


def test_set_scores_match_a_slow_search() -> None:
    import itertools

    from plaudit.rewards.rules.geometry import gaussian_coverage, gaussian_point, iou

    rng = np.random.default_rng(1)
    for _ in range(10):
        true = [Box(x, y, x + 20, y + 20) for x, y in rng.uniform(0, 200, size=(4, 2))]
        predicted = [Box(*(np.asarray(box) + rng.normal(0, 3, size=4))) for box in true[:3]]
        order = max(
            itertools.permutations(range(4), 3),
            key=lambda js: sum(iou(predicted, true)[i, j] for i, j in enumerate(js)),
        )
        kept = [(predicted[i], true[j]) for i, j in enumerate(order) if iou(predicted, true)[i, j] >= 0.5]
        found = set_gaussian(predicted, true)
        assert found["point"] == pytest.approx(2 * sum(gaussian_point(*pair) for pair in kept) / 7)
        assert found["coverage"] == pytest.approx(2 * sum(gaussian_coverage(*pair) for pair in kept) / 7)


def test_degenerate_boxes_count_as_wrong_ones() -> None:
    text = "[[0, 0, 20, 10], [7, 7, 7, 7]]"
    assert boxes_gaussian([""], [text], [[[0, 0, 20, 10]]])[0].value == pytest.approx(2 * 2 / 3)
    assert boxes_gaussian([""], ["[]"], [None])[0].status is Status.NOT_APPLICABLE
