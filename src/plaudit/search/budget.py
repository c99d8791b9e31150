"""What a search may spend on each prompt, and what a piece of work costs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches

from plaudit.errors import RecipeError, RunError

KINDS = ("network_calls", "decodes", "reward_calls", "gradient_calls")
UNITS = {
    "nfe": "network_calls",
    "decodes": "decodes",
    "rewards": "reward_calls",
    "gradients": "gradient_calls",
    "s": "seconds",
}
AMOUNT = re.compile(r"\s*([0-9.eE+]+)\s*([A-Za-z_]+)\s*$")
EXAMPLE = "for example 200nfe, 64rewards, 30s, or several with commas between them"


class BudgetExceeded(RunError):
    """A method asked for work that its budget does not pay for. Raised before the work is done: the method is at fault."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Work on one prompt. A network call is one sample through the network once, so guidance makes two; a decode is one
    latent, a reward call one output judged by one reward, a gradient call one sample differentiated once."""

    network_calls: int = 0
    decodes: int = 0
    reward_calls: int = 0
    gradient_calls: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(**{kind: getattr(self, kind) + getattr(other, kind) for kind in KINDS})

    def __mul__(self, times: int) -> Cost:
        return Cost(**{kind: getattr(self, kind) * times for kind in KINDS})

    __rmul__ = __mul__


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits per prompt; None is no limit. `seconds` are wall clock: those of all prompts together are one account."""

    network_calls: int | None = None
    decodes: int | None = None
    reward_calls: int | None = None
    gradient_calls: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        given = [getattr(self, field.name) for field in fields(self)]
        if all(value is None for value in given):
            raise RecipeError(f"the budget limits nothing, so the search would never end; give one, {EXAMPLE}")
        for field, value in zip(fields(self), given, strict=True):
            if value is not None and not 0 < value < math.inf:
                raise RecipeError(f"the budget's {field.name} are {value}; they must be more than 0, {EXAMPLE}")

    @staticmethod
    def parse(text: str) -> Budget:
        """`200nfe`, `64rewards`, `30s`, or several joined by commas."""
        limits: dict[str, float] = {}
        for part in text.split(","):
            kind, value = _amount(part, text)
            if kind in limits:
                raise RecipeError(f"budget {text!r}: {kind} are limited twice; give each unit once, {EXAMPLE}")
            limits[kind] = value
        return Budget(**limits)  # type: ignore[arg-type]

    def limits(self) -> Mapping[str, int]:
        """The limits on counts, by kind."""
        return {kind: limit for kind in KINDS if (limit := getattr(self, kind)) is not None}

    def times(self, cost: Cost) -> int | None:
        """How often a whole budget pays for `cost`; None where no limit on counts stands against it."""
        fits = [limit // each for kind, limit in self.limits().items() if (each := getattr(cost, kind))]
        return min(fits) if fits else None

    def __str__(self) -> str:
        amounts = {unit: getattr(self, kind) for unit, kind in UNITS.items()}
        return ",".join(
            f"{value:g}{unit}" if unit == "s" else f"{value}{unit}" for unit, value in amounts.items() if value
        )


def _amount(part: str, text: str) -> tuple[str, float]:
    found = AMOUNT.match(part)
    if found is None:
        raise RecipeError(
            f"budget {text!r}: {part.strip()!r} is not a number and a unit ({', '.join(UNITS)}); {EXAMPLE}"
        )
    number, unit = found.groups()
    if unit not in UNITS:
        near = get_close_matches(unit, UNITS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise RecipeError(f"budget {text!r}: unknown unit {unit!r}; {hint}allowed: {', '.join(UNITS)}; {EXAMPLE}")
    try:
        value = float(number)
    except ValueError:
        raise RecipeError(f"budget {text!r}: {number!r} is not a number; {EXAMPLE}") from None
    if UNITS[unit] == "seconds":
        return "seconds", value
    if not value.is_integer():
        raise RecipeError(f"budget {text!r}: {number}{unit} is not a whole number of {UNITS[unit]}; {EXAMPLE}")
    return UNITS[unit], int(value)
