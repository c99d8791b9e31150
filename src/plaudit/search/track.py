"""What is kept of the candidates of a search while they come."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from plaudit.search.rows import Found


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A finished candidate's score, NaN where it is missing."""

    prompt: int
    candidate: int
    score: float


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A candidate with its output and, where there is one, its clean latent."""

    candidate: int
    score: float
    output: Any
    latent: Tensor | None


class Tracker:
    """Per prompt the best, the worst and the plain candidate; of all others the scores, and the outputs when asked for.

    A missing score never wins against one that is there, and never counts as the worst. Ties go to the smaller number,
    so that the order in which batches come does not matter.
    """

    def __init__(self, prompts: int, keep_all: bool = False) -> None:
        self.candidates: list[Candidate] = []
        self.best: list[Kept | None] = [None] * prompts
        self.worst: list[Kept | None] = [None] * prompts
        self.plain: list[Kept | None] = [None] * prompts
        self.kept: list[tuple[int, Kept]] = []
        self.keep_all = keep_all

    def add(self, found: Found) -> None:
        named = zip(found.prompt.tolist(), found.candidate.tolist(), found.score.tolist(), strict=True)
        for i, (p, candidate, score) in enumerate(named):
            self.candidates.append(Candidate(prompt=p, candidate=candidate, score=score))
            better = _rank(score, candidate) > _rank_of(self.best[p])
            worse = not math.isnan(score) and _rank(-score, candidate) > _rank_of(self.worst[p], -1)
            if not (better or worse or candidate == 0 or self.keep_all):
                continue
            kept = _keep(found, i, candidate, score)
            self.best[p] = kept if better else self.best[p]
            self.worst[p] = kept if worse else self.worst[p]
            self.plain[p] = kept if candidate == 0 else self.plain[p]
            if self.keep_all:
                self.kept.append((p, kept))


def _rank(score: float, candidate: int) -> tuple[bool, float, int]:
    return (False, 0.0, -candidate) if math.isnan(score) else (True, score, -candidate)


def _rank_of(kept: Kept | None, sign: int = 1) -> tuple[bool, float, float]:
    return (False, 0.0, -math.inf) if kept is None else _rank(sign * kept.score, kept.candidate)


def _keep(found: Found, i: int, candidate: int, score: float) -> Kept:
    """A copy, so that one kept row does not hold its whole batch in memory."""
    output = found.outputs[i]
    return Kept(
        candidate=candidate,
        score=score,
        output=output.clone() if isinstance(output, Tensor) else output,
        latent=None if found.latents is None else found.latents[i].clone(),
    )
