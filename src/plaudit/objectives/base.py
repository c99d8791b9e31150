"""What an objective is: a pure loss over terms and advantages, and a statement of what it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from plaudit.objectives.batch import Batch, SnapshotPolicy
from plaudit.recipe.objectives import Needs


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Unreduced loss terms. The trainer sums `part * weights` and divides by the objective's count over the whole update, so
    gradients do not depend on how the update is split. `parts` add up to the loss; `metrics` are averaged over `mask`."""

    parts: Mapping[str, Tensor]
    weights: Tensor
    mask: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


class Objective:
    """An algorithm. What is said here are the defaults that most of them share."""

    needs: Needs = Needs()
    sampler: str = "current"
    """Which weights draw the rollouts: `current` or a snapshot."""
    snapshots: Mapping[str, Callable[[int], float] | None] = {}
    """Named copies the objective reads: None stays as it was at the start, a function gives the decay after update n."""

    def mask(self, batch: Batch) -> Tensor:
        """Which elements of the loss there are, known before any network call."""
        raise NotImplementedError

    def weights(self, batch: Batch) -> Tensor:
        """How much each element counts, in the shape of the mask; 0 where the mask is False."""
        return self.mask(batch).double()

    def count(self, batch: Batch) -> float:
        """What the sum over a whole update is divided by."""
        return float(self.weights(batch).sum().item())

    def computed(self, batch: Batch) -> Tensor:
        """Rows `[B]` whose gradient may differ from zero; the others need no network call."""
        return batch.valid

    def penalty(self, policy: SnapshotPolicy, batch: Batch) -> Tensor | None:
        """What is taken from each sample's score `[B]` before it becomes an advantage."""
        return None

    def prepare(self, policy: SnapshotPolicy, batch: Batch) -> Batch:
        """Find out, without gradient, what the loss must know of an update as a whole before it is split."""
        return batch

    def terms(self, policy: SnapshotPolicy, batch: Batch) -> Any:
        raise NotImplementedError

    def losses(self, terms: Any) -> Losses:
        raise NotImplementedError


def per_decision(mask: Tensor, loss_type: str) -> Tensor:
    """Weights `[B, D]` of a sum over decisions: each 1, or with grpo each sample's decisions together 1."""
    weights = mask.double()
    return weights / weights.sum(1, keepdim=True).clamp(min=1) if loss_type == "grpo" else weights


def divisor(mask: Tensor, loss_type: str, limit: int) -> float:
    """What the weighted sum over decisions is divided by: dapo all decisions, grpo and luspo the samples, dr_grpo the samples
    times the most decisions that one could have had."""
    samples = float(mask.any(1).sum().item())
    if loss_type == "dapo":
        return float(mask.sum().item())
    return samples * limit if loss_type == "dr_grpo" else samples


def in_parts(compute: Callable[[Batch], Tensor], batch: Batch, size: int) -> Tensor:
    """A value per sample, computed on few samples at a time without gradient."""
    with torch.no_grad():
        return torch.cat([compute(batch.select(rows)) for rows in torch.arange(len(batch)).split(size)])
