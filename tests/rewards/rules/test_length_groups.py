"""Pressing for brevity where a prompt is solved: GRPO-lambda's gate and the tiers of DA-DLER."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest

from plaudit.data.prompt import Prompt
from plaudit.rewards.base import Score, Status
from plaudit.rewards.calling.call import Caller
from plaudit.rewards.calling.request import make_request
from plaudit.rewards.rules.length_groups import (
    CorrectWithinTiers,
    ShortWhereSolved,
    most_solved,
    pass_rates,
    penalised,
)

Row = tuple[int, int | None, int]  # group, right, length


def score(reward, rows: list[Row], step: int = 0) -> list[Score]:
    prompts = [
        Prompt(id=f"p{g}", text="?", facts={"correct": right, "completion_ids": [0] * n}) for g, right, n in rows
    ]
    return Caller("x", reward)(make_request(prompts, [""] * len(rows), [g for g, _, _ in rows], step))


def value(reward, rows: list[Row], step: int = 0) -> list[float]:
    return [s.value for s in score(reward, rows, step)]


def test_pass_rates_leave_the_unknown_out() -> None:
    assert pass_rates([True, False, None, True, None], [3, 3, 3, 1, 2]) == {3: Fraction(1, 2), 1: Fraction(1)}


@pytest.mark.parametrize(
    ("groups", "share", "expected"),
    [(30, 0.1, 3), (10, 0.2, 2), (11, 0.2, 3), (3, 0.2, 1), (1, 0.2, 1), (10, 1.0, 10), (5, 0.2, 1), (100, 0.07, 7)],
)
def test_the_share_is_rounded_up_without_float_surprises(groups: int, share: float, expected: int) -> None:
    rates = {g: Fraction(g + 1, groups + 1) for g in range(groups)}
    chosen = most_solved(rates, share, dict.fromkeys(rates, 0.0))
    assert chosen == set(range(groups - expected, groups))


def test_ties_go_by_the_draw_and_the_hopeless_are_never_pressed() -> None:
    rates = {0: Fraction(1, 2), 1: Fraction(1, 2), 2: Fraction(0), 3: Fraction(1, 4)}
    assert most_solved(rates, 0.25, {0: 0.9, 1: 0.1, 2: 0.0, 3: 0.0}) == {1}
    assert most_solved(rates, 0.25, {0: 0.1, 1: 0.9, 2: 0.0, 3: 0.0}) == {0}
    assert most_solved(rates, 1.0, dict.fromkeys(rates, 0.0)) == {0, 1, 3}
    assert most_solved({2: Fraction(0)}, 0.2, {2: 0.0}) == set()


def test_the_penalty_is_the_sigmoid_of_the_standardised_length() -> None:
    lengths = [10, 20, 60]
    mean, std = 30, math.sqrt((400 + 100 + 900) / 3)
    for n in lengths:
        assert penalised(n, lengths, 0.6) == pytest.approx(1 - 0.6 / (1 + math.exp(-(n - mean) / std)))
    assert penalised(7, [7], 0.6) == 1 and penalised(7, [7, 7], 0.6) == pytest.approx(0.7)
    assert penalised(0, [10**6, 10**6], 0.6) == 1 and penalised(10**9, [5, 5], 0.6) == pytest.approx(0.4)


def test_the_penalty_does_not_see_the_scale_of_lengths() -> None:
    lengths = [10, 20, 60]
    for n in lengths:
        assert penalised(7 * n + 100, [7 * m + 100 for m in lengths], 0.6) == pytest.approx(penalised(n, lengths, 0.6))


def test_a_wrong_output_never_profits_from_being_short() -> None:
    rows = [(0, 1, 50), (0, 1, 500), (0, 0, 1), (0, 0, 5000)]
    found = value(ShortWhereSolved(), rows)
    assert found[2:] == [0, 0] and min(found[:2]) >= 0.4 and found[0] > found[1]


def test_the_gate_moves_with_accuracy() -> None:
    """Two prompts, a share of a half: the better one is pressed, and when the other overtakes it, the other is."""
    better = [(0, 1, 10), (0, 1, 30), (0, 1, 20), (1, 1, 10), (1, 1, 30), (1, 0, 20)]
    found = score(ShortWhereSolved(share=0.5), better)
    assert [s.components["pressed"] for s in found] == [1, 1, 1, 0, 0, 0]
    assert [s.value for s in found][3:] == [1, 1, 0] and found[0].value > found[2].value > found[1].value
    overtaken = [(g, int(not right) if i in (2, 5) else right, n) for i, (g, right, n) in enumerate(better)]
    assert [s.components["pressed"] for s in score(ShortWhereSolved(share=0.5), overtaken)] == [0, 0, 0, 1, 1, 1]


def test_equally_solved_prompts_take_turns_but_not_by_their_place() -> None:
    rows = [(g, 1, n) for g in range(4) for n in (10, 20)]
    reward, pressed = ShortWhereSolved(share=0.25), set()
    for step in range(40):
        found = score(reward, rows, step)
        order = random.Random(step).sample(range(len(rows)), len(rows))
        moved = score(reward, [rows[i] for i in order], step)
        assert [s.value for s in moved] == [found[i].value for i in order]
        pressed |= {g for (g, _, _), s in zip(rows, found, strict=True) if s.components["pressed"]}
        assert sum(s.components["pressed"] for s in found) == 2
    assert pressed == {0, 1, 2, 3}


def test_an_unknown_output_counts_for_nothing() -> None:
    rows = [(0, 1, 10), (0, 1, 30), (0, None, 1)]
    found = score(ShortWhereSolved(), rows)
    assert found[2].status is Status.NOT_APPLICABLE
    assert [s.value for s in found[:2]] == value(ShortWhereSolved(), rows[:2])
    assert all(s.status is Status.NOT_APPLICABLE for s in score(ShortWhereSolved(), [(0, None, 1), (1, None, 2)]))


def test_tiers_switch_at_the_stated_rate() -> None:
    reward = CorrectWithinTiers(short=20, long=40)
    half = [(0, 1, 10), (0, 1, 30), (0, 0, 1), (0, 0, 1)]
    assert value(reward, half) == [1, 0, 0, 0]
    assert value(reward, [*half, (0, 0, 1)]) == [1, 1, 0, 0, 0]  # 2 of 5: the long limit
    assert value(reward, [(0, 1, 30), (0, 1, 50), (0, 0, 1)]) == [1, 0, 0]  # what is cut off at 40 is not right
    assert [s.components["limit"] for s in score(reward, half)] == [20] * 4
