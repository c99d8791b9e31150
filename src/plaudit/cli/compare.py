"""`plaudit compare`: several recipes at equal cost over several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plaudit.cli.command import OVERRIDES
from plaudit.errors import RecipeError

if TYPE_CHECKING:
    from plaudit.recipe.schema import Recipe


def run(
    context: typer.Context,
    contestants: Annotated[
        list[str], typer.Argument(metavar="RECIPE", help="One contestant each; `a.yaml+b.yaml` lays b over a.")
    ],
    seeds: Annotated[str, typer.Option(help="Seeds of the repeated runs, with commas.")] = "0,1,2",
    minutes: Annotated[float | None, typer.Option(help="Training minutes of each run.", show_default=False)] = None,
    network_calls: Annotated[
        int | None, typer.Option("--network-calls", min=1, help="Network calls of each run.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the runs and the comparison.")] = Path("runs/compare"),
    plain: Annotated[bool, typer.Option("--plain", help="One line a step instead of a progress bar.")] = False,
) -> None:
    """Run recipes against each other at equal cost."""
    if minutes is not None and network_calls is not None:
        raise RecipeError("--minutes and --network-calls are two measures of equal cost; give one of the two")
    recipes = load_contestants(contestants, context.meta[OVERRIDES])
    numbers = parse_seeds(seeds)
    from plaudit.audit.compare import compare
    from plaudit.train.display import make_display

    display = make_display(plain)
    try:
        path = compare(recipes, seeds=numbers, minutes=minutes, network_calls=network_calls, out=out, display=display)
    finally:
        display.end()
    typer.echo(f"report: {path}")


def load_contestants(contestants: Sequence[str], overrides: Sequence[str]) -> dict[str, Recipe]:
    """Recipes by label, the file names without folder and ending."""
    from plaudit.recipe.load import load

    recipes: dict[str, Recipe] = {}
    for contestant in contestants:
        sources = contestant.split("+")
        label = "+".join(Path(source).stem for source in sources)
        if label in recipes:
            raise RecipeError(f"compare: two contestants are called {label!r}; give their files different names")
        recipes[label] = load(sources, overrides)
    return recipes


def parse_seeds(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
        raise RecipeError(f"--seeds is {text!r}; write different whole numbers with commas, for example 0,1,2")
    return [int(part) for part in parts]
