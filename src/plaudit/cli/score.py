"""`plaudit score`: what rewards say of outputs that exist already."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plaudit.cli.command import INTERRUPTED, aligned

if TYPE_CHECKING:
    from plaudit.data.outputs import Gathered
    from plaudit.rewards.scoring import Summary
    from plaudit.rewards.suite import Suite

RUN_OUTPUTS = 192


def run(
    path: Annotated[Path, typer.Argument(help="A folder of pictures, a JSONL of texts, or a run folder.")],
    reward: Annotated[
        list[str] | None,
        typer.Option(
            help="A built-in name, `package.module:thing`, or YAML such as '{type: brevity, arguments: {limit: 9}}', each "
            "with NAME= before it if you like; may be repeated. "
            "Default for a run: the rewards it was trained on.",
            show_default=False,
        ),
    ] = None,
    rewards: Annotated[
        Path | None, typer.Option(help="A YAML file with `rewards:` and `combine:`.", show_default=False)
    ] = None,
    combine: Annotated[
        str | None, typer.Option(help="A formula over the rewards, 'a * clip(b, 0, 1)'.", show_default=False)
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="What outputs answer that carry no prompt.", show_default=False)
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="Held-out outputs to draw from a run.", show_default=str(RUN_OUTPUTS))
    ] = None,
    out: Annotated[Path, typer.Option(help="The JSONL file to write.")] = Path("scores.jsonl"),
    best: Annotated[int, typer.Option(min=0, help="How many of the best and of the worst to print.")] = 3,
) -> None:
    """Score outputs with rewards, print a table, write JSONL."""
    from plaudit.errors import RecipeError, RewardError
    from plaudit.rewards.scoring import score_request, summarise, write_scores

    is_run = (path / "recipe.yaml").is_file()
    if prompt is not None and is_run:
        raise RecipeError(f"--prompt: the outputs of the run {path} answer its held-out prompts; leave it out")
    if count is not None and not is_run:
        raise RecipeError(f"--count says how many outputs to draw from a run, and {path} is none; leave it out")
    suite = suite_of(reward or [], rewards, combine, path / "recipe.yaml" if is_run else None)
    gathered = _from_run(path, count or RUN_OUTPUTS) if is_run else _from_files(path, prompt)
    with _progress(len(gathered)) as advance:
        scoring = score_request(suite, gathered.prompts, gathered.outputs, progress=advance)
    write_scores(out, gathered, scoring.batch)
    typer.echo("\n".join([*cards(suite), "", *table(summarise(suite, scoring.batch))]))
    if best:
        values = scoring.batch.total if suite.formula else next(iter(scoring.batch.parts.values()))
        typer.echo(
            "\n".join(extremes(gathered, values.tolist(), best, "total" if suite.formula else suite.rewards[0].name))
        )
    typer.echo(f"wrote {out} ({scoring.count} of {len(gathered)} outputs)")
    if scoring.interrupted:
        raise typer.Exit(INTERRUPTED)
    if scoring.batch.empty():
        raise RewardError(f"none of the {len(gathered)} outputs was scored; the first: {scoring.batch.first_missing()}")


def suite_of(named: Sequence[str], file: Path | None, combine: str | None, recipe: Path | None) -> Suite:
    """Rewards of the command line; else those of a run's recipe."""
    from plaudit.errors import RecipeError
    from plaudit.recipe.load import load
    from plaudit.rewards.suite import load_suite

    document = read_rewards(file) if file is not None else {}
    asked = [named_reward(text) for text in named]
    twice = [name for name, _ in asked if sum(name == other for other, _ in asked) > 1]
    if twice:
        raise RecipeError(
            f"--reward: {twice[0]!r} is named twice; tell them apart, for example --reward second={twice[0]}"
        )
    document["rewards"] = document.get("rewards", {}) | dict(asked)
    if combine is not None:
        document["combine"] = combine
    if not document["rewards"]:
        if recipe is None:
            raise RecipeError(
                "nothing to score with: give --reward NAME (see `plaudit rewards list`) or --rewards FILE"
            )
        own = load([recipe])
        suite = load_suite(own.rewards, document.get("combine", own.combine))
        measured = recipe.parent / "calibration.json"
        if measured.is_file():
            suite.load_calibration(json.loads(measured.read_text(encoding="utf-8")))
        return suite
    given = load(document)
    return load_suite(given.rewards, given.combine, add=False)


def read_rewards(file: Path) -> dict[str, Any]:
    from plaudit.errors import RecipeError
    from plaudit.recipe.load import read

    if not file.is_file():
        raise RecipeError(f"--rewards {file}: no such file")
    content = read(file)
    if not isinstance(content.get("rewards"), dict):
        raise RecipeError(f"--rewards {file}: expected `rewards: {{NAME: {{type: ...}}}}`, found {', '.join(content)}")
    return {key: content[key] for key in ("rewards", "combine") if key in content}


def named_reward(text: str) -> tuple[str, Any]:
    """`scene_match`, `match=scene_match`, `my.module:thing`, `{type: ..., arguments: ...}` or `match={type: ...}`."""
    from plaudit.recipe.text import parse

    head, equals, rest = text.partition("=")
    named, rest = (head, rest) if equals and "{" not in head else (None, text)
    content = parse(rest, f"--reward {text!r}") if rest.lstrip().startswith("{") else {"type": rest}
    return named or str(content.get("type", "reward")).rpartition(":")[2], content


def _from_files(path: Path, prompt: str | None) -> Gathered:
    from plaudit.data.outputs import gather

    return gather(path, prompt)


def _from_run(run: Path, count: int) -> Gathered:
    """A run's outputs for its held-out prompts, drawn with its trained weights at the noise of its evaluation."""
    from plaudit.data.outputs import Gathered
    from plaudit.models.origin import load_result
    from plaudit.recipe.load import load
    from plaudit.sampling.drawers import generate
    from plaudit.train.evaluate import EVALUATION_SEED
    from plaudit.train.setup import prepare

    recipe = load([run / "recipe.yaml"])
    setup = prepare(recipe)
    load_result(setup.policy.model, run)
    prompts = next(iter(setup.prompts.evaluation(count).values()))
    outputs = generate(setup.drawer, prompts, EVALUATION_SEED).outputs
    names = [f"{prompt.id}/{i}" for i, prompt in enumerate(prompts)]
    return Gathered(names=names, prompts=prompts, sources=list(outputs))


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("scoring", total=total)
        yield lambda done: bar.update(task, completed=done)


def cards(suite: Suite) -> list[str]:
    """What the rewards' cards say, one line each."""
    from plaudit.rewards.catalogue import card_row

    rows = [(reward.name, *card_row(reward.card)) for reward in suite.rewards]
    return aligned(("reward", "looks at", "range", "calibration reference", "card"), rows)


def table(rows: Sequence[Summary]) -> list[str]:
    cells = [
        (
            row.name,
            *(_shown(value) for value in (row.mean, row.std, row.low, row.high)),
            ", ".join(f"{count} {status}" for status, count in row.missing.items()) or "0",
            "-" if row.ms_per_output is None else f"{row.ms_per_output:.2f}",
            f"first reason: {row.reason[:100]}" if row.reason else "",
        )
        for row in rows
    ]
    return aligned(("reward", "mean", "std", "low", "high", "missing", "ms/output", ""), cells)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def extremes(gathered: Gathered, totals: Sequence[float], count: int, by: str) -> list[str]:
    """The best and the worst outputs."""
    there = [i for i, total in enumerate(totals) if math.isfinite(total)]
    order = sorted(there, key=lambda i: -totals[i])
    chosen = order[:count] + order[count:][-count:]
    rows = [(_shown(totals[i]), gathered.names[i], gathered.prompts[i].text[:80]) for i in chosen]
    return ["", *aligned((by, "output", "prompt"), rows)] if rows else []
