"""`plaudit align`: train a generator on its rewards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from plaudit.cli.command import Recipes, load_recipe


def run(
    context: typer.Context,
    recipes: Recipes = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run of the same name.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="One line a step instead of a progress bar.")] = False,
) -> None:
    """Train a generator on its rewards (default: the lab)."""
    from plaudit.errors import RecipeError

    if resume and overwrite:
        raise RecipeError("--resume keeps a run and --overwrite replaces it; give one of the two")
    recipe = load_recipe(context, recipes)
    from plaudit.train.display import make_display
    from plaudit.train.loop import align

    display = make_display(plain)
    try:
        result = align(recipe, resume=resume, overwrite=overwrite, display=display)
    finally:
        display.end()  # a progress bar that is not ended leaves the terminal without a cursor
    typer.echo(summary_line(result.summary))
    typer.echo(f"report: {result.report}")


def summary_line(summary: Mapping[str, Any]) -> str:
    """What a run achieved, with 95 % intervals."""
    before, after, gain = (_interval(summary, name) for name in ("before", "after", "gain"))
    return (
        f"{summary['split']}: {before} -> {after}, gain {gain}; {summary['steps']} steps, "
        f"{summary['minutes']:.1f} minutes, stopped by {summary['stopped']}"
    )


def _interval(summary: Mapping[str, Any], name: str) -> str:
    mean, low, high = (summary[key] for key in (name, f"{name}_low", f"{name}_high"))
    if None in (mean, low, high):
        return "n/a"
    sign = "+" if name == "gain" else ""
    return f"{mean:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"
