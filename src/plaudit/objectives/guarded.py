"""Somebody's own objective: what it raises, and losses that are none, are one line that names it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from plaudit.errors import PlauditError, RunError, first_line
from plaudit.objectives.base import Losses, Objective
from plaudit.objectives.batch import Batch, SnapshotPolicy


class Guarded(Objective):
    def __init__(self, own: Objective, path: str) -> None:
        self.own, self.path = own, path
        self.needs, self.sampler, self.snapshots = own.needs, own.sampler, own.snapshots

    def _call(self, name: str, *arguments: Any) -> Any:
        try:
            return getattr(self.own, name)(*arguments)
        except PlauditError:
            raise
        except (Exception, SystemExit) as error:  # a stranger's method may raise anything
            raise RunError(f"objective.class: {self.path}.{name} raised {first_line(error)}") from error

    def mask(self, batch: Batch) -> Tensor:
        return self._mask(self._call("mask", batch))

    def _mask(self, mask: Any) -> Tensor:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.ndim != 2:
            shown = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise RunError(f"objective.class: {self.path}.mask gave {shown}; it must be a bool tensor [B, D]")
        return mask

    def weights(self, batch: Batch) -> Tensor:
        weights: Tensor = self._call("weights", batch)
        return weights

    def count(self, batch: Batch) -> float:
        return float(self._call("count", batch))

    def computed(self, batch: Batch) -> Tensor:
        computed: Tensor = self._call("computed", batch)
        return computed

    def penalty(self, policy: SnapshotPolicy, batch: Batch) -> Tensor | None:
        penalty: Tensor | None = self._call("penalty", policy, batch)
        return penalty

    def prepare(self, policy: SnapshotPolicy, batch: Batch) -> Batch:
        prepared: Batch = self._call("prepare", policy, batch)
        return prepared

    def terms(self, policy: SnapshotPolicy, batch: Batch) -> Any:
        return self._call("terms", policy, batch)

    def losses(self, terms: Any) -> Losses:
        losses = self._call("losses", terms)
        if not isinstance(losses, Losses) or not losses.parts:
            raise RunError(
                f"objective.class: {self.path}.losses gave a {type(losses).__name__}; it must be Losses(parts={{...}}, ...)"
            )
        self._mask(losses.mask)
        for name, value in [*losses.parts.items(), ("weights", losses.weights)]:
            if value.shape != losses.mask.shape:
                raise RunError(
                    f"objective.class: {self.path}.losses gave `{name}` of shape {list(value.shape)}; it must be the mask's, "
                    f"{list(losses.mask.shape)}, with nothing summed"
                )
        if (
            torch.is_grad_enabled()
            and losses.mask.any()
            and not any(part.requires_grad for part in losses.parts.values())
        ):
            raise RunError(
                f"objective.class: {self.path}.losses has no gradient; its parts must come from terms that are not detached"
            )
        return losses
