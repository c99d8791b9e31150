"""`plaudit search`: better outputs without training, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plaudit.cli.command import INTERRUPTED, aligned
from plaudit.cli.score import named_reward, read_rewards

if TYPE_CHECKING:
    from plaudit.models.origin import Origin
    from plaudit.rewards.suite import Suite
    from plaudit.search.results import SearchResult


def run(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="A recipe with a `search:` section.", show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="lab/slots, lab/sums, a run folder or checkpoint, a recipe, `package.module:factory`, or YAML as a recipe's "
            "`model:`, '{factory: my_module:Mine, arguments: {...}}'.",
            show_default="lab/slots",
        ),
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            help="A reward of the recipe (`match`), a built-in name, `package.module:thing` or YAML, each with NAME= before it "
            "if you like; may be repeated. Default: the recipe's rewards.",
            show_default=False,
        ),
    ] = None,
    rewards: Annotated[
        Path | None, typer.Option(help="A YAML file with `rewards:` and `combine:`.", show_default=False)
    ] = None,
    combine: Annotated[
        str | None, typer.Option(help="A formula over the rewards, 'a * clip(b, 0, 1)'.", show_default=False)
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="none, best_of_n, ... or `package.module:Class`.", show_default="the recipe's, or best_of_n"),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Per prompt: 200nfe (network calls), 64rewards, 30s; several with commas between.",
            show_default="the recipe's, or 200nfe",
        ),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE of the method, may be repeated.", show_default=False)
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A text, may be repeated.", show_default=False)] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="A file of prompts, text or JSONL. Default: held-out prompts.", show_default=False),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="How many prompts of the file or of the held-out ones.")] = 12,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Sampling steps. Default: the recipe's.", show_default=False)
    ] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="Default: the recipe's.", show_default=False)] = None,
    kernel: Annotated[
        str | None,
        typer.Option(help="Of stochastic steps: flow_sde, constant_eta, cps or ddim_eta.", show_default=False),
    ] = None,
    level: Annotated[
        float | None, typer.Option(min=0, help="Noise level of stochastic steps.", show_default=False)
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of a text. Default: the recipe's.", show_default=False)
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="Of texts.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    tile: Annotated[int | None, typer.Option(min=1, help="Samples in one network call.", show_default=False)] = None,
    truth: Annotated[
        list[str] | None,
        typer.Option(
            help="A reward that judges plain and best outputs afterwards, outside of the budget; may be repeated.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder to write.")] = Path("runs/search"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier search in that folder.")] = False,
    keep_all: Annotated[bool, typer.Option("--keep-all", help="Write every candidate's output.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of a progress bar.")] = False,
) -> None:
    """Search for better outputs of a model, without training it."""
    from plaudit.errors import RecipeError
    from plaudit.models.origin import find_origin
    from plaudit.search.api import search_origin
    from plaudit.search.budget import Budget
    from plaudit.search.display import showing
    from plaudit.search.options import read_options
    from plaudit.search.setup import find_prompts

    if prompt and prompts:
        raise RecipeError("--prompt gives texts and --prompts a file of them; give one of the two")
    if recipe is not None and model is not None:
        raise RecipeError(f"RECIPE {recipe} and --model {model} both say what is searched; give one of the two")
    origin = find_origin(recipe or model or "lab/slots")
    own = origin.recipe.search
    limits, options = Budget.parse(budget or own.budget), read_options(option or [])
    if method in (None, own.method):
        method, options = own.method, {**own.options, **options}
    suite = suite_of(origin, reward or [], rewards, combine)
    choices = {
        **{"steps": steps, "guidance": guidance, "kernel": kernel, "level": level, "tile": tile},
        **{"max_new_tokens": max_new_tokens, "temperature": temperature},
    }
    with showing(plain) as watch:
        result = search_origin(
            origin,
            suite,
            budget=limits,
            method=method,
            options=options,
            prompts=find_prompts(origin.recipe, prompt or prompts, count),
            truth=truth or [],
            seed=seed,
            out=out,
            overwrite=overwrite,
            keep_all=keep_all,
            watch=watch,
            sampler=choices,
        )
    typer.echo("\n".join(report(result)))
    typer.echo(f"wrote {out}")
    if result.stopped == "interrupted":
        raise typer.Exit(INTERRUPTED)


def suite_of(origin: Origin, named: Sequence[str], file: Path | None, combine: str | None) -> Suite:
    """Rewards of the command line and of a file of them; else those of the model's recipe."""
    from plaudit.errors import RecipeError
    from plaudit.search.setup import find_suite

    document = read_rewards(file) if file is not None else {}
    given: dict[str, Any] = dict(document.get("rewards", {}))
    for name, value in map(named_reward, named):
        if name in given:
            raise RecipeError(f"--reward: {name!r} is named twice; tell them apart, for example --reward second={name}")
        given[name] = value
    return find_suite(origin, given or None, combine if combine is not None else document.get("combine"))


def report(result: SearchResult) -> list[str]:
    """The scores before and after, and what was spent."""
    shown = result.showing()
    total, seconds = result.ledger.total, result.ledger.total_seconds()
    spent = [
        (
            kind.replace("_", " "),
            str(getattr(total, kind)),
            f"{getattr(total, kind) / len(result.prompts):.4g}",
            f"{s:.2f}",
        )
        for kind, s in seconds.items()
    ]
    lacking = (
        []
        if not result.missing_scores
        else [
            f"{result.missing_scores} of {len(result.candidates)} candidates have no score (first: {result.first_missing})",
            "",
        ]
    )
    return [
        shown.title,
        "",
        *lacking,
        *aligned(shown.header, shown.rows),
        "",
        *aligned(("spent", "in all", "per prompt", "seconds"), spent),
        "",
    ]
