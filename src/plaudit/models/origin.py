"""Which model a run, a checkpoint, a name or an object stands for, and the recipe that comes with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from plaudit import storage
from plaudit.errors import RecipeError, RunError
from plaudit.models.build import build_model
from plaudit.models.flow import FlowModel
from plaudit.models.lora import Generator, add_lora
from plaudit.models.tokens import TokenModel
from plaudit.recipe.load import load
from plaudit.recipe.schema import Recipe
from plaudit.recipe.text import parse
from plaudit.worlds import NETWORKS, world_of

LAB = "lab/"
TOKEN_RECIPE = "sums-grpo"  # prompts, reward and sampler of the lab's token model


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What `--model` names: its recipe, and the run or checkpoint whose weights it has."""

    name: str
    recipe: Recipe
    weights: Path | None = None

    @property
    def calibration(self) -> Path | None:
        """Scales that the run measured before it began."""
        file = self.weights.parents[1] if self.weights and storage.is_complete(self.weights) else self.weights
        return file / "calibration.json" if file and (file / "calibration.json").is_file() else None


def find_origin(given: str | Mapping[str, Any]) -> Origin:
    """`lab/NAME`, a run folder or one of its checkpoints, `package.module:factory`, a recipe by name or file, or what a recipe
    has as `model:`, as a mapping or in YAML."""
    text = given if isinstance(given, str) else json.dumps(given)
    if not isinstance(given, str) or text.lstrip().startswith("{"):
        config = parse(text, f"--model {text}") if isinstance(given, str) else given
        custom = {"type": "custom"} if "factory" in config else {}
        return Origin(name=text, recipe=load({"model": {**custom, **config}}))
    if text.startswith(LAB):
        network = text.removeprefix(LAB)
        world = [world_of(network).recipe] if network in NETWORKS else []
        return Origin(name=text, recipe=load([*world, {"model": {"type": "lab", "name": network}}]))
    path = Path(text)
    run = path.resolve().parents[1] if storage.is_complete(path) else path
    if (run / "recipe.yaml").is_file():
        return Origin(name=text, recipe=load([run / "recipe.yaml"]), weights=path)
    if path.is_dir():
        raise RecipeError(f"--model {text}: the folder is neither a run nor a checkpoint of one; it has no recipe.yaml")
    if ":" in text:
        return find_origin({"factory": text})
    return Origin(name=text, recipe=load([text]))


def build_origin(origin: Origin) -> FlowModel | TokenModel:
    """The model with its weights."""
    model = build_model(origin.recipe.model)
    if origin.weights is not None:
        if origin.recipe.model.lora is not None:
            add_lora(model, origin.recipe.model.lora, origin.recipe.run.seed)
        load_result(model, origin.weights)
    return model


def recipe_for(model: object, *, asked: bool) -> Recipe:
    """The recipe of a model that came as an object; `asked` says whether prompts came with it."""
    from plaudit.models.lab_text import LabTokenModel

    if not hasattr(model, "new_cache"):
        return load({})
    if not asked and not isinstance(model, LabTokenModel):
        raise RecipeError(f"prompts: none are given, and {type(model).__name__} brings none of its own; give some")
    return load([TOKEN_RECIPE])


def load_result(model: Generator, run: Path) -> None:
    """The trained weights of a run's last checkpoint, or of the checkpoint folder itself."""
    latest = run if storage.is_complete(run) else storage.latest_snapshot(run / "checkpoints")
    if latest is None:
        raise RunError(f"{run} is neither a complete checkpoint nor a run folder with one")
    tensors, meta = storage.read_snapshot(latest)
    prefix = f"{meta['result']}."
    own = dict(model.network.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            if name.startswith(prefix):
                own[name.removeprefix(prefix)].copy_(tensor)
