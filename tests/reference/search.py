"""Slow searches: one prompt, one state and one network call at a time, with lists in place of batches.

Each returns `{candidate: score}` of what the search finishes besides the plain sample. Euler steps, no guidance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tests.reference.toys import ToyFlowModel
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.sampling.noise import SampleKey, gaussian

Score = Callable[[Tensor], float]


@dataclass(frozen=True)
class Walk:
    """How a model's samples of a prompt are walked to and judged."""

    model: ToyFlowModel
    prompt: Prompt
    score: Score
    steps: int
    level: float = 0.7

    def noise(self, candidate: int, stream: str, decision: int = 0) -> Tensor:
        key = SampleKey(seed=0, step=-1, prompt=self.prompt.id, index=candidate)
        return gaussian([key], stream, self.model.latent_shape, decision)

    def time(self, k: int) -> float:
        return 1 - k / self.steps

    def velocity(self, x: Tensor, t: float) -> Tensor:
        return self.model.velocity(x, torch.tensor([t]), self.model.encode([self.prompt]))

    def judge(self, x0: Tensor) -> float:
        return self.score(self.model.decode(x0)[0])

    def preview(self, x: Tensor, t: float) -> float:
        return self.judge(x - t * self.velocity(x, t))

    def walk(self, x: Tensor, k: int, stop: int) -> Tensor:
        for j in range(k, stop):
            x = x - self.velocity(x, self.time(j)) / self.steps
        return x


def best(scores: list[float], count: int) -> list[int]:
    """Best first, missing last, earlier first among equals."""
    order = sorted(
        range(len(scores)), key=lambda i: (math.isnan(scores[i]), -scores[i] if scores[i] == scores[i] else 0)
    )
    return order[:count]


def slow_prune(walk: Walk, seeds: int, at: tuple[int, ...], keep: tuple[float, ...]) -> dict[int, float]:
    left = {c: walk.noise(c, "initial") for c in range(1, seeds + 1)}
    k = 0
    for s, share in zip(at, keep, strict=True):
        left = {c: walk.walk(x, k, s) for c, x in left.items()}
        scores = [walk.preview(x, walk.time(s)) for x in left.values()]
        numbers = list(left)
        left = {numbers[i]: left[numbers[i]] for i in best(scores, max(1, round(share * len(left))))}
        k = s
    return {c: walk.judge(walk.walk(x, k, walk.steps)) for c, x in left.items()}


def slow_renoise(walk: Walk, candidates: int, kept: int, points: list[tuple[int, int]]) -> dict[int, float]:
    """`points`: the step of each checkpoint and the step that its copies go back to."""
    states, k = [walk.noise(c, "initial") for c in range(1, candidates + 1)], 0
    for at, to in points:
        states = [walk.walk(x, k, at) for x in states]
        chosen = best([walk.preview(x, walk.time(at)) for x in states], kept)
        following = [walk.walk(states[i], at, at + 1) for i in chosen]
        for c in range(candidates - kept):
            t, back = walk.time(at), walk.time(to)
            signal = (1 - back) / (1 - t)
            fresh = math.sqrt(back**2 - (signal * t) ** 2)
            copy = signal * states[chosen[c % kept]] + fresh * walk.noise(1 + kept + c, "renoise", at)
            following.append(walk.walk(copy, to, at + 1))
        states, k = following, at + 1
    return {c + 1: walk.judge(walk.walk(x, k, walk.steps)) for c, x in enumerate(states)}


def stochastic_step(walk: Walk, x: Tensor, k: int, candidate: int) -> Tensor:
    """Flow-GRPO's step: Euler-Maruyama of the SDE with diffusion a sqrt(t / (1 - t))."""
    t, t_next = walk.time(k), walk.time(k + 1)
    s, dt, v = walk.level * math.sqrt(t / (1 - (t if k else t_next))), t - t_next, walk.velocity(x, t)
    score = -(x + (1 - t) * v) / t
    return x - v * dt + s**2 / 2 * score * dt + s * math.sqrt(dt) * walk.noise(candidate, "transition", k)


def slow_beam(walk: Walk, beams: int, children: int, lookahead: int, window: range) -> dict[int, float]:
    states = [walk.noise(c, "initial") for c in range(1, beams + 1)]
    for k in range(walk.steps - 1):
        each = children if k in window and children > 1 else 1
        grown = [stochastic_step(walk, states[c // each], k, c + 1) for c in range(len(states) * each)]
        if each > 1:
            states = [grown[i] for i in best([look(walk, x, walk.time(k + 1), lookahead) for x in grown], beams)]
        else:
            states = grown
    return {c + 1: walk.judge(walk.walk(x, walk.steps - 1, walk.steps)) for c, x in enumerate(states)}


def look(walk: Walk, x: Tensor, t: float, lookahead: int) -> float:
    for j in range(lookahead):
        x = x - t / lookahead * walk.velocity(x, t * (1 - j / lookahead))
    return walk.judge(x)
