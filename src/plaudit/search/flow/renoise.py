"""Prune and re-noise (the test-time search over paths of RewardDance, S016).

N candidates go along the stock sampler. At every checkpoint their previews are scored; the best k stay as they are, and
copies of them fill the set up to N again: re-noised to an earlier time, they come back by the stock sampler along other
paths. All N of the last checkpoint are finished, and the clean reward chooses.

The paper says no more than that, so the following is ours. Re-noised is the *state*, not the preview, by the forward
process between two times: x_t' = a x_t + b e with a = (1 - t') / (1 - t) and b^2 = t'^2 - a^2 t^2. A state that is
distributed as (1 - t) x_0 + t e is then distributed as (1 - t') x_0 + t' e; a re-noised preview would not be, since an
average over pictures has too little variance. The best k keep their states, so that no checkpoint loses what it found.

Shape legend: B rows, * latent dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from plaudit.errors import RecipeError
from plaudit.models.flow import per_sample
from plaudit.sampling.rollout import tiles
from plaudit.search.budget import Cost
from plaudit.search.flow.steps import advance, checked_size, judge_previews, rounds, stock_step, velocities_between
from plaudit.search.flow.task import FlowTask
from plaudit.search.rows import Found, Rows, best_rows

STREAM = "renoise"


def renoised(x: Tensor, noise: Tensor, t: Tensor, t_noisier: Tensor) -> Tensor:
    """States `[B, *]` at time `t [B]` brought to `t_noisier [B]`, at least t, by the forward process."""
    kept = (1 - t_noisier) / (1 - t)
    added = (t_noisier.square() - (kept * t).square()).clamp(min=0).sqrt()
    return per_sample(kept, x) * x + per_sample(added, x) * noise


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Previews are judged at step `at`; copies go back to step `to`."""

    at: int
    to: int


def checkpoints(steps: int, every: int, back: int) -> list[Checkpoint]:
    """At `every`, twice `every`, ... short of the last step. Copies go `back` steps back, but not to pure noise at step 0, which
    forgets the candidate; so there is no checkpoint at step 1."""
    return [Checkpoint(at=s, to=max(1, s - back)) for s in range(every, steps - 1, every) if s > 1]


def renoise_calls(steps: int, points: list[Checkpoint], candidates: int, kept: int) -> int:
    """Velocities by Euler steps: every candidate's own path, and the way of the copies from `to` past `at`."""
    return candidates * steps + sum((candidates - kept) * (point.at - point.to + 1) for point in points)


@dataclass(frozen=True, kw_only=True)
class Renoise:
    """`candidates` besides the plain sample (None: as many as the budget pays for), of which the share `keep` stays at
    each checkpoint. `every` None is a quarter of the sampling steps, rounded up."""

    candidates: int | None = None
    keep: float = 0.25
    every: int | None = None
    back: int = 2

    def run(self, task: FlowTask) -> Iterator[Found]:
        """One round with all candidates of all prompts; several where time is limited."""
        points = self._points(task.steps)
        yield task.plain()
        first = 1
        for count in self._sizes(task, points):
            yield from self._round(task, points, first, count)
            first += count

    def _points(self, steps: int) -> list[Checkpoint]:
        if not 0 < self.keep <= 1:
            raise RecipeError(f"renoise: keep {self.keep}; allowed is a share above 0 and at most 1, for example 0.25")
        if self.back < 1:
            raise RecipeError(f"renoise: back {self.back}; give the number of steps that copies go back, 1 or more")
        if self.every is not None and self.every < 1:
            raise RecipeError(f"renoise: every {self.every}; give a number of steps from 1 on")
        if self.candidates is not None and self.candidates < 0:
            raise RecipeError(f"renoise: {self.candidates} candidates; give 0 or more")
        return checkpoints(steps, self.every or -(-steps // 4), self.back)

    def _kept(self, candidates: int) -> int:
        return max(1, round(self.keep * candidates))

    def _sizes(self, task: FlowTask, points: list[Checkpoint]) -> Iterable[int]:
        def cost(count: int) -> Cost:
            return renoise_work(task, points, count, self._kept(count))

        return (
            rounds(task, cost)
            if self.candidates is None
            else [checked_size(task, self.candidates, cost, "renoise: candidates")]
        )

    def _round(self, task: FlowTask, points: list[Checkpoint], first: int, count: int) -> Iterator[Found]:
        """Candidates `first`, `first` + 1, ... of every prompt."""
        if count < 1:
            return
        P, k = len(task.prompts), 0
        rows = task.start(torch.arange(P).repeat_interleave(count), first + torch.arange(count).repeat(P))
        for point in points:
            rows = advance(task, rows, k, point.at)
            v = task.velocity(rows, task.times[point.at])
            score = judge_previews(task, rows, v, point.at)
            best = best_rows(score, rows.prompt, self._kept(count))
            stay = stock_step(task, rows.select(best), v[best], point.at)
            rows = _filled_up(task, rows.select(best), stay.numbered(first), point, first, count)
            k = point.at + 1
        for of in tiles(len(rows), task.tile):
            yield task.finished(task.finish(rows.select(of), k))


def _filled_up(task: FlowTask, parents: Rows, stay: Rows, point: Checkpoint, first: int, count: int) -> Rows:
    """`count` rows per prompt after step `point.at`, numbered from `first` on: those that stay, then re-noised copies of the
    parents in turn, best first."""
    P = len(task.prompts)
    kept = len(parents) // P
    if kept == count:
        return stay
    parent = torch.arange(P)[:, None] * kept + torch.arange(count - kept) % kept
    copies = parents.select(parent.flatten()).numbered(first + kept)
    noise = task.noise(copies.prompt, copies.candidate, STREAM, copies.x.shape[1:], point.at)
    t, t_noisier = (task.times[j].expand(len(copies)) for j in (point.at, point.to))
    copies = copies.at(renoised(copies.x, noise, t, t_noisier))
    copies = advance(task, copies, point.to, point.at + 1)
    return Rows.cat([stay, copies])


def renoise_work(task: FlowTask, points: list[Checkpoint], candidates: int, kept: int) -> Cost:
    """What so many candidates cost exactly."""
    again = sum(velocities_between(task, point.to, point.at + 1) for point in points)
    # Those that fall are judged after the first velocity of their step; Heun's second one is saved.
    again -= sum(velocities_between(task, point.at, point.at + 1) - 1 for point in points)
    velocities = candidates * task.velocities_to_finish() + (candidates - kept) * again
    judged = candidates * (len(points) + 1)
    return task.cost(velocities=velocities, decodes=judged, scores=judged)
