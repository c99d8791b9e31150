"""Pinned scores: eight outputs per reward and what they scored, recomputed by `plaudit rewards verify`.

Each module's rewards have a file, such as `rules.pixels.yaml`. Under a reward's name stand `arguments`, `tolerance` and `step`
(all optional) and `cases`, a list of `prompt`, `output` (see media.py), `facts` (optional; a lab caption brings its own),
`inputs` and `group` (optional), and `score`: a number or a status.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from plaudit.data.prompt import Prompt
from plaudit.errors import RewardError
from plaudit.lab.scenes.grammar import find_prompt
from plaudit.rewards.base import Score, Status
from plaudit.rewards.calling.call import Caller
from plaudit.rewards.calling.request import Request, make_request
from plaudit.rewards.load import find_reward
from plaudit.rewards.pinned.media import make
from plaudit.rewards.table import BUILT_IN

TOLERANCE = 1e-4
NUM_CASES = 8


@dataclass(frozen=True, kw_only=True)
class Pinned:
    """One reward's cases, ready to be scored."""

    name: str
    arguments: Mapping[str, Any]
    tolerance: float
    request: Request
    expected: Sequence[float | str]


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What recomputing gave. `wrong` holds one line per case that differs."""

    name: str
    wrong: Sequence[str]
    ms_per_output: float


def load_pinned(name: str) -> Pinned:
    content = _of_module(BUILT_IN[name].partition(":")[0].removeprefix("plaudit.rewards.")).get(name)
    if content is None:
        raise RewardError(
            f"reward {name!r} has no pinned scores; pin eight in the file of its module in rewards/pinned"
        )
    cases = content["cases"]
    outputs = [make(case["output"]) for case in cases]
    group = [case["group"] for case in cases] if "group" in cases[0] else None
    return Pinned(
        name=name,
        arguments=content.get("arguments", {}),
        tolerance=content.get("tolerance", TOLERANCE),
        request=make_request(
            [_prompt(name, i, case) for i, case in enumerate(cases)], outputs, group, content.get("step", 0)
        ),
        expected=[case["score"] for case in cases],
    )


@functools.cache
def _of_module(module: str) -> Mapping[str, Any]:
    path = resources.files(__package__) / f"{module}.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _prompt(name: str, i: int, case: Mapping[str, Any]) -> Prompt:
    text = case.get("prompt", "")
    facts, inputs = case.get("facts"), {key: make(value) for key, value in case.get("inputs", {}).items()}
    known = find_prompt(text) if facts is None else None
    return known or Prompt(id=case.get("id", f"{name}-{i}"), text=text, facts=facts or {}, inputs=inputs)


def verify(name: str) -> Verified:
    """Recompute a reward's pinned scores on this machine."""
    pinned = load_pinned(name)
    caller = Caller(name, find_reward(name, name, pinned.arguments))
    caller(pinned.request.rows([0]))  # what is loaded at the first call is not the reward's cost
    caller = Caller(name, find_reward(name, name, pinned.arguments))  # a history starts anew
    started = time.perf_counter()
    found = caller(pinned.request)
    seconds = time.perf_counter() - started
    wrong = [
        f"case {i}: pinned {expected}, found {shown(score)}"
        for i, (score, expected) in enumerate(zip(found, pinned.expected, strict=True))
        if not agrees(score, expected, pinned.tolerance)
    ]
    return Verified(name=name, wrong=wrong, ms_per_output=1000 * seconds / len(found))


def agrees(score: Score, expected: float | str, tolerance: float) -> bool:
    if isinstance(expected, str):
        return score.status == expected
    return score.status is Status.OK and abs(score.value - expected) <= tolerance * max(1.0, abs(expected))


def shown(score: Score) -> str:
    if score.status is Status.OK:
        return f"{score.value:.6g}"
    return f"{score.status}{f' ({score.note})' if score.note else ''}"
