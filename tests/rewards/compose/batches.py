"""Batches for properties: scores with ties and missing ones, in shuffled groups."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

NAN = math.nan


def law(**strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """`given`, with as many examples as a family of tests has seconds for."""
    return lambda test: settings(max_examples=30, deadline=None)(given(**strategies)(test))


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def groups(*values: int) -> Tensor:
    return torch.tensor(values)


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    """Multiples of 1/8, so that ties are common, or any float."""
    return st.integers(int(low * 8), int(high * 8)).map(lambda n: n / 8) | st.floats(low, high)


@st.composite
def parts(draw: st.DrawFn, num: int, low: float = -4, high: float = 4, missing: bool = True) -> list[Tensor]:
    size = draw(st.integers(1, 12))
    number = numbers(low, high)
    entry = number | st.just(NAN) if missing else number
    return [torch.tensor(draw(st.lists(entry, min_size=size, max_size=size)), dtype=torch.float64) for _ in range(num)]


def some_groups(size: int) -> st.SearchStrategy[Tensor]:
    return st.lists(st.sampled_from([7, 2, 5]), min_size=size, max_size=size).map(torch.tensor)


@st.composite
def grouped(draw: st.DrawFn, num: int = 1, low: float = -4, high: float = 4) -> tuple[list[Tensor], Tensor]:
    scores = draw(parts(num, low, high))
    return scores, draw(some_groups(len(scores[0])))


def same(first: Tensor, second: Tensor, atol: float = 1e-9) -> bool:
    return first.shape == second.shape and torch.allclose(first, second, rtol=1e-9, atol=atol, equal_nan=True)
