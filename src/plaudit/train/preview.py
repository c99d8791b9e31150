"""What a model makes: the same prompts and the same noise before, during and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from plaudit.data.prompt import Prompt
from plaudit.data.sources import load_prompts
from plaudit.errors import RecipeError
from plaudit.models.origin import load_result
from plaudit.pages.grid import COLUMNS, grid_image, save_grid
from plaudit.recipe.load import Source, as_recipe, recipe_of
from plaudit.recipe.schema import Recipe
from plaudit.sampling.drawers import generate


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
