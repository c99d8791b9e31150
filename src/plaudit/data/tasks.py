"""Prompts of the reasoning-gym tasks: procedurally generated puzzles, each with a scorer of its own.

A prompt's facts are `task`, `config` and `entry`: all that the scorer needs, as JSON. Entries hold tuples and integer
keys, which some scorers insist on, so `encode` keeps them apart from lists and texts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from plaudit.data.prompt import Prompt
from plaudit.errors import DataError
from plaudit.optional import require

TUPLE, ITEMS = "!tuple", "!items"  # keys that no entry uses

# Its scorer compares truth values of texts, so that it pays for every answer that is not empty.
UNSOUND = frozenset({"game_of_life_halting"})

INSTRUCTION = "Put the final answer alone between <answer> and </answer>."


def reasoning_gym_prompts(
    task: str, size: int, seed: int, *, instruction: str = INSTRUCTION, **config: Any
) -> list[Prompt]:
    """`size` puzzles of a reasoning-gym task; the same arguments give the same prompts. `config` is the task's own."""
    gym = require("reasoning_gym", extra="tasks", who="reasoning_gym_prompts")
    names = require("reasoning_gym.factory", extra="tasks", who="reasoning_gym_prompts").DATASETS
    if task not in names:
        raise DataError(f"reasoning-gym has no task {task!r}; its tasks: {', '.join(sorted(names))}")
    if task in UNSOUND:
        raise DataError(f"reasoning-gym task {task!r} is not offered: its scorer pays for every answer")
    try:
        dataset = gym.create_dataset(task, size=size, seed=seed, **config)
    except (AssertionError, TypeError, ValueError) as error:
        raise DataError(f"reasoning-gym task {task!r} with {config}: {error}") from error
    return [_prompt(task, config, dataset[i], instruction) for i in range(size)]


def _prompt(task: str, config: Mapping[str, Any], entry: Mapping[str, Any], instruction: str) -> Prompt:
    text = f"{entry['question'].strip()}\n\n{instruction}" if instruction else entry["question"]
    facts = {"task": task, "config": encode(config), "entry": encode(entry)}
    digest = hashlib.sha256(json.dumps([task, facts["entry"]], sort_keys=True).encode()).hexdigest()[:12]
    return Prompt(id=f"{task}-{digest}", text=text, facts=facts)


def encode(value: Any) -> Any:
    """Tuples and mappings with other keys than texts as JSON that `decode` turns back into the same value."""
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {str(key): encode(item) for key, item in value.items()}
        return {ITEMS: [[encode(key), encode(item)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {TUPLE: [encode(item) for item in value]}
    if isinstance(value, list):
        return [encode(item) for item in value]
    if value is None or isinstance(value, bool):
        return value
    for plain in (str, int, float):  # a numpy text is a text
        if isinstance(value, plain):
            return plain(value)
    raise DataError(f"a puzzle's entry holds {value!r} of type {type(value).__name__}, which is not stored as JSON")


def decode(value: Any) -> Any:
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if TUPLE in value:
        return tuple(decode(item) for item in value[TUPLE])
    if ITEMS in value:
        return {decode(key): decode(item) for key, item in value[ITEMS]}
    return {key: decode(item) for key, item in value.items()}
