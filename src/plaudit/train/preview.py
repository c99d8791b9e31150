"""What a model makes: the same prompts and the same noise before, during and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from plaudit import storage
from plaudit.data.prompt import Prompt
from plaudit.data.sources import load_prompts
from plaudit.errors import RecipeError, RunError
from plaudit.recipe.schema import Recipe
from plaudit.sampling.base import Drawer, Piece
from plaudit.sampling.noise import numbered_keys
from plaudit.train.policy import Generator

EVALUATION_STEP = -1  # the step number of noise that belongs to no training step


def generate(drawer: Drawer, prompts: Sequence[Prompt], seed: int) -> Piece:
    """Outputs of prompts as a measurement draws them, at fixed noise."""
    return drawer.evaluation(prompts, numbered_keys(prompts, seed=seed, step=EVALUATION_STEP))


def grid_image(images: Tensor, columns: int, scale: int | None = None) -> Image.Image:
    """Pictures in rows, separated by thin lines, small ones enlarged without smoothing."""
    count, _, height, width = images.shape
    scale = scale or max(1, 96 // height)
    rows = -(-count // columns)
    canvas = np.full((rows * (height * scale + 2) - 2, columns * (width * scale + 2) - 2, 3), 128, dtype=np.uint8)
    pixels = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    for i, picture in enumerate(pixels):
        row, column = divmod(i, columns)
        top, left = row * (height * scale + 2), column * (width * scale + 2)
        canvas[top : top + height * scale, left : left + width * scale] = picture.repeat(scale, 0).repeat(scale, 1)
    return Image.fromarray(canvas)


def save_grid(images: Tensor, path: Path, columns: int = 6) -> Path:
    partial = path.with_name("." + path.name)
    with storage.explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        grid_image(images, columns).save(partial, format="PNG")
        partial.replace(path)
    return path


def sample_grid(
    recipe: Recipe, *, prompts: Sequence[str] | None, count: int, run: Path | None, out: Path, seed: int
) -> Path:
    """Draw prompts (the held-out ones when none are given) with the base model or with a run's weights."""
    from plaudit.train.setup import prepare

    setup = prepare(recipe)
    if recipe.model.family != "flow":
        raise RecipeError(
            f"plaudit sample draws pictures, and model {recipe.model.type} writes texts; use `plaudit search`"
        )
    if run is not None:
        load_result(setup.policy.model, run)
    if prompts:
        chosen = [Prompt(id=text, text=text) for text in prompts for _ in range(count)]
    else:
        chosen = next(iter(load_prompts(recipe.prompts).evaluation(count).values()))
    return save_grid(generate(setup.drawer, chosen, seed).outputs, out, columns=min(6, len(chosen)))


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
