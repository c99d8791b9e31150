"""What is asked."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from plaudit.recipe.base import Fraction, Positive, Strict


class ScenesPrompts(Strict):
    """Captions of the lab world `scenes`."""

    type: Literal["scenes"] = "scenes"
    categories: tuple[Literal["single", "count", "two", "relation", "counttwo", "three"], ...] = Field(
        default=("single", "count", "two", "relation", "counttwo", "three"), min_length=1
    )


class SumsPrompts(Strict):
    """Problems of the lab world `sums`; no categories means all of them. `problems` keeps training to so many fixed ones.
    `answers` brings solutions to learn from: pairs of a right and a wrong one, a share `noise` of them swapped, or
    demonstrations as the model was pretrained on."""

    type: Literal["sums"]
    categories: tuple[str, ...] | None = Field(default=None, min_length=1)
    problems: Positive | None = None
    answers: Literal["none", "pairs", "demonstrations"] = "none"
    noise: Fraction = 0.0


class PuzzlePrompts(Strict):
    """Puzzles of a reasoning-gym task, whose scorer is the reward `reasoning_gym`. `config` is the task's own."""

    type: Literal["puzzles"]
    task: str
    config: dict[str, Any] = {}
    instruction: str | None = None  # what is asked of the answer; null = an answer between tags
    train: Positive = 2_000
    heldout: Positive = 500


class FilePrompts(Strict):
    """A text file (one prompt a line) or JSONL: `text` and optional `id`, `facts`, `inputs`; or the columns of TRL: `prompt`
    (a text or messages), `prompt`, `chosen` and `rejected`, `prompt` and `completion`, or `messages`."""

    type: Literal["file"]
    train: str
    heldout: str | None = None


Prompts = Annotated[ScenesPrompts | SumsPrompts | PuzzlePrompts | FilePrompts, Field(discriminator="type")]
