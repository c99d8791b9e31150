"""`plaudit report`: write a run's report again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def run(run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, runs/NAME.")]) -> None:
    """Write the report of a run, finished or not."""
    from plaudit.audit.report import write_report

    typer.echo(f"report: {write_report(run)}")
