"""Targets of particle methods, known without particles: by summing over all paths, or in closed form. Slow and obvious.

The target is p(x) exp(alpha r(x)), where p is what the sampler draws at the end.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from scipy.stats import norm
from torch import Tensor

from plaudit.models.flow import Condition, shifted_times


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A Markov chain over a few states: `start[i]`, then so many steps by `move[i][j]`."""

    start: Sequence[float]
    move: Sequence[Sequence[float]]
    steps: int

    def paths(self) -> dict[tuple[int, ...], float]:
        """Probability of every path of states."""
        states = range(len(self.start))
        found = {}
        for path in itertools.product(states, repeat=self.steps + 1):
            probability = self.start[path[0]]
            for here, there in itertools.pairwise(path):
                probability *= self.move[here][there]
            found[path] = probability
        return found

    def constant(self, alpha: float, score: Sequence[float]) -> float:
        """E[exp(alpha r(last state))]."""
        return sum(p * math.exp(alpha * score[path[-1]]) for path, p in self.paths().items())

    def tilted(self, alpha: float, score: Sequence[float]) -> list[float]:
        """Probability of every last state under the target."""
        mass = [0.0] * len(self.start)
        for path, p in self.paths().items():
            mass[path[-1]] += p * math.exp(alpha * score[path[-1]])
        return [m / sum(mass) for m in mass]


def total_variation(first: Sequence[float], second: Sequence[float]) -> float:
    return 0.5 * sum(abs(a - b) for a, b in zip(first, second, strict=True))


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    mean: float
    std: float

    def tilted_by(self, alpha: float) -> Gaussian:
        """p(x) exp(alpha x) is the same Gaussian, further on."""
        return Gaussian(mean=self.mean + alpha * self.std**2, std=self.std)

    def chance(self, edges: Sequence[float]) -> list[float]:
        """Probability of the pieces between the edges, the two outer ones included."""
        bounds = [-math.inf, *edges, math.inf]
        cdf = [norm.cdf(edge, loc=self.mean, scale=self.std) for edge in bounds]
        return [b - a for a, b in itertools.pairwise(cdf)]


def sampled_gaussian(step: Callable[[float, float, float], tuple[float, float]], times: Sequence[float]) -> Gaussian:
    """What a sampler draws whose every step is linear: `step(x, t, s)` gives mean and deviation of the next state."""
    mean, variance = 0.0, 1.0
    for t, s in itertools.pairwise(times):
        (at_zero, std), (at_one, _) = step(0.0, t, s), step(1.0, t, s)
        slope = at_one - at_zero
        mean, variance = at_zero + slope * mean, slope**2 * variance + std**2
    return Gaussian(mean=mean, std=math.sqrt(variance))


class GaussianModel:
    """A flow model of one number per prompt, x_0 ~ N(mean, std^2), with its exact velocity; pictures show the number."""

    latent_shape = (1,)
    lora_targets = ()

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        self.network = torch.nn.Identity()
        self.mean, self.std = mean, std
        self.rows: list[int] = []

    def encode(self, prompts: Sequence) -> Condition:
        return Condition(tensors={"none": torch.zeros(len(prompts))})

    def velocity(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.rows.append(len(x))
        t = t[:, None]
        variance = ((1 - t) * self.std) ** 2 + t**2
        surprise = (x - (1 - t) * self.mean) / variance
        return t * surprise - (self.mean + (1 - t) * self.std**2 * surprise)

    def decode(self, x0: Tensor) -> Tensor:
        return x0[:, :, None, None].expand(-1, 3, 1, 1)

    def schedule(self, steps: int, shift: float | None) -> Tensor:
        return shifted_times(steps, shift or 1.0)
