"""How numbers and scores are written on every page."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeGuard

from plaudit.statistics import Gain

ABSENT = "missing"
MINUS = "\u2212"


@dataclass(frozen=True, kw_only=True)
class Style:
    """How scores of one reward are written: an accuracy in percent, anything else as a plain number."""

    accuracy: bool
    noun: str
    where: str

    @property
    def truth(self) -> str:
        """What the headline is about, for example `held-out accuracy`."""
        return f"{self.where} {self.noun}"

    def score(self, value: float | None) -> str:
        if not known(value):
            return ABSENT
        return f"{100 * value:.1f} %" if self.accuracy else _plain(value)

    def gain(self, value: float | None) -> str:
        return f"{self.signed(value)} points" if self.accuracy and known(value) else self.signed(value)

    def bounds(self, low: float | None, high: float | None) -> str:
        if not known(low) or not known(high):
            return ABSENT
        return f"{100 * low:.1f} to {100 * high:.1f}" if self.accuracy else f"{_plain(low)} to {_plain(high)}"

    def gain_bounds(self, gain: Gain) -> str:
        if not known(gain.low) or not known(gain.high):
            return ABSENT
        return f"{self.signed(gain.low)} to {self.signed(gain.high)}"

    def signed(self, value: float | None) -> str:
        """A difference without its unit."""
        if not known(value):
            return ABSENT
        return (f"{100 * value:+.1f}" if self.accuracy else _plain(value, "+")).replace("-", MINUS)


def _plain(value: float, sign: str = "") -> str:
    """Three decimals or, of what they would hide, three digits."""
    return f"{value:{sign}{'.3f' if value == 0 or abs(value) >= 0.01 else '.3g'}}".replace("-", MINUS)


def capital(text: str) -> str:
    """The first letter large, the rest as it is."""
    return text[:1].upper() + text[1:]


def known(value: float | None) -> TypeGuard[float]:
    return value is not None and not math.isnan(value)


def number(value: float | int | None, digits: int = 4) -> str:
    """Counts with thin thousands, other numbers with a few significant digits, and a word where there is none."""
    if not known(value):
        return ABSENT
    if float(value).is_integer():
        return f"{int(value):,}".replace(",", "\u202f")
    return f"{value:.{digits}g}"
