"""Operators inside groups: means, min-max, ranks, log-taming. A missing score (NaN) stays missing and is nobody's rival.

Shape legend: B samples; `scores [B]`; `group [B]` holds integer group ids in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from plaudit.errors import RewardError


def within_groups(function: Callable[[Tensor], Tensor], values: Tensor, group: Tensor) -> Tensor:
    """`function` of each group's rows of `values [B, ...]`, put back in their places `[B]`."""
    assert group.ndim == 1 and len(values) == len(group), (values.shape, group.shape)
    order = torch.argsort(group, stable=True)
    sizes = torch.unique_consecutive(group[order], return_counts=True)[1].tolist()
    if not sizes:
        return values.new_zeros(0)
    results = torch.cat([function(rows) for rows in values[order].split(sizes)])
    return results[torch.argsort(order)]


def mean_of_present(scores: Tensor) -> Tensor:
    """Mean of the scores that are there, NaN if none is; taken from the lowest one, so that equal scores give it exactly."""
    present = scores[~scores.isnan()]
    if not len(present):
        return scores.new_tensor(torch.nan)
    low = present.detach().min()
    return low + (present - low).mean()


def group_mean(scores: Tensor, group: Tensor) -> Tensor:
    """Mean of the sample's group, for every sample `[B]`, missing ones included; NaN where the whole group is missing."""
    return within_groups(lambda rows: mean_of_present(rows).expand(len(rows)), scores, group)


def centre(scores: Tensor, *, group: Tensor) -> Tensor:
    """Score minus the mean of its group; a group of equal scores gets exactly 0."""
    return scores - group_mean(scores, group)


def group_minmax(scores: Tensor, group: Tensor, *, floor: float = 0.0) -> Tensor:
    """The group's scores mapped linearly so that its worst is 0 and its best 1; a group of equal scores gets 0.5.

    Scores no further apart than `floor` count as equal. (S005: within the outputs of one input, where a constant metric
    would be 0/0.)
    """

    def scaled(rows: Tensor) -> Tensor:
        here = ~rows.isnan()
        present = rows[here]  # a NaN in the arithmetic would reach the others' gradients through the extremes
        if not len(present):
            return rows
        low, high = present.min(), present.max()
        constant = (high - low).item() <= floor
        return rows.masked_scatter(here, torch.full_like(present, 0.5) if constant else (present - low) / (high - low))

    return within_groups(scaled, scores, group)


def balanced_mean(families: Sequence[Sequence[Tensor]], group: Tensor) -> Tensor:
    """Mean over families of the mean of their min-max scores in the group, so a large family is no louder (S005).

    S005's families are the metrics with and without a reference picture; give lower-is-better metrics negated.
    """
    means = [torch.stack([group_minmax(part, group) for part in family]).mean(0) for family in families]
    return torch.stack(means).mean(0)


def rank(scores: Tensor, *, group: Tensor) -> Tensor:
    """Place in the group counted from the worst, 1 to n; equal scores share their average place, missing ones have none."""

    def places(rows: Tensor) -> Tensor:
        below = (rows[None, :] < rows[:, None]).sum(1)
        equal = (rows[None, :] == rows[:, None]).sum(1)
        return torch.where(rows.isnan(), rows, below + (equal + 1).to(rows.dtype) / 2)

    return within_groups(places, scores.detach(), group)


def rank_sum(parts: Sequence[Tensor], *, group: Tensor) -> Tensor:
    """Sum of the parts' ranks in the group; missing where any part is."""
    return torch.stack([rank(part, group=group) for part in parts]).sum(0)


def log_taming(parts: Sequence[Tensor], *, group: Tensor, weights: tuple[float, ...] = ()) -> Tensor:
    """Weighted sum, centred in the group, of parts of which the relatively most varying are replaced by log(1 + part) (S082).

    A part is tamed when its coefficient of variation over the batch, h = std / (mean + 1e-6), exceeds the parts' mean h.
    Parts must be above -1. Weights are 1 unless given. The released helper leaves out the centring, so that a sum of
    positive rewards becomes the advantage.
    """
    weights = weights or (1.0,) * len(parts)
    if len(weights) != len(parts):
        raise ValueError(f"{len(weights)} weights for {len(parts)} parts; give one each")
    variation = torch.stack([coefficient_of_variation(part) for part in parts])
    mean_variation = mean_of_present(variation)
    total = torch.zeros_like(parts[0])
    for part, weight, h in zip(parts, weights, variation, strict=True):
        total = total + weight * (_tamed(part) if h > mean_variation else part)
    return centre(total, group=group)


def coefficient_of_variation(scores: Tensor) -> Tensor:
    """std / (mean + 1e-6) of the present scores; NaN for fewer than two."""
    present = scores.detach()[~scores.isnan()]
    return present.std() / (present.mean() + 1e-6) if len(present) > 1 else scores.new_tensor(torch.nan)


def _tamed(part: Tensor) -> Tensor:
    lowest = part[~part.isnan()].min().item()
    if lowest <= -1:
        raise RewardError(f"log-taming takes log(1 + score) and met the score {lowest:g}; clip or shift it above -1")
    return torch.log1p(part)
