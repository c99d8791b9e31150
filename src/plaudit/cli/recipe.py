"""`plaudit recipe`: what a command line resolves to."""

from __future__ import annotations

import typer

from plaudit.cli.command import Recipes, load_recipe


def run(context: typer.Context, recipes: Recipes = None) -> None:
    """Print the fully resolved recipe and run nothing.

    Exit code 1 if the recipe is wrong.
    """
    from plaudit.recipe.load import dump

    typer.echo(dump(load_recipe(context, recipes)), nl=False)
