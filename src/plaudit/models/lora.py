"""Low-rank adapters in a frozen network, for models of any family."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import nn

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
