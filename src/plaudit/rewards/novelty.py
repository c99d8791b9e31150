"""Novelty as a reward: new within its episode, new over all training, or both (S021).

An episode is a group of outputs for one prompt, so that novelty spreads a group out; the product keeps from paying for what
training has long seen. Its value is a bonus to add, with a weight, to the reward that matters.

Shape legend: B outputs, D features, K numbers of a random network.
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
COLOUR_GRID, COLOUR_STEP = 4, 0.5  # cells a side; colours are counted in steps of this size
TEXT_GRAM, TEXT_BUCKETS = 3, 127
NUM_COLOURS = 3 * COLOUR_GRID**2
FINE = 64.0  # resolution that tells any two object counts or texts apart


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
        return [self._visit(key) for key in keys]

    def _visit(self, key: str) -> float:
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
        phi = torch.from_numpy(phi_BD)
        errors = self._errors(self.learned, phi).tolist()
        for _ in range(self.steps):
            self._learn(phi)
        for error in errors:  # Welford
            self.count += 1
            step = error - self.mean
            self.mean += step / self.count
            self.squares += step * (error - self.mean)
        std = math.sqrt(self.squares / self.count)
        return [error / std if std > 1e-12 else 1.0 for error in errors]

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


# --- features: rows of length at most 1 ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class View:
    """What novelty looks at: `rows` gives features; those that agree when rounded to 1 / `resolution` count as the same."""

    rows: Features
    resolution: float

    def keys(self, phi_BD: Array) -> list[str]:
        levels = np.rint(phi_BD * self.resolution).astype(np.int64)
        return [hashlib.blake2b(row.tobytes(), digest_size=8).hexdigest() for row in levels]


def with_constant(values_BD: Array) -> Array:
    """Rows of length at most 1 with a one appended, at that length: so a black picture or an empty text has features."""
    ones = np.ones((len(values_BD), 1))
    return np.hstack([values_BD, ones]) / math.sqrt(2)


def colour_features(pictures: Sequence[Tensor] | Tensor) -> Array:
    """Mean colours of 4 x 4 cells, `[B, 49]`."""
    small = [F.adaptive_avg_pool2d(picture.detach().double(), COLOUR_GRID).flatten() for picture in pictures]
    return with_constant(torch.stack(small).cpu().numpy() / NUM_COLOURS**0.5)


def object_features(pictures: Sequence[Tensor] | Tensor) -> Array:
    """How often the lab's checker sees each of its kinds of object, `[B, 19]`."""
    kinds = {(color, shape): k for k, (color, shape) in enumerate((c, s) for c in COLORS for s in SHAPES)}
    counts = np.zeros((len(pictures), len(kinds)))
    for row, scene in zip(counts, detect(torch.stack(list(pictures))), strict=True):
        for thing in scene.objects:
            row[kinds[thing.pair]] += 1
    return with_constant(counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), MAX_OBJECTS))


def text_features(texts: Sequence[str]) -> Array:
    """Hashed counts of the three-letter pieces of a text, `[B, 128]`, without regard to case and spacing."""
    counts = np.zeros((len(texts), TEXT_BUCKETS))
    for row, text in zip(counts, texts, strict=True):
        padded = f"  {' '.join(text.casefold().split())}  "
        for start in range(len(padded) - TEXT_GRAM + 1):
            row[zlib.crc32(padded[start : start + TEXT_GRAM].encode()) % TEXT_BUCKETS] += 1
    return with_constant(counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1))


# --- the rewards -----------------------------------------------------------------------------------------------------

GLOBAL = ("count", "distillation")
EPISODIC = ("ellipsoid", "first_visit")
COMBINE = ("product", "sum", "global", "episodic")


class Novelty:
    """Novelty of a picture: `combine` of a bonus over all training and one within the episode.

    `episode: group` begins an episode with every group of every call; `episode: prompt` has one per prompt id that lasts
    until `reset()`, for a search that calls many times. Within an episode the order of the outputs counts: the first is
    always new. A global bonus of distillation is divided by its running deviation.
    """

    card = Card(
        summary="novelty within the group and over all training", low=0, kind="image", batch_invariant=False,
        systems=("S021",), cost_ms=0.1,
    )  # fmt: skip
    VIEWS: Mapping[str, View] = {
        "colours": View(rows=colour_features, resolution=(2 * NUM_COLOURS) ** 0.5 / COLOUR_STEP),
        "objects": View(rows=object_features, resolution=FINE),
    }

    def __init__(
        self,
        features: str | None = None,
        combine: Literal["product", "sum", "global", "episodic"] = "product",
        over_training: Literal["count", "distillation"] = "count",
        within_episode: Literal["ellipsoid", "first_visit"] = "ellipsoid",
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
        if ridge <= 0:
            raise RewardError(f"novelty: ridge is {ridge}; it must be positive")
        self.view, self.combine, self.ridge = self.VIEWS[features], combine, ridge
        self.over_training, self.within_episode, self.episode = over_training, within_episode, episode
        self.memory: Counts | Distillation | None = None
        self.episodes: dict[str, Ellipsoid | FirstVisit] = {}
        self.card = replace(self.card, high=self._highest())

    def _highest(self) -> float:
        globally = 1.0 if self.over_training == "count" else math.inf
        locally = 1 / self.ridge if self.within_episode == "ellipsoid" else 1.0
        return combined(self.combine, globally, locally)

    def __call__(self, prompts: Sequence[str], outputs: Any, ids: Sequence[str], group: Sequence[int]) -> list[Score]:
        if not len(outputs):
            return []
        phi_BD = self.view.rows(outputs)
        keys = self.view.keys(phi_BD)
        if self.memory is None:
            self.memory = self._memory(phi_BD.shape[1])
        if self.episode == "group":
            self.reset()
        globally = self.memory.bonuses(phi_BD, keys)
        names = [str(number) for number in group] if self.episode == "group" else ids
        locally = [self._local(*row) for row in zip(names, phi_BD, keys, strict=True)]
        return [
            Score(value=combined(self.combine, g, e), components={"global": g, "episodic": e})
            for g, e in zip(globally, locally, strict=True)
        ]

    def reset(self) -> None:
        """Begin all episodes anew."""
        self.episodes = {}

    def _memory(self, num_features: int) -> Counts | Distillation:
        return Counts() if self.over_training == "count" else Distillation(num_features)

    def _local(self, name: str, phi_D: Array, key: str) -> float:
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
    VIEWS = {"pieces": View(rows=text_features, resolution=FINE)}


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
