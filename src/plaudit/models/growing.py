"""Keys and values in buffers with room to grow: transformers' own layer copies all of them for every token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

ROOM = 64  # columns that a new buffer has free, or as many as are taken if that is more


class GrowingLayer(DynamicLayer):
    """`keys` and `values` are views of what is taken. With gradients it is the ordinary layer, which overwrites nothing."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled():
            self.buffers = None
            return super().update(key_states, value_states, *rest, **named)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        taken = self.get_seq_length()
        total = taken + key_states.shape[-2]
        if self.buffers is None or total > self.buffers[0].shape[-2]:
            self.buffers = tuple(self._grown(old, new, total) for old, new in self._pairs(key_states, value_states))  # type: ignore[assignment]
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[..., taken:total, :] = new
        self.keys, self.values = (buffer[..., :total, :] for buffer in self.buffers)
        return self.keys, self.values

    def _pairs(self, key_states: Tensor, value_states: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        return (self.keys, key_states), (self.values, value_states)

    def _grown(self, old: Tensor, new: Tensor, total: int) -> Tensor:
        *rows, _, width = new.shape
        buffer = new.new_empty(*rows, total + max(total, ROOM), width)
        if old.numel():
            buffer[..., : old.shape[-2], :] = old
        return buffer

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        self.buffers = None  # the selected rows are a copy without room

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        self.buffers = None


def growing_cache() -> DynamicCache:
    cache = DynamicCache()
    cache.layer_class_to_replicate = GrowingLayer
    return cache
