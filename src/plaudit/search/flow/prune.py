"""Pruning by previews (TTSnap, S090): many seeds, of which few are drawn to the end.

At steps s_1 < s_2 < ... the top round(alpha_j n) of the n seeds that are left go on, ranked by the reward of the preview
x_0 = x - t v, or by a noise-aware reward (`previews`). Survivors are finished and chosen by the clean reward.

Departures. The plain sample is drawn to the end beside the others, unranked, since no search may end below it. Of no set
fewer than one seed survives. The paper's steps belong to 20-step sampling and are scaled (`default_plan`).

Shape legend: B rows, * latent dimensions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from plaudit.errors import RecipeError
from plaudit.rewards.compose.groups import rank_sum
from plaudit.rewards.learned.noise_aware import NONE
from plaudit.sampling.rollout import tiles
from plaudit.search.budget import Cost
from plaudit.search.flow.lookouts import noise_aware
from plaudit.search.flow.steps import (
    Judge,
    advance,
    checked_size,
    judge_previews,
    rounds,
    score_total,
    stock_step,
    velocities_between,
)
from plaudit.search.flow.task import FlowTask
from plaudit.search.rows import Found, Rows, best_rows

PAPER_STEPS, PAPER_AT, PAPER_KEEP = 20, (2, 6, 11), (0.4, 0.4, 0.5)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Previews are judged at the steps `at`, and the share `keep` of the seeds goes on."""

    at: tuple[int, ...]
    keep: tuple[float, ...]


def default_plan(steps: int) -> Plan:
    """The paper's steps, scaled. Step 0 shows nothing, since noise knows nothing of the picture, and the last one is the
    picture; steps that fall together are one, with the product of their shares."""
    shares: dict[int, float] = {}
    for s, share in zip(PAPER_AT, PAPER_KEEP, strict=True):
        at = max(1, round(s * steps / PAPER_STEPS))
        if at < steps - 1:
            shares[at] = shares.get(at, 1.0) * share
    return Plan(at=tuple(shares), keep=tuple(shares.values()))


def pruning_cost(steps: int, plan: Plan, *, network: float, preview: float) -> float:
    """What a seed costs on average, by the paper's formula: `network` for each of its denoising steps and `preview` for
    each picture that is decoded and judged, the last one included. Without pruning: steps * network + preview."""
    cost, alive, done = 0.0, 1.0, -1
    for s, share in zip(plan.at, plan.keep, strict=True):
        cost += alive * ((s - done) * network + preview)
        alive, done = alive * share, s
    return cost + alive * ((steps - 1 - done) * network + preview)


def survivors(seeds: int, keep: Sequence[float]) -> list[int]:
    """How many seeds there are before the first preview, and after each."""
    counts = [seeds]
    for share in keep:
        counts.append(min(counts[-1], max(1, round(share * counts[-1]))))
    return counts


@dataclass(frozen=True, kw_only=True)
class Prune:
    """`seeds` besides the plain sample; None draws as many as the budget pays for. `rank: ranks` orders previews by the sum
    of the rewards' ranks among the prompt's seeds in place of the total; the winner is chosen by the total all the same.
    `previews` names noise-aware weights (`plaudit.rewards.learned.noise_aware`)."""

    seeds: int | None = None
    at: tuple[int, ...] | None = None  # steps, counted from 0
    keep: tuple[float, ...] | None = None
    rank: Literal["total", "ranks"] = "total"
    previews: str = NONE

    def run(self, task: FlowTask) -> Iterator[Found]:
        """One round with all seeds of all prompts; several where time is limited."""
        plan, ranking = self._plan(task.steps), self._ranking()
        yield task.plain()
        first = 1
        for seeds in self._sizes(task, plan):
            yield from _round(task, plan, ranking, first, seeds)
            first += seeds

    def _plan(self, steps: int) -> Plan:
        if self.seeds is not None and self.seeds < 0:
            raise RecipeError(f"prune: {self.seeds} seeds; give 0 or more")
        if self.at is None and self.keep is None:
            return default_plan(steps)
        at, keep = self.at or (), self.keep or ()
        if len(at) != len(keep):
            raise RecipeError(
                f"prune: `at` names {len(at)} steps and `keep` {len(keep)} shares; give one share for every step"
            )
        if any(not 0 <= s < steps - 1 for s in at) or any(a >= b for a, b in itertools.pairwise(at)):
            raise RecipeError(
                f"prune: at {list(at)}; with {steps} sampling steps, allowed are rising numbers from 0 to {steps - 2} "
                "(the last step's preview is the picture itself)"
            )
        if any(not 0 < share <= 1 for share in keep):
            raise RecipeError(f"prune: keep {list(keep)}; each share is above 0 and at most 1, for example 0.4")
        return Plan(at=at, keep=keep)

    def _ranking(self) -> Ranking:
        if self.rank == "total":
            return Ranking(judges=None if self.previews == NONE else noise_aware(self.previews))
        if self.previews != NONE:
            raise RecipeError(
                f"prune: rank {self.rank} orders by several rewards and previews {self.previews} is one; give one of the two"
            )
        return Ranking(ranks=True)

    def _sizes(self, task: FlowTask, plan: Plan) -> Iterable[int]:
        def cost(seeds: int) -> Cost:
            return pruning_work(task, plan, seeds, self._calls_per_preview(task))

        return rounds(task, cost) if self.seeds is None else [checked_size(task, self.seeds, cost, "prune: seeds")]

    def _calls_per_preview(self, task: FlowTask) -> int:
        return task.calls_per_score if self.previews == NONE else 1


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """How previews are ordered: by the suite's total, by another judge, or by the sum of the suite's ranks."""

    judges: Judge | None = None
    ranks: bool = False

    def __call__(self, task: FlowTask, rows: Rows, v: Tensor, k: int) -> Tensor:
        """`[B]`, NaN where a score is missing."""
        if not self.ranks:
            return judge_previews(task, rows, v, k, self.judges or score_total)
        parts: list[Tensor] = []

        def keep_parts(task: FlowTask, pictures: Tensor, prompt: Tensor, t: Tensor) -> Tensor:
            parts.append(_signed_parts(task, pictures, prompt))
            return parts[-1][0]

        judge_previews(task, rows, v, k, keep_parts)
        return rank_sum(list(torch.cat(parts, dim=1)), group=rows.prompt)


def _signed_parts(task: FlowTask, pictures: Tensor, prompt: Tensor) -> Tensor:
    """Scores `[R, B]` of the rewards in the formula, with a minus where less is better."""
    suite = task.suite
    assert suite is not None and suite.formula is not None
    with task.spending("reward_calls", prompt, task.calls_per_score):
        parts = suite(task.prompts_of(prompt), pictures).parts
    used = [reward for reward in suite.rewards if reward.name in suite.formula.names]
    down = [reward.card is not None and not reward.card.higher_is_better for reward in used]
    return torch.stack([-parts[r.name] if less else parts[r.name] for r, less in zip(used, down, strict=True)])


def pruning_work(task: FlowTask, plan: Plan, seeds: int, calls_per_preview: int) -> Cost:
    """What so many seeds cost exactly, rounding of the survivors included."""
    counts, done, reached = survivors(seeds, plan.keep), 0, 0
    velocities = 0
    for alive, s in zip(counts, plan.at, strict=False):
        paid = velocities_between(task, 0, s) + 1
        velocities += alive * (paid - done)
        done = paid
        reached += alive
    velocities += counts[-1] * (task.velocities_to_finish() - done)
    previews = Cost(decodes=1, reward_calls=calls_per_preview)
    return reached * previews + task.cost(velocities=velocities, decodes=counts[-1], scores=counts[-1])


def _round(task: FlowTask, plan: Plan, ranking: Ranking, first: int, seeds: int) -> Iterator[Found]:
    """Seeds `first`, `first` + 1, ... of every prompt."""
    if seeds < 1:
        return
    P, k = len(task.prompts), 0
    rows = task.start(torch.arange(P).repeat_interleave(seeds), first + torch.arange(seeds).repeat(P))
    for s, alive in zip(plan.at, survivors(seeds, plan.keep)[1:], strict=True):
        rows = advance(task, rows, k, s)
        v = task.velocity(rows, task.times[s])
        best = best_rows(ranking(task, rows, v, s), rows.prompt, alive)
        rows = stock_step(task, rows.select(best), v[best], s)
        k = s + 1
    for of in tiles(len(rows), task.tile):
        yield task.finished(task.finish(rows.select(of), k))
