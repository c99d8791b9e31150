"""`plaudit systems`: the published systems and how far each is."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from plaudit.cli.command import aligned


def run(
    level: Annotated[
        str | None,
        typer.Option(help="planned, runs, stale, inconclusive, negative, mixed or shown.", show_default=False),
    ] = None,
    parts: Annotated[bool, typer.Option("--parts", help="Every part with its own level and what shows it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list with all that is known.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="docs/results.md: what the experiments found.")] = False,
) -> None:
    """List the published systems: how far each is, its effect, what that cost, and the command."""
    from plaudit.audit.record import standings_of
    from plaudit.audit.results import Title, cost_text, effect_text, page
    from plaudit.errors import RecipeError
    from plaudit.recipe.experiment import load_experiment, shipped
    from plaudit.systems import LEVELS, level_of, load_systems, weakest

    if level is not None and level not in LEVELS:
        raise RecipeError(f"--level is {level!r}; allowed: {', '.join(LEVELS)}")
    experiments = {name: load_experiment(path) for name, path in shipped().items()}
    systems, standings = load_systems(), standings_of(experiments)
    if markdown:
        titles = {system.id: Title(name=system.name, home=system.home) for system in systems}
        typer.echo(page(titles, standings, experiments), nl=False)
        return
    levels = {system.id: [level_of(part, standings) for part in system.what] for system in systems}
    chosen = [system for system in systems if level in (None, weakest(levels[system.id]))]
    if as_json:
        found = [
            {**system.model_dump(), "level": weakest(levels[system.id]), "levels": levels[system.id]}
            for system in chosen
        ]
        typer.echo(json.dumps(found, indent=1, ensure_ascii=False))
        return
    rows = []
    for system in chosen:
        record = next((r for name in system.experiments if (r := standings[name].record)), None)
        told = (effect_text(record, record.main), cost_text(record)) if record else ("-", "-")
        command = "reproduce " + " ".join(system.experiments) if system.experiments else system.recipe or "-"
        rows.append((system.id, weakest(levels[system.id]), *told, command, system.name))
        if parts:
            pairs = zip(system.what, levels[system.id], strict=True)
            rows += [("", own, part.part, " ".join(part.by) or "-", part.recipe or "-", "") for part, own in pairs]
    typer.echo("\n".join(aligned(("id", "level", "effect", "cost", "command", "name"), rows)))
    typer.echo(f"{len(chosen)} systems")
