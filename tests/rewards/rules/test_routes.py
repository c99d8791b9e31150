from __future__ import annotations

import pytest

from plaudit.data.prompt import Prompt
from plaudit.errors import RewardError
from plaudit.rewards.calling.call import call_reward
from plaudit.rewards.rules.routes import (
    Leg,
    difficulty_weight,
    is_route,
    parse_legs,
    partial_credit,
    route_credit,
    route_detail,
)

LINES = {"Red": ["Ash", "Oak", "Elm"], "Blue": ["Oak", "Fir", "Yew"], "Green": ["Yew", "Bay"]}


def leg(line: str, departure: str, arrival: str) -> Leg:
    return Leg(line=line, departure=departure, arrival=arrival)


RIGHT = [leg("Red", "Ash", "Oak"), leg("Blue", "Oak", "Yew"), leg("Green", "Yew", "Bay")]


def test_partial_credit_by_hand() -> None:
    assert route_detail(RIGHT, LINES, "Ash", "Bay", 2) == 10  # 2 + 3 * 3 + 2 = 13, capped
    assert route_detail(RIGHT[:2], LINES, "Ash", "Yew", 1) == 9  # 2 + 3 + 1 + 3
    assert route_detail(RIGHT[:2], LINES, "Ash", "Yew", 0) == -3  # 2 + 0 + 0 - 5: neither line leads there
    assert route_detail(RIGHT[:2], LINES, "Oak", "Yew", 1) == 0  # wrong start
    assert route_detail([leg("Pink", "Ash", "Yew")], LINES, "Ash", "Yew", 1) == 2
    assert route_detail([], LINES, "Ash", "Yew", 1) == 0


def test_surplus_legs_are_fined_and_never_pay() -> None:
    there_and_back = [leg("Red", "Ash", "Elm"), leg("Red", "Elm", "Ash")] * 3 + [leg("Red", "Ash", "Elm")]
    details = [route_detail(there_and_back[:n], LINES, "Ash", "Elm", 0) for n in (1, 3, 5, 7)]
    assert details == [6, 4, 2, 0]


def test_a_route_must_hold_together() -> None:
    assert is_route(RIGHT, LINES, "ash", "BAY station")
    assert not is_route(RIGHT, LINES, "Bay", "Ash")
    assert not is_route([RIGHT[0], RIGHT[2]], LINES, "Ash", "Bay")
    assert not is_route([leg("Red", "Ash", "Yew")], LINES, "Ash", "Yew")
    assert not is_route([leg("Pink", "Ash", "Yew")], LINES, "Ash", "Yew")
    assert not is_route([], LINES, "Ash", "Yew")


def test_weights() -> None:
    found = {(level, n): difficulty_weight(level, n) for level in ("easy", "middle", "hard") for n in (0, 1, 2)}
    assert found == {
        ("easy", 0): 1.0, ("easy", 1): 1.5, ("easy", 2): 1.5, ("middle", 0): 1.2, ("middle", 1): 1.7, ("middle", 2): 1.7,
        ("hard", 0): 1.5, ("hard", 1): 2.0, ("hard", 2): 2.0,
    }  # fmt: skip
    with pytest.raises(RewardError, match="difficulty 'extreme'; allowed: easy, middle, hard"):
        difficulty_weight("extreme", 0)
    assert partial_credit(form=1, correct=1, detail=0.4, weight=1.5) == pytest.approx(1.5 * 2.2)


def test_parsing_passes_over_what_is_no_leg() -> None:
    text = "Sure!\n--\n**Route Name**: Red\n**Departure Stop**: Ash\n**Arrival Stop**: Oak\n--\nRoute Name: Blue"
    assert parse_legs(text) == [leg("Red", "Ash", "Oak")]
    assert parse_legs("") == [] and parse_legs("--" * 1000) == []


def test_components_add_up_to_the_score() -> None:
    text = "\n--\n".join(
        f"Route Name: {x.line}\nDeparture Stop: {x.departure}\nArrival Stop: {x.arrival}" for x in RIGHT
    )
    facts = {"lines": LINES, "start": "Ash", "goal": "Bay", "transfers": 2, "difficulty": "middle"}
    score = call_reward("r", route_credit, [Prompt(id="q", text="", facts=facts)], [f"<think>hm</think>{text}"])[0]
    assert score.components == {"correct": 1.0, "detail": 10.0, "weight": 1.7}
    assert score.value == pytest.approx(1.7 * (10 + 0.5 * 10))
