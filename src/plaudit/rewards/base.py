"""The words every reward is written in: score, status, card."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, TypeVar, get_args

from torch import Tensor

Kind = Literal["image", "text", "audio", "video"]
RewardFunction = Callable[..., Any]
Function = TypeVar("Function", bound=RewardFunction)


class Status(StrEnum):
    OK = "ok"
    NOT_APPLICABLE = "not_applicable"
    PARSE_FAILED = "parse_failed"
    TIMED_OUT = "timed_out"
    ERRORED = "errored"
    REFUSED = "refused"


TRANSIENT = (Status.TIMED_OUT, Status.ERRORED)  # the reward failed, and says nothing of the output


@dataclass(frozen=True, kw_only=True)
class Score:
    """One output's score. `value` is NaN exactly when `status` is not ok."""

    value: float
    status: Status = Status.OK
    components: Mapping[str, float] | None = None
    sigma: float | None = None
    dense: Tensor | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if math.isfinite(self.value) != (self.status is Status.OK):
            raise ValueError(
                f"a score of {self.value} cannot have the status {self.status}: only ok scores have a value"
            )


def missing(status: Status, note: str = "") -> Score:
    """The score of an output that could not be judged. What a rule calls worthless is not missing: it has a number."""
    return Score(value=math.nan, status=status, note=note)


def finite(value: float) -> float | None:
    """A number as JSON has it, which knows neither NaN nor infinity."""
    return float(value) if math.isfinite(value) else None


def score_json(score: Score) -> dict[str, Any]:
    """What there is of a score, without its `dense` values. A score that is missing is null."""
    content: dict[str, Any] = {"value": finite(score.value), "status": score.status.value}
    if score.components is not None:
        content["components"] = {name: finite(value) for name, value in score.components.items()}
    if score.sigma is not None:
        content["sigma"] = finite(score.sigma)
    if score.note:
        content["note"] = score.note
    return content


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Mean and standard deviation of a reward over a named set of outputs: what `calibrate: reference` subtracts and
    divides by."""

    mean: float
    std: float
    on: str


LAB_SCENES = "600 true pictures of the lab's held-out captions"


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a user must know of a reward before mixing it with another.

    `kind` is what it looks at. `batch_invariant` is False when a score depends on the other outputs of the batch (a rank
    inside the group) or on earlier calls (a history), `deterministic` when equal calls may give other scores (a judge that
    draws its answer). `looks_at_outputs` is False when it judges what stands in the prompt's own data, whatever the model drew.
    `verdict` is True where a score is right or wrong, 1 or 0 and nothing between, so that reports may write means as an
    accuracy. `cost_ms` is one output's, on one CPU core. `extra` is what
    `pip install 'plaudit[EXTRA]'` must have brought, `untrusted` says that it runs programs, in the sandbox.
    """

    summary: str
    low: float = -math.inf
    high: float = math.inf
    higher_is_better: bool = True
    kind: Kind = "image"
    differentiable: bool = False
    batch_invariant: bool = True
    deterministic: bool = True
    looks_at_outputs: bool = True
    verdict: bool = False
    max_prompt_tokens: int | None = None
    reference: Reference | None = None
    cost_ms: float | None = None
    extra: str | None = None
    untrusted: bool = False
    systems: tuple[str, ...] = ()
    revision: str = "1"

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"card: kind is {self.kind!r}; allowed: {', '.join(get_args(Kind))}")
        if not self.low < self.high:
            raise ValueError(f"card: low {self.low} is not below high {self.high}")

    @property
    def unit(self) -> tuple[float, float] | None:
        """Rewards may be added when they share this; None where the range is open, so that nothing is known."""
        return (self.low, self.high) if math.isfinite(self.low) and math.isfinite(self.high) else None


def card(**facts: Any) -> Callable[[Function], Function]:
    """Give a reward function its card; its docstring's first line is the summary."""

    def attach(function: Function) -> Function:
        function.card = Card(summary=summary_of(function), **facts)  # type: ignore[attr-defined]
        return function

    return attach


def summary_of(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]
