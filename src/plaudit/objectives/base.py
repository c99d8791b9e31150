"""What an objective is: a pure loss over terms and advantages, and a statement of what it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from plaudit.objectives.terms import Batch, SnapshotPolicy, Terms


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Unreduced loss terms. The trainer sums `part * mask` and divides by the mask's sum over the whole update, so
    gradients do not depend on how the update is split. `parts` add up to the loss; `metrics` are averaged the same way."""

    parts: Mapping[str, Tensor]
    mask: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    needs_trace: bool
    snapshots: Mapping[str, Callable[[int], float] | None]
    """Named copies the objective reads: None stays as it was at the start, a function gives the decay after step n."""
    sampler: str
    """Which weights draw the rollouts: `current` or a snapshot."""

    def mask(self, batch: Batch) -> Tensor:
        """Which elements of the loss count, known before any network call."""
        ...

    def computed(self, batch: Batch) -> Tensor:
        """Rows `[B]` whose gradient may differ from zero; the others need no network call."""
        ...

    def terms(self, policy: SnapshotPolicy, batch: Batch) -> Terms: ...

    def losses(self, terms: Terms) -> Losses: ...
