"""How far a score may be trusted: ensembles, leverage, disagreement.

Shape legend: B samples; K members of an ensemble; D features; `...` any further axes (pixels).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """`value [B]` and the members' population standard deviation `sigma [B]`; both missing where a member is."""

    value: Tensor
    sigma: Tensor


def ensemble_mean(parts: Sequence[Tensor]) -> Ensemble:
    """The members' mean (S116)."""
    stacked = torch.stack(list(parts))
    return Ensemble(value=stacked.mean(0), sigma=stacked.std(0, correction=0))


def ensemble_min(parts: Sequence[Tensor]) -> Ensemble:
    """The least favourable member: worst-case optimisation."""
    stacked = torch.stack(list(parts))
    return Ensemble(value=stacked.amin(0), sigma=stacked.std(0, correction=0))


def ensemble_lower(parts: Sequence[Tensor], *, k: float = 1.0) -> Ensemble:
    """Mean minus k population standard deviations of the members."""
    plain = ensemble_mean(parts)
    return Ensemble(value=plain.value - _not_negative("k", k) * plain.sigma, sigma=plain.sigma)


def ensemble_uwo(parts: Sequence[Tensor], *, penalty: float = 0.5) -> Ensemble:
    """Mean minus `penalty` times the members' population variance: uncertainty-weighted optimisation."""
    plain = ensemble_mean(parts)
    return Ensemble(value=plain.value - _not_negative("penalty", penalty) * plain.sigma.square(), sigma=plain.sigma)


def lower(parts: Sequence[Tensor], *, k: float = 1.0) -> Tensor:
    """Mean minus k population standard deviations of an ensemble's members."""
    return ensemble_lower(parts, k=k).value


def uwo(parts: Sequence[Tensor], *, penalty: float = 0.5) -> Tensor:
    """Mean minus `penalty` times the population variance of an ensemble's members: uncertainty-weighted optimisation."""
    return ensemble_uwo(parts, penalty=penalty).value


def spread(parts: Sequence[Tensor]) -> Tensor:
    """Population standard deviation of an ensemble's members: how much they disagree."""
    return ensemble_mean(parts).sigma


def _not_negative(name: str, value: float) -> float:
    if value < 0:
        raise ValueError(f"{name} {value:g} is negative: disagreement would be rewarded")
    return value


# --- leverage: how unlike the training data a sample is (S048) -------------------------------------------------------


def leverage_matrix(features: Tensor, *, ridge: float = 1.0) -> Tensor:
    """V = ridge * I + sum of z z^T over the training features `[N, D]` of a linear reward head."""
    return ridge * torch.eye(features.shape[1], dtype=features.dtype, device=features.device) + features.T @ features


def leverage(features: Tensor, matrix: Tensor) -> Tensor:
    """sqrt(z^T V^-1 z) for each row z of `features [B, D]`; the head's error there is at most a constant times this.

    The released code takes |V^-1 z|, which is another norm.
    """
    whitened: Tensor = torch.linalg.solve_triangular(torch.linalg.cholesky(matrix), features.T, upper=False)
    return whitened.square().sum(dim=0).sqrt()


def trust_weight(leverage: Tensor, *, k: float = 0.05, b: float = 0.7, low: float = 1.0, high: float = 2.21) -> Tensor:
    """exp(b - k * leverage) kept within `low`..`high`: the weight of a sample's update (S048).

    With the published numbers it amplifies trusted samples, at most by exp(0.7) = 2.01, and never damps any.
    """
    return torch.exp(b - k * leverage).clamp(low, high)


# --- disagreement of two judgements of nearly the same picture (S009) ------------------------------------------------


def kl_disagreement(first: Tensor, second: Tensor, *, scale: float = 1.0) -> Tensor:
    """scale * KL(softmax(second) || softmax(first)) over the classes of logits `[B, classes, ...]`, in float32 or better."""
    dtype = torch.promote_types(first.dtype, torch.float32)
    log_first, log_second = F.log_softmax(first.to(dtype), 1), F.log_softmax(second.to(dtype), 1)
    probability = log_second.exp()  # a class that second rules out adds nothing, whatever first says of it
    return scale * (probability * (log_second - log_first).masked_fill(probability == 0, 0.0)).sum(1)


def absolute_disagreement(first: Tensor, second: Tensor) -> Tensor:
    """|first - second|, for maps of depth or edges."""
    return (first - second).abs()


def disagreement_loss(loss: Tensor, disagreement: Tensor, valid: Tensor, *, price: float = 1.0) -> Tensor:
    """Mean over `valid` of loss * exp(-U), plus `price` times the mean of U, for the disagreement U.

    The gradient flows through U in both places; the price keeps U from growing without end.
    """
    count = valid.sum().clamp(min=1)
    zero = torch.zeros_like(loss)
    weighted = torch.where(valid, loss * torch.exp(-disagreement), zero).sum() / count
    return weighted + price * torch.where(valid, disagreement, zero).sum() / count


def discounted(scores: Tensor, disagreement: Tensor, *, rate: float = 1.0) -> Tensor:
    """score * exp(-rate * disagreement): a score counts the less, the less its judges agree (after S009)."""
    return scores * torch.exp(-_not_negative("rate", rate) * disagreement)
