"""`plaudit lab`: the embedded generators."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from plaudit.cli.command import PlauditCommand

app = typer.Typer(help="The embedded lab.", no_args_is_help=True, rich_markup_mode=None)


class LabNetwork(StrEnum):
    SLOTS = "slots"
    PIXELS = "pixels"
    PROXY = "proxy"


@app.callback()
def lab() -> None:
    """The embedded lab."""


@app.command("build", cls=PlauditCommand)
def build(
    name: Annotated[LabNetwork, typer.Argument(help="What to train.")],
    out: Annotated[Path, typer.Option(help="Folder of its checkpoints and log.")],
    steps: Annotated[
        int | None, typer.Option(min=1, help="Fewer or more steps than planned.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    install: Annotated[bool, typer.Option("--install", help="Replace the weights that ship with Plaudit.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="all cores")] = None,
) -> None:
    """Pretrain a lab network, going on from its last checkpoint."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    if name is LabNetwork.PROXY:
        from plaudit.lab.build_proxy import build_proxy

        path = build_proxy(out, steps=steps, seed=seed, install=install)
    else:
        from plaudit.lab.build import build

        path = build(name.value, out, steps=steps, seed=seed, install=install)
    typer.echo(f"wrote {path}")
