"""Inverse specification (S010): a reader sees only the output and guesses what was ordered; the order is compared with
the guess.

A guess is `{"topic": text, "audience": text, "num_slides": number, "key_themes": [text, ...]}`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from plaudit.dotted import import_dotted
from plaudit.errors import RecipeError, RewardError
from plaudit.rewards.base import Card, Score, Status, missing

WEIGHTS = {"topic": 0.40, "audience": 0.25, "slides": 0.15, "themes": 0.20}
WORD = re.compile(r"[^\W_]+")
STOP_WORDS = frozenset("a an and as at by for from in into its of on or the their to with".split())
HEADING = re.compile(r"^#{1,6}[^\S\n]++(.+)$", re.MULTILINE)
AUDIENCE = re.compile(
    r"^[^\w\n]*+(?:audience|prepared for|for)(?=[^\w\n]*[: ])[^\w\n]*+(\w(?:.*\w)?)", re.MULTILINE | re.IGNORECASE
)
SLIDE_BREAK = re.compile(r"^[^\S\n]*+(?:-{3,}+|\*{3,}+)[^\S\n]*+$", re.MULTILINE)

Guesser = Callable[[Sequence[str]], Sequence[Any]]


def words(text: str) -> set[str]:
    """Its words in lower case, without the smallest ones."""
    return set(WORD.findall(text.lower())) - STOP_WORDS


def recovered(wanted: str, found: str) -> float:
    """Share of the wanted words that were found."""
    target = words(wanted)
    return len(target & words(found)) / len(target) if target else 0.0


def audience_score(wanted: str, found: str) -> float:
    """1 where equal, 0.7 where one contains the other, else 0.4 times the share of words found."""
    a, b = " ".join(wanted.lower().split()), " ".join(found.lower().split())
    if a == b:
        return 1.0
    return 0.7 if b and (a in b or b in a) else 0.4 * recovered(a, b)


def slides_score(wanted: float, found: float) -> float:
    return min(wanted, found) / max(wanted, found) if min(wanted, found) > 0 else 0.0


def read_outline(decks: Sequence[str]) -> list[dict[str, Any] | None]:
    """A reader without a model: slides are parted by `---` (else each heading begins one), the first heading is the topic,
    a line `Audience: ...` or `For ...` the audience, the other headings are the themes. None for an empty deck."""
    return [_read_one(deck) if deck.strip() else None for deck in decks]


def _read_one(deck: str) -> dict[str, Any]:
    headings = [line.rstrip().rstrip("#").rstrip() or line for line in HEADING.findall(deck)]
    audience = AUDIENCE.search(deck)
    slides = [part for part in SLIDE_BREAK.split(deck) if part.strip()]
    return {
        "topic": headings[0] if headings else "",
        "audience": audience.group(1) if audience else "",
        "num_slides": len(slides) if len(slides) > 1 else max(len(headings), 1),
        "key_themes": headings[1:],
    }


def parse_guess(guess: Any) -> dict[str, Any]:
    """A mapping, or a text that holds exactly one JSON object, with all four keys of the right kinds."""
    if isinstance(guess, str):
        start, end = guess.find("{"), guess.rfind("}")
        guess = json.loads(guess[start : end + 1])
    kinds = {"topic": str, "audience": str, "num_slides": (int, float), "key_themes": (list, tuple)}
    if not isinstance(guess, Mapping):
        raise ValueError(f"the guess is a {type(guess).__name__}, not an object")
    for key, kind in kinds.items():
        if not isinstance(guess.get(key), kind) or isinstance(guess.get(key), bool):
            raise ValueError(f"the guess has no {key!r}, or one of the wrong kind")
    return {key: guess[key] for key in kinds}


class InverseSpecification:
    """How much of the order (`topic`, `audience`, `num_slides`) a reader can recover from the output alone.

    `guesser` names a function `package.module:thing` from outputs to guesses (a judge); left out, `read_outline`. An empty
    output gets 0. A guess that cannot be read is missing, where the released code pays 0: it is the reader's failure.
    """

    card = Card(
        summary="how much of the order a reader guesses back from the output",
        kind="text",
        low=0,
        high=1,
        cost_ms=0.05,
        systems=("S010",),
    )

    def __init__(self, guesser: str | Guesser | None = None) -> None:
        found = import_dotted(guesser, "guesser") if isinstance(guesser, str) else guesser or read_outline
        if not callable(found):
            raise RecipeError(f"inverse_specification: guesser {guesser!r} cannot be called")
        self.guesser: Guesser = found

    def __call__(
        self,
        prompts: Sequence[str],
        outputs: Sequence[str],
        topic: Sequence[str | None],
        audience: Sequence[str | None],
        num_slides: Sequence[float | None],
    ) -> list[Score]:
        guesses = list(self.guesser(list(outputs)))
        if len(guesses) != len(outputs):
            raise RewardError(f"inverse_specification: {len(guesses)} guesses for {len(outputs)} outputs")
        return [self._score(*row) for row in zip(outputs, guesses, topic, audience, num_slides, strict=True)]

    def _score(
        self, output: str, guess: Any, topic: str | None, audience: str | None, num_slides: float | None
    ) -> Score:
        if topic is None or audience is None or num_slides is None:
            return missing(Status.NOT_APPLICABLE, "the order lacks its topic, audience or num_slides")
        if not output.strip():
            return Score(value=0.0, components=dict.fromkeys(WEIGHTS, 0.0))
        try:
            found = parse_guess(guess)
        except ValueError as error:
            return missing(Status.PARSE_FAILED, str(error))
        parts = {
            "topic": recovered(topic, found["topic"]),
            "audience": audience_score(audience, found["audience"]),
            "slides": slides_score(num_slides, found["num_slides"]),
            "themes": min(1.0, 1.5 * recovered(topic, " ".join(map(str, found["key_themes"])))),
        }
        return Score(value=sum(WEIGHTS[key] * part for key, part in parts.items()), components=parts)
