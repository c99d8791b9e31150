"""`plaudit serve`: rewards behind HTTP."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

UNFINISHED = 3


def run(
    file: Annotated[Path, typer.Argument(metavar="REWARDS.YAML", help="Which rewards to serve, and how.")],
    host: Annotated[str | None, typer.Option(help="Instead of serve.host.", show_default=False)] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Instead of serve.port.", show_default=False)
    ] = None,
) -> None:
    """Serve rewards to trainers on this machine or others."""
    from plaudit.serve.config import need_web_server, read_file, with_address

    config = with_address(read_file(file), host, port)
    need_web_server()
    from plaudit.serve.server import serve
    from plaudit.serve.service import make_service

    service = make_service(config)

    def ready(port: int) -> None:
        names = ", ".join(service.rewards)
        typer.echo(f"serving {names} on http://{config.serve.host}:{port} (Ctrl-C ends)")

    if not serve(service, ready):
        typer.echo("stopped with requests that were not finished within serve.drain_s", err=True)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(UNFINISHED)  # at once: a reward that hangs in a thread would be waited for
