"""Rewards that were fitted to the same pairs with heads of their own, and the mean of their scores, on held-out pairs (S116)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plaudit.fit.data import pairs_of
from plaudit.recipe.fit import Fit
from plaudit.rewards.compose.trust import ensemble_mean
from plaudit.rewards.learned.fitted import Fitted

HELDOUT = 400


def members(paths: Sequence[str], seed: int, quick: bool) -> dict[str, dict[str, float]]:
    """How often a member is right, the mean over members, by pair."""
    return _by_pair(torch.stack([_order(gap) for gap in _gaps(paths, quick)]).mean(0))


def ensemble(paths: Sequence[str], seed: int, quick: bool) -> dict[str, dict[str, float]]:
    """Whether the mean of the members' scores is right, by pair."""
    return _by_pair(_order(ensemble_mean(_gaps(paths, quick)).value))


@torch.no_grad()
def _gaps(paths: Sequence[str], quick: bool) -> list[Tensor]:
    """Score of the better less that of the worse `[P]`, of every member. Held-out pairs are those of every fit and seed."""
    pairs = pairs_of(Fit(), heldout=6 if quick else HELDOUT, seed=0).heldout
    captions = [prompt.text for prompt in pairs.prompts]
    rewards = [Fitted(path) for path in paths]
    return [reward(captions, pairs.better) - reward(captions, pairs.worse) for reward in rewards]


def _order(gap: Tensor) -> Tensor:
    """1 where the better one scores higher, 0 where not, 1/2 where the scores are equal."""
    return (gap > 0).double() + 0.5 * (gap == 0).double()


def _by_pair(right: Tensor) -> dict[str, dict[str, float]]:
    return {"truth": {str(number): value for number, value in enumerate(right.tolist())}}
