"""The lab's generators as flow models."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from plaudit.data.prompt import Prompt
from plaudit.dotted import import_dotted
from plaudit.errors import RecipeError
from plaudit.lab.networks import WEIGHTS, to_pixel_latents
from plaudit.models.flow import Condition, shifted_times
from plaudit.storage import load_weights
from plaudit.worlds import world_of


class LabFlowModel:
    """A generator of one of the lab's worlds. A network brings `latent_shape`, `read` for prompts, and `decode`: `slots`, `edits`
    and `slots-turbo`, in one step or two, draw objects by a differentiable rasteriser, `pixels` 32x32 RGB pictures."""

    lora_targets = ("qkv", "project", "up", "down")

    def __init__(self, name: str, weights: str | None = None) -> None:
        self.name = name
        self.network: Any = import_dotted(world_of(name).networks[name], "model.name")()
        self.latent_shape: tuple[int, ...] = self.network.latent_shape
        path = Path(weights) if weights else WEIGHTS / f"{name}.safetensors"
        if not path.is_file():
            raise RecipeError(
                f"model.weights: {path} does not exist; build it with `plaudit lab build {name}` or leave the key out"
            )
        load_weights(self.network, path, "model.weights")
        self.network.eval()

    def encode(self, prompts: Sequence[Prompt]) -> Condition:
        return Condition(tensors=self.network.read(prompts))

    def velocity(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self.network(x, t, *condition.tensors.values())

    def decode(self, x0: Tensor) -> Tensor:
        return self.network.decode(x0)

    def latents(self, pictures: Tensor) -> Tensor:
        if self.name != "pixels":
            raise RecipeError(f"model: lab/{self.name} draws objects and cannot encode a given picture; use lab/pixels")
        return to_pixel_latents(pictures)

    def schedule(self, steps: int, shift: float | None) -> Tensor:
        return shifted_times(steps, shift or 1.0)

    def save(self, folder: Path) -> None:
        """All weights as one file that `model.weights` reads; adapters are merged into the layers they adapt."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(merged_state(self.network), folder / f"{self.name}.safetensors")


def merged_state(network: nn.Module) -> dict[str, Tensor]:
    """Weights under the names of the plain network, adapters merged into the layers they adapt."""
    merged = copy.deepcopy(network)
    for module in merged.modules():
        if hasattr(module, "base_layer"):
            module.merge()
    state = {key.replace(".base_layer.", "."): v for key, v in merged.state_dict().items() if ".lora_" not in key}
    return {key: value.contiguous() for key, value in state.items()}
