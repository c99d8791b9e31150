"""Rewards that are arithmetic on pixels."""

from __future__ import annotations

from torch import Tensor

from plaudit.rewards.base import Card


def brightness(prompts: list[str], outputs: Tensor) -> Tensor:
    """Mean of all pixels and channels."""
    return outputs.mean(dim=(1, 2, 3))


brightness.card = Card(summary=brightness.__doc__ or "", low=0, high=1, differentiable=True)  # type: ignore[attr-defined]
