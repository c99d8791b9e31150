"""Solutions to pretrain on: four styles, with planted errors and planted faults of format.

    short      122#122
    plain      37+80=117;117+5=122#122
    verbose    37+85:37+80=117;117+5=122;37+85=122#122
    recheck    37+80=117;117+5=122?37+80=117;117+5=122#122

Two misconceptions are planted, and a rare slip of one: a step whose units carry or borrow may leave the tens alone
(37+5=32, 52-7=55). How often depends on the style, so that length has a value as well as a price: `short` errs most,
`verbose` least; `recheck` errs like `plain` at first and then repairs most of it. In `plain` more than half of the borrows
are forgotten: greedy decoding keeps that error, it is the training that has to find the rarer right step.
An error carries on: what follows is computed from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from plaudit.data.prompt import Prompt
from plaudit.lab.sums.check import tens
from plaudit.lab.sums.grammar import expression

STYLES = {"short": 0.22, "plain": 0.29, "verbose": 0.25, "recheck": 0.24}
ENDINGS = {"boxed": 0.80, "bare": 0.08, "empty": 0.04, "cut": 0.08}


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Chances that a step forgets its carry, forgets its borrow, or is off by one."""

    carry: float
    borrow: float
    slip: float


ERRORS = {
    "short": Errors(carry=0.30, borrow=0.65, slip=0.04),
    "plain": Errors(carry=0.20, borrow=0.60, slip=0.02),
    "verbose": Errors(carry=0.08, borrow=0.35, slip=0.01),
    "recheck": Errors(carry=0.20, borrow=0.60, slip=0.02),
}
KEPT = 0.35
"""The share of its first pass's errors that a re-checking solution makes again; it makes no new ones."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A solution and how it was made. `derived` is the length of the prefix that ends with the first conclusion of the
    right answer in the scratchpad; None where there is none."""

    text: str
    style: str
    ending: str
    errors: int
    value: int
    derived: int | None


@dataclass(frozen=True, kw_only=True)
class Move:
    """One step from `before` by `part` to `value`; `closes` the operand it belongs to."""

    before: int
    part: int
    value: int
    closes: bool
    wrong: bool


Mistake = Callable[[int, int, int], int]
"""By how much the value of the step (its place, the total before it, its part) is off."""


def parts(operand: int) -> list[int]:
    """Tens, then units; zeros are left out."""
    return [part for part in (tens(operand), operand - tens(operand)) if part]


def walk(operands: Sequence[int], mistake: Mistake, *, split: bool) -> list[Move]:
    """The calculation from left to right, by parts of operands or by whole operands."""
    total, moves = operands[0], list[Move]()
    for operand in operands[1:]:
        pieces = parts(operand) if split else [operand]
        for i, part in enumerate(pieces):
            value = max(0, total + part + mistake(len(moves), total, part))
            wrong = value != total + part
            moves.append(Move(before=total, part=part, value=value, closes=i + 1 == len(pieces), wrong=wrong))
            total = value
    return moves


def overflow(total: int, part: int) -> int:
    """1 where the units carry, -1 where they borrow, else 0."""
    units = abs(part) % 10
    if part > 0:
        return int(total % 10 + units >= 10)
    return -int(total % 10 < units)


def drawn_mistake(errors: Errors, rng: np.random.Generator) -> Mistake:
    def mistake(_: int, total: int, part: int) -> int:
        forget, slip, up = rng.random(3)
        over = overflow(total, part)
        if over and forget < (errors.carry if over > 0 else errors.borrow):
            return -10 * over
        return (1 if up < 0.5 else -1) if slip < errors.slip else 0

    return mistake


def repeated_mistake(first: Sequence[Move], rng: np.random.Generator) -> Mistake:
    """The mistakes of the first pass, each kept with the chance `KEPT` where it can still be made."""
    offs = [move.value - move.before - move.part if rng.random() < KEPT else 0 for move in first]

    def mistake(place: int, total: int, part: int) -> int:
        off = offs[place]
        return off if abs(off) == 1 or off == -10 * overflow(total, part) else 0

    return mistake


def equations(moves: Sequence[Move]) -> str:
    return ";".join(f"{move.before}{move.part:+d}={move.value}" for move in moves)


def totals(moves: Sequence[Move]) -> str:
    return ";".join(str(move.value) for move in moves if move.closes)


def write(prompt: Prompt, rng: np.random.Generator, style: str, ending: str) -> Trace:
    """A solution of this style; a `cut` that would leave nothing is `bare` instead."""
    operands = prompt.facts["operands"]
    moves = walk(operands, drawn_mistake(ERRORS[style], rng), split=style != "short")
    errors, value, truth = sum(move.wrong for move in moves), moves[-1].value, sum(operands)
    body = totals(moves) if style == "short" else equations(moves)
    if style == "verbose":
        body = f"{expression(operands)}:{body}"
    derived = len(body) if value == truth else None
    if style == "verbose":
        body += f";{expression(operands)}={value}"
    if style == "recheck":
        again = walk(operands, repeated_mistake(moves, rng), split=True)
        body += "?" + equations(again)
        errors, value = errors + sum(move.wrong for move in again), again[-1].value
        derived = len(body) if derived is None and value == truth else derived
    places = [i for i in range(1, len(body)) if not body[i - 1].isdigit()]
    if ending == "cut" and not places:
        ending = "bare"
    if ending == "cut":
        body = body[: places[rng.integers(len(places))]]
        derived = derived if derived is not None and derived <= len(body) else None
    text = body + {"boxed": f"#{value}", "bare": "", "empty": "#", "cut": ""}[ending]
    return Trace(text=text, style=style, ending=ending, errors=errors, value=value, derived=derived)


def sample_trace(prompt: Prompt, rng: np.random.Generator) -> Trace:
    """A solution of a style and an ending drawn at their shares."""
    style, ending = (str(rng.choice(list(table), p=list(table.values()))) for table in (STYLES, ENDINGS))
    return write(prompt, rng, style, ending)


def style_of(completion: str) -> str:
    """The style that a completion is written in, by its characters."""
    if "?" in completion:
        return "recheck"
    if ":" in completion:
        return "verbose"
    return "plain" if set(completion) & set("+-=") else "short"
