"""`plaudit rewards`: the built-in rewards, their cards, and whether they score here what they scored elsewhere."""

from __future__ import annotations

from typing import Annotated, get_args

import typer

from plaudit.cli.command import FAILED_CHECK, PlauditCommand, aligned

app = typer.Typer(help="The built-in rewards.", no_args_is_help=True, rich_markup_mode=None)


@app.command("list", cls=PlauditCommand)
def list_rewards(
    kind: Annotated[str | None, typer.Option(help="image, text, audio or video.", show_default=False)] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="The table of docs/rewards.md.")] = False,
) -> None:
    """List rewards and operators with what their cards say."""
    from plaudit.errors import RecipeError
    from plaudit.rewards.base import Kind
    from plaudit.rewards.catalogue import entries, markdown_tables, operator_rows

    if markdown:
        typer.echo(markdown_tables(), nl=False)
        return
    if kind is not None and kind not in get_args(Kind):
        raise RecipeError(f"--kind is {kind!r}; allowed: {', '.join(get_args(Kind))}")
    chosen = [entry for entry in entries() if kind in (None, entry.card.kind)]
    rows = [(e.name, e.card.kind, e.range, e.needs_text, e.card.extra or "-", e.card.summary) for e in chosen]
    typer.echo("\n".join(aligned(("reward", "kind", "range", "needs", "extra", "what"), rows)))
    if kind is None:
        typer.echo("\n".join(["", *aligned(("operator of `combine`", "what"), operator_rows())]))
    typer.echo(f"{len(chosen)} rewards; `plaudit rewards show NAME` prints a whole card")


@app.command("show", cls=PlauditCommand)
def show(
    name: Annotated[str, typer.Argument(help="A built-in name, a dotted path, or an operator of `combine`.")],
) -> None:
    """Print one reward's card, options and description, or those of an operator."""
    from plaudit.rewards.catalogue import card_lines

    typer.echo("\n".join(card_lines(name)))


@app.command("reference", cls=PlauditCommand)
def reference(names: Annotated[list[str], typer.Argument(help="Rewards of pictures.")]) -> None:
    """Measure what the card's reference of a picture reward should be."""
    from plaudit.rewards.card_reference import measure

    found = {name: measure(name) for name in names}
    rows = [(name, f"{each.mean:.6g}", f"{each.std:.6g}", each.on) for name, each in found.items()]
    typer.echo("\n".join(aligned(("reward", "mean", "std", "on"), rows)))


@app.command("verify", cls=PlauditCommand)
def verify(
    names: Annotated[list[str] | None, typer.Argument(help="Default: all.", show_default=False)] = None,
) -> None:
    """Recompute the pinned scores of rewards on this machine."""
    from plaudit.errors import RecipeError
    from plaudit.rewards.pinned import verify as recompute
    from plaudit.rewards.table import BUILT_IN, UNPINNED

    rows, failed = [], 0
    for name in names or [name for name in BUILT_IN if name not in UNPINNED]:
        try:
            found = recompute(name)
        except RecipeError as error:
            rows.append((name, "skipped", "-", str(error)))
            continue
        failed += bool(found.wrong)
        verdict = "differs" if found.wrong else "ok"
        rows.append((name, verdict, f"{found.ms_per_output:.2f}", "; ".join(found.wrong)))
    typer.echo("\n".join(aligned(("reward", "pinned scores", "ms/output", ""), rows)))
    if failed:
        raise typer.Exit(FAILED_CHECK)
