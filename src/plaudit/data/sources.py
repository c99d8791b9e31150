"""Where a run's prompts come from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from plaudit.data.prompt import Prompt
from plaudit.errors import DataError
from plaudit.lab.scenes import grammar
from plaudit.recipe.schema import FilePrompts, ScenesPrompts


class PromptSource(Protocol):
    def batch(self, step: int, count: int, seed: int) -> list[Prompt]:
        """The prompts of a training step; a function of its arguments alone, so that a resumed run sees the same."""
        ...

    def evaluation(self, count: int) -> dict[str, list[Prompt]]:
        """Fixed prompts per held-out split; at most `count` each."""
        ...


@dataclass(frozen=True, kw_only=True)
class ScenesSource:
    categories: Sequence[str]

    def batch(self, step: int, count: int, seed: int) -> list[Prompt]:
        return grammar.sample_prompts("train", count, np.random.default_rng([seed, step, 1]), self.categories)

    def evaluation(self, count: int) -> dict[str, list[Prompt]]:
        return {
            "heldout": grammar.evaluation_prompts("heldout", count, self.categories),
            "compositional": grammar.evaluation_prompts("compositional", max(count // 2, 1), self.categories),
        }


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


def read_prompts(path: str, key: str) -> list[Prompt]:
    """Prompts of a text file (one a line) or a JSONL file; an id defaults to a hash of the text."""
    file = Path(path)
    if not file.is_file():
        raise DataError(f"{key}: {path} does not exist; give a text file (one prompt a line) or a JSONL file")
    lines = [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    if not lines:
        raise DataError(f"{key}: {path} is empty; write one prompt a line")
    if file.suffix != ".jsonl":
        return [Prompt(id=identify(line), text=line.strip()) for line in lines]
    return [_parse_row(path, number, line) for number, line in enumerate(lines, start=1)]


def identify(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()[:12]


def _parse_row(path: str, number: int, line: str) -> Prompt:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{path} line {number} is not JSON: {error}") from error
    allowed = {"id", "text", "facts", "inputs"}
    if not isinstance(row, dict) or not isinstance(row.get("text"), str) or set(row) - allowed:
        raise DataError(
            f"{path} line {number}: expected an object with `text` and optionally id, facts, inputs; got {line[:120]}"
        )
    return Prompt(
        id=str(row.get("id", identify(row["text"]))),
        text=row["text"],
        facts=row.get("facts", {}),
        inputs=row.get("inputs", {}),
    )


def load_prompts(config: ScenesPrompts | FilePrompts) -> PromptSource:
    if isinstance(config, ScenesPrompts):
        return ScenesSource(categories=config.categories)
    return FileSource(
        train=read_prompts(config.train, "prompts.train"),
        heldout=read_prompts(config.heldout, "prompts.heldout") if config.heldout else (),
    )
