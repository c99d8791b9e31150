"""Units of scores: what may be added to what, and what unit each operator's result has.

A unit is a reward's range (low, high), the name of its calibration ("zscore"), CONSTANT for numbers and schedules, which
go with anything, or None where nothing is known. A constant factor keeps the unit: it is a weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import product as every_choice
from typing import Any, TypeAlias

Range: TypeAlias = tuple[float, float]


class Constant(Enum):
    CONSTANT = "a constant"


CONSTANT = Constant.CONSTANT
Unit: TypeAlias = Range | str | Constant | None
RANK, TAMED, ADVANTAGE, ZSCORE = "rank", "log-tamed", "advantage", "zscore"
ZERO_ONE: Range = (0.0, 1.0)

CALIBRATE = (
    "give each its `calibrate: {type: zscore}`, or multiply them, or add their ranks (`rank(a) + 0.2 * rank(b)`), which need no "
    "common scale"
)
BOUND = "take clip(x, 0, 1), sigmoid(x) or minmax(x) of it first"
RESCALE = "bring it to 0..1 first, e.g. grades of 1 to 5 by rescale(x, 1, 5)"


class UnitError(Exception):
    """Parts that do not go together; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Term:
    """A part of an operation: its text in the formula and its unit."""

    text: str
    unit: Unit


Options = Mapping[str, Any]  # numbers that depend on the step are absent
Rule = Callable[[Sequence[Term], Options], Unit]


def in_words(unit: Unit) -> str:
    if unit is None:
        return "of unknown range"
    if isinstance(unit, tuple):
        return f"in {unit[0]:g}..{unit[1]:g}"
    return f"in {unit}s" if unit == RANK else f"in {unit} units" if isinstance(unit, str) else unit.value


def _measured(terms: Sequence[Term]) -> list[Term]:
    return [term for term in terms if term.unit is not CONSTANT]


# --- rules -----------------------------------------------------------------------------------------------------------


def same(terms: Sequence[Term], options: Options) -> Unit:
    """All parts in one unit, which the result keeps."""
    measured = _measured(terms)
    if not measured:
        return CONSTANT
    units = [term.unit for term in measured]
    if len(units) > 1 and (None in units or any(unit != units[0] for unit in units)):
        raise UnitError(f"puts together what is not in one unit ({_listed(measured)}); {CALIBRATE}")
    return units[0]


def _listed(terms: Sequence[Term]) -> str:
    return ", ".join(f"{term.text} is {in_words(term.unit)}" for term in terms)


def first(terms: Sequence[Term], options: Options) -> Unit:
    """The first part's unit; the others may be in any."""
    return terms[0].unit


def becomes(unit: Unit) -> Rule:
    """Any parts; the result has `unit`."""
    return lambda terms, options: unit


def zero_one(terms: Sequence[Term], options: Options) -> Unit:
    """All parts in 0..1, as is the result."""
    for term in _measured(terms):
        if term.unit != ZERO_ONE:
            raise UnitError(f"needs parts in 0..1, but {term.text} is {in_words(term.unit)}; {RESCALE}")
    return ZERO_ONE


def not_negative(terms: Sequence[Term]) -> None:
    for term in _measured(terms):
        if not (isinstance(term.unit, tuple) and term.unit[0] >= 0) and term.unit != RANK:
            raise UnitError(f"needs parts that cannot be negative, but {term.text} is {in_words(term.unit)}; {BOUND}")


def same_not_negative(terms: Sequence[Term], options: Options) -> Unit:
    not_negative(terms)
    return same(terms, options)


def geometric(terms: Sequence[Term], options: Options) -> Unit:
    """No common unit is needed: another scale of a part only multiplies the result."""
    not_negative(terms)
    ranges = [term.unit for term in _measured(terms)]
    if not all(isinstance(unit, tuple) for unit in ranges):
        return None
    roots = [math.prod(bounds) ** (1 / len(bounds)) for bounds in zip(*ranges, strict=True)]
    return (roots[0], roots[1])


def product(terms: Sequence[Term], options: Options) -> Unit:
    """No common unit is needed, but at most one factor may be negative: two bad scores would make a good one."""
    measured = _measured(terms)
    if len(measured) < 2:
        return measured[0].unit if measured else CONSTANT
    signed = [t for t in measured if t.unit != RANK and not (isinstance(t.unit, tuple) and t.unit[0] >= 0)]
    if len(signed) > 1:
        raise UnitError(
            f"multiplies parts that may both be negative ({_listed(signed)}), so that two bad ones make a good one; {BOUND}"
        )
    units = [term.unit for term in measured]
    named = [unit for unit in units if isinstance(unit, str)]
    if len(named) == 1 and all(unit == ZERO_ONE for unit in units if unit != named[0]):
        return named[0]
    ranges = [unit for unit in units if isinstance(unit, tuple)]
    if len(ranges) < len(units):
        return None
    corners = [math.prod(corner) for corner in every_choice(*ranges)]
    return (min(corners), max(corners))


def quotient(terms: Sequence[Term], options: Options) -> Unit:
    """A constant divisor keeps the unit; of other quotients nothing is known."""
    return terms[0].unit if terms[1].unit is CONSTANT else None


def clipped(terms: Sequence[Term], options: Options) -> Unit:
    """What is left of the range; a calibrated score keeps its unit."""
    unit, low, high = terms[0].unit, options.get("low"), options.get("high")
    if isinstance(unit, str | Constant) or low is None or high is None:
        return unit
    left = [min(max(bound, low), high) for bound in unit or (-math.inf, math.inf)]
    return (left[0], left[1]) if all(math.isfinite(bound) for bound in left) else None


def rescaled(terms: Sequence[Term], options: Options) -> Unit:
    """Where the range's ends go: grades of 1..5 divided by 5 are in 0.2..1, not in 0..1."""
    unit, low, high = terms[0].unit, options.get("low"), options.get("high")
    if not isinstance(unit, tuple) or low is None or high is None:
        return None
    return ((unit[0] - low) / (high - low), (unit[1] - low) / (high - low))


def tiered(terms: Sequence[Term], options: Options) -> Unit:
    """The values of the tiers; a part of which nothing is known has no place among thresholds."""
    if terms[0].unit is None:
        raise UnitError(f"compares {terms[0].text} with thresholds, but it is of unknown range; {BOUND}")
    return (options["values"][0], options["values"][-1])


def against_references(unit: Unit) -> Rule:
    """Score and references by one reward; the result has `unit`."""

    def rule(terms: Sequence[Term], options: Options) -> Unit:
        if any(term.unit != terms[0].unit for term in terms[1:]):
            raise UnitError(
                f"compares a score with references of another unit ({_listed(terms)}); take the score and its references "
                "from one reward"
            )
        return unit

    return rule


def tamed(terms: Sequence[Term], options: Options) -> Unit:
    not_negative(terms)
    return TAMED


def gate_first(terms: Sequence[Term], options: Options) -> Unit:
    """The first part in 0..1, whose unit the result keeps; the others may be in any."""
    return zero_one(terms[:1], options)


def discounted(terms: Sequence[Term], options: Options) -> Unit:
    """A score that cannot be negative, or disagreement would raise it; the result keeps its unit."""
    not_negative(terms[:1])
    return terms[0].unit
