"""Following the reward's gradient while sampling: v' = v - w t / (1 - t) grad r(x_t, t).

Sampling goes from t = 1 to 0, so the minus leads uphill. With `value` a reward of noisy states this is Flow-NRG (S052), which
decodes nothing; for the exact one, log E[exp(w r(x_0)) | x_t] / w, it samples p(x_0) exp(w r(x_0)). With `value: preview` it
is DPS, the gradient of r(x - t v(x, t)) through decoder and network, and with a stitched value model S056's. Published DPS moves
the state or the velocity by a constant times the gradient: `scale: constant`. (S056 writes u + c grad V for a velocity u that
points to data; ours points to noise.) Several rewards are combined by the suite.

Conventions. t / (1 - t) is infinite at t = 1, where the exact reward's gradient is 0 and their product finite. The factor is
taken at `latest` for all later times, and so is a reward of noisy states; a preview belongs to the velocity at t itself. No
correction is longer than `clip` times the velocity. Where the reward or its gradient is missing, the step is a plain one.
Every candidate has its own noise, and the strengths in turn; strength 0 is plain sampling and costs no gradient.

Shape legend: B rows, * latent dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from plaudit.errors import RecipeError
from plaudit.models.flow import per_sample
from plaudit.sampling.rollout import tiles
from plaudit.search.budget import Cost
from plaudit.search.flow.lookouts import PREVIEW, Lookout, find_lookout
from plaudit.search.flow.steps import checked_size, most_affordable, stock_step
from plaudit.search.flow.task import FlowTask
from plaudit.search.rows import Found, Rows


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """`candidates` besides the plain sample; None draws as many as the budget pays for. `strengths` are w, in units of one
    over the reward's total. `window` are the steps [first, last) that are guided; None guides all."""

    candidates: int | None = None
    strengths: tuple[float, ...] = (10.0,)
    scale: Literal["exact", "constant"] = "exact"
    value: str = PREVIEW
    latest: float = 0.95
    clip: float | None = 1.0
    window: tuple[int, int] | None = None

    def run(self, task: FlowTask) -> Iterator[Found]:
        """One round with candidates 1, 2, ... of all prompts; several where time is limited."""
        guided, lookout = self._guided(task.steps), find_lookout(self.value)
        lookout.check(task)
        yield task.plain()
        for numbers in self._rounds(task, guided, lookout):
            yield from self._drawn(task, guided, lookout, numbers)

    def _guided(self, steps: int) -> range:
        first, last = self.window or (0, steps)
        if not 0 <= first <= last <= steps:
            raise RecipeError(
                f"guidance: window [{first}, {last}]; with {steps} steps, allowed is 0 <= first <= last <= {steps}"
            )
        if not self.strengths:
            raise RecipeError("guidance: no strengths; give at least one, for example strengths=[10]")
        if not 0 < self.latest < 1:
            raise RecipeError(f"guidance: latest {self.latest}; give a time above 0 and below 1, for example 0.95")
        if self.clip is not None and self.clip <= 0:
            raise RecipeError(f"guidance: clip {self.clip}; give a number above 0, or null for none")
        if self.candidates is not None and self.candidates < 1:
            raise RecipeError(f"guidance: {self.candidates} candidates; give at least 1")
        return range(first, last)

    def strength(self, candidate: int) -> float:
        """Of candidate 1, 2, ...; candidate 0 is the plain sample."""
        return self.strengths[(candidate - 1) % len(self.strengths)]

    def _rounds(self, task: FlowTask, guided: range, lookout: Lookout) -> Iterator[range]:
        """Candidates of one round after the other. Where time is limited, the first is of one candidate: before that nothing
        is known of the time that a gradient takes."""
        if self.candidates is not None:
            cost = partial(self._cost, task, guided, lookout, 1)
            yield range(1, 1 + checked_size(task, self.candidates, cost, "guidance: candidates"))
            return
        timed, first = task.deadline is not None, 1
        while True:
            size = most_affordable(task, partial(self._cost, task, guided, lookout, first))
            if size == 0:
                return
            numbers = range(first, first + (1 if timed and first == 1 else size))
            yield numbers
            first = numbers.stop
            if not timed:
                return

    def _cost(self, task: FlowTask, guided: range, lookout: Lookout, first: int, count: int) -> Cost:
        return self.work(task, guided, lookout, range(first, first + count))

    def work(self, task: FlowTask, guided: range, lookout: Lookout, numbers: range) -> Cost:
        """What these candidates cost exactly: a gradient for every guided velocity."""
        slopes = sum(task.velocities_to_finish(k) - task.velocities_to_finish(k + 1) for k in guided)
        followed = sum(self.strength(i) != 0 for i in numbers)
        look = lookout.cost(task) + task.cost(gradients=1)
        return task.sample_cost * len(numbers) + (slopes * followed) * look

    def _drawn(self, task: FlowTask, guided: range, lookout: Lookout, numbers: range) -> Iterator[Found]:
        P = len(task.prompts)
        for follows in (False, True):
            chosen = torch.tensor([i for i in numbers if (self.strength(i) != 0) == follows], dtype=torch.long)
            for of in tiles(P * len(chosen), task.tile) if len(chosen) else ():
                rows = task.start(of % P, chosen[of // P])
                if follows:
                    rows = self._along(task, guided, lookout, rows)
                yield task.finished(rows if follows else task.finish(rows))

    def _along(self, task: FlowTask, guided: range, lookout: Lookout, rows: Rows) -> Rows:
        """To data, guided in its steps and by the stock sampler in the others."""
        w = torch.tensor([self.strength(i) for i in rows.candidate.tolist()])
        for k in range(task.steps):
            t, t_next = task.times[k], task.times[k + 1]
            if k not in guided:
                rows = stock_step(task, rows, task.velocity(rows, t), k)
                continue
            v = self.velocity(task, lookout, rows, t, w)
            if task.solver == "heun" and t_next > 0:
                ahead = rows.at(task.transition(rows, v, t, t_next, kernel="ode").mean)
                v = 0.5 * (v + self.velocity(task, lookout, ahead, t_next, w))
            rows = rows.at(task.transition(rows, v, t, t_next, kernel="ode").mean)
        return rows

    def velocity(self, task: FlowTask, lookout: Lookout, rows: Rows, t: Tensor, w: Tensor) -> Tensor:
        """Guided velocity `[B, *]` with strengths `w [B]`."""
        capped = t.clamp(max=self.latest)
        known: list[Tensor] = []

        def value(part: Rows) -> Tensor:
            worth = lookout.worth(task, part, t if lookout.needs_velocity else capped)
            known.extend([] if worth.v is None else [worth.v.detach()])
            return worth.value

        slope = task.value_and_gradient(rows, value)
        v = torch.cat(known) if lookout.needs_velocity else task.velocity(rows, t)
        factor = capped / (1 - capped) if self.scale == "exact" else torch.ones_like(capped)
        return v - correction(slope.gradient, v, w * factor, self.clip)


def correction(gradient: Tensor, v: Tensor, strength: Tensor, clip: float | None) -> Tensor:
    """`strength [B]` times the gradient, no longer than `clip` times the velocity; 0 where it is no number."""
    push = per_sample(strength, gradient) * gradient
    push = torch.where(per_sample(push.flatten(1).isfinite().all(1), push), push, 0.0)
    if clip is None:
        return push
    length, most = (x.flatten(1).norm(dim=1) for x in (push, v))
    return push * per_sample((clip * most / length.clamp(min=1e-30)).clamp(max=1.0), push)
