"""Where a run's prompts come from."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from plaudit.data.files import JSON_ROWS, TABLES, brief, has_rows, read_rows, read_text
from plaudit.data.preference import read_preferences
from plaudit.data.prompt import Prompt, is_conversation, must_be_text, text_of
from plaudit.data.tasks import reasoning_gym_prompts
from plaudit.dotted import import_dotted, made
from plaudit.errors import DataError, RecipeError
from plaudit.recipe.prompts import (
    CustomPrompts,
    FilePrompts,
    Prompts,
    PuzzlePrompts,
    ScenesPrompts,
    SumsPrompts,
    WorldPrompts,
)
from plaudit.worlds import WORLDS


class PromptSource(Protocol):
    def batch(self, step: int, count: int, seed: int) -> list[Prompt]:
        """The prompts of a training step; a function of its arguments alone, so that a resumed run sees the same."""
        ...

    def evaluation(self, count: int) -> dict[str, list[Prompt]]:
        """Fixed prompts per held-out split; at most `count` each."""
        ...


@dataclass(frozen=True, kw_only=True)
class FileSource:
    train: Sequence[Prompt]
    heldout: Sequence[Prompt]

    def batch(self, step: int, count: int, seed: int) -> list[Prompt]:
        """Passes over the file in a new order each time, without repeats inside a pass."""
        positions = range(step * count, (step + 1) * count)
        size = len(self.train)
        orders = {
            turn: np.random.default_rng([seed, turn, 2]).permutation(size) for turn in {p // size for p in positions}
        }
        return [self.train[orders[p // size][p % size]] for p in positions]

    def evaluation(self, count: int) -> dict[str, list[Prompt]]:
        return {"heldout": list(self.heldout[:count])} if self.heldout else {"train": list(self.train[:count])}


def preferred(path: str, layout: str | None, key: str, seed: int = 0) -> list[Prompt]:
    """A prompt for each pair of which one is better, with `chosen` and `rejected` and what the source says of them."""
    found = []
    for record in read_preferences(Path(path), layout, seed=seed, key=key):
        for better, worse in record.pairs():
            said: dict[str, Any] = {"chosen": record.outputs[better], "rejected": record.outputs[worse]}
            if record.scores is not None:
                said |= {"scores": (record.scores[better], record.scores[worse])}
            if record.margin is not None:
                said |= {"margin": record.margin}
            found.append(
                (f"{path} row {record.id}", None, replace(record.prompt, inputs={**record.prompt.inputs, **said}))
            )
    if not found:
        raise DataError(f"{key}: {path} holds no pair of which one is better; ties and equals teach nothing")
    return _numbered(found)


PLAIN = ("", ".txt", ".text", ".md")


def read_prompts(path: str, key: str) -> list[Prompt]:
    """Prompts of a text file (one a line) or of a file with rows; an id defaults to a hash of the text."""
    file, said = Path(path), f"{key}: {brief(path)}"
    if not (has_rows(file) and os.path.exists(file)) and not os.path.isfile(file):
        what = "is a folder without a dataset" if os.path.isdir(path) else "does not exist"
        raise DataError(
            f"{said} {what}; give a text file (one prompt a line), JSONL, CSV, TSV, parquet or a folder of `save_to_disk`"
        )
    if has_rows(file):
        return _numbered([_parse_row(file, *row) for row in read_rows(file, key)])
    if file.suffix.lower() not in PLAIN:
        known = ", ".join((".txt", *JSON_ROWS, *TABLES))
        raise DataError(
            f"{said} is no kind of file that prompts are read from; give one of {known} or a folder of datasets"
        )
    lines = [line.strip() for line in read_text(file, said).split("\n") if line.strip()]
    if not lines:
        raise DataError(f"{said} is empty; write one prompt a line")
    return _numbered([(said, None, Prompt(id="", text=line)) for line in lines])


def identify(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()[:12]


def id_of(where: str, row: dict[str, Any]) -> str | None:
    """The id that a row gives itself, taken out of it."""
    given = row.pop("id", None)
    if given is not None and (isinstance(given, bool) or not isinstance(given, str | int)):
        raise DataError(f"{where}: `id` is {brief(given)[:80]}; expected a text or a number")
    return None if given is None else str(given)


def _numbered(rows: Sequence[tuple[str, str | None, Prompt]]) -> list[Prompt]:
    """An id for every prompt: its own, or the hash of its text and how often that came before. Noise is drawn by id: two
    prompts of one would have the same samples."""
    taken: dict[str, str] = {}
    for where, given, _ in rows:
        if given is not None and taken.setdefault(given, where) is not where:
            raise DataError(
                f"{where}: the id {brief(given)} is taken by {taken[given]}; give every prompt its own, or none"
            )
    named, seen = [], Counter[str]()
    for _, given, prompt in rows:
        own = identify(prompt.text)
        seen[own] += given is None
        default = own if seen[own] == 1 else f"{own}-{seen[own]}"
        named.append(replace(prompt, id=default if given is None else given))
    return named


OWN_KEYS = {"id", "text", "facts", "inputs"}
TRL_KEYS = ("messages", "prompt")
ANSWERS = ("completion", "chosen", "rejected")


def _parse_row(file: Path, where: str, row: dict[str, Any]) -> tuple[str, str | None, Prompt]:
    row = dict(row)
    given = id_of(where, row)
    if file.suffix.lower() not in JSON_ROWS and not any(key in row for key in TRL_KEYS) and "text" in row:
        row["prompt"] = row.pop("text")  # other columns of a table are facts
    if any(key in row for key in TRL_KEYS):
        return where, given, _trl_row(where, row)
    if not isinstance(row.get("text"), str) or set(row) - OWN_KEYS:
        raise DataError(
            f"{where}: expected an object with `text` and optionally id, facts, inputs, or with `prompt` or "
            f"`messages` as TRL has them; got {brief(row)[:120]}"
        )
    facts, inputs = objects_of(where, row)
    if is_conversation(inputs.get("messages")):
        must_be_text(inputs["messages"], where)
    return where, given, Prompt(id="", text=row["text"], facts=facts, inputs=inputs)


def objects_of(where: str, row: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`facts` and `inputs`, taken out of a row."""
    facts, inputs = row.pop("facts", {}), row.pop("inputs", {})
    if not isinstance(facts, dict) or not isinstance(inputs, dict):
        raise DataError(
            f"{where}: `facts` and `inputs` must be objects, got {brief(facts)[:60]} and {brief(inputs)[:60]}"
        )
    return facts, inputs


def _trl_row(where: str, row: dict[str, Any]) -> Prompt:
    """A row in one of TRL's formats: answers become inputs, what else there is becomes facts that rewards ask for by name."""
    if "messages" in row:
        messages = row.pop("messages")
        if not is_conversation(messages) or len(messages) < 2 or messages[-1].get("role") != "assistant":
            raise DataError(
                f"{where}: `messages` must be a conversation that ends with the assistant; got {str(messages)[:80]}"
            )
        row |= {"prompt": messages[:-1], "completion": messages[-1:]}
    asked = row.pop("prompt")
    if not isinstance(asked, str) and not is_conversation(asked):
        raise DataError(f"{where}: `prompt` is {str(asked)[:80]}; expected a text or a list of messages")
    given = [key for key in ANSWERS if row.get(key) is not None]
    if given not in ([], ["completion"], ["chosen", "rejected"]):
        raise DataError(
            f"{where}: a prompt goes with a `completion`, or with `chosen` and `rejected`, or alone; got {given}"
        )
    facts, inputs = objects_of(where, row)
    for name in given:
        inputs = inputs | {name: _text_in(where, name, row.pop(name))}
    if not isinstance(asked, str):
        inputs["messages"] = asked
    return Prompt(id="", text=_text_in(where, "prompt", asked), facts={**row, **facts}, inputs=inputs)


def _text_in(where: str, name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if not is_conversation(value):
        raise DataError(f"{where}: `{name}` is {brief(value)[:80]}; expected a text or a list of messages")
    must_be_text(value, where)
    return text_of(value)


def load_prompts(config: Prompts) -> PromptSource:
    match config:
        case ScenesPrompts() | SumsPrompts() | WorldPrompts():
            of_the_world: PromptSource = import_dotted(WORLDS[config.type].prompts, "prompts.type")(config)
            return of_the_world
        case PuzzlePrompts():
            instruction = {} if config.instruction is None else {"instruction": config.instruction}
            train, heldout = (
                reasoning_gym_prompts(config.task, size, seed, **instruction, **config.config)
                for size, seed in ((config.train, 1), (config.heldout, 2))
            )
            known = {prompt.id for prompt in heldout}
            return FileSource(train=[prompt for prompt in train if prompt.id not in known], heldout=heldout)
        case CustomPrompts():
            return _own(config)
        case FilePrompts():
            return FileSource(
                train=_training_prompts(config),
                heldout=read_prompts(config.heldout, "prompts.heldout") if config.heldout else (),
            )


def _own(config: CustomPrompts) -> PromptSource:
    source = made(config.path, "prompts.class", "prompts.options", config.options)
    if lacking := [name for name in ("batch", "evaluation") if not callable(getattr(source, name, None))]:
        raise RecipeError(
            f"prompts.class: {config.path} made a {type(source).__name__} without {', '.join(lacking)}; a source of prompts has "
            "batch(step, count, seed) -> prompts and evaluation(count) -> prompts by split"
        )
    asked, named = source.batch(0, 1, 0), source.evaluation(1)
    found = [*asked, *(p for prompts in named.values() for p in prompts)] if isinstance(named, Mapping) else []
    if not found or not all(isinstance(prompt, Prompt) for prompt in found):
        raise RecipeError(
            f"prompts.class: {config.path} gave {type(asked).__name__} and {type(named).__name__}; batch gives a list of "
            "plaudit.Prompt, and evaluation a mapping of splits to such lists"
        )
    checked: PromptSource = source
    return checked


def _training_prompts(config: FilePrompts) -> list[Prompt]:
    if config.layout is None:
        return read_prompts(config.train, "prompts.train")
    return preferred(config.train, None if config.layout == "preferences" else config.layout, "prompts.train")
