"""What objectives learn from: samples of either family, with what was said of them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.sampling.base import Samples
from plaudit.sampling.noise import SampleKey
from plaudit.sampling.rollout import FlowSamples, Starts
from plaudit.sampling.tokens import Completions
from plaudit.shaping.credit import Credit

S = TypeVar("S", FlowSamples, Completions)


class SnapshotPolicy(Protocol):
    """What terms need of a policy: its model, and a way to run with a snapshot's weights."""

    model: Any

    def using(self, name: str) -> AbstractContextManager[None]: ...


@dataclass(frozen=True, kw_only=True)
class Pairs(Generic[S]):
    """Answers or pictures of which the first was preferred; a sample is a pair. `scores [P, 2]` are what the two were given, and
    `margin [P]` by how much the first leads, where the source says so."""

    chosen: S
    rejected: S
    scores: Tensor | None = None
    margin: Tensor | None = None
    decisions: None = None
    network_calls: int = 0

    def __len__(self) -> int:
        return len(self.chosen)

    def select(self, rows: Tensor) -> Pairs[S]:
        return replace(
            self,
            chosen=self.chosen.select(rows),
            rejected=self.rejected.select(rows),
            scores=None if self.scores is None else self.scores[rows],
            margin=None if self.margin is None else self.margin[rows],
        )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples to learn from. `informative [B]` is False in groups without contrast.

    `score` is the total that the credit was made of and `scores` each reward's own, NaN where missing. `extra` is what an
    objective has found out about the batch as a whole; its values have a row per sample.
    """

    samples: Samples
    prompts: tuple[Prompt, ...]
    keys: tuple[SampleKey, ...]
    group: Tensor
    score: Tensor
    scores: Mapping[str, Tensor]
    credit: Credit
    informative: Tensor
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.samples)

    def select(self, rows: Tensor) -> Batch:
        """Rows by their numbers."""
        order, samples = rows.tolist(), self.samples.select(rows)
        width = None if samples.decisions is None else samples.decisions.mask.shape[1]
        return Batch(
            samples=samples,
            prompts=tuple(self.prompts[i] for i in order),
            keys=tuple(self.keys[i] for i in order),
            group=self.group[rows],
            score=self.score[rows],
            scores={name: values[rows] for name, values in self.scores.items()},
            credit=self.credit.select(rows, width),
            informative=self.informative[rows],
            extra={name: _rows(value, rows) for name, value in self.extra.items()},
        )

    @property
    def valid(self) -> Tensor:
        """Samples `[B]` that are learned from."""
        return self.credit.valid

    def shaped(self, credit: Credit) -> Batch:
        """With credit; a group of which nothing moves is not informative."""
        moving = torch.isin(self.group, self.group[credit.moves])
        return replace(self, credit=replace(credit, value=credit.value.float()), informative=credit.valid & moving)

    def knowing(self, **extra: Any) -> Batch:
        return replace(self, extra={**self.extra, **extra})

    @property
    def flow(self) -> FlowSamples:
        assert isinstance(self.samples, FlowSamples), "this objective learns from a flow model's samples"
        return self.samples

    @property
    def starts(self) -> Starts:
        assert isinstance(self.samples, Starts), "this objective draws its samples itself"
        return self.samples

    @property
    def completions(self) -> Completions:
        assert isinstance(self.samples, Completions), "this objective learns from completions"
        return self.samples

    @property
    def pairs(self) -> Pairs[Any]:
        assert isinstance(self.samples, Pairs), "this objective learns from pairs"
        return self.samples


def _rows(value: Any, rows: Tensor) -> Any:
    return value.select(rows) if hasattr(value, "select") and not isinstance(value, Tensor) else value[rows]
