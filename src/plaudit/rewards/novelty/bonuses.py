"""What is new: bonuses over all training (`Counts`, `Distillation`) and within an episode (`Ellipsoid`, `FirstVisit`).

Shape legend: B outputs, D features.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

Combine = Literal["product", "sum", "global", "episodic"]

RIDGE = 0.1  # lambda of E3B


def count_bonus(visits: int) -> float:
    """1 / sqrt(N), N counting this visit too."""
    return 1 / math.sqrt(visits)


def noveld(next_novelty: float, novelty: float, alpha: float = 0.5) -> float:
    """max(b(s') - alpha b(s), 0): only for crossing into the less known. For environments with steps."""
    return max(next_novelty - alpha * novelty, 0.0)


class Ellipsoid:
    """E3B's episodic bonus phi^T C^-1 phi, where C = ridge I + the sum of phi phi^T over the episode so far."""

    def __init__(self, size: int, ridge: float = RIDGE) -> None:
        self.inverse: Array = np.eye(size) / ridge

    def bonus(self, phi_D: Array) -> float:
        """The bonus, before phi is added to C (Sherman-Morrison)."""
        u = self.inverse @ phi_D
        bonus = float(phi_D @ u)
        self.inverse -= np.outer(u, u) / (1 + bonus)
        return bonus


def leave_one_out(phi_BD: Array, ridge: float = RIDGE) -> Array:
    """The ellipsoid's bonus of each member of a set against all others, `[B]`: whatever their order.

    With h = phi^T C^-1 phi and phi's own term in C, it is h / (1 - h), again by Sherman-Morrison.
    """
    inverse = np.linalg.inv(ridge * np.eye(phi_BD.shape[1]) + phi_BD.T @ phi_BD)
    leverage = np.einsum("bd,de,be->b", phi_BD, inverse, phi_BD)
    return leverage / (1 - leverage)


class FirstVisit:
    """1 for what the episode has not had yet, else 0."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def bonus(self, key: str) -> float:
        new = key not in self.seen
        self.seen.add(key)
        return float(new)


class Counts:
    """Global bonus 1 / sqrt(N) over everything ever seen."""

    def __init__(self) -> None:
        self.visits: Counter[str] = Counter()

    def bonuses(self, phi_BD: Array, keys: Sequence[str]) -> list[float]:
        return [self.visit(key) for key in keys]

    def visit(self, key: str) -> float:
        self.visits[key] += 1
        return count_bonus(self.visits[key])

    def state(self) -> dict[str, Any]:
        return {"visits": dict(self.visits)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.visits = Counter(state["visits"])


class Distillation:
    """Global bonus |f(phi) - f_fixed(phi)|^2 of random network distillation, divided by its running standard deviation.

    f_fixed is a random network with one hidden layer; f, as wide, learns it by `steps` gradient steps on every call's
    outputs, after their bonuses were computed.
    """

    HIDDEN, SIZE = 32, 16

    def __init__(self, num_features: int, seed: int = 0, lr: float = 0.05, steps: int = 4) -> None:
        generator = torch.Generator().manual_seed(seed)

        def network() -> list[Tensor]:  # for inputs of length about 1
            first = torch.randn(num_features, self.HIDDEN, generator=generator, dtype=torch.float64)
            second = torch.randn(self.HIDDEN, self.SIZE, generator=generator, dtype=torch.float64)
            return [first, second / self.HIDDEN**0.5]

        self.fixed, self.learned, self.lr, self.steps = network(), network(), lr, steps
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def bonuses(self, phi_BD: Array, keys: Sequence[str]) -> list[float]:
        errors = self.errors(phi_BD).tolist()
        for _ in range(self.steps):
            self._learn(torch.from_numpy(phi_BD))
        for error in errors:  # Welford
            self.count += 1
            step = error - self.mean
            self.mean += step / self.count
            self.squares += step * (error - self.mean)
        std = math.sqrt(self.squares / self.count)
        return [error / std if std > 1e-12 else 1.0 for error in errors]

    def errors(self, phi_BD: Array) -> Array:
        """Bonuses before they are scaled."""
        return self._errors(self.learned, torch.from_numpy(phi_BD)).numpy()

    def _errors(self, weights: Sequence[Tensor], phi_BD: Tensor) -> Tensor:
        return (_forward(weights, phi_BD) - _forward(self.fixed, phi_BD)).square().sum(dim=1)

    def _learn(self, phi_BD: Tensor) -> None:
        with torch.enable_grad():  # the caller scores without gradients
            weights = [weight.requires_grad_() for weight in self.learned]
            slopes = torch.autograd.grad(self._errors(weights, phi_BD).mean(), weights)
        self.learned = [(w - self.lr * slope).detach() for w, slope in zip(weights, slopes, strict=True)]

    def state(self) -> dict[str, Any]:
        statistics = {"count": self.count, "mean": self.mean, "squares": self.squares}
        return {"learned": [weight.tolist() for weight in self.learned], **statistics}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.learned = [torch.tensor(weight, dtype=torch.float64) for weight in state["learned"]]
        self.count, self.mean, self.squares = state["count"], state["mean"], state["squares"]


def _forward(weights: Sequence[Tensor], phi_BD: Tensor) -> Tensor:
    return torch.tanh(phi_BD @ weights[0]) @ weights[1]


def combined(combine: Combine, globally: float, locally: float) -> float:
    match combine:
        case "product":
            return globally * locally
        case "sum":
            return globally + locally
        case "global":
            return globally
        case _:
            return locally
