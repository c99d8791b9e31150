"""Novelty as a reward: new within its episode, new over all training, or both (S021).

An episode is a group of outputs for one prompt, so that novelty spreads a group out; the product keeps from paying for what
training has long seen. Its value is a bonus to add, with a weight, to the reward that matters.

Shape legend: B outputs, D features.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from plaudit.errors import RewardError
from plaudit.lab.scenes.check import detect
from plaudit.lab.scenes.grammar import COLORS, MAX_OBJECTS, SHAPES
from plaudit.rewards.base import Card, Score

Array = NDArray[np.float64]
Features = Callable[[Any], Array]

RIDGE = 0.1  # lambda of E3B
COLOUR_GRID = 4  # cells a side
NUM_COLOURS = 3 * COLOUR_GRID**2
TEXT_GRAM, TEXT_BUCKETS = 3, 127
CONSTANT = 0.1  # a feature that all outputs share: a black picture or an empty text has no other


# --- bonuses ---------------------------------------------------------------------------------------------------------


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


# --- features --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class View:
    """What novelty looks at: `values` of an output, of which `scale` is much; those equal in steps of `step` count as the
    same."""

    values: Features
    scale: float
    step: float

    def rows(self, values_BD: Array) -> Array:
        """Features of length 1, so that no output is newer than another by being brighter or longer."""
        rows = np.hstack([values_BD / self.scale, np.full((len(values_BD), 1), CONSTANT)])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def keys(self, values_BD: Array) -> list[str]:
        levels = np.rint(values_BD / self.step).astype(np.int64)
        return [hashlib.blake2b(row.tobytes(), digest_size=8).hexdigest() for row in levels]


def colours(pictures: Sequence[Tensor] | Tensor) -> Array:
    """Mean colours of 4 x 4 cells, `[B, 48]`."""
    small = [F.adaptive_avg_pool2d(picture.detach().double(), COLOUR_GRID).flatten() for picture in pictures]
    return torch.stack(small).cpu().numpy()


def objects(pictures: Sequence[Tensor] | Tensor) -> Array:
    """How often the lab's checker sees each of its kinds of object, `[B, 18]`."""
    kinds = {pair: k for k, pair in enumerate((color, shape) for color in COLORS for shape in SHAPES)}
    counts = np.zeros((len(pictures), len(kinds)))
    for row, scene in zip(counts, detect(torch.stack(list(pictures))), strict=True):
        for thing in scene.objects:
            row[kinds[thing.pair]] += 1
    return counts


def pieces(texts: Sequence[str]) -> Array:
    """Hashed counts of the three-letter pieces of a text, `[B, 127]`, without regard to case and spacing."""
    counts = np.zeros((len(texts), TEXT_BUCKETS))
    for row, text in zip(counts, texts, strict=True):
        words = " ".join(text.casefold().split())
        padded = f"  {words}  " if words else ""
        for start in range(len(padded) - TEXT_GRAM + 1):
            row[zlib.crc32(padded[start : start + TEXT_GRAM].encode()) % TEXT_BUCKETS] += 1
    return counts


# --- the rewards -----------------------------------------------------------------------------------------------------

GLOBAL = ("count", "distillation")
EPISODIC = ("ellipsoid", "leave_one_out", "first_visit")
COMBINE = ("product", "sum", "global", "episodic")


class Novelty:
    """Novelty of a picture: `combine` of a bonus over all training and one within the episode.

    `episode: group` begins an episode with every group of every call; `episode: prompt` has one per prompt id that lasts
    until `reset()`, for a search that calls many times. Within an episode the order of the outputs counts, the first is
    always new; `within_episode: leave_one_out` holds each against all others of its group instead, which suits groups whose
    order means nothing (our addition to the paper's). A global bonus of distillation is divided by its running deviation.
    """

    card = Card(
        summary="novelty within the group and over all training", low=0, kind="image", batch_invariant=False,
        systems=("S021",), cost_ms=0.05,
    )  # fmt: skip
    VIEWS: Mapping[str, View] = {
        "colours": View(values=colours, scale=NUM_COLOURS**0.5, step=0.5),
        "objects": View(values=objects, scale=MAX_OBJECTS, step=1),
    }

    def __init__(
        self,
        features: str | None = None,
        combine: Literal["product", "sum", "global", "episodic"] = "product",
        over_training: Literal["count", "distillation"] = "count",
        within_episode: Literal["ellipsoid", "leave_one_out", "first_visit"] = "ellipsoid",
        episode: Literal["group", "prompt"] = "group",
        ridge: float = RIDGE,
    ) -> None:
        features = features or next(iter(self.VIEWS))
        for key, value, allowed in (
            ("features", features, tuple(self.VIEWS)),
            ("combine", combine, COMBINE),
            ("over_training", over_training, GLOBAL),
            ("within_episode", within_episode, EPISODIC),
            ("episode", episode, ("group", "prompt")),
        ):
            if value not in allowed:
                raise RewardError(f"novelty: {key} is {value!r}; allowed: {', '.join(allowed)}")
        if within_episode == "leave_one_out" and episode == "prompt":
            raise RewardError("novelty: leave_one_out compares a group with itself; use episode: group")
        if ridge <= 0:
            raise RewardError(f"novelty: ridge is {ridge}; it must be positive")
        self.view, self.combine, self.ridge = self.VIEWS[features], combine, ridge
        self.over_training, self.within_episode, self.episode = over_training, within_episode, episode
        self.memory: Counts | Distillation | None = None
        self.episodes: dict[str, Ellipsoid | FirstVisit] = {}
        self.card = replace(self.card, high=self._highest())

    def _highest(self) -> float:
        globally = 1.0 if self.over_training == "count" else math.inf
        locally = 1.0 if self.within_episode == "first_visit" else 1 / self.ridge
        return combined(self.combine, globally, locally)

    def __call__(self, prompts: Sequence[str], outputs: Any, ids: Sequence[str], group: Sequence[int]) -> list[Score]:
        if not len(outputs):
            return []
        values_BD = self.view.values(outputs)
        phi_BD, keys = self.view.rows(values_BD), self.view.keys(values_BD)
        if self.memory is None:
            self.memory = self._memory(phi_BD.shape[1])
        if self.episode == "group":
            self.reset()
        globally = self.memory.bonuses(phi_BD, keys)
        names = [str(number) for number in group] if self.episode == "group" else list(ids)
        locally = self._locally(names, phi_BD, keys)
        return [
            Score(value=combined(self.combine, g, e), components={"global": g, "episodic": e})
            for g, e in zip(globally, locally, strict=True)
        ]

    def reset(self) -> None:
        """Begin all episodes anew."""
        self.episodes = {}

    def _memory(self, num_features: int) -> Counts | Distillation:
        return Counts() if self.over_training == "count" else Distillation(num_features)

    def _locally(self, names: Sequence[str], phi_BD: Array, keys: Sequence[str]) -> list[float]:
        if self.within_episode == "leave_one_out":
            bonuses = np.zeros(len(names))
            for name in dict.fromkeys(names):
                rows = [i for i, other in enumerate(names) if other == name]
                bonuses[rows] = leave_one_out(phi_BD[rows], self.ridge)
            return bonuses.tolist()
        return [self._visit(*row) for row in zip(names, phi_BD, keys, strict=True)]

    def _visit(self, name: str, phi_D: Array, key: str) -> float:
        if name not in self.episodes:
            new = Ellipsoid(len(phi_D), self.ridge) if self.within_episode == "ellipsoid" else FirstVisit()
            self.episodes[name] = new
        memory = self.episodes[name]
        return memory.bonus(phi_D) if isinstance(memory, Ellipsoid) else memory.bonus(key)

    def state(self) -> dict[str, Any]:
        episodes = {
            name: memory.inverse.tolist() if isinstance(memory, Ellipsoid) else sorted(memory.seen)
            for name, memory in self.episodes.items()
            if self.episode == "prompt"  # those of groups end with their call
        }
        return {"memory": self.memory.state() if self.memory else None, "episodes": episodes}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.memory, self.episodes = None, {}
        if state["memory"] is not None:
            weights = state["memory"].get("learned")
            self.memory = self._memory(len(weights[0]) if weights else 0)
            self.memory.load_state(state["memory"])
        for name, saved in state["episodes"].items():
            if self.within_episode == "ellipsoid":
                self.episodes[name] = ellipsoid = Ellipsoid(len(saved), self.ridge)
                ellipsoid.inverse = np.array(saved)
            else:
                self.episodes[name] = visits = FirstVisit()
                visits.seen = set(saved)


class TextNovelty(Novelty):
    """Novelty of a text: see `Novelty`."""

    card = replace(Novelty.card, summary="novelty of a text within the group and over all training", kind="text")
    VIEWS = {"pieces": View(values=pieces, scale=1, step=1)}


def combined(combine: str, globally: float, locally: float) -> float:
    match combine:
        case "product":
            return globally * locally
        case "sum":
            return globally + locally
        case "global":
            return globally
        case _:
            return locally
