"""`plaudit fit`: a reward from preferences."""

from __future__ import annotations

from typing import Annotated

import typer

from plaudit.cli.command import Recipes, load_recipe
from plaudit.runs.display import make_display, summary_line


def run(
    context: typer.Context,
    recipes: Recipes = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run of the same name.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="One line a step instead of a progress bar.")] = False,
) -> None:
    """Fit a reward to preferences, for example `plaudit fit scenes-reward`."""
    from plaudit.errors import RecipeError

    if resume and overwrite:
        raise RecipeError("--resume keeps a run and --overwrite replaces it; give one of the two")
    recipe = load_recipe(context, recipes)
    from plaudit.verbs import fit

    display = make_display(plain)
    try:
        result = fit(recipe, resume=resume, overwrite=overwrite, display=display)
    finally:
        display.end()  # a progress bar that is not ended leaves the terminal without a cursor
    typer.echo(summary_line(result.summary))
    typer.echo(f"reward: {result.folder}; use it with type fitted and arguments {{path: {result.folder}}}")
    typer.echo(f"report: {result.report}")
