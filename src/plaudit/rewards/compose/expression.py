"""Formulas written in Python: `(R("match") * 0.7 + call("clip", R("bright"), 0, 1)).text` is a recipe's `combine:`."""

from __future__ import annotations

from typing import Any


class R:
    """A reward by name, or what has been made of rewards; numbers and + - * / go with it."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __add__(self, other: R | float) -> R:
        return R(f"({self.text} + {written(other)})")

    def __radd__(self, other: float) -> R:
        return R(f"({written(other)} + {self.text})")

    def __sub__(self, other: R | float) -> R:
        return R(f"({self.text} - {written(other)})")

    def __rsub__(self, other: float) -> R:
        return R(f"({written(other)} - {self.text})")

    def __mul__(self, other: R | float) -> R:
        return R(f"({self.text} * {written(other)})")

    __rmul__ = __mul__

    def __truediv__(self, other: R | float) -> R:
        return R(f"({self.text} / {written(other)})")

    def __neg__(self) -> R:
        return R(f"(-{self.text})")


def call(operator: str, *parts: R | float, **options: Any) -> R:
    words = [*map(written, parts), *(f"{name}={written(value)}" for name, value in options.items())]
    return R(f"{operator}({', '.join(words)})")


def written(value: Any) -> str:
    return value.text if isinstance(value, R) else repr(value)
