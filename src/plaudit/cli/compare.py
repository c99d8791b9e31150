"""`plaudit compare`: several recipes at equal cost over several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plaudit.cli.command import OVERRIDES
from plaudit.errors import RecipeError

if TYPE_CHECKING:
    from plaudit.audit.compare_search import Contestant


def run(
    context: typer.Context,
    contestants: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RECIPE",
            help="One contestant each; `a.yaml+b.yaml` lays b over a. With --suite search: methods, `beam[lookahead=2]`.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds of the repeated runs, with commas.")] = "0,1,2",
    minutes: Annotated[float | None, typer.Option(help="Training minutes of each run.", show_default=False)] = None,
    network_calls: Annotated[
        int | None, typer.Option("--network-calls", min=1, help="Network calls of each run.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the runs and the comparison.", show_default="runs/compare or runs/compare-search"),
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="One line a step instead of a progress bar.")] = False,
    suite: Annotated[
        str | None, typer.Option(help="`search`: methods of search instead of recipes.", show_default=False)
    ] = None,
    model: Annotated[str, typer.Option(help="With --suite search: what is searched.")] = "lab/slots",
    reward: Annotated[
        list[str] | None,
        typer.Option(
            help="With --suite search: a verifier, may be repeated.",
            show_default="of the lab's worlds a cheap one with a flaw and a better one",
        ),
    ] = None,
    truth: Annotated[
        str | None,
        typer.Option(help="With --suite search: what is true.", show_default="scene_exact, or sum_correct"),
    ] = None,
    budgets: Annotated[
        str | None,
        typer.Option(
            help="With --suite search: budgets per prompt, with commas.",
            show_default="40nfe,80nfe,160nfe, or 200nfe,400nfe,800nfe",
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="With --suite search: held-out prompts.")] = 48,
) -> None:
    """Run recipes, or methods of search, against each other at equal cost."""
    out = out or Path("runs/compare" if suite is None else "runs/compare-search")
    if suite is not None:
        _compare_search(suite, contestants, model, reward, truth, budgets, parse_seeds(seeds), count, out)
        return
    if not contestants:
        raise RecipeError("compare: name the recipes, for example `plaudit compare slots-nft slots-grpo --minutes 3`")
    if minutes is not None and network_calls is not None:
        raise RecipeError("--minutes and --network-calls are two measures of equal cost; give one of the two")
    from plaudit.recipe.load import load_contestants

    recipes = load_contestants(contestants, context.meta[OVERRIDES])
    numbers = parse_seeds(seeds)
    from plaudit.audit.compare_runs import compare
    from plaudit.runs.display import make_display

    display = make_display(plain)
    try:
        path = compare(recipes, seeds=numbers, minutes=minutes, network_calls=network_calls, out=out, display=display)
    finally:
        display.end()
    typer.echo(f"report: {path}")


def _compare_search(
    suite: str,
    contestants: Sequence[str] | None,
    model: str,
    rewards: Sequence[str] | None,
    truth: str | None,
    budgets: str | None,
    seeds: Sequence[int],
    count: int,
    out: Path,
) -> None:
    if suite != "search":
        raise RecipeError(f"--suite is {suite!r}; allowed: search")
    from plaudit.audit.compare_search import compare_search, defaults_of
    from plaudit.recipe.text import visible_lines

    usual = defaults_of(model, needed=not (rewards and truth and budgets))
    named = contestants or usual.methods
    if again := [text for text in named if named.count(text) > 1]:
        raise RecipeError(f"compare: {again[0]} is named twice; with other options it would be another contestant")
    path = compare_search(
        model=model,
        verifiers=rewards or usual.verifiers,
        truth=truth or usual.truth,
        contestants=[_contestant(text) for text in named],
        budgets=usual.budgets if budgets is None else [budget.strip() for budget in budgets.split(",")],
        seeds=seeds,
        count=count,
        out=out,
        say=typer.echo,
    )
    typer.echo(visible_lines((out / "comparison.md").read_text(encoding="utf-8")))
    typer.echo(f"report: {path}")


def _contestant(text: str) -> Contestant:
    """`beam` or `beam[lookahead=2,children=4]`."""
    from plaudit.audit.compare_search import Contestant
    from plaudit.recipe.text import parse

    name, bracket, rest = text.partition("[")
    if bracket and not rest.endswith("]"):
        raise RecipeError(f"compare: {text!r}; write options as `{name}[key=value,...]`")
    pairs = [pair.partition("=") for pair in rest.removesuffix("]").split(",") if pair]
    options = {key.strip(): parse(value, text) for key, _, value in pairs}
    return Contestant(label=text, method=name, options=options)


def parse_seeds(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
        raise RecipeError(f"--seeds is {text!r}; write different whole numbers with commas, for example 0,1,2")
    return [int(part) for part in parts]
