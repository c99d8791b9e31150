"""A network in training: its weights, named copies of them, and what moves them.

Only the trainable parameters are copied; with LoRA a snapshot is a copy of the adapters, and the reference (adapters at
their start, whose product is zero) needs no second model.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from plaudit import storage
from plaudit.models.lora import Generator
from plaudit.recipe.base import Optimiser


class Trainable:
    """The trainable parameters of a network, named copies of them, and their optimiser."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.snapshots: dict[str, dict[str, Tensor]] = {}
        self.active = "current"
        self.clip = 1.0

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.network.named_parameters() if p.requires_grad}

    # --- copies ------------------------------------------------------------------------------------------------------

    def take(self, name: str) -> None:
        """Copy the current weights to a snapshot."""
        self.snapshots[name] = {key: p.detach().clone() for key, p in self.trainable.items()}

    def blend(self, name: str, decay: float) -> None:
        """snapshot = decay * snapshot + (1 - decay) * current."""
        for key, parameter in self.trainable.items():
            self.snapshots[name][key].lerp_(parameter.detach(), 1 - decay)

    @contextlib.contextmanager
    def using(self, name: str) -> Iterator[None]:
        """Run with a snapshot's weights; the current ones are back afterwards, whatever happens."""
        before = self.active
        if name == before:
            yield
            return
        if name == "current":
            raise RuntimeError(f"the current weights inside snapshot {before!r}")
        own = {key: parameter.data for key, parameter in self.trainable.items()}
        self.active = name
        try:
            for key, parameter in self.trainable.items():
                parameter.data = self.snapshots[name][key]
            yield
        finally:
            for key, parameter in self.trainable.items():
                parameter.data = own[key]
            self.active = before

    # --- updates -----------------------------------------------------------------------------------------------------

    @functools.cached_property
    def optimizer(self) -> torch.optim.AdamW:
        raise RuntimeError("`optimise` says how the weights are moved")

    def optimise(self, how: Optimiser) -> None:
        self.clip, parameters = how.grad_clip, list(self.trainable.values())
        self.optimizer = torch.optim.AdamW(
            parameters, lr=how.lr, betas=how.betas, weight_decay=how.weight_decay, fused=True
        )

    def clipped_norm(self) -> float:
        """The norm of the gradient before it is cut to `clip`."""
        return nn.utils.clip_grad_norm_(list(self.trainable.values()), self.clip).item()

    def move(self) -> None:
        """One step of the optimiser, where there is a gradient."""
        if any(parameter.grad is not None for parameter in self.trainable.values()):
            self.optimizer.step()

    # --- on disk -----------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        tensors = {f"current.{name}": parameter.data for name, parameter in self.trainable.items()}
        for snapshot, values in self.snapshots.items():
            tensors |= {f"{snapshot}.{name}": value for name, value in values.items()}
        return tensors | storage.pack_optimizer(self.optimizer, "optimizer")

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self.trainable.items():
            parameter.copy_(tensors[f"current.{name}"])
        for snapshot in self.snapshots:
            self.snapshots[snapshot] = {
                name: tensors[f"{snapshot}.{name}"].to(parameter.device) for name, parameter in self.trainable.items()
            }
        storage.unpack_optimizer(self.optimizer, tensors, "optimizer")


class Policy(Trainable):
    """A generator in training."""

    def __init__(self, model: Generator) -> None:
        super().__init__(model.network)
        self.model: Any = model  # of which family it is, its drawer knows
