"""Operators without weights: what is dominated, and chains of dominance.

i dominates j when no part of i is lower and at least one is higher. A sample with a missing part is missing and neither
dominates nor is dominated. Shape legend: B samples; K parts; G members of one group; `vectors [G, K]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from plaudit.rewards.compose.groups import within_groups


def dominates(vectors: Tensor) -> Tensor:
    """Boolean [G, G]: whether row i dominates row j."""
    first, second = vectors[:, None, :], vectors[None, :, :]
    return (first >= second).all(-1) & (first > second).any(-1)


def pareto(parts: Sequence[Tensor], *, group: Tensor, within: Literal["batch", "group"] = "batch") -> Tensor:
    """1 for a sample that no other of the batch (or of its group) dominates, 0 for the others (S026).

    Multiply a reward by it to give dominated samples 0. With many parts hardly anything is dominated, and the filter
    stops selecting.
    """
    rivals = torch.zeros_like(group) if within == "batch" else group

    def kept(vectors: Tensor) -> Tensor:
        free = ~dominates(vectors).any(0)
        return torch.where(vectors.isnan().any(1), torch.nan, free.to(vectors.dtype))

    return within_groups(kept, torch.stack(list(parts), 1).detach(), rivals)


def dominance_chain(vectors: Tensor) -> list[int]:
    """Rows of a longest chain, from the worst to the best, in which each dominates the one before (S032).

    By dynamic programming over the rows in lexicographic order: a dominating row always comes later in it, which the
    card's order by sum only promises in exact arithmetic. Of equally long chains that of the smallest vectors is taken,
    so the order of the rows matters only between equal ones.
    """
    rows = [i for i, vector in enumerate(vectors.tolist()) if all(value == value for value in vector)]
    rows.sort(key=lambda i: vectors[i].tolist())
    better = dominates(vectors).tolist()
    length: dict[int, int] = {}
    previous: dict[int, int | None] = {}
    for i in rows:
        below = [j for j in length if better[i][j]]
        previous[i] = max(below, key=lambda j: length[j], default=None)
        length[i] = 1 + max((length[j] for j in below), default=0)
    chain: list[int] = []
    at = max(length, key=lambda i: length[i], default=None)
    while at is not None:
        chain.append(at)
        at = previous[at]
    return chain[::-1]


def chain_advantage(parts: Sequence[Tensor], *, group: Tensor, shortest: int = 3) -> Tensor:
    """Standardised place in the group's longest dominance chain; 0 off the chain and where it is shorter than `shortest` (S032).

    The places' mean is 0 in every group, so centring them again leaves the samples off the chain at 0. The formula
    (place - mean) / std is our choice: the paper's is not published.
    """

    def advantages(vectors: Tensor) -> Tensor:
        result = torch.where(vectors.isnan().any(1), torch.nan, torch.zeros_like(vectors[:, 0]))
        chain = dominance_chain(vectors)
        if len(chain) >= max(shortest, 2):
            places = torch.arange(len(chain), dtype=vectors.dtype, device=vectors.device)
            result[chain] = (places - places.mean()) / places.std()
        return result

    return within_groups(advantages, torch.stack(list(parts), 1).detach(), group)
