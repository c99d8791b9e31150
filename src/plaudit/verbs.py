"""What Python calls the verbs: the work itself lies in their packages, and what follows it is put together here."""

from __future__ import annotations

from plaudit import storage
from plaudit.audit.report import write_report
from plaudit.fit.fit import fit_reward
from plaudit.ranks import join
from plaudit.recipe.load import Source
from plaudit.recipe.schema import Recipe
from plaudit.runs.display import Display, make_display
from plaudit.train import loop
from plaudit.train.run import RunResult


def align(
    recipe: Recipe | Source,
    *,
    resume: bool = False,
    overwrite: bool = False,
    plain: bool = False,
    quiet: bool = False,
    display: Display | None = None,
) -> RunResult:
    """Train a generator on its rewards as the recipe says; returns where the report is.

    `recipe` is a Recipe, a shipped name, a file, a run folder or a mapping. Progress is shown as the command shows it: a bar,
    with `plain` a line a step, with `quiet` nothing; a `display` of one's own is told all of it.
    """
    display = display or make_display(plain, quiet)
    result = loop.train(recipe, resume=resume, overwrite=overwrite, display=display)
    join().from_main(lambda: _report(result))
    return result


def fit(
    recipe: Recipe | Source,
    *,
    resume: bool = False,
    overwrite: bool = False,
    plain: bool = False,
    quiet: bool = False,
    display: Display | None = None,
) -> RunResult:
    """Fit a reward to preferences as the recipe's `fit` says. The folder of its run is a reward by its path:
    `{type: fitted, arguments: {path: FOLDER}}`."""
    display = display or make_display(plain, quiet)
    result = fit_reward(recipe, resume=resume, overwrite=overwrite, display=display)
    _report(result)
    return result


def _report(result: RunResult) -> None:
    with storage.explain_write_errors(result.report):
        write_report(result.folder)
