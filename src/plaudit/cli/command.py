"""What every command shares: errors without tracebacks, and recipes with dotted overrides."""

from __future__ import annotations

import os
from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from plaudit.errors import Interrupted, PlauditError
from plaudit.pages.showing import aligned as aligned

if TYPE_CHECKING:
    from plaudit.recipe.schema import Recipe

FAILED_CHECK, USER_ERROR, INTERRUPTED = 1, 2, 130
OVERRIDES = "plaudit.overrides"  # where a command's context keeps its override tokens

Recipes = Annotated[
    list[str] | None,
    typer.Argument(metavar="RECIPE", help="Files or shipped names, later over earlier.", show_default=False),
]


class PlauditCommand(TyperCommand):
    """A command whose user errors are one message and an exit code. PLAUDIT_TRACEBACK=1 shows where they came from."""

    error_code = USER_ERROR

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PlauditError as error:
            if os.environ.get("PLAUDIT_TRACEBACK") == "1":
                raise
            from plaudit.ranks import Lost, StoppedByMain
            from plaudit.recipe.text import visible

            stopped, rank = isinstance(error, Interrupted), os.environ.get("RANK") or "0"
            if rank == "0" or not isinstance(
                error, Interrupted | StoppedByMain | Lost
            ):  # else the first rank has said it
                lines = map(
                    visible, str(error).split("\n")
                )  # a name that somebody else chose may hold what a terminal obeys
                where = "" if rank == "0" else f"rank {rank}: "
                typer.echo(where + ("" if stopped else "error: ") + "\n".join(lines), err=True)
            raise typer.Exit(INTERRUPTED if stopped else self.error_code) from None
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if os.environ.get("PLAUDIT_TRACEBACK") == "1" or not (place := _in_users_code(error)):
                raise
            from plaudit.recipe.text import visible

            said = visible(f"{type(error).__name__}: {error}"[:500])
            typer.echo(f"error: {place}: {said}; PLAUDIT_TRACEBACK=1 shows how it came there", err=True)
            raise typer.Exit(self.error_code) from None


def _in_users_code(error: Exception) -> str:
    """The line of the user's own code that an exception went through last, as `file.py:12`; nothing where it is ours alone."""
    from plaudit.rewards.calling.call import place_of

    return place_of(error)


class RecipeCommand(PlauditCommand):
    """A command that takes dotted overrides anywhere among its arguments: `--train.steps 50`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = {option for parameter in self.get_params(ctx) for option in parameter.opts if option.startswith("--")}
        rest, ctx.meta[OVERRIDES] = split_overrides(args, own)
        return super().parse_args(ctx, rest)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        super().format_epilog(ctx, formatter)
        with formatter.section("Overrides"):
            formatter.write_dl([("--SECTION.KEY VALUE", "Any key of `plaudit recipe`, for example --train.steps 50.")])


class CheckCommand(RecipeCommand):
    """A command that is itself the check of a recipe: what is wrong with it is a failed check."""

    error_code = FAILED_CHECK


def split_overrides(args: Sequence[str], own: set[str]) -> tuple[list[str], list[str]]:
    """Arguments for the command itself, and override tokens `--key value` or `--key=value`."""
    rest: list[str] = []
    overrides: list[str] = []
    remaining = list(args)
    while remaining:
        token = remaining.pop(0)
        if token == "--":
            return [*rest, token, *remaining], overrides
        if not _is_override(token, own):
            rest.append(token)
            continue
        overrides.append(token)
        if "=" not in token and remaining and not remaining[0].startswith("--"):
            overrides.append(remaining.pop(0))
    return rest, overrides


def _is_override(token: str, own: set[str]) -> bool:
    """Keys of the recipe, and options unlike any of the command's own: who writes `--lr` is told about `train.lr`."""
    option = token.partition("=")[0]
    if not option.startswith("--") or option in own:
        return False
    if "." in option or not get_close_matches(option, own, n=1, cutoff=0.75):
        return True
    from plaudit.recipe.schema import Recipe

    return option.removeprefix("--") in Recipe.model_fields


def load_recipe(context: typer.Context, recipes: Sequence[str] | None) -> Recipe:
    """The recipe that a command line describes; the shipped default when it names none."""
    from plaudit.recipe.load import load

    return load(recipes or (), context.meta[OVERRIDES])
