"""The weights being trained and their named snapshots.

Only the trainable parameters are copied; with LoRA a snapshot is a copy of the adapters, and the reference (adapters at
their start, whose product is zero) needs no second model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor, nn

from plaudit.models.lora import Generator


@dataclass
class Policy:
    """A model with its trainable parameters and named copies of them."""

    model: Generator
    snapshots: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    active: str = "current"

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.network.named_parameters() if p.requires_grad}

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
