"""Whether a source of prompts has the answers that an objective learns from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plaudit.data.prompt import Prompt
from plaudit.data.sources import FileSource, PromptSource
from plaudit.errors import DataError
from plaudit.recipe.objectives import Feed
from plaudit.recipe.prompts import FilePrompts, SumsPrompts
from plaudit.recipe.schema import Recipe

NEEDED = {"pairs": ("chosen", "rejected"), "demonstrations": ("completion",)}
ROWS = {
    "pairs": "`prompt`, `chosen` and `rejected`",
    "demonstrations": "`prompt` and `completion`, or `messages` that end with the assistant",
}


def check_rows(recipe: Recipe, prompts: PromptSource, source: Feed, scored: bool = False) -> None:
    """Every row of a training file, or the first prompt of a source that makes them, has the answers that are learned from."""
    if source not in NEEDED:
        return
    rows = prompts.train if isinstance(prompts, FileSource) else prompts.batch(0, 1, recipe.run.seed)
    kind = Path if recipe.model.family == "flow" else str
    for number, prompt in enumerate(rows, start=1):
        for name in NEEDED[source]:
            if not isinstance(found := prompt.inputs.get(name), kind):
                raise DataError(_lacking(recipe, prompt, number, name, found, source))
        if scored and "scores" not in prompt.inputs:
            raise DataError(_lacking(recipe, prompt, number, "score_chosen", None, source))


def _lacking(recipe: Recipe, prompt: Prompt, number: int, name: str, found: Any, source: Feed) -> str:
    match recipe.prompts:
        case FilePrompts(train=path):
            where, remedy = f"prompts.train: {path} row {number}", f"rows with {ROWS[source]}"
        case SumsPrompts(answers=answers):
            where, remedy = f"prompts.answers: {answers}", f"prompts.answers: {source}"
        case _:
            where, remedy = f"prompts.type: {recipe.prompts.type}", f"prompts.type: file, with rows of {ROWS[source]}"
    wanted = "picture" if recipe.model.family == "flow" else "text"
    what = f"has no `{name}`" if found is None else f"has as `{name}` {str(found)[:60]!r}, which is no {wanted}"
    return (
        f"{where}: prompt {prompt.id} ({prompt.text[:60]!r}) {what}; objective {recipe.objective.type} needs {remedy}"
    )
