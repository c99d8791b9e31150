"""What is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field

from plaudit.recipe.base import Fraction, Positive, Strict
from plaudit.worlds import WORLDS

if TYPE_CHECKING:
    WorldName = str
else:
    WorldName = Literal[tuple(world.name for world in WORLDS.values() if not world.own_keys)]


class ScenesPrompts(Strict):
    """Captions of the lab world `scenes`."""

    type: Literal["scenes"] = "scenes"
    """Captions of the lab world `scenes`."""
    categories: tuple[Literal["single", "count", "two", "relation", "counttwo", "three"], ...] = Field(
        default=("single", "count", "two", "relation", "counttwo", "three"), min_length=1
    )
    """Kinds of caption to draw from."""
    pairs: str | None = None
    """A file of preferences to learn from in place of captions, such as a search's `pairs.jsonl`; held out stay the world's."""


class SumsPrompts(Strict):
    """Problems of the lab world `sums`; no categories means all of them. `problems` keeps training to so many fixed ones.
    `answers` brings solutions to learn from: pairs of a right and a wrong one, a share `noise` of them swapped, or
    demonstrations as the model was pretrained on."""

    type: Literal["sums"]
    """Problems of the lab world `sums`."""
    categories: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Kinds of problem to draw from; null = all."""
    problems: Positive | None = None
    """Keep training to so many fixed problems; null = always new ones."""
    answers: Literal["none", "pairs", "demonstrations"] = "none"
    """Solutions to learn from: pairs of a right and a wrong one, or demonstrations as the model was pretrained on."""
    noise: Fraction = 0.0
    """Share of the pairs that are swapped."""


class WorldPrompts(Strict):
    """Prompts of a lab world that has no keys of its own."""

    type: WorldName
    """`edits`: a picture, and an instruction that changes it."""
    categories: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Kinds of prompt to draw from; null = all."""


class PuzzlePrompts(Strict):
    """Puzzles of a reasoning-gym task, whose scorer is the reward `reasoning_gym`. `config` is the task's own."""

    type: Literal["puzzles"]
    """Puzzles of a reasoning-gym task."""
    task: str
    """Name of the task."""
    config: dict[str, Any] = {}
    """The task's own settings; another task starts without any."""
    instruction: str | None = None
    """What is asked of the answer; null = an answer between tags."""
    train: Positive = 2_000
    """Puzzles to train on."""
    heldout: Positive = 500
    """Puzzles to evaluate on."""


class FilePrompts(Strict):
    """A text file (one prompt a line) or JSONL: `text` and optional `id`, `facts`, `inputs`; or the columns of TRL: `prompt`
    (a text or messages), `prompt`, `chosen` and `rejected`, `prompt` and `completion`, or `messages`."""

    type: Literal["file"]
    """Prompts from files."""
    train: str
    """The file to train on: text with a prompt a line, or JSONL."""
    heldout: str | None = None
    """The file to evaluate on; null = the first prompts of `train`."""
    layout: str | None = None
    """`preferences`, or the name of a layout of them, when `train` holds preferences (docs/preferences.md)."""


class CustomPrompts(Strict):
    """Any other source of prompts: a class at a dotted path `package.module:Class`, made with `options`."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)

    type: Literal["custom"]
    """A source of your own."""
    path: str = Field(alias="class")
    """Its dotted path `package.module:Class`; it has `batch(step, count, seed)` and `evaluation(count)`."""
    options: dict[str, Any] = {}
    """What it is made with, by name."""


Prompts = Annotated[
    ScenesPrompts | SumsPrompts | WorldPrompts | PuzzlePrompts | FilePrompts | CustomPrompts,
    Field(discriminator="type"),
]
