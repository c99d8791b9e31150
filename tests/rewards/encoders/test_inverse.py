"""Inverse specification: the published formula by hand, and whose failure is whose."""

from __future__ import annotations

import json

import pytest

from plaudit.data.prompt import Prompt
from plaudit.errors import PlauditError
from plaudit.rewards.base import Score, Status
from plaudit.rewards.calling.call import call_reward
from plaudit.rewards.encoders.inverse import (
    InverseSpecification,
    audience_score,
    read_outline,
    recovered,
    slides_score,
)

ORDER = {"topic": "Solar power in cities", "audience": "city planners", "num_slides": 4}
GUESS = {"topic": "solar panels", "audience": "planners", "num_slides": 3, "key_themes": ["Power grids", "cities"]}
DECK = """# Solar power in cities
Audience: city planners
---
## Roofs
---
## Power grids
"""


def judged(guess: object, deck: str = DECK, order: dict | None = None) -> Score:
    reward = InverseSpecification(guesser=lambda decks: [guess] * len(decks))
    return call_reward("inverse", reward, [Prompt(id="", text="", facts=order or ORDER)], [deck])[0]


def test_the_formula_by_hand() -> None:
    """Topic 1 of 3 words, audience contained, 3 of 4 slides, themes 2 of 3 words times 1.5."""
    found = judged(GUESS)
    assert found.components == pytest.approx({"topic": 1 / 3, "audience": 0.7, "slides": 0.75, "themes": 1.0})
    assert found.value == pytest.approx(0.40 / 3 + 0.25 * 0.7 + 0.15 * 0.75 + 0.20)
    assert judged({**GUESS, "topic": ORDER["topic"], "audience": "City  planners", "num_slides": 4}).value == (
        pytest.approx(1.0)
    )
    assert judged({**GUESS, "key_themes": ["cities"]}).components["themes"] == pytest.approx(0.5)  # type: ignore[index]


def test_parts() -> None:
    assert recovered("the solar power", "power of the sun") == 0.5
    assert recovered("of the", "of the") == 0.0
    assert audience_score("young doctors", "doctors and nurses") == pytest.approx(0.4 * 0.5)
    assert audience_score("doctors", "") == 0.0
    assert slides_score(10, 5) == slides_score(5, 10) == 0.5
    assert slides_score(10, 0) == 0.0


def test_a_guess_may_be_a_judges_text() -> None:
    assert judged(f"Here it is: {json.dumps(GUESS)} done").value == judged(GUESS).value


@pytest.mark.parametrize(
    "guess",
    [None, "", "no json", "{broken", "[1]", {"topic": "x"}, {**GUESS, "num_slides": "3"}, {**GUESS, "topic": 3}],
)
def test_the_readers_failure_is_missing_not_zero(guess: object) -> None:
    assert judged(guess).status is Status.PARSE_FAILED


def test_an_empty_deck_is_worth_nothing_and_no_order_cannot_be_judged() -> None:
    assert judged(None, deck=" \n").value == 0.0
    assert judged(GUESS, order={**ORDER, "topic": None}).status is Status.NOT_APPLICABLE
    with pytest.raises(PlauditError, match="topic"):
        judged(GUESS, order={"audience": "x", "num_slides": 1})


def test_the_outline_reader_sees_only_the_deck() -> None:
    assert read_outline([DECK, "", "plain text", "# A\n# B\n## C"]) == [
        {
            "topic": "Solar power in cities",
            "audience": "city planners",
            "num_slides": 3,
            "key_themes": ["Roofs", "Power grids"],
        },
        None,
        {"topic": "", "audience": "", "num_slides": 1, "key_themes": []},
        {"topic": "A", "audience": "", "num_slides": 3, "key_themes": ["B", "C"]},
    ]


def test_a_guesser_that_loses_decks_is_an_error() -> None:
    reward = InverseSpecification(guesser=lambda decks: [])
    with pytest.raises(PlauditError, match="0 guesses for 1"):
        call_reward("inverse", reward, [Prompt(id="", text="", facts=ORDER)], [DECK])
    with pytest.raises(PlauditError, match="cannot be called"):
        InverseSpecification(guesser="math:pi")
