"""`plaudit systems`: the published systems and how far each is."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from plaudit.cli.command import aligned


def run(
    status: Annotated[str | None, typer.Option(help="planned, runs, shown or negative.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list with all that is known.")] = False,
) -> None:
    """List the published systems and their recipes."""
    from dataclasses import asdict

    from plaudit.errors import RecipeError
    from plaudit.systems import STATUSES, load_systems

    if status is not None and status not in STATUSES:
        raise RecipeError(f"--status is {status!r}; allowed: {', '.join(STATUSES)}")
    chosen = [system for system in load_systems() if status in (None, system.status)]
    if as_json:
        typer.echo(json.dumps([asdict(system) for system in chosen], indent=1, ensure_ascii=False))
        return
    rows = [(system.id, system.status, system.home, system.recipe or "-", system.name) for system in chosen]
    typer.echo("\n".join(aligned(("id", "status", "home", "recipe", "name"), rows)))
    typer.echo(f"{len(chosen)} systems")
