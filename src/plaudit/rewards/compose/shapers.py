"""Shapers: functions of one score, or of a score and its references (the menu of S101), and schedules over training steps.

A missing score stays missing. Shape legend: B samples; M references.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

PERCENTILE_85 = 1.036  # standard deviations above the mean of a normal distribution


def clip(scores: Tensor, *, low: float = -math.inf, high: float = math.inf) -> Tensor:
    """Score kept within `low`..`high`; `high` alone is a hard ceiling."""
    if low > high:
        raise ValueError(f"low {low:g} is above high {high:g}")
    return scores.clamp(low, high)


def rescale(scores: Tensor, *, low: float, high: float) -> Tensor:
    """(score - low) / (high - low): grades of `low`..`high` become 0..1."""
    if low >= high:
        raise ValueError(f"low {low:g} is not below high {high:g}")
    return (scores - low) / (high - low)


def sigmoid(scores: Tensor, *, slope: float = 1.0, at: float = 0.0) -> Tensor:
    """1 / (1 + exp(-slope * (score - at))): steep at `at`, then saturating towards 0 and 1."""
    _positive("slope", slope)
    return torch.sigmoid(slope * (scores - at))


def tanh(scores: Tensor, *, slope: float = 1.0, at: float = 0.0) -> Tensor:
    """tanh(slope * (score - at)): steep at `at`, then saturating towards -1 and 1."""
    _positive("slope", slope)
    return torch.tanh(slope * (scores - at))


def par(scores: Tensor, references: Sequence[Tensor], *, slope: float = 1.0) -> Tensor:
    """Mean over reference answers of sigmoid(slope * (score - reference's score)): the chance of beating one (S101).

    The mean of sigmoids, not the sigmoid of the mean. Where a reference is missing the result is missing: the released
    code falls back to the raw score there, which is not on this scale.
    """
    _positive("slope", slope)
    return torch.sigmoid(slope * _ahead(scores, references)).mean(0)


def par_tanh(scores: Tensor, references: Sequence[Tensor], *, slope: float = 1.0) -> Tensor:
    """Mean over reference answers of tanh(slope * (score - reference's score)) (S101)."""
    _positive("slope", slope)
    return torch.tanh(slope * _ahead(scores, references)).mean(0)


def centred_on(scores: Tensor, references: Sequence[Tensor]) -> Tensor:
    """Score minus the mean score of its reference answers (S101)."""
    return _ahead(scores, references).mean(0)


def lsc(scores: Tensor, references: Sequence[Tensor]) -> Tensor:
    """log sigmoid(score - 85th percentile of the references), taken as their mean + 1.036 population std (S101)."""
    ahead = _ahead(scores, references)
    return F.logsigmoid(ahead.mean(0) - PERCENTILE_85 * ahead.std(0, correction=0))


def _ahead(scores: Tensor, references: Sequence[Tensor]) -> Tensor:
    """How far each score is above its references `[M, B]`."""
    if not references:
        raise ValueError("no reference scores; give at least one, by the same reward as the score")
    return scores - torch.stack(list(references))


def dead_zone(scores: Tensor, *, low: float, high: float) -> Tensor:
    """0 below `low`, 1 above `high`, the score itself between (S053).

    S053 tightens it in mid-training: `low=staged(at="1500", values="0.5, 0.75")`.
    """
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"low {low:g} and high {high:g} must be 0 <= low <= high <= 1, or a better score may earn less"
        )
    inside = torch.where(scores < low, torch.zeros_like(scores), scores)
    return torch.where(scores > high, torch.ones_like(scores), inside)


def tiers(
    scores: Tensor,
    *,
    thresholds: tuple[float, ...] = (0.25, 0.5, 0.75),
    values: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0),
) -> Tensor:
    """Value of the zone that the score lies in; a score at a threshold belongs to the zone above (S041)."""
    if len(values) != len(thresholds) + 1:
        raise ValueError(
            f"{len(thresholds)} thresholds make {len(thresholds) + 1} zones, but there are {len(values)} values"
        )
    if any(b <= a for a, b in pairwise(thresholds)):
        raise ValueError(f"thresholds {thresholds} do not rise")
    if any(b < a for a, b in pairwise(values)):
        raise ValueError(f"values {values} fall; a better score must not earn less")
    zone = torch.bucketize(scores.detach(), scores.new_tensor(thresholds), right=True)
    return torch.where(scores.isnan(), scores.detach(), scores.new_tensor(values)[zone])


def tiered(outcome: Tensor, quality: Tensor, *, alpha: float = 0.5) -> Tensor:
    """outcome + alpha * tiers(quality), so that any success (1) beats any failure (0) and both are graded (S041)."""
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha {alpha:g} is not in 0..1 (below 1): a failure could earn as much as a success")
    return outcome + alpha * tiers(quality)


def calibrated(score: Tensor, pattern: Tensor, *, threshold: float = 0.5, weight: float = 0.1) -> Tensor:
    """Score, plus weight * pattern where it is below the threshold, for it may be a false negative (S128)."""
    return torch.where(score >= threshold, score, score + weight * pattern)


def _positive(name: str, value: float) -> None:
    if value <= 0:
        raise ValueError(f"{name} {value:g} is not above 0; a better score must not earn less")


# --- schedules: a number for each training step ----------------------------------------------------------------------


def linear(start: float, end: float, steps: float, after: float = 0.0, *, step: int) -> float:
    """`start` until step `after`, then in a straight line to `end` over `steps` steps."""
    return start + (end - start) * _progress(step, after, steps)


def cosine(start: float, end: float, steps: float, after: float = 0.0, *, step: int) -> float:
    """`start` until step `after`, then along half a cosine to `end` over `steps` steps."""
    return start + (end - start) * (1 - math.cos(math.pi * _progress(step, after, steps))) / 2


def warmup(steps: float, *, step: int) -> float:
    """min(1, step / steps) (S009)."""
    return _progress(step, 0, steps)


def staged(at: tuple[float, ...], values: tuple[float, ...], *, step: int) -> float:
    """The first of `values` until the first step of `at`, from there on the second, and so on."""
    if len(values) != len(at) + 1:
        raise ValueError(f"{len(at)} steps make {len(at) + 1} stages, but there are {len(values)} values")
    if any(b <= a for a, b in pairwise(at)):
        raise ValueError(f"steps {at} do not rise")
    return values[sum(step >= boundary for boundary in at)]


def _progress(step: int, after: float, steps: float) -> float:
    if steps <= 0:
        raise ValueError(f"steps {steps:g} is not above 0")
    return min(max((step - after) / steps, 0.0), 1.0)
