"""Rewards of one output's length: budgets, turning points, conciseness. What compares outputs is in length_groups.py and
length_history.py, what prices tokens in surprisal.py, what finds superfluous ones in redundancy.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from plaudit.errors import RecipeError
from plaudit.rewards.base import Card, Score
from plaudit.rewards.calling.request import Request
from plaudit.rewards.rules.outcomes import (
    Column,
    Outcome,
    OutcomeReward,
    Rightness,
    count,
    inheriting,
    positive,
)

Curve = Literal["parabola", "polyline"]
READABLE = {"type": "boxed_format"}


# --- formulas --------------------------------------------------------------------------------------------------------


def within(outcome: Outcome, limit: int) -> float:
    """DLER's R' = 1[correct and L <= limit]."""
    return float(outcome.correct and outcome.length <= limit)


def concise(length: int, limit: int, low: float) -> float:
    """1 - L / limit, never below `low`."""
    return min(1.0, max(low, 1 - length / limit))


def parabola(x: float, turn: float) -> float:
    """0 at x = 0, 1 at the turning point, -1 at x = 1, smooth at the turn."""
    if x <= turn:
        return 1 - (1 - x / turn) ** 2
    return 1 - 2 * ((x - turn) / (1 - turn)) ** 2


def polyline(x: float) -> float:
    """The straight variant, which is continuous for a turn at 0.5 only."""
    return 2 * x if x <= 0.5 else 3 - 4 * x


def edge(length: int, limit: int, fade: int) -> float:
    """1[L < limit], or with `fade` 1 up to limit - 1 and then a straight fall to 0 at limit - 1 + fade."""
    if fade == 0:
        return float(length < limit)
    return min(1.0, max(0.0, 1 - (length - limit + 1) / fade))


def format_gated(well_formed: bool, length_term: float) -> float:
    """R_f + R_l, but a malformed output never gains by its length: min(0, R_f + R_l) with R_f = 0."""
    return 1 + length_term if well_formed else min(0.0, length_term)


def scored(value: float, outcome: Outcome, **parts: float) -> Score:
    """A score with what it is made of."""
    known = {"correct": float(outcome.correct), "length": float(outcome.length)}
    return Score(value=value, components=known | parts)


# --- rewards ---------------------------------------------------------------------------------------------------------


class CorrectWithin(OutcomeReward):
    card = Card(
        summary="1 where the output is right and no longer than the limit, else 0.",
        kind="text",
        low=0,
        high=1,
        systems=("S113",),
        cost_ms=0.02,
    )

    def __init__(
        self,
        limit: int = 4000,
        unit: str = "tokens",
        correct: Mapping[str, Any] | None = None,
        threshold: float = 1.0,
    ) -> None:
        positive("correct_within", "limit", limit)
        super().__init__("correct_within", unit, correct, threshold)
        self.limit = limit

    def worth(self, outcomes: Sequence[Outcome | Score], request: Request) -> list[Score]:
        return [o if isinstance(o, Score) else scored(within(o, self.limit), o) for o in outcomes]


class FormatLength:
    """Label-free: `format` is the reward that says whether there is an answer that can be read.

    Departure: outputs past `limit` count as `limit` long, so that the score stays within its bounds.
    """

    card = Card(
        summary="1 for a readable answer plus a bonus that peaks at a moderate length; malformed outputs gain nothing.",
        kind="text",
        low=-1,
        high=2,
        systems=("S126",),
        cost_ms=0.02,
    )

    def __init__(
        self,
        format: Mapping[str, Any] = READABLE,
        limit: int = 3072,
        turn: float = 0.5,
        curve: Curve = "parabola",
        unit: str = "tokens",
        threshold: float = 1.0,
    ) -> None:
        if not 0 < turn <= 1 or (curve == "polyline" and turn != 0.5):
            raise RecipeError(
                f"reward format_length: `turn` {turn:g} with the curve {curve!r}; a parabola turns anywhere in 0..1 (0 "
                "excluded), the polyline at 0.5 only"
            )
        if curve not in ("parabola", "polyline"):
            raise RecipeError(f"reward format_length: `curve` {curve!r}; allowed: parabola, polyline")
        positive("format_length", "limit", limit)
        self.limit, self.turn, self.curve, self.unit = limit, turn, curve, unit
        self.well_formed = Rightness("format_length", format, threshold, argument="format")
        self.inner_rewards = self.well_formed.inner_rewards
        self.card = inheriting(type(self).card, self.well_formed)

    def __call__(
        self,
        prompts: Sequence[str],
        outputs: Sequence[str],
        request: Request,
        completion_ids: Column = None,
    ) -> list[Score]:
        lengths = count(outputs, self.unit, "format_length", completion_ids)
        return [self._score(right, n) for right, n in zip(self.well_formed(request), lengths, strict=True)]

    def _score(self, well_formed: bool | Score, length: int | Score) -> Score:
        if isinstance(well_formed, Score):
            return well_formed
        if isinstance(length, Score):
            return length
        x = min(length / self.limit, 1.0)
        term = polyline(x) if self.curve == "polyline" else parabola(x, self.turn)
        parts = {"format": float(well_formed), "length_term": term, "length": float(length)}
        return Score(value=format_gated(well_formed, term), components=parts)


class Brevity:
    """The rule in place of a learned conciseness score: multiply it with correctness (see the composition operators), for
    added to it, it pays for short wrong outputs."""

    card = Card(
        summary="1 for an empty output, falling linearly to `low` at the limit.",
        kind="text",
        low=0,
        high=1,
        systems=("S091", "S127"),
        cost_ms=0.01,
    )

    def __init__(self, limit: int, low: float = 0.1, unit: str = "tokens") -> None:
        if not 0 <= low < 1:
            raise RecipeError(f"reward brevity: `low` {low:g}; allowed: 0 up to but not including 1")
        positive("brevity", "limit", limit)
        self.limit, self.low, self.unit = limit, low, unit

    def __call__(
        self, prompts: Sequence[str], outputs: Sequence[str], completion_ids: Column = None
    ) -> list[float | Score]:
        lengths = count(outputs, self.unit, "brevity", completion_ids)
        return [n if isinstance(n, Score) else concise(n, self.limit, self.low) for n in lengths]


class BriefThought:
    """The paper's edge is hard: `fade` 0. Otherwise the score falls from 1 to 0 over that many units from the limit on.

    Departure: an output without `<think>...</think>` gets 0, for leaving the thought out is a fault of format.
    """

    card = Card(
        summary="1 where the text between <think> and </think> is shorter than the limit, else 0.",
        kind="text",
        low=0,
        high=1,
        systems=("S095",),
        cost_ms=0.01,
    )

    def __init__(self, limit: int = 10, fade: int = 0, unit: str = "characters") -> None:
        if unit == "tokens":
            raise RecipeError(
                "reward brief_thought: the column `completion_ids` does not say where the thought ends; set `unit` to "
                "characters, words or a tokenizer's name or folder"
            )
        if fade < 0:
            raise RecipeError(f"reward brief_thought: `fade` {fade}; it must be at least 0")
        positive("brief_thought", "limit", limit)
        self.limit, self.fade, self.unit = limit, fade, unit

    def __call__(self, prompts: Sequence[str], outputs: Sequence[str]) -> list[float]:
        return [self._score(text.partition("<think>")[2].partition("</think>")) for text in outputs]

    def _score(self, thought: tuple[str, str, str]) -> float:
        if not thought[1]:  # never closed, or never begun
            return 0.0
        length = count([thought[0]], self.unit, "brief_thought")[0]
        assert isinstance(length, int)
        return edge(length, self.limit, self.fade)
