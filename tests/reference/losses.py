"""Losses by loops over Python floats, with gradients derived by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Loss:
    value: np.ndarray
    gradient: np.ndarray


def clipped_ratio(log_ratio: np.ndarray, advantage: np.ndarray, low: float, high: float) -> Loss:
    """PPO eq. 7 with a minus sign, element by element. The clipped branch has no gradient."""
    value, gradient = np.zeros_like(log_ratio), np.zeros_like(log_ratio)
    for i in np.ndindex(log_ratio.shape):
        ratio, a = math.exp(log_ratio[i]), advantage[i]
        clipped = min(max(ratio, 1 - low), 1 + high)
        value[i] = -min(ratio * a, clipped * a)
        is_clipped = clipped * a < ratio * a
        gradient[i] = 0.0 if is_clipped else -a * ratio
    return Loss(value=value, gradient=gradient)


def optimality(advantage: float, clip: float) -> float:
    """DiffusionNFT: r = 1/2 + 1/2 clip(A / c, -1, 1)."""
    return 0.5 + 0.5 * min(max(advantage / clip, -1.0), 1.0)


def nft(
    v: np.ndarray, v_old: np.ndarray, x: np.ndarray, t: np.ndarray, x0: np.ndarray, r: np.ndarray, beta: float
) -> Loss:
    """DiffusionNFT's two branches for each sample, and the gradient with respect to v (weights held fixed)."""
    value, gradient = np.zeros(len(v)), np.zeros_like(v)
    for n in range(len(v)):
        dims = v[n].size
        plus, minus = np.zeros(v[n].shape), np.zeros(v[n].shape)
        for i in np.ndindex(v[n].shape):
            plus[i] = x[n][i] - t[n] * ((1 - beta) * v_old[n][i] + beta * v[n][i]) - x0[n][i]
            minus[i] = x[n][i] - t[n] * ((1 + beta) * v_old[n][i] - beta * v[n][i]) - x0[n][i]
        weight_plus = max(sum(abs(e) for e in plus.ravel()) / dims, 1e-5)
        weight_minus = max(sum(abs(e) for e in minus.ravel()) / dims, 1e-5)
        square_plus = sum(e * e for e in plus.ravel()) / dims
        square_minus = sum(e * e for e in minus.ravel()) / dims
        value[n] = (r[n] * square_plus / weight_plus + (1 - r[n]) * square_minus / weight_minus) / beta
        for i in np.ndindex(v[n].shape):
            d_plus = r[n] * 2 * plus[i] * (-t[n] * beta) / dims / weight_plus
            d_minus = (1 - r[n]) * 2 * minus[i] * (t[n] * beta) / dims / weight_minus
            gradient[n][i] = (d_plus + d_minus) / beta
    return Loss(value=value, gradient=gradient)
