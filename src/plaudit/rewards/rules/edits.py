"""Exact rewards of the `edits` world, and a flawed one: they read the picture and know what should have become of the source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from plaudit.lab.edits.check import EditVerdict, check_edits
from plaudit.rewards.base import Score, Status, card, missing

Facts = Mapping[str, Any]
ALIKE = 0.02  # mean square difference from the source at which the proxy's liking has fallen to 1/e


def _judged(value: Callable[[EditVerdict], float], outputs: Tensor, facts: Sequence[Facts]) -> list[float | Score]:
    known = [i for i, row in enumerate(facts) if {"kept", "gone", "new"} <= row.keys()]
    verdicts = check_edits(outputs[known], [facts[i] for i in known]) if known else []
    found = {i: value(verdict) for i, verdict in zip(known, verdicts, strict=True)}
    other = missing(Status.NOT_APPLICABLE, "the prompt has no facts of the `edits` world: kept, gone and new")
    return [found.get(i, other) for i in range(len(facts))]


@card(low=0, high=1, verdict=True, cost_ms=0.3)
def edit_exact(prompts: Sequence[str], outputs: Tensor, facts: Sequence[Facts]) -> list[float | Score]:
    """1 where the instruction was carried out and all else stayed as it was, else 0."""
    return _judged(lambda verdict: float(verdict.correct), outputs, facts)


@card(low=0, high=1, verdict=True, cost_ms=0.3)
def edit_execution(prompts: Sequence[str], outputs: Tensor, facts: Sequence[Facts]) -> list[float | Score]:
    """1 where everything new is there and nothing is that should be gone, else 0."""
    return _judged(lambda verdict: float(verdict.execution), outputs, facts)


@card(low=0, high=1, cost_ms=0.3)
def edit_consistency(prompts: Sequence[str], outputs: Tensor, facts: Sequence[Facts]) -> list[float | Score]:
    """How much of what was to be kept is there, over that and all that is there besides."""
    return _judged(lambda verdict: verdict.consistency, outputs, facts)


@card(low=0, high=1, cost_ms=0.3)
def edit_match(prompts: Sequence[str], outputs: Tensor, facts: Sequence[Facts]) -> list[float | Score]:
    """Mean of execution and consistency."""
    return _judged(lambda verdict: (verdict.execution + verdict.consistency) / 2, outputs, facts)


@card(low=0, high=1, cost_ms=0.3)
def edit_proxy(
    prompts: Sequence[str], outputs: Tensor, facts: Sequence[Facts], source: Sequence[Tensor]
) -> list[float | Score]:
    """Flawed proxy of edit_exact: likes pictures that look like their source, whatever was asked for."""
    done = _judged(lambda verdict: float(verdict.execution), outputs, facts)
    difference = (outputs - torch.stack(list(source))).square().flatten(1).mean(1)
    alike = torch.exp(-difference / ALIKE).tolist()
    return [
        score if isinstance(score, Score) else 0.4 * score + 0.6 * same for score, same in zip(done, alike, strict=True)
    ]
