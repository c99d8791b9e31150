"""Several rewards, each normalised in its groups before they are mixed (MRN): A_i = sum_k w_k A_k,i.

Unlike the advantage of a weighted sum, it does not change when one reward is put on another scale; and a nearly constant
reward is as loud as the others, which `floor` bounds.

Shape legend: B samples, K rewards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from plaudit.shaping.credit import Credit, Deviation, group_advantage

OnMissing = Literal["drop", "rescale"]


def mixed_advantage(
    scores: Mapping[str, Tensor],
    weights: Mapping[str, float],
    group: Tensor,
    *,
    std: Deviation = "group",
    floor: float = 1e-4,
    on_missing: OnMissing = "drop",
) -> Credit:
    """Credit `[B]` of named scores `[B]`. Departure: `floor` bounds the deviation, where the paper adds 1e-4 to it.

    `on_missing` for a sample that lacks some of the scores: `drop` leaves it out of every group and mean, `rescale` mixes
    those it has with their weights raised to the same total. A sample that lacks all is never valid; a score of weight 0
    is not looked at.
    """
    assert scores.keys() == weights.keys(), (sorted(scores), sorted(weights))
    names = [name for name, weight in weights.items() if weight != 0]
    assert names, "no reward has a weight other than 0"
    if on_missing not in ("drop", "rescale"):
        raise ValueError(f"on_missing {on_missing!r}; allowed: drop, rescale")
    score_KB = torch.stack([scores[name] for name in names])
    if on_missing == "drop":
        complete = torch.isfinite(score_KB).all(0)
        score_KB = torch.where(complete, score_KB, torch.full_like(score_KB, float("nan")))
    parts = [group_advantage(score, group, std=std, floor=floor) for score in score_KB]
    weight_K1 = score_KB.new_tensor([weights[name] for name in names]).double()[:, None]
    valid_KB = torch.stack([part.valid for part in parts])
    held = (weight_K1.abs() * valid_KB).sum(0)
    share = torch.where(held > 0, weight_K1.abs().sum() / held.clamp(min=1e-30), torch.zeros_like(held))
    value = share * (weight_K1 * torch.stack([part.value for part in parts]).double()).sum(0)
    return Credit(
        value=value.to(score_KB.dtype),
        valid=valid_KB.any(0),
        groups=parts[0].groups,
        constant_groups=_still_groups(value, group),
    )


def _still_groups(value: Tensor, group: Tensor) -> int:
    """How many groups have no advantage other than 0."""
    return len(torch.unique(group)) - len(torch.unique(group[value != 0]))
