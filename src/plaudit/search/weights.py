"""The core of sequential Monte Carlo, whatever the particles are: log-weights, resampling, and potentials on the way.

N particles of each of P problems carry log-weights `[P, N]`. Weighted averages over them are averages under the target; the
mean weight estimates the target's normalising constant, without bias. Everything is in float64, nothing draws numbers.

A particle of log-weight -inf is dead. Where all of a row are, nothing can be said: weights are NaN, the effective size is 0
and resampling leaves the row as it is. A log-weight that is NaN is an error of the caller.

Potentials tilt the way towards p(x) exp(alpha r(x)) by scores r_1, r_2, ... of what comes (`POTENTIALS`, FK steering's). The
last one corrects for the product of those before it, so that every choice has the same target.

Shape legend: P problems, N particles.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def log_normaliser(log_w: Tensor) -> Tensor:
    """Logarithm `[P]` of the mean weight: with `after_resampling`, of the whole target's constant so far."""
    assert log_w.ndim == 2 and not log_w.isnan().any(), "log-weights [P, N] that are numbers or -inf"
    return log_w.double().logsumexp(1) - math.log(log_w.shape[1])


def normalised(log_w: Tensor) -> Tensor:
    """Weights `[P, N]` that sum to 1."""
    return (log_w.double() - log_normaliser(log_w)[:, None]).exp() / log_w.shape[1]


def effective_size(log_w: Tensor) -> Tensor:
    """1 / sum of squared weights `[P]`: N where all are equal, 1 where one has everything, 0 where all are dead."""
    return normalised(log_w).square().sum(1).reciprocal().nan_to_num(nan=0.0)


def comb(uniform: Tensor, count: int) -> Tensor:
    """Points `[P, count]` of systematic resampling from one uniform number `[P]` each. Uniform numbers `[P, count]` of their
    own are the points of multinomial resampling, which varies more."""
    return (torch.arange(count, dtype=torch.float64) + uniform.double()[:, None]) / count


def resample(log_w: Tensor, points: Tensor) -> Tensor:
    """Ancestors `[P, M]`, those whose piece of [0, 1) each of the points `[P, M]` falls into; a dead particle has none."""
    weights = normalised(log_w).nan_to_num(nan=0.0)
    cumulative = weights.cumsum(1)
    reached = points.double() * cumulative[:, -1:]
    last = torch.where(weights > 0, torch.arange(log_w.shape[1]), -1).amax(1, keepdim=True)
    ancestors = torch.searchsorted(cumulative, reached, right=True)
    ancestors = torch.minimum(ancestors, last)  # where rounding puts a point at the very end
    unchanged = torch.arange(points.shape[1]) % log_w.shape[1]
    return torch.where(last >= 0, ancestors, unchanged)


def after_resampling(log_w: Tensor) -> Tensor:
    """Log-weights `[P, N]` of the copies: all the mean weight, so that `log_normaliser` goes on where it was."""
    return log_normaliser(log_w)[:, None].expand_as(log_w)


@dataclass(frozen=True, kw_only=True)
class Resampled:
    """Ancestors and log-weights `[P, N]` of the next generation, and which problems `[P]` were resampled at all."""

    ancestors: Tensor
    log_w: Tensor
    happened: Tensor


def resample_below(log_w: Tensor, points: Tensor, threshold: float) -> Resampled:
    """Resample the problems whose effective size is below the share `threshold` of their N; the others stay."""
    N = log_w.shape[1]
    low = effective_size(log_w) < threshold * N
    low &= log_normaliser(log_w) > -torch.inf
    ancestors = torch.where(low[:, None], resample(log_w, points), torch.arange(N))
    return Resampled(
        ancestors=ancestors,
        log_w=torch.where(low[:, None], after_resampling(log_w), log_w.double()),
        happened=low,
    )


# --- potentials ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """What a particle's way up to now amounts to: the logarithm of the `product` of its potentials, and the `running`
    maximum or sum of its scores. Both `[P, N]` in float64; copies inherit them."""

    product: Tensor
    running: Tensor

    def select(self, ancestors: Tensor) -> Lineage:
        return Lineage(product=self.product.gather(1, ancestors), running=self.running.gather(1, ancestors))


@dataclass(frozen=True, kw_only=True)
class Weighed:
    """The logarithm `[P, N]` of a potential, and the lineage that includes it."""

    increment: Tensor
    lineage: Lineage


Potential = Callable[[Tensor, Lineage], tuple[Tensor, Tensor]]  # score, lineage -> running, increment / alpha


def _difference(score: Tensor, lineage: Lineage) -> tuple[Tensor, Tensor]:
    return score, score - lineage.running


def _max(score: Tensor, lineage: Lineage) -> tuple[Tensor, Tensor]:
    running = torch.maximum(lineage.running, score)
    return running, running


def _sum(score: Tensor, lineage: Lineage) -> tuple[Tensor, Tensor]:
    running = lineage.running + score
    return running, running


POTENTIALS: dict[str, Potential] = {"difference": _difference, "max": _max, "sum": _sum}
"""`difference`: r_k - r_{k-1}, with r_0 = 0, so that their product telescopes to the last score alone. `max`: the highest
score up to now. `sum`: the sum up to now. All times alpha, as logarithms."""


def begin(P: int, N: int, potential: str) -> Lineage:
    zero = torch.zeros(P, N, dtype=torch.float64)
    return Lineage(product=zero, running=torch.full_like(zero, -torch.inf) if potential == "max" else zero)


def weigh(potential: str, alpha: float, score: Tensor, lineage: Lineage) -> Weighed:
    """The potential of intermediate scores `[P, N]`. Where a score is missing, it says nothing: the weight stays."""
    running, increment = POTENTIALS[potential](score.double(), lineage)
    there = ~score.isnan()
    increment = torch.where(there, alpha * increment, 0.0)
    running = torch.where(there, running, lineage.running)
    return Weighed(increment=increment, lineage=Lineage(product=lineage.product + increment, running=running))


def correct(alpha: float, score: Tensor, lineage: Lineage) -> Tensor:
    """Logarithm `[P, N]` of the last potential, exp(alpha r) of the finished particle over the product of all before it. A
    particle whose last score is missing cannot be weighed and counts as dead."""
    value = alpha * score.double() - lineage.product
    return torch.where(score.isnan(), -torch.inf, value)
