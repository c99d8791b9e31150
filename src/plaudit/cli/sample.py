"""`plaudit sample`: a grid of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plaudit.cli.command import Recipes, load_recipe


def run(
    context: typer.Context,
    recipes: Recipes = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="Text to draw, may be repeated; default: held-out prompts.", show_default=False),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Pictures per prompt, or number of held-out prompts.")] = 6,
    run: Annotated[Path | None, typer.Option(help="A run folder: draw with its weights.", show_default=False)] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="One checkpoint folder, runs/NAME/checkpoints/step_N.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="The PNG file to write.")] = Path("grid.png"),
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Draw a grid of pictures with a model, run or checkpoint."""
    from plaudit.recipe.load import recipe_of

    source = recipe_of(run, checkpoint)  # also where the two exclude each other
    recipe = load_recipe(context, recipes or [str(source)])
    from plaudit.train.preview import sample

    sample(recipe, prompt=prompt, count=count, run=run, checkpoint=checkpoint, out=out, seed=seed)
    typer.echo(f"wrote {out}")
