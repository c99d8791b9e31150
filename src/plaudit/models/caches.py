"""Caches of token models, copied, rearranged and put together, so that candidates can branch, wait and go back.

Only what attends by any mask can do this: a column that a row must not see any more is a column that its mask hides.

Shape legend: N rows, H heads, S columns, E width of a head, B rows wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from plaudit.errors import RunError
from plaudit.lab.language import KeyValues
from plaudit.models.causal import CausalCache

Combine = Callable[[list[Tensor]], Tensor]
"""`[N, H, S, E]` of several caches to that of one; called once for every tensor that they hold."""


def arranged(cache: Any, rows: Tensor, columns: Tensor | None = None) -> Any:
    """A copy of the rows `[B]`, and of the columns `[B, S]` in each of them; None takes all as they are."""

    def combine(parts: list[Tensor]) -> Tensor:
        (values,) = parts
        chosen = values[rows.to(values.device)]
        if columns is None:
            return chosen
        index = columns.to(values.device)[:, None, :, None].expand(-1, chosen.shape[1], -1, chosen.shape[3])
        return chosen.gather(2, index)

    return combined([cache], combine)


def joined(caches: Sequence[Any]) -> Any:
    """The rows of all caches below each other; where one has fewer columns, zeros follow, which a mask must hide."""

    def combine(parts: list[Tensor]) -> Tensor:
        width = max(part.shape[2] for part in parts)
        return torch.cat([torch.nn.functional.pad(part, (0, 0, 0, width - part.shape[2])) for part in parts])

    return caches[0] if len(caches) == 1 else combined(caches, combine)


def combined(caches: Sequence[Any], combine: Combine) -> Any:
    """One new cache of several. A cache of another kind brings a class method `combined(caches, combine)` of its own."""
    kind = type(caches[0])
    if kind is KeyValues:
        return _combined_key_values(caches, combine)
    if kind is CausalCache:
        return _combined_causal(caches, combine)
    if not hasattr(kind, "combined"):
        raise RunError(
            f"{kind.__name__} cannot be copied row by row, so candidates cannot branch or wait; give it a class method "
            "`combined(caches, combine)` as in plaudit.models.caches, or search with best_of_n"
        )
    return kind.combined(caches, combine)


def _combined_key_values(caches: Sequence[KeyValues], combine: Combine) -> KeyValues:
    made = KeyValues()
    for layer in range(len(caches[0]._filled)):
        keys = combine([cache._keys[layer][:, :, : cache._filled[layer]] for cache in caches])
        values = combine([cache._values[layer][:, :, : cache._filled[layer]] for cache in caches])
        made.extend(layer, keys, values)
    return made


def _combined_causal(caches: Sequence[CausalCache], combine: Combine) -> CausalCache:
    from transformers import DynamicCache

    layers = [
        (combine([layer.keys for layer in same]), combine([layer.values for layer in same]))
        if same[0].is_initialized
        else (None, None)  # layers that share another's keys have none
        for same in zip(*(cache.states.layers for cache in caches), strict=True)
    ]
    made = CausalCache(DynamicCache(layers))
    positions = [cache.positions for cache in caches]
    if positions[0] is not None:
        made.positions = combine([at[:, None, :, None] for at in positions if at is not None])[:, 0, :, 0]
    return made
