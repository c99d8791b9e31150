"""What scores."""

from __future__ import annotations

import inspect
import sys
from functools import reduce
from typing import Annotated, Any, Literal

from pydantic import Field, WrapValidator, model_validator

from plaudit.recipe.base import Fraction, Positive, PositiveFloat, Strict


class Zscore(Strict):
    """Minus the mean, divided by the standard deviation: those given, or those of the untrained model's outputs."""

    type: Literal["zscore"]
    mean: float | None = None
    std: PositiveFloat | None = None


class MinMax(Strict):
    """`low` becomes 0 and `high` 1; what is not given is the least and the largest score of the untrained model."""

    type: Literal["minmax"]
    low: float | None = None
    high: float | None = None


class Quantile(Strict):
    """The share of the untrained model's outputs that score less (ties count half)."""

    type: Literal["quantile"]


class ReferenceScale(Strict):
    """Minus the mean, divided by the deviation, both from the reference on the reward's card."""

    type: Literal["reference"]


Calibrate = Annotated[Zscore | MinMax | Quantile | ReferenceScale, Field(discriminator="type")]


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


class RewardConfig(Strict):
    """One reward: a name of the built-in table, a dotted path `package.module:thing`, or from Python the function or class
    itself, and how it is called."""

    type: Annotated[str, WrapValidator(_text)]
    weight: float = 1.0
    arguments: dict[str, Any] = {}
    calibrate: Calibrate | None = None
    batch: Positive | None = None  # outputs per call; null = all at once
    concurrency: Positive = 1  # calls at a time
    deadline_s: PositiveFloat | None = None  # of one call
    retries: Annotated[int, Field(ge=0)] = 0  # of outputs that failed or came too late
    retry_budget: Fraction = 0.2  # the largest share of outputs that may be repeats
    deterministic: bool = True  # false = a judge with noise: other scores for the same outputs are no mistake
    cache: bool = False  # keep scores on disk, by content
    python: str | None = None  # the interpreter of another environment to run it in


class Missing(Strict):
    """What to do with scores that are absent. They are never counted as zero."""

    on_missing: Literal["drop", "fail", "impute"] = "drop"
    impute: float | None = None  # the total that a missing one counts as, with on_missing impute
    max_missing_fraction: Fraction = 0.05

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
