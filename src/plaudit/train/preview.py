"""What a model makes: the same prompts and the same noise before, during and after."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import matplotlib
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from plaudit import storage
from plaudit.audit.gallery import CAPTION_HEIGHT, LINE
from plaudit.data.prompt import Prompt
from plaudit.data.sources import load_prompts
from plaudit.errors import RecipeError, RunError
from plaudit.recipe.load import Source, as_recipe, recipe_of
from plaudit.recipe.schema import Recipe
from plaudit.sampling.base import Drawer, Piece
from plaudit.sampling.noise import numbered_keys
from plaudit.train.policy import Generator

COLUMNS = 6
SMALLEST, CAPTION_LINES = 192, 3  # pixels of a picture's height
BLACK, GREY, WHITE = "#1b2430", "#808080", "#ffffff"
EVALUATION_STEP = -1  # the step number of noise that belongs to no training step


def generate(drawer: Drawer, prompts: Sequence[Prompt], seed: int) -> Piece:
    """Outputs of prompts as a measurement draws them, at fixed noise."""
    return drawer.evaluation(prompts, numbered_keys(prompts, seed=seed, step=EVALUATION_STEP))


def grid_image(images: Tensor, columns: int, captions: Sequence[str] = (), scale: int | None = None) -> Image.Image:
    """Pictures in rows, separated by thin lines, small ones enlarged without smoothing, each above its caption. How high
    captions are is kept in the file, so that a report finds the pictures again."""
    count, _, height, width = images.shape
    scale = scale or max(1, SMALLEST // height)
    height, width = height * scale, width * scale
    strips = [_caption(text, width) for text in captions]
    strip = max((picture.height for picture in strips), default=0)
    rows = -(-count // columns)
    size = (columns * (width + LINE) - LINE, rows * (height + strip + LINE) - LINE)
    canvas = Image.new("RGB", size, GREY)
    pixels = (images.expand(-1, 3, -1, -1).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    for i, picture in enumerate(pixels):
        row, column = divmod(i, columns)
        left, top = column * (width + LINE), row * (height + strip + LINE)
        canvas.paste(Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST), (left, top))
        if strips:
            canvas.paste(WHITE, (left, top + height, left + width, top + height + strip))
            canvas.paste(strips[i], (left, top + height))
    canvas.info[CAPTION_HEIGHT] = str(strip)
    return canvas


def _caption(text: str, width: int) -> Image.Image:
    """A text as a picture of this width, of three lines at most."""
    size = max(12, width // 20)
    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
    letters = max(int(width / font.getlength("n")) - 1, 8)
    lines = textwrap.wrap(text, letters, max_lines=CAPTION_LINES, placeholder=" ...")
    high = size + 4
    picture = Image.new("RGB", (width, high * len(lines) + 6), WHITE)
    for i, line in enumerate(lines):
        ImageDraw.Draw(picture).text((size // 3, 3 + i * high), line, BLACK, font)
    return picture


def write_grid(grid: Image.Image, file: Path | IO[bytes]) -> None:
    about = PngInfo()
    about.add_text(CAPTION_HEIGHT, grid.info[CAPTION_HEIGHT])
    grid.save(file, format="PNG", pnginfo=about)


def save_grid(images: Tensor, path: Path, captions: Sequence[str], columns: int = COLUMNS) -> Image.Image:
    partial, grid = path.with_name("." + path.name), grid_image(images, columns, captions)
    with storage.explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_grid(grid, partial)
        partial.replace(path)
    return grid


def sample(
    recipe: Recipe | Source | None = None,
    *,
    prompt: str | Sequence[str] | None = None,
    count: int = 6,
    run: str | Path | None = None,
    checkpoint: str | Path | None = None,
    out: str | Path | None = None,
    seed: int = 0,
) -> Image.Image:
    """Draw a grid of pictures with the base model, or with the weights of a run or of one checkpoint, whose recipe it then is
    unless another is given; with `out` it is written there.

    `count` pictures of each prompt or, when none is given, of that many held-out prompts.
    """
    from plaudit.train.setup import prepare

    recipe = as_recipe(recipe_of(run, checkpoint) if recipe is None else recipe, "sample")
    if recipe.model.family != "flow":
        raise RecipeError(
            f"plaudit sample draws pictures, and model {recipe.model.type} writes texts; use `plaudit search`"
        )
    setup = prepare(recipe)
    if weights := run or checkpoint:
        load_result(setup.policy.model, Path(weights))
    asked = [prompt] if isinstance(prompt, str) else list(prompt or ())
    if asked:
        chosen = [Prompt(id=text, text=text) for text in asked for _ in range(count)]
    else:
        chosen = next(iter(load_prompts(recipe.prompts).evaluation(count).values()))
    images = generate(setup.drawer, chosen, seed).outputs
    captions, columns = [one.text for one in chosen], min(COLUMNS, len(chosen))
    if out is None:
        return grid_image(images, columns, captions)
    return save_grid(images, Path(out), captions, columns)


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
