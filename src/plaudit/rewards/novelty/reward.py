"""Novelty as a reward: new within its episode, new over all training, or both (S021).

An episode is a group of outputs for one prompt, so that novelty spreads a group out; the product keeps from paying for what
training has long seen. Its value is a bonus to add, with a weight, to the reward that matters.

Shape legend: B outputs, D features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from plaudit.errors import RewardError
from plaudit.recipe.base import PositiveFloat
from plaudit.rewards.base import Card, Score
from plaudit.rewards.novelty.bonuses import (
    RIDGE,
    Array,
    Combine,
    Counts,
    Distillation,
    Ellipsoid,
    FirstVisit,
    combined,
    leave_one_out,
)
from plaudit.rewards.novelty.views import OF_PICTURES, OF_TEXTS, View


class Novelty:
    """Novelty of a picture: `combine` of a bonus over all training and one within the episode.

    `episode: group` begins an episode with every group of every call; `episode: prompt` has one per prompt id that lasts
    until `reset()`, for a search that calls many times. Within an episode the order of the outputs counts, the first is
    always new; `within_episode: leave_one_out` holds each against all others of its group instead, which suits groups whose
    order means nothing (our addition to the paper's). A global bonus of distillation is divided by its running deviation.
    """

    card = Card(
        summary="novelty within the group and over all training",
        low=0,
        kind="image",
        batch_invariant=False,
        systems=("S021",),
        cost_ms=0.05,
    )
    VIEWS: Mapping[str, View] = OF_PICTURES

    def __init__(
        self,
        features: str | None = None,
        combine: Combine = "product",
        over_training: Literal["count", "distillation"] = "count",
        within_episode: Literal["ellipsoid", "leave_one_out", "first_visit"] = "ellipsoid",
        episode: Literal["group", "prompt"] = "group",
        ridge: PositiveFloat = RIDGE,
    ) -> None:
        features = features or next(iter(self.VIEWS))
        if features not in self.VIEWS:
            raise RewardError(f"novelty: features is {features!r}; allowed: {', '.join(self.VIEWS)}")
        if within_episode == "leave_one_out" and episode == "prompt":
            raise RewardError("novelty: leave_one_out compares a group with itself; use episode: group")
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
    VIEWS = OF_TEXTS
