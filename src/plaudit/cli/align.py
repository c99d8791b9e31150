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
    """What a run achieved, with the 95 % interval of its gain."""
    scale, unit = (100.0, " %") if summary["accuracy"] else (1.0, "")
    split = "held-out" if summary["split"] == "heldout" else summary["split"]
    before, after = (_number(summary[key], scale, unit) for key in ("before", "after"))
    gain, low, high = (_number(summary[key], scale, "", sign="+") for key in ("gain", "gain_low", "gain_high"))
    return (
        f"{split} {'accuracy' if summary['accuracy'] else summary['reward']} {before} -> {after} "
        f"(gain {gain}, 95 % interval {low} to {high}), {summary['minutes']:.1f} minutes; {summary['steps']} steps, "
        f"stopped by {summary['stopped']}"
    )


def _number(value: float | None, scale: float, unit: str, sign: str = "") -> str:
    return "n/a" if value is None else f"{scale * value:{sign}.{1 if scale > 1 else 3}f}{unit}"
