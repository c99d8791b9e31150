"""`plaudit doctor`: are a recipe's model, rewards and sampler sound?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from plaudit.cli.command import FAILED_CHECK, Recipes, aligned, load_recipe

if TYPE_CHECKING:
    from plaudit.train.doctor.checks import Check

VERDICTS = {True: "ok", False: "FAILED", None: "n/a"}


def run(context: typer.Context, recipes: Recipes = None) -> None:
    """Check the invariants of a recipe before training.

    Exit code 1 if any check fails.
    """
    recipe = load_recipe(context, recipes)
    from plaudit.train.doctor.doctor import examine

    checks = examine(recipe)
    typer.echo(table(checks))
    failed = sum(check.passed is False for check in checks)
    if failed:
        typer.echo(f"{failed} of {len(checks)} checks failed", err=True)
        raise typer.Exit(FAILED_CHECK)


def table(checks: Sequence[Check]) -> str:
    """One line a check; what to do about a failed one stands below it."""
    rows = [(each.name, VERDICTS[each.passed], each.value, each.limit, f"{each.seconds:.1f} s") for each in checks]
    lines = aligned(("check", "verdict", "value", "limit", "time"), rows)
    for i in reversed([i for i, check in enumerate(checks) if check.passed is False]):
        lines.insert(i + 2, f"    -> {checks[i].remedy}")
    return "\n".join(lines)
