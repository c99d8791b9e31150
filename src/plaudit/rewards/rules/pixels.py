"""Rewards that are arithmetic on pixels."""

from __future__ import annotations

from torch import Tensor

from plaudit.rewards.base import card


@card(low=0, high=1, differentiable=True)
def brightness(prompts: list[str], outputs: Tensor) -> Tensor:
    """Mean of all pixels and channels."""
    return outputs.mean(dim=(1, 2, 3))
