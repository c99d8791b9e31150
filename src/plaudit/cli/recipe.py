"""`plaudit recipe`: what a command line resolves to, what a key means, what there is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plaudit.cli.command import OVERRIDES, aligned, load_recipe

RecipesOrKey = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RECIPE|KEY",
        help="Files or shipped names, later over earlier; or one key, such as train.lr or objective.grpo, to be explained.",
        show_default=False,
    ),
]


def run(
    context: typer.Context,
    recipes: RecipesOrKey = None,
    listed: Annotated[bool, typer.Option("--list", help="The recipes that come with Plaudit, a line each.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="All keys, as the tables of docs/recipe.md.")] = False,
) -> None:
    """Print the fully resolved recipe and run nothing, or explain a key.

    Exit code 1 if the recipe is wrong.
    """
    from plaudit.recipe import reference
    from plaudit.recipe.load import dump

    if listed:
        text = "\n".join(aligned(("recipe", "family", "system", "what it does"), reference.shipped_rows()))
    elif markdown:
        text = reference.markdown()
    else:
        explained = _explained(recipes[0]) if recipes and len(recipes) == 1 and not context.meta[OVERRIDES] else None
        text = explained or dump(load_recipe(context, recipes))
    typer.echo(text.rstrip("\n"))


def _explained(name: str) -> str | None:
    """What is known of a key; None where the name is a recipe, which goes first."""
    from plaudit.errors import RecipeError
    from plaudit.recipe.load import find
    from plaudit.recipe.reference import describe, similar
    from plaudit.recipe.text import visible

    try:
        find(name, Path())
    except RecipeError as error:
        text, near = describe(name), similar(name)
        if text is None and near:
            keys = " or ".join(f"`{key}`" for key in near)
            raise RecipeError(
                f"{visible(repr(name))} is no key; did you mean {keys}? Nor is it a recipe: {error}"
            ) from None
        return text
    return None
