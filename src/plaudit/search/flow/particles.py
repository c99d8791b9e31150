"""Particles: sequential Monte Carlo over the sampler's noise (FK steering, and its use in StitchVM, S056).

N particles of every prompt go along the stochastic kernel. At the judged steps their previews are scored, potentials of the
scores weigh them (`smc.POTENTIALS`), and where the effective size falls below a share of N they are resampled. The clean
reward corrects the last weight, so that the weighted particles are samples of p(x_0) exp(alpha r(x_0)), where p is what the
sampler draws with all its steps: exact as N grows, whatever the previews say. Alpha 0 is sampling from the kernel.

With `proposals` M, every particle draws M children in each of the first steps (S056: in the first 40 %). `choose: best` keeps
the one of the highest score, as published; that tilts the samples beyond the target, and even at alpha 0. `choose: weighted`
keeps one at random by its potential and gives the particle the mean of them, which leaves the target as it is (ours).

Scores on the way are the reward of the preview x - t v, or with `value` those of a stitched value model, which needs neither
a velocity nor a decode. The velocity at a judged state is that of its next step and costs nothing.

Departures. The kernel is the task's; its last step is deterministic, and the reward of what it draws is the last potential.
Systematic resampling where the effective size is small, and not at given steps.

Shape legend: B rows = P prompts x N particles, prompt by prompt; M proposals; * latent dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from plaudit.errors import RecipeError
from plaudit.sampling.kernels import Transition
from plaudit.sampling.noise import uniform
from plaudit.sampling.rollout import tiles
from plaudit.search.budget import Cost
from plaudit.search.flow.lookouts import PREVIEW, Lookout, find_lookout
from plaudit.search.flow.steps import checked_size, rounds, stock_step
from plaudit.search.flow.task import FlowTask
from plaudit.search.rows import Found, Rows, best_rows
from plaudit.search.weights import (
    Lineage,
    begin,
    comb,
    correct,
    log_normaliser,
    resample,
    resample_below,
    weigh,
)

PAPER_SHARE = 0.4  # of the steps, in which proposals are drawn


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The steps at which particles are weighed, and those that draw proposals. Step k goes from times[k] on."""

    judged: tuple[int, ...]
    proposed: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """Particles on their way. `v` are their velocities and `score [B]` their scores here as far as they are known; `fresh`
    says that the scores are not yet part of `log_w [P, N]`."""

    rows: Rows
    log_w: Tensor
    lineage: Lineage
    v: Tensor | None = None
    score: Tensor | None = None
    fresh: bool = True

    def pick(self, index: Tensor, first: int) -> Cloud:
        """Particles `[B]` by index, numbered anew from `first` on; their weights stay behind."""
        return replace(
            self,
            rows=self.rows.select(index).numbered(first),
            v=None if self.v is None else self.v[index],
            score=None if self.score is None else self.score[index],
        )


@dataclass(frozen=True, kw_only=True)
class Particles:
    """`particles` N besides the plain sample; None takes as many as the budget pays for. `alpha` is in units of the reward's
    total. `every` None weighs at each quarter of the steps. `output: best` finds all particles, of which the highest reward
    wins; `sampled` finds one of each prompt, drawn by its weight."""

    particles: int | None = None
    alpha: float = 10.0
    potential: Literal["difference", "max", "sum"] = "difference"
    every: int | None = None
    threshold: float = 0.5
    points: Literal["systematic", "multinomial"] = "systematic"
    proposals: int = 1
    share: float = PAPER_SHARE
    choose: Literal["best", "weighted"] = "best"
    value: str = PREVIEW
    output: Literal["best", "sampled"] = "best"

    def run(self, task: FlowTask) -> Iterator[Found]:
        """One round with all particles of all prompts; several where time is limited."""
        plan, lookout = self._plan(task), find_lookout(self.value)
        lookout.check(task)
        yield task.plain()
        first = 1
        for count in self._sizes(task, plan, lookout):
            yield from self._round(task, plan, lookout, first, count)
            first += count

    def _plan(self, task: FlowTask) -> Plan:
        _check(self)
        if task.level == 0:
            raise RecipeError("particles: level 0 draws no noise, so copies stay copies; give --level, for example 0.7")
        every = self.every or -(-task.steps // 4)
        # Step 0 is noise and its preview no picture; the last one's preview is the picture, which is judged anyway.
        judged = tuple(range(every, task.steps - 1, every)) if self.alpha else ()
        proposed = tuple(range(min(round(self.share * task.steps), task.steps - 1))) if self.proposals > 1 else ()
        return Plan(judged=judged, proposed=proposed)

    def _sizes(self, task: FlowTask, plan: Plan, lookout: Lookout) -> Iterable[int]:
        def cost(count: int) -> Cost:
            return particle_work(task, plan, lookout, self.proposals) * count

        if self.particles is None:
            return rounds(task, cost)
        return [checked_size(task, self.particles, cost, "particles: particles")]

    def _round(self, task: FlowTask, plan: Plan, lookout: Lookout, first: int, count: int) -> Iterator[Found]:
        cloud, parts = steer(task, self, plan, lookout, count, first), []
        for part in finish(task, cloud):
            if self.output == "best":
                yield part
            else:
                parts.append(part)
        if parts:
            yield drawn(task, self.alpha, cloud, parts)


def _check(options: Particles) -> None:
    for key, least in (("particles", 1), ("every", 1), ("proposals", 1), ("alpha", 0)):
        value = getattr(options, key)
        if value is not None and value < least:
            raise RecipeError(f"particles: {key} {value}; give {least} or more")
    if not 0 <= options.share <= 1 or not 0 <= options.threshold <= 1:
        raise RecipeError(
            f"particles: share {options.share}, threshold {options.threshold}; both are shares, from 0 to 1"
        )


def particle_work(task: FlowTask, plan: Plan, lookout: Lookout, proposals: int) -> Cost:
    """What one particle costs exactly."""
    known = {k + 1 for k in plan.proposed}  # scores that the proposals have told
    looks = len(plan.proposed) * proposals + len([k for k in plan.judged if k not in known])
    extra = len(plan.proposed) * (proposals - 1) if lookout.needs_velocity else 0
    return looks * lookout.cost(task) + task.cost(velocities=task.steps + extra, decodes=1, scores=1)


# --- the way ---------------------------------------------------------------------------------------------------------


def steer(task: FlowTask, options: Particles, plan: Plan, lookout: Lookout, count: int, first: int = 1) -> Cloud:
    """Particles before the last step, numbered from `first` on."""
    P = len(task.prompts)
    rows = task.start(torch.arange(P).repeat_interleave(count), first + torch.arange(count).repeat(P))
    cloud = Cloud(
        rows=rows,
        log_w=torch.zeros(P, count, dtype=torch.float64),
        lineage=begin(P, count, options.potential),
    )
    for k in range(task.steps - 1):
        if k in plan.judged:
            cloud = _weighed(task, options, lookout, cloud, k)
            cloud = _resampled(task, options, cloud, k, first)
        v = cloud.v if cloud.v is not None else task.velocity(cloud.rows, task.times[k])
        step = task.transition(cloud.rows, v, task.times[k], task.times[k + 1])
        if k in plan.proposed:
            cloud = _proposed(task, options, lookout, cloud, step, k, first)
        else:
            cloud = replace(cloud, rows=task.move(cloud.rows, step, k), v=None, score=None, fresh=True)
    return cloud


def _looked(task: FlowTask, lookout: Lookout, cloud: Cloud, k: int) -> Cloud:
    """With the scores at times[k], and the velocities if those were needed."""
    if cloud.score is not None:
        return cloud
    v = cloud.v
    if v is None and lookout.needs_velocity:
        v = task.velocity(cloud.rows, task.times[k])
    return replace(cloud, v=v, score=lookout.scores(task, cloud.rows, v, k), fresh=True)


def _weighed(task: FlowTask, options: Particles, lookout: Lookout, cloud: Cloud, k: int) -> Cloud:
    cloud = _looked(task, lookout, cloud, k)
    if not cloud.fresh:
        return cloud
    assert cloud.score is not None
    weighed = weigh(options.potential, options.alpha, cloud.score.reshape(cloud.log_w.shape), cloud.lineage)
    return replace(cloud, log_w=cloud.log_w + weighed.increment, lineage=weighed.lineage, fresh=False)


def _resampled(task: FlowTask, options: Particles, cloud: Cloud, k: int, first: int) -> Cloud:
    """Prompts that need it choose ancestors; a copy is known by its place, so that it draws noise of its own."""
    P, N = cloud.log_w.shape
    numbers = _uniform(task, first, f"resample {k}", N)
    points = comb(numbers[:, 0], N) if options.points == "systematic" else numbers
    after = resample_below(cloud.log_w, points, options.threshold)
    index = (after.ancestors + torch.arange(P)[:, None] * N).flatten()
    return replace(cloud.pick(index, first), log_w=after.log_w, lineage=cloud.lineage.select(after.ancestors))


def _proposed(
    task: FlowTask, options: Particles, lookout: Lookout, cloud: Cloud, step: Transition, k: int, first: int
) -> Cloud:
    """Every particle draws M children of step k and goes on as one of them."""
    (P, N), M = cloud.log_w.shape, options.proposals
    parent = torch.arange(P * N).repeat_interleave(M)
    grown = cloud.rows.select(parent).numbered(1 + (first - 1) * M)
    grown = task.move(grown, Transition(mean=step.mean[parent], std=step.std[parent]), k)
    family = replace(cloud, rows=grown, v=None, score=None)
    family = _looked(task, lookout, family, k + 1)
    assert family.score is not None
    if options.choose == "best":
        return family.pick(best_rows(family.score, parent, 1), first)
    lineage = cloud.lineage.select(torch.arange(N).repeat_interleave(M).expand(P, -1))
    weighed = weigh(options.potential, options.alpha, family.score.reshape(P, N * M), lineage)
    increments = weighed.increment.reshape(P * N, M)
    chosen = resample(increments, _uniform(task, first, f"propose {k}", N).reshape(P * N, 1))
    index = (chosen + torch.arange(P * N)[:, None] * M).flatten()
    return replace(
        family.pick(index, first),
        log_w=cloud.log_w + log_normaliser(increments).reshape(P, N),
        lineage=weighed.lineage.select(chosen.reshape(P, N) + torch.arange(N) * M),
        fresh=False,
    )


def _uniform(task: FlowTask, first: int, stream: str, count: int) -> Tensor:
    """Numbers `[P, count]` of the prompts' own."""
    P = len(task.prompts)
    return uniform(task.keys(torch.arange(P), torch.full((P,), first)), stream, count)


# --- the end ---------------------------------------------------------------------------------------------------------


def finish(task: FlowTask, cloud: Cloud) -> Iterator[Found]:
    """The last step, tile by tile."""
    k = task.steps - 1
    for of in tiles(len(cloud.rows), task.tile):
        rows = cloud.rows.select(of)
        v = task.velocity(rows, task.times[k]) if cloud.v is None else cloud.v[of]
        yield task.finished(stock_step(task, rows, v, k))


def final_log_weights(alpha: float, cloud: Cloud, score: Tensor) -> Tensor:
    """Log-weights `[P, N]` of the finished particles with the clean rewards `[B]`."""
    return cloud.log_w + correct(alpha, score.reshape(cloud.log_w.shape), cloud.lineage)


def drawn(task: FlowTask, alpha: float, cloud: Cloud, parts: list[Found]) -> Found:
    """One finished particle of each prompt, by its weight."""
    P, N = cloud.log_w.shape
    first = int(cloud.rows.candidate.min())
    log_w = final_log_weights(alpha, cloud, torch.cat([part.score for part in parts]))
    index = (resample(log_w, _uniform(task, first, "drawn", 1))[:, 0] + torch.arange(P) * N).tolist()
    places = [(part, i) for part in parts for i in range(len(part))]
    chosen = [places[i] for i in index]

    def of(name: str) -> Tensor:
        return torch.stack([getattr(part, name)[i] for part, i in chosen])

    return Found(
        outputs=of("outputs"),
        score=of("score"),
        prompt=of("prompt"),
        candidate=of("candidate"),
        latents=of("latents"),
    )
