"""What scores."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

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


class RewardConfig(Strict):
    """One reward: a name of the built-in table or a dotted path `package.module:thing`, and how it is called."""

    type: str
    weight: float = 1.0
    arguments: dict[str, Any] = {}
    calibrate: Calibrate | None = None
    batch: Positive | None = None  # outputs per call; null = all at once
    concurrency: Positive = 1  # calls at a time
    deadline_s: PositiveFloat | None = None  # of one call
    retries: Annotated[int, Field(ge=0)] = 0  # of outputs that failed or came too late
    retry_budget: Fraction = 0.2  # the largest share of outputs that may be repeats
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
