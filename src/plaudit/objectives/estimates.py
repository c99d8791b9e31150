"""Estimates of KL(policy || reference) from decisions that the policy drew."""

from __future__ import annotations

from torch import Tensor


def kl_estimate(log_ratio: Tensor, kind: str) -> Tensor:
    """Of `log_ratio = log policy - log reference` at the drawn decisions, elementwise.

    k1 = l is unbiased, noisy, and its gradient is zero on average. k2 = l^2 / 2 is biased, and its gradient is that of the
    KL. k3 = exp(-l) - 1 + l is unbiased and never negative; its gradient is that of the KL in the other direction.
    """
    if kind == "k1":
        return log_ratio
    if kind == "k2":
        return log_ratio.square() / 2
    if kind == "k3":
        return (-log_ratio).expm1() + log_ratio
    raise ValueError(f"kind {kind!r}; allowed: k1, k2, k3")
