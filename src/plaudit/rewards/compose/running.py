"""Operators with a memory: running statistics and the multiplier of a constraint.

A memory learns only when it is called with `learn=True`; `state()` is JSON and `load_state` gives the same future.
Learning comes before use, as in the released code of S101. Before anything was learnt, the batch at hand is the history.
Shape legend: B samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from plaudit.rewards.compose.groups import group_mean

State = dict[str, Any]


@dataclass
class Moments:
    """Count, mean, sum of squared deviations and range of all present scores so far, merged batch by batch.

    Deviations are from the batch's mean and the merge is Chan's, so a large mean costs no precision and the split into
    batches does not matter.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    @staticmethod
    def of(scores: Tensor) -> Moments:
        present = scores.detach()[~scores.isnan()].double()
        if not len(present):
            return Moments()
        low = present.min()
        mean = low + (present - low).mean()
        squares = (present - mean).square().sum()
        return Moments(len(present), mean.item(), squares.item(), low.item(), present.max().item())

    def merged(self, other: Moments) -> Moments:
        if not self.count or not other.count:
            return self if self.count else other
        count, delta = self.count + other.count, other.mean - self.mean
        return Moments(
            count,
            self.mean + delta * other.count / count,
            self.squares + other.squares + delta**2 * self.count * other.count / count,
            min(self.low, other.low),
            max(self.high, other.high),
        )

    @property
    def std(self) -> float:
        """Of the population."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0


class _Running:
    """Keeps the moments of the scores that it learnt from."""

    def __init__(self) -> None:
        self.moments = Moments()

    def _history(self, scores: Tensor, learn: bool) -> Moments:
        if learn:
            self.moments = self.moments.merged(Moments.of(scores))
        return self.moments if self.moments.count else Moments.of(scores)

    def state(self) -> State:
        facts = asdict(self.moments)
        return facts if self.moments.count else {"count": 0}  # the empty range is infinite, which JSON has no word for

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.moments = Moments(**state)


class RunningZScore(_Running):
    """(score - running mean) / running standard deviation, the divisor no smaller than `floor`."""

    def __init__(self, *, floor: float = 1e-3) -> None:
        super().__init__()
        if floor <= 0:
            raise ValueError(f"floor {floor:g} is not above 0; a constant reward would be divided by 0")
        self.floor = floor

    def __call__(self, scores: Tensor, *, learn: bool = False) -> Tensor:
        history = self._history(scores, learn)
        return (scores - history.mean) / max(history.std, self.floor)


class RunningClip(_Running):
    """Score kept within `width` running standard deviations of the running mean (S101)."""

    def __init__(self, *, width: float = 1.0) -> None:
        super().__init__()
        if width <= 0:
            raise ValueError(f"width {width:g} is not above 0")
        self.width = width

    def __call__(self, scores: Tensor, *, learn: bool = False) -> Tensor:
        history = self._history(scores, learn)
        return scores.clamp(history.mean - self.width * history.std, history.mean + self.width * history.std)


class RunningMinMax(_Running):
    """Score mapped linearly so that the lowest so far is 0 and the highest 1, and kept there; 0.5 while all are equal (S101)."""

    def __call__(self, scores: Tensor, *, learn: bool = False) -> Tensor:
        history = self._history(scores, learn)
        if history.low >= history.high:
            return torch.where(scores.isnan(), scores, torch.full_like(scores, 0.5))
        return ((scores - history.low) / (history.high - history.low)).clamp(0, 1)


# --- constraints -----------------------------------------------------------------------------------------------------


@dataclass
class Multiplier:
    """Price of breaking a constraint, learnt by dual ascent: it rises by `rate` times the mean violation, and never
    falls below 0 or rises above `highest`. A violation is positive where the constraint is broken."""

    rate: float
    value: float = 0.0
    highest: float = math.inf

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise ValueError(f"rate {self.rate:g} is not above 0")
        if not 0 <= self.value <= self.highest:
            raise ValueError(f"the multiplier starts at {self.value:g}, which is not in 0..{self.highest:g}")

    def update(self, violation: float) -> None:
        self.value = min(max(self.value + self.rate * violation, 0.0), self.highest)

    def state(self) -> State:
        return {"value": self.value}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.value = state["value"]


class Constrained:
    """Score minus multiplier * violation; the multiplier rises while the mean of `watched` is beyond `limit`.

    The violation is watched - limit (`at_most`) or limit - watched (`at_least`). A step uses the multiplier of the steps
    before it. A missing `watched` makes the result missing, even at a multiplier of 0, and does not move the multiplier.
    """

    def __init__(
        self,
        *,
        limit: float,
        rate: float,
        sense: Literal["at_most", "at_least"] = "at_most",
        start: float = 0.0,
        highest: float = math.inf,
    ) -> None:
        self.limit, self.sign = limit, 1.0 if sense == "at_most" else -1.0
        self.multiplier = Multiplier(rate=rate, value=start, highest=highest)

    def __call__(self, scores: Tensor, watched: Tensor, *, learn: bool = False) -> Tensor:
        violation = self.sign * (watched - self.limit)
        result = scores - self.multiplier.value * violation
        present = Moments.of(violation)
        if learn and present.count:
            self.multiplier.update(present.mean)
        return result

    def state(self) -> State:
        return self.multiplier.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.multiplier.load_state(state)


# --- lengths of what is right ----------------------------------------------------------------------------------------


class WrongAndLong:
    """outcome - penalty * clip((length - reference) / (longest - reference), 0, 1) for wrong answers (S103).

    The reference is the mean length of the group's right answers (outcome 1), or, where it has none, a moving average of
    that; a wrong answer before any right one was seen pays nothing. The card leaves the numbers to us.
    """

    def __init__(self, *, longest: float, penalty: float = 0.5, decay: float = 0.9) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay {decay:g} is not in 0..1 (below 1)")
        self.longest, self.penalty, self.decay = longest, penalty, decay
        self.average: float | None = None

    def __call__(self, outcome: Tensor, length: Tensor, *, group: Tensor, learn: bool = False) -> Tensor:
        right = outcome == 1
        of_right = torch.where(right, length, torch.full_like(length, math.nan))
        seen = Moments.of(of_right)
        if learn and seen.count:
            kept = seen.mean if self.average is None else self.average
            self.average = self.decay * kept + (1 - self.decay) * seen.mean
        spare = self.longest if self.average is None else self.average
        reference = group_mean(of_right, group).nan_to_num(nan=spare)
        span = (self.longest - reference).clamp(min=torch.finfo(length.dtype).tiny)
        excess = ((length - reference) / span).clamp(0, 1)
        return torch.where(right, outcome, outcome - self.penalty * excess)

    def state(self) -> State:
        return {"average": self.average}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.average = state["average"]
