"""What shaping makes of scores, as pure functions of tensors. A missing score (NaN) is left out everywhere and never becomes a
number.

Shape legend: B samples, D decisions, * latent dimensions; `group [B]` holds integer group ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Deviation = Literal["group", "batch", "global", "pooled", "none", "loo"]


Where = Literal["sample", "decision", "place"]


@dataclass(frozen=True, kw_only=True)
class Credit:
    """What a sample `[B]`, each of its decisions `[B, D]` or each place of each decision `[B, D, *]` is credited with: exactly 0
    where the sample is not `valid [B]`. `constant_groups` counts those of the `groups` that carry no signal."""

    value: Tensor
    valid: Tensor
    groups: int = 0
    constant_groups: int = 0

    def __post_init__(self) -> None:
        assert self.valid.ndim == 1 and self.value.shape[:1] == self.valid.shape, (self.value.shape, self.valid.shape)

    def __len__(self) -> int:
        return len(self.valid)

    @property
    def where(self) -> Where:
        return ("sample", "decision", "place")[min(self.value.ndim, 3) - 1]

    @property
    def moves(self) -> Tensor:
        """Samples `[B]` with any credit other than 0."""
        return (self.value != 0).flatten(1).any(1) if self.value.ndim > 1 else self.value != 0

    def select(self, rows: Tensor, decisions: int | None = None) -> Credit:
        """Some samples, with as many decisions as their longest has."""
        value = self.value[rows]
        return replace(self, value=value if self.where == "sample" else value[:, :decisions], valid=self.valid[rows])

    def expand(self, shape: Sequence[int]) -> Tensor:
        """In the shape of what it is to be multiplied with: a sample's credit is that of all its decisions, a decision's that of
        all its places."""
        missing = len(shape) - self.value.ndim
        assert missing >= 0, f"credit of each {self.where} {tuple(self.value.shape)} for a loss of shape {tuple(shape)}"
        return self.value[(..., *[None] * missing)].expand(shape)


def _group_sum(values: Tensor, index: Tensor, groups: int) -> Tensor:
    return values.new_zeros(groups).index_add_(0, index, values)


def group_advantage(
    score: Tensor, group: Tensor, *, std: Deviation = "group", floor: float = 1e-3, clip: float | None = None
) -> Credit:
    """Distance of each score to its group's mean, divided by a standard deviation.

    `std`: `group` divides by the group's (n - 1), `batch` by that of all scores (n - 1; TRL's), `global` by that of all scores
    (n; flow_grpo's global_std), `pooled` by that of all scores around their groups' means, `none` by nothing, `loo` takes
    the mean of the *other* members as baseline and divides by nothing. The divisor is never below `floor`, where TRL and
    flow_grpo add 1e-4 to it; a group of equal scores gets exactly 0, as does a group with fewer than
    two scores, whose samples are not valid. Means are taken before squares, in float64, so a large mean costs nothing.
    """
    assert score.ndim == 1 and score.shape == group.shape, (score.shape, group.shape)
    _, index = torch.unique(group, return_inverse=True)
    groups = int(index.max()) + 1
    present = torch.isfinite(score)
    filled = torch.where(present, score, torch.zeros_like(score)).double()
    count = _group_sum(present.double(), index, groups)
    mean = _group_sum(filled, index, groups) / count.clamp(min=1)
    valid = present & (count[index] >= 2)
    centred = torch.where(valid, filled - mean[index], torch.zeros_like(filled))
    constant = _constant_groups(filled, present, index, groups)
    centred = torch.where(constant[index], torch.zeros_like(centred), centred)
    match std:
        case "group":
            spread = (_group_sum(centred.square(), index, groups) / (count - 1).clamp(min=1)).sqrt()[index]
        case "batch" | "global":
            spread = _overall_deviation(filled[present], 1 if std == "batch" else 0).expand_as(centred)
        case "pooled":
            freedom = (count - 1).clamp(min=0).sum().clamp(min=1)
            spread = (centred.square().sum() / freedom).sqrt().expand_as(centred)
        case "none":
            spread = torch.ones_like(centred)
        case "loo":
            spread = ((count - 1).clamp(min=1) / count.clamp(min=1))[index]  # x - mean(others) = n/(n-1) (x - mean)
        case _:
            raise ValueError(f"std {std!r}; allowed: group, batch, global, pooled, none, loo")
    value = centred / (spread if std in ("none", "loo") else spread.clamp(min=floor))
    if clip is not None:
        value = value.clamp(-clip, clip)
    counted = count >= 1
    return Credit(
        value=value.to(score.dtype), valid=valid, groups=groups, constant_groups=int((constant & counted).sum())
    )


def _overall_deviation(scores: Tensor, lost: int) -> Tensor:
    """Of all scores, by their number less `lost`; 0 of none."""
    centred = scores - scores.sum() / max(len(scores), 1)
    return (centred.square().sum() / max(len(scores) - lost, 1)).sqrt()


def _constant_groups(score: Tensor, present: Tensor, index: Tensor, groups: int) -> Tensor:
    """Groups `[groups]` whose present scores are all equal."""
    infinity = torch.full((groups,), float("inf"), dtype=score.dtype)
    low = infinity.scatter_reduce(0, index[present], score[present], "amin")
    high = (-infinity).scatter_reduce(0, index[present], score[present], "amax")
    return low >= high


def optimality(advantage: Tensor, clip: float) -> Tensor:
    """DiffusionNFT's probability of being optimal: advantage -clip..clip mapped linearly to 0..1."""
    return (advantage / clip / 2 + 0.5).clamp(0, 1)
