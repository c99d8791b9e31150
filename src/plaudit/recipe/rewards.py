"""What scores."""

from __future__ import annotations

import inspect
import sys
from functools import reduce
from typing import Annotated, Any, Literal

from pydantic import Field, WrapValidator, model_validator

from plaudit.recipe.base import Fraction, Optimiser, Positive, PositiveFloat, Strict


class Zscore(Strict):
    """Minus the mean, divided by the standard deviation: those given, or those of the untrained model's outputs."""

    type: Literal["zscore"]
    """Standard score."""
    mean: float | None = None
    """What is subtracted; null = the mean of the untrained model's outputs."""
    std: PositiveFloat | None = None
    """What is divided by; null = their standard deviation."""


class MinMax(Strict):
    """`low` becomes 0 and `high` 1; what is not given is the least and the largest score of the untrained model."""

    type: Literal["minmax"]
    """From a range to 0..1."""
    low: float | None = None
    """The score that becomes 0; null = the least of the untrained model's outputs."""
    high: float | None = None
    """The score that becomes 1; null = the largest."""


class Quantile(Strict):
    """The share of the untrained model's outputs that score less (ties count half)."""

    type: Literal["quantile"]
    """Rank among the untrained model's outputs."""


class ReferenceScale(Strict):
    """Minus the mean, divided by the deviation, both from the reference on the reward's card."""

    type: Literal["reference"]
    """Standard score by the reference on the reward's card."""


Calibrate = Annotated[Zscore | MinMax | Quantile | ReferenceScale, Field(discriminator="type")]


EVALUATION = "evaluate.reward"  # what the reward of evaluations is called, which stands at this key


def key_of(name: str) -> str:
    """Where a recipe says what a reward is."""
    return name if name == EVALUATION else f"rewards.{name}"


HANDED = "handed over from Python"


class Handed(str):
    """What a recipe says of an object that cannot be imported again, and the object itself."""

    thing: Any


def named(type_: Any) -> Any:
    """A function or class that was handed over as a `type`: its dotted path, if that leads to it in another process too."""
    if isinstance(type_, str) or not callable(type_):
        return type_
    described = type_ if inspect.isroutine(type_) or inspect.isclass(type_) else type(type_)
    home, path = described.__module__, described.__qualname__
    module = sys.modules.get(home) if home != "__main__" else None
    found = reduce(lambda thing, part: getattr(thing, part, None), path.split("."), module)
    if getattr(module, "__spec__", None) is not None and found is type_:
        return f"{home}:{path}"
    handed = Handed(f"{HANDED} ({path} of {home})")
    handed.thing = type_
    return handed


def _text(type_: Any, validated: Any) -> str:
    type_ = named(type_)
    return type_ if isinstance(type_, Handed) else validated(type_)


class Learning(Optimiser):
    """How a reward learns from what the generator draws, when it is its turn."""

    lr: PositiveFloat = 1e-4
    """Learning rate of AdamW."""
    updates: Positive = 1
    """Optimiser updates of a step."""


class RewardConfig(Strict):
    """One reward: a name of the built-in table, a dotted path `package.module:thing`, or from Python the function or class
    itself, and how it is called."""

    type: Annotated[str, WrapValidator(_text)]
    """A name of `plaudit rewards list`, or a dotted path `package.module:thing`."""
    weight: float = 1.0
    """Its factor in the weighted sum; 0 = watched, not trained on."""
    arguments: dict[str, Any] = {}
    """Keyword arguments of the reward; another type starts without any."""
    calibrate: Calibrate | None = None
    """How raw scores are brought to a common scale; null = not at all."""
    batch: Positive | None = None
    """Outputs in one call; null = all at once."""
    concurrency: Positive = 1
    """Calls at a time."""
    deadline_s: PositiveFloat | None = None
    """Seconds that one call may take; null = any."""
    retries: Annotated[int, Field(ge=0)] = 0
    """How often outputs are tried again that failed or came too late."""
    retry_budget: Fraction = 0.2
    """Largest share of outputs that may be repeats."""
    deterministic: bool = True
    """Whether equal outputs get equal scores; false = a judge with noise, whose other scores are no mistake."""
    cache: bool = False
    """Keep scores on disk, by content."""
    python: str | None = None
    """The interpreter of another environment to run it in."""
    learn: Learning | None = None
    """How it learns when it is its turn (`turns`); null = it does not."""

    @model_validator(mode="after")
    def _learns_here(self) -> RewardConfig:
        for key in ("cache", "python"):
            if self.learn is not None and getattr(self, key):
                raise ValueError(
                    f"`{key}` of a reward that learns: its scores change as it does, and here; leave {key} out"
                )
        return self


class Missing(Strict):
    """What to do with scores that are absent. They are never counted as zero."""

    on_missing: Literal["drop", "fail", "impute"] = "drop"
    """Leave the sample out, end the run, or count a stated number."""
    impute: float | None = None
    """The total that a missing one counts as, with on_missing impute."""
    max_missing_fraction: Fraction = 0.05
    """The run ends when a larger share of a step's scores is missing."""

    @model_validator(mode="after")
    def _one_way(self) -> Missing:
        if (self.on_missing == "impute") != (self.impute is not None):
            raise ValueError(
                f"missing.impute: {self.impute} with on_missing {self.on_missing}; on_missing impute needs the number that "
                "stands for a missing total, the others need none"
            )
        return self

    @property
    def limit(self) -> float:
        """The largest share that may be absent."""
        return 0.0 if self.on_missing == "fail" else self.max_missing_fraction
