"""Rewards of unlike scales brought to a common one, with numbers that are measured once and kept with the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from plaudit.errors import RecipeError
from plaudit.recipe.rewards import MinMax, Quantile, ReferenceScale, RewardConfig, Zscore
from plaudit.rewards.base import Card

Unit = tuple[float, float] | str | None
MIN_OUTPUTS = 8


@dataclass(frozen=True, kw_only=True)
class Linear:
    """`(score - centre) / scale`."""

    unit: str
    centre: float
    scale: float

    def __call__(self, scores: Tensor) -> Tensor:
        return (scores - self.centre) / self.scale


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The share of `sorted_scores` below a score, ties counting half."""

    unit: str
    sorted_scores: tuple[float, ...]

    def __call__(self, scores: Tensor) -> Tensor:
        table = torch.tensor(self.sorted_scores, dtype=torch.float64)
        below = torch.searchsorted(table, scores.double(), side="left")
        until = torch.searchsorted(table, scores.double(), side="right")
        return torch.where(scores.isnan(), scores.double(), (below + until) / (2 * len(table)))


Scale = Linear | Ranks
SCALES = {"linear": Linear, "ranks": Ranks}


def needs_outputs(config: RewardConfig) -> bool:
    """Whether numbers must be measured that neither the recipe nor the card gives."""
    match config.calibrate:
        case Zscore(mean=mean, std=std):
            return mean is None or std is None
        case MinMax(low=low, high=high):
            return low is None or high is None
        case Quantile():
            return True
    return False


def fit(name: str, config: RewardConfig, card: Card | None, scores: Tensor | None) -> Scale | None:
    """The scale that a recipe asks for. `scores` are those of the untrained model's outputs, where they are needed."""
    key = f"rewards.{name}.calibrate"
    present = scores[scores.isfinite()].double() if scores is not None else torch.zeros(0, dtype=torch.float64)
    if needs_outputs(config) and len(present) < MIN_OUTPUTS:
        raise RecipeError(
            f"{key}: only {len(present)} of {0 if scores is None else len(scores)} calibration outputs have a score; at "
            f"least {MIN_OUTPUTS} are needed. Mend the reward, raise calibration_outputs, or give the numbers in the recipe"
        )
    match config.calibrate:
        case Zscore(mean=mean, std=std):
            centre = present.mean().item() if mean is None else mean
            return _linear(key, "zscore", centre, present.std().item() if std is None else std)
        case MinMax(low=low, high=high):
            least = present.min().item() if low is None else low
            return _linear(key, "minmax", least, (present.max().item() if high is None else high) - least)
        case Quantile():
            return Ranks(unit="quantile", sorted_scores=tuple(present.sort().values.tolist()))
        case ReferenceScale():
            if card is None or card.reference is None:
                raise RecipeError(f"{key}: this reward's card has no reference; allowed: zscore, minmax, quantile")
            return _linear(key, "reference", card.reference.mean, card.reference.std)
    return None


def _linear(key: str, unit: str, centre: float, scale: float) -> Linear:
    if not scale > 0:
        raise RecipeError(
            f"{key}: the scores spread over {scale:g}, so there is nothing to divide by; the reward may be constant on "
            "these outputs. Give the numbers in the recipe or leave this reward out"
        )
    return Linear(unit=unit, centre=centre, scale=scale)


def unit_of(config: RewardConfig, card: Card | None) -> Unit:
    """Rewards may be added when they share this."""
    if isinstance(config.calibrate, Quantile):
        return (0.0, 1.0)
    if config.calibrate is not None:
        return config.calibrate.type
    return card.unit if card else None


def to_json(scale: Scale) -> dict[str, Any]:
    kind = next(key for key, cls in SCALES.items() if isinstance(scale, cls))
    return {"kind": kind, **asdict(scale)}


def from_json(content: Mapping[str, Any]) -> Scale:
    rest = {key: tuple(value) if isinstance(value, list) else value for key, value in content.items() if key != "kind"}
    return SCALES[content["kind"]](**rest)
