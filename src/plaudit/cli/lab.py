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
    EDITS = "edits"
    SLOTS_TURBO = "slots-turbo"
    PROXY = "proxy"
    CAPTIONER = "captioner"
    ENCODER = "encoder"
    DIRECTION = "direction"
    PICTURE_ENCODER = "picture-encoder"
    SUMS = "sums"
    PREVIEWS_PIXELS = "previews-pixels"


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
    data: Annotated[
        Path | None, typer.Option(help="Folder of packed emoji sets, for picture-encoder.", show_default=False)
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="all cores")] = None,
) -> None:
    """Pretrain a lab network, going on from its last checkpoint."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    typer.echo(f"wrote {_built(name, out, steps=steps, seed=seed, install=install, data=data)}")


def _built(name: LabNetwork, out: Path, *, steps: int | None, seed: int, install: bool, data: Path | None) -> Path:
    from plaudit.errors import RecipeError

    if (data is None) == (name is LabNetwork.PICTURE_ENCODER):
        raise RecipeError(f"lab build {name}: --data FOLDER goes with picture-encoder, and only with it")
    match name:
        case LabNetwork.PROXY:
            from plaudit.builds.proxy import build_proxy

            return build_proxy(out, steps=steps, seed=seed, install=install)
        case LabNetwork.CAPTIONER | LabNetwork.ENCODER:
            from plaudit.builds.encoder import build_encoder

            return build_encoder(name.value, out, steps=steps, seed=seed, install=install)
        case LabNetwork.DIRECTION:
            from plaudit.builds.direction import build_direction

            return build_direction(out, steps=steps, seed=seed, install=install)
        case LabNetwork.PICTURE_ENCODER:
            from plaudit.builds.picture import build_picture_encoder

            assert data is not None
            return build_picture_encoder(out, data, steps=steps, seed=seed, install=install)
        case LabNetwork.SUMS:
            from plaudit.builds.language import build_language

            return build_language(out, steps=steps, seed=seed, install=install)
        case LabNetwork.PREVIEWS_PIXELS:
            from plaudit.builds.previews import build_previews

            return build_previews("pixels", out, steps=steps, seed=seed, install=install)
        case LabNetwork.SLOTS_TURBO:
            from plaudit.builds.turbo import build_turbo

            return build_turbo(out, steps=steps, seed=seed, install=install)
        case LabNetwork.SLOTS | LabNetwork.PIXELS | LabNetwork.EDITS:
            from plaudit.builds.generators import build

            return build(name.value, out, steps=steps, seed=seed, install=install)
