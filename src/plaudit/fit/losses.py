"""What is minimised where a reward is fitted. Pure functions of scores, one loss per pair.

Shape legend: P pairs; `better` and `worse` are the scores `[P]` of a pair's two outputs.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from plaudit.recipe.fit import BradleyTerry, Loss, Ties


def bradley_terry(better: Tensor, worse: Tensor, *, smoothing: float = 0.0, margin: Tensor | None = None) -> Tensor:
    """-(1 - s) log sigmoid(d) - s log sigmoid(-d), d = better - worse - margin; `smoothing` s is the probability that a
    preference is the wrong way round."""
    assert better.shape == worse.shape and better.ndim == 1, (better.shape, worse.shape)
    difference = better - worse if margin is None else better - worse - margin
    return -(1 - smoothing) * F.logsigmoid(difference) - smoothing * F.logsigmoid(-difference)


def rao_kupper(first: Tensor, second: Tensor, tie: Tensor, *, theta: float) -> Tensor:
    """With p = e^first, q = e^second: the first wins with p / (p + theta q), and a tie has (theta^2 - 1) p q / ((p + theta q)
    (q + theta p)). `tie [P]` says which pairs are ties; of the others the first won."""
    assert first.shape == second.shape == tie.shape and first.ndim == 1, (first.shape, tie.shape)
    gap = first - second
    wins, loses = F.logsigmoid(gap - math.log(theta)), F.logsigmoid(-gap - math.log(theta))
    return -(wins + tie * (loses + math.log(theta**2 - 1)))


def unary(better: Tensor, worse: Tensor) -> Tensor:
    """-log sigmoid(better) - log sigmoid(-worse)."""
    assert better.shape == worse.shape and better.ndim == 1, (better.shape, worse.shape)
    return -F.logsigmoid(better) - F.logsigmoid(-worse)


def centring(better: Tensor, worse: Tensor) -> Tensor:
    """(better + worse)^2."""
    return (better + worse).square()


def losses(config: Loss, better: Tensor, worse: Tensor, tie: Tensor, margin: Tensor) -> Tensor:
    """`[P]`. What a loss cannot learn from ties is 0 there."""
    match config:
        case BradleyTerry():
            lead = margin if config.margins else None
            loss = bradley_terry(better, worse, smoothing=config.smoothing, margin=lead)
            return (loss + config.centre * centring(better, worse)) * ~tie
        case Ties():
            return rao_kupper(better, worse, tie, theta=config.theta)
    return unary(better, worse) * ~tie
