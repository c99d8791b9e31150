"""The mathematics of optimising a starting noise: what keeps it likely, and how it moves (ReNO, arXiv 2406.04312).

Every function treats the rows of a batch as separate problems: a batch moves as its images would move one by one.

Shape legend: B samples, * latent dimensions, D their number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from plaudit.models.flow import per_sample

CLIP_EPSILON = 1e-6  # torch.nn.utils.clip_grad_norm_ adds it to the norm


@dataclass(frozen=True, kw_only=True)
class Momentum:
    """Descent with Nesterov momentum on gradients of at most `clip` per sample; None leaves them as they are.

    The defaults are the paper's, for D = 16384, where noise has norm 128: a first step moves it by at most
    lr (1 + momentum) clip = 0.95. Fewer dimensions want a smaller lr, like the square root of D.
    """

    lr: float = 5.0
    momentum: float = 0.9
    clip: float | None = 0.1


@dataclass(frozen=True, kw_only=True)
class Moved:
    """Where a step ended `[B, *]`, and the buffer `[B, *]` that the next one needs."""

    noise: Tensor
    buffer: Tensor


def norm_penalty(noise: Tensor) -> Tensor:
    """0.5 ||e||^2 - (D - 1) log ||e|| `[B]`: minus the log-density of the norm of Gaussian noise, up to a constant.

    Least at ||e|| = sqrt(D - 1), infinite at zero. At least float32, since the two terms nearly cancel.
    """
    flat = noise.flatten(1)
    square = flat.to(torch.promote_types(flat.dtype, torch.float32)).square().sum(1)
    return 0.5 * (square - (flat.shape[1] - 1) * square.log())


def typical_norm(dimensions: int) -> float:
    """The norm at which `norm_penalty` is least."""
    return math.sqrt(dimensions - 1)


def clip_rows(gradient: Tensor, limit: float) -> Tensor:
    """Scale each row `[B, *]` to a norm of at most `limit`.

    Per sample and not over the batch: one image with a steep reward would otherwise slow down all others, and the result
    of an image would depend on its neighbours.
    """
    norm = gradient.flatten(1).norm(dim=1)
    return gradient * per_sample((limit / (norm + CLIP_EPSILON)).clamp(max=1.0), gradient)


def descend(noise: Tensor, gradient: Tensor, buffer: Tensor | None, rule: Momentum) -> Moved:
    """One step of `torch.optim.SGD(nesterov=True)` after clipping; no buffer means the first step.

    `gradient` is that of the loss, reward with a minus sign: descending climbs the reward.
    """
    clipped = gradient if rule.clip is None else clip_rows(gradient, rule.clip)
    buffer = clipped if buffer is None else rule.momentum * buffer + clipped
    return Moved(noise=noise - rule.lr * (clipped + rule.momentum * buffer), buffer=buffer)
