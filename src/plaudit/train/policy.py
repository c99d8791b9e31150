"""The weights being trained and their named snapshots.

Only the trainable parameters are copied; with LoRA a snapshot is a copy of the adapters, and the reference (adapters at
their start, whose product is zero) needs no second model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from plaudit.errors import RecipeError
from plaudit.recipe.models import LoraConfig

ADAPTER = "default"


class Generator(Protocol):
    """What training needs of a model of any family. `network` holds every parameter that may be touched."""

    network: nn.Module

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """Endings of the module names that LoRA adapts when the recipe does not say."""
        ...

    def save(self, folder: Path) -> None: ...


def add_lora(model: Generator, config: LoraConfig, seed: int) -> None:
    """Freeze the network and insert adapters whose product is zero."""
    import peft  # takes seconds to import, and full tuning does not need it

    targets = list(model.lora_targets if config.targets == "auto" else config.targets)
    settings = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=targets, init_lora_weights=True)
    model.network.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            peft.inject_adapter_in_model(settings, model.network, adapter_name=ADAPTER)
        except ValueError as error:
            raise RecipeError(f"model.lora.targets: {targets} match no module of the network ({error})") from error
    settings.target_modules = sorted(settings.target_modules)  # a set, which would be saved in another order every time
    for parameter in model.network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # small updates vanish in half precision


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
