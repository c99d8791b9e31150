"""Partial credit weighted by difficulty, on the task it was made for: routes through a network of lines.

An answer has one part per leg, set apart by `--`, of `Route Name:`, `Departure Stop:` and `Arrival Stop:`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from plaudit.errors import RewardError
from plaudit.rewards.base import Score, Status, card, missing
from plaudit.rewards.rules.answers import find_answer

Difficulty = Literal["easy", "middle", "hard"]
MAP_WEIGHT: Mapping[str, float] = {"easy": 1.0, "middle": 1.2, "hard": 1.5}
TRANSFER_WEIGHT = 0.5
CORRECT, DETAIL = 10.0, 0.5
MAX_DETAIL = 10.0
LONGEST_NAME = 200  # characters; a longer one is no stop's

Lines = Mapping[str, Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Leg:
    line: str
    departure: str
    arrival: str


@card(kind="text", high=(1.5 + TRANSFER_WEIGHT) * (CORRECT + DETAIL * MAX_DETAIL), systems=("S123",), cost_ms=0.05)
def route_credit(
    prompts: Sequence[str],
    outputs: Sequence[str],
    lines: Sequence[Lines | None],
    start: Sequence[str],
    goal: Sequence[str],
    transfers: Sequence[int],
    difficulty: Sequence[Difficulty],
    place: str = "whole",
) -> list[Score]:
    """Difficulty weight times (10 for a correct route + half its partial credit)."""
    scores = []
    for output, network, first, last, changes, level in zip(
        outputs, lines, start, goal, transfers, difficulty, strict=True
    ):
        if None in (network, first, last, changes, level):
            scores.append(missing(Status.NOT_APPLICABLE, "the prompt has no network, stops, transfers or difficulty"))
            continue
        legs = parse_legs(find_answer(output, place) or "")
        correct = float(is_route(legs, network, first, last))
        detail = route_detail(legs, network, first, last, changes)
        weight = difficulty_weight(level, changes)
        value = weight * (CORRECT * correct + DETAIL * detail)
        scores.append(Score(value=value, components={"correct": correct, "detail": detail, "weight": weight}))
    return scores


def difficulty_weight(level: Difficulty, transfers: int) -> float:
    """W = W_map + W_question."""
    if level not in MAP_WEIGHT:
        raise RewardError(f"difficulty {level!r}; allowed: {', '.join(get_args(Difficulty))}")
    return MAP_WEIGHT[level] + (TRANSFER_WEIGHT if transfers > 0 else 0.0)


def partial_credit(*, form: float, correct: float, detail: float, weight: float, share: float = 0.5) -> float:
    """The paper's form: W (R_format + R_correct + share * R_detail). The released code has no format term."""
    return weight * (form + correct + share * detail)


def parse_legs(text: str) -> list[Leg]:
    """The well-formed legs of an answer; other parts are passed over, as in the released code."""
    parts = (_leg(section) for section in text.split("--"))
    return [leg for leg in parts if leg is not None]


def _leg(section: str) -> Leg | None:
    names = {"line": "Route Name", "departure": "Departure Stop", "arrival": "Arrival Stop"}
    found = {key: re.search(rf"^[^\w\n]*+{name}[^\w\n]*:(.*)$", section, re.MULTILINE) for key, name in names.items()}
    return Leg(**{key: match[1].strip(" *\t\r") for key, match in found.items()}) if all(found.values()) else None


def same_stop(name: str) -> str:
    """A stop's name for comparison: without case, spaces, hyphens, brackets and the word station."""
    if len(name) > LONGEST_NAME:
        return name
    bare = re.sub(r"[(（][^)）]*[)）]|\bstation\b", "", name.casefold())
    return re.sub(r"[\s\-*,']+", "", bare)


def _ends_right(legs: Sequence[Leg], start: str, goal: str) -> bool:
    ends = bool(legs) and (same_stop(legs[0].departure), same_stop(legs[-1].arrival))
    return ends == (same_stop(start), same_stop(goal))


def _on_line(leg: Leg, lines: Lines) -> bool:
    stops = {same_stop(stop) for stop in lines.get(leg.line, ())}
    return {same_stop(leg.departure), same_stop(leg.arrival)} <= stops


def _meets(leg: Leg, following: Leg) -> bool:
    return same_stop(leg.arrival) == same_stop(following.departure)


def is_route(legs: Sequence[Leg], lines: Lines, start: str, goal: str) -> bool:
    """Whether the legs lead from start to goal, each along its line, each beginning where the last one ended."""
    joined = all(_meets(leg, following) for leg, following in itertools.pairwise(legs))
    return _ends_right(legs, start, goal) and joined and all(_on_line(leg, lines) for leg in legs)


def route_detail(legs: Sequence[Leg], lines: Lines, start: str, goal: str, transfers: int) -> float:
    """Nothing unless the ends are right; then 2, for each leg 3 for a line that exists (4 for the one right line where
    no change is needed), 1 for each expected change at a common stop, -5 for each leg too many; at most 10.

    The released code expects as many legs as transfers, so that it fines the last leg of every right route; here it is
    one more.
    """
    if not _ends_right(legs, start, goal):
        return 0.0
    credit = 2.0
    for i, leg in enumerate(legs):
        credit -= 5.0 if i > transfers else 0.0
        credit += _line_credit(leg, lines, start, goal, transfers)
        change = i < min(transfers, len(legs) - 1) and _on_line(leg, lines) and _meets(leg, legs[i + 1])
        credit += 1.0 if change else 0.0
    return min(credit, MAX_DETAIL)


def _line_credit(leg: Leg, lines: Lines, start: str, goal: str, transfers: int) -> float:
    if leg.line not in lines:
        return 0.0
    direct = _on_line(Leg(line=leg.line, departure=start, arrival=goal), lines)
    return 3.0 if transfers > 0 else 4.0 * direct
