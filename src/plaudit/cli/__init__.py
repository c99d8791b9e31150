"""The command line. Whatever is heavy is imported inside the commands, so that `plaudit --help` answers at once."""

from __future__ import annotations

import os

import typer

from plaudit.cli import (
    align,
    compare,
    doctor,
    fit,
    lab,
    recipe,
    report,
    reproduce,
    rewards,
    sample,
    score,
    search,
    serve,
    systems,
)
from plaudit.cli.command import CheckCommand, PlauditCommand, RecipeCommand

SHARED = ("align",)  # commands that a launcher may start several times
app = typer.Typer(
    name="plaudit",
    help="Turn a reward into a better generative model.",
    no_args_is_help=True,
    rich_markup_mode=None,  # help takes 0.15 s when rich draws it, 0.06 s without
    pretty_exceptions_enable=False,
)
app.command("align", cls=RecipeCommand)(align.run)
app.command("fit", cls=RecipeCommand)(fit.run)
app.command("score", cls=PlauditCommand)(score.run)
app.command("search", cls=PlauditCommand)(search.run)
app.command("serve", cls=PlauditCommand)(serve.run)
app.command("sample", cls=RecipeCommand)(sample.run)
app.command("doctor", cls=RecipeCommand)(doctor.run)
app.command("report", cls=PlauditCommand)(report.run)
app.command("compare", cls=RecipeCommand)(compare.run)
app.command("reproduce", cls=PlauditCommand)(reproduce.run)
app.command("systems", cls=PlauditCommand)(systems.run)
app.command("recipe", cls=CheckCommand)(recipe.run)
app.add_typer(rewards.app, name="rewards")
app.add_typer(lab.app, name="lab")


@app.callback(invoke_without_command=True)
def version(
    context: typer.Context,
    show: bool = typer.Option(False, "--version", help="Print the version and leave.", is_eager=True),
) -> None:
    if show:
        from plaudit.version import __version__

        typer.echo(f"plaudit {__version__}")
        raise typer.Exit
    if context.invoked_subcommand not in SHARED:
        _one_process()


def _one_process() -> None:
    """Launchers start a command once per rank: of these the first says that it cannot share the work, and the others leave."""
    from plaudit.ranks import asked

    if asked() == 1:
        return
    if os.environ.get("RANK", "0") != "0":
        raise typer.Exit  # the first one's failure is the job's
    typer.echo(
        f"error: WORLD_SIZE is {asked()}: of Plaudit's commands only {', '.join(SHARED)} shares its work among processes. Start "
        "the others themselves, without torchrun or accelerate launch (or with 1 process)",
        err=True,
    )
    raise typer.Exit(2)


def main() -> None:
    # Threads of torch that spin while they wait collapse when anything else wants a core. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from plaudit.ranks import leave

    try:
        app(prog_name="plaudit")
    except SystemExit as leaving:
        leave(leaving.code)
        raise
