"""Exact rewards of the lab world: they read the pixels and know the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.errors import RewardError
from plaudit.lab.scenes.check import Verdict, check
from plaudit.rewards.base import card


def verdicts(prompts: Sequence[str], outputs: Tensor, facts: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    unknown = [text for text, fact in zip(prompts, facts, strict=True) if "objects" not in fact]
    if unknown:
        raise RewardError(
            f"the scene checker needs the facts of a `scenes` prompt, which {unknown[0]!r} does not carry"
        )
    return check(outputs, [Prompt(id="", text=text, facts=fact) for text, fact in zip(prompts, facts, strict=True)])


@card(low=0, high=1)
def scene_exact(prompts: Sequence[str], outputs: Tensor, facts: Sequence[Mapping[str, Any]]) -> list[float]:
    """1 where the picture shows exactly what the caption says, else 0."""
    return [float(verdict.correct) for verdict in verdicts(prompts, outputs, facts)]


@card(low=0, high=1)
def scene_graded(prompts: Sequence[str], outputs: Tensor, facts: Sequence[Mapping[str, Any]]) -> list[float]:
    """Satisfied parts of the caption, divided by one plus the surplus objects."""
    return [verdict.graded for verdict in verdicts(prompts, outputs, facts)]


@card(low=0, high=1)
def scene_match(prompts: Sequence[str], outputs: Tensor, facts: Sequence[Mapping[str, Any]]) -> list[float]:
    """Half exact, half graded: the lab's training reward."""
    return [0.5 * verdict.correct + 0.5 * verdict.graded for verdict in verdicts(prompts, outputs, facts)]
