"""`plaudit lab`: the embedded generators."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plaudit.cli.command import PlauditCommand
from plaudit.dotted import import_dotted
from plaudit.worlds import NETWORKS, world_of

app = typer.Typer(help="The embedded lab.", no_args_is_help=True, rich_markup_mode=None)
OTHERS = ("proxy", "captioner", "encoder", "direction", "picture-encoder", "previews-pixels")
if TYPE_CHECKING:
    LabNetwork = StrEnum
else:
    LabNetwork = StrEnum("LabNetwork", [(name, name) for name in (*NETWORKS, *OTHERS)])


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
    typer.echo(f"wrote {_built(name.value, out, steps=steps, seed=seed, install=install, data=data)}")


def _built(name: str, out: Path, *, steps: int | None, seed: int, install: bool, data: Path | None) -> Path:
    from plaudit.errors import RecipeError

    if (data is None) == (name == "picture-encoder"):
        raise RecipeError(f"lab build {name}: --data FOLDER goes with picture-encoder, and only with it")
    match name:
        case "proxy":
            from plaudit.builds.proxy import build_proxy

            return build_proxy(out, steps=steps, seed=seed, install=install)
        case "captioner" | "encoder":
            from plaudit.builds.encoder import build_encoder

            return build_encoder(name, out, steps=steps, seed=seed, install=install)
        case "direction":
            from plaudit.builds.direction import build_direction

            return build_direction(out, steps=steps, seed=seed, install=install)
        case "picture-encoder":
            from plaudit.builds.picture import build_picture_encoder

            assert data is not None
            return build_picture_encoder(out, data, steps=steps, seed=seed, install=install)
        case "previews-pixels":
            from plaudit.builds.previews import build_previews

            return build_previews("pixels", out, steps=steps, seed=seed, install=install)
        case "slots-turbo":
            from plaudit.builds.turbo import build_turbo

            return build_turbo(out, steps=steps, seed=seed, install=install)
        case _:
            built: Path = import_dotted(world_of(name).build, "lab build")(
                name, out, steps=steps, seed=seed, install=install
            )
            return built
