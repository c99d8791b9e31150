"""Transition kernels in numpy float64, one sample at a time, from the papers' formulas. Slow and obvious on purpose.

t = 1 is noise, x_t = (1 - t) x_0 + t e, v = e - x_0; a step goes from t to s < t.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm


@dataclass(frozen=True, kw_only=True)
class Step:
    mean: np.ndarray
    std: float


def euler(x: np.ndarray, v: np.ndarray, t: float, s: float) -> Step:
    return Step(mean=x + (s - t) * v, std=0.0)


def flow_sde_coefficient(t: float, s: float, level: float) -> float:
    """a sqrt(t / (1 - t)); at t = 1 the denominator, which would be 0, takes the next time (Flow-GRPO, released code)."""
    return level * math.sqrt(t / (1 - (s if t == 1 else t)))


def langevin(x: np.ndarray, v: np.ndarray, t: float, s: float, sigma: float) -> Step:
    """dx = (v - sigma^2 / 2 score) dt + sigma dw, run backwards for t - s: the score form of Song et al. 2021."""
    dt = t - s
    score = -(x + (1 - t) * v) / t
    mean = np.empty_like(x)
    for index in np.ndindex(x.shape):
        mean[index] = x[index] - v[index] * dt + 0.5 * sigma**2 * score[index] * dt
    return Step(mean=mean, std=sigma * math.sqrt(dt))


def flow_sde(x: np.ndarray, v: np.ndarray, t: float, s: float, level: float) -> Step:
    return euler(x, v, t, s) if s == 0 else langevin(x, v, t, s, flow_sde_coefficient(t, s, level))


def flow_sde_as_published(x: np.ndarray, v: np.ndarray, t: float, s: float, level: float) -> Step:
    """Flow-GRPO eq. 9 the way its code writes it, with a negative dt and no score."""
    sigma, dt = flow_sde_coefficient(t, s, level), s - t
    mean = x * (1 + sigma**2 / (2 * t) * dt) + v * (1 + sigma**2 * (1 - t) / (2 * t)) * dt
    return Step(mean=mean, std=sigma * math.sqrt(-dt))


def constant_eta(x: np.ndarray, v: np.ndarray, t: float, s: float, level: float) -> Step:
    return euler(x, v, t, s) if s == 0 else langevin(x, v, t, s, level)


def cps(x: np.ndarray, v: np.ndarray, t: float, s: float, level: float) -> Step:
    """Coefficient-preserving sampling: the new noise replaces part of the predicted one."""
    std = s * math.sin(level * math.pi / 2)
    clean, noise = x - t * v, x + (1 - t) * v
    return Step(mean=(1 - s) * clean + math.sqrt(max(s**2 - std**2, 0.0)) * noise, std=std)


def ddim_eta(x: np.ndarray, v: np.ndarray, t: float, s: float, level: float) -> Step:
    """DDIM eq. 12 and 16 on the variance-preserving latent z = x / sqrt((1 - t)^2 + t^2), brought back to x."""
    scale_t, scale_s = math.hypot(1 - t, t), math.hypot(1 - s, s)
    alpha_bar_t, alpha_bar_s = ((1 - t) / scale_t) ** 2, ((1 - s) / scale_s) ** 2
    z = x / scale_t
    epsilon = x + (1 - t) * v
    clean = x - t * v if t == 1 else (z - math.sqrt(1 - alpha_bar_t) * epsilon) / math.sqrt(alpha_bar_t)
    sigma = level * math.sqrt((1 - alpha_bar_s) / (1 - alpha_bar_t) * (1 - alpha_bar_t / alpha_bar_s))
    mean = math.sqrt(alpha_bar_s) * clean + math.sqrt(max(1 - alpha_bar_s - sigma**2, 0.0)) * epsilon
    return Step(mean=mean * scale_s, std=sigma * scale_s)


KERNELS = {"flow_sde": flow_sde, "constant_eta": constant_eta, "cps": cps, "ddim_eta": ddim_eta}


def log_density(x_next: np.ndarray, mean: np.ndarray, std: float) -> list[float]:
    """Log-density of every dimension."""
    return [norm.logpdf(a, loc=b, scale=std) for a, b in zip(x_next.ravel(), mean.ravel(), strict=True)]


def euler_path(velocity, x: np.ndarray, times: list[float]) -> np.ndarray:
    for t, s in itertools.pairwise(times):
        x = x + (s - t) * velocity(x, t)
    return x


@dataclass(frozen=True, kw_only=True)
class GaussianFlow:
    """The exact flow of one-dimensional data x_0 ~ N(mean, std^2): everything about it is known in closed form."""

    mean: float
    std: float

    def velocity(self, x, t: float):
        """E[e - x_0 | x_t = x] by conditioning jointly Gaussian variables."""
        variance = ((1 - t) * self.std) ** 2 + t**2
        surprise = (x - (1 - t) * self.mean) / variance
        return t * surprise - (self.mean + (1 - t) * self.std**2 * surprise)
