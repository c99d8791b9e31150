"""Beam search over the sampler's noise with a deterministic lookahead (DLBS, S043).

At every step each of B beams draws K children from the stochastic kernel; each child is looked at by T' steps of the ODE (DDIM
with eta = 0) on a uniform grid from its time to 0, decoded and scored; the best B of all B K go on. T' = 1 is the posterior
mean. The last step is deterministic, and the best of B pictures is the result. B = 1 is greedy search.

Departures. The kernel is the task's; the paper's is `--kernel ddim_eta --level 1`. The grid is uniform in the time of the
flow. A single child has nothing to be compared with and is not looked at. The lookahead's first velocity is that of the
child's next step, and like the paper's code we compute it again: its count of network calls is reproduced.

Shape legend: B rows, * latent dimensions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from plaudit.errors import RecipeError
from plaudit.sampling.kernels import Transition
from plaudit.sampling.rollout import tiles
from plaudit.search.budget import Cost
from plaudit.search.flow.steps import checked_size, most_affordable, within_means
from plaudit.search.flow.task import FlowTask
from plaudit.search.rows import Found, Rows, best_rows

PAPER_BEAMS, PAPER_CHILDREN, PAPER_LOOKAHEAD = 4, 2, 6


@dataclass(frozen=True, kw_only=True)
class Width:
    """How wide and how far: `beams` B, `children` K of each and `lookahead` T' steps."""

    beams: int
    children: int
    lookahead: int


def beam_calls(steps: int, width: Width, searched: int | None = None) -> int:
    """Velocities of a search whose children are looked at in `searched` steps; None: in all but the last, as in the paper,
    (B + B K T') (T - 1) + B."""
    looked = steps - 1 if searched is None else searched
    return width.beams * steps + looked * width.beams * width.children * width.lookahead


@dataclass(frozen=True, kw_only=True)
class Beam:
    """What is None follows from the budget: K = 2; T' is the largest up to 6 with which 4 beams (the paper's number) fit, else
    1; and then as many beams as fit. So a growing budget buys four beams, then lookahead, then more beams.

    `window` are the steps [first, last) whose children are compared; outside of it every beam draws one child.
    """

    beams: int | None = None
    children: int = PAPER_CHILDREN
    lookahead: int | None = None
    window: tuple[int, int] | None = None

    def run(self, task: FlowTask) -> Iterator[Found]:
        """One search for all prompts; several where time is limited."""
        searched = self._searched(task.steps)
        yield task.plain()
        first = 1
        while (width := self._width(task, searched)).beams > 0:
            yield from _search(task, width, searched, first)
            first += width.beams * width.children
            if self.beams is not None or task.deadline is None:
                return

    def _searched(self, steps: int) -> range:
        """The steps whose children are compared; never the last, which draws nothing."""
        for key, value in (("beams", self.beams), ("children", self.children), ("lookahead", self.lookahead)):
            if value is not None and value < 1:
                raise RecipeError(f"beam: {key} {value}; give at least 1")
        first, last = self.window or (0, steps - 1)
        if not 0 <= first <= last <= steps:
            raise RecipeError(
                f"beam: window [{first}, {last}]; with {steps} steps, allowed is 0 <= first <= last <= {steps}"
            )
        return range(first, min(last, steps - 1)) if self.children > 1 else range(0)

    def _width(self, task: FlowTask, searched: range) -> Width:
        """0 beams where not even one fits."""
        ahead = self.lookahead or self._farthest(task, searched)

        def cost(beams: int) -> Cost:
            return beam_work(task, self._of(beams, ahead), len(searched))

        if self.beams is None:
            return self._of(most_affordable(task, cost), ahead)
        return self._of(checked_size(task, self.beams, cost, "beam: beams"), ahead)

    def _farthest(self, task: FlowTask, searched: range) -> int:
        beams = self.beams or PAPER_BEAMS
        for ahead in range(PAPER_LOOKAHEAD, 1, -1):
            if within_means(task, beam_work(task, self._of(beams, ahead), len(searched))):
                return ahead
        return 1

    def _of(self, beams: int, lookahead: int) -> Width:
        return Width(beams=beams, children=self.children, lookahead=lookahead)


def beam_work(task: FlowTask, width: Width, searched: int) -> Cost:
    """What one search costs exactly."""
    judged = width.beams * (1 + searched * width.children)
    return task.cost(velocities=beam_calls(task.steps, width, searched), decodes=judged, scores=judged)


def _search(task: FlowTask, width: Width, searched: range, first: int) -> Iterator[Found]:
    """Rows are numbered from `first` on, which gives every search noise of its own."""
    P, B = len(task.prompts), width.beams
    rows = task.start(torch.arange(P).repeat_interleave(B), first + torch.arange(B).repeat(P))
    for k in range(task.steps - 1):
        t, t_next = task.times[k], task.times[k + 1]
        step = task.transition(rows, task.velocity(rows, t), t, t_next)
        children = width.children if k in searched else 1
        grown = rows.repeat(children).numbered(first)
        grown = task.move(grown, _repeated(step, children), k)
        if children > 1:
            grown = grown.select(best_rows(_looked_at(task, grown, t_next, width.lookahead), grown.prompt, B))
        rows = grown
    rows = rows.numbered(first)
    for of in tiles(len(rows), task.tile):
        yield task.finished(task.finish(rows.select(of), task.steps - 1))


def _repeated(step: Transition, times: int) -> Transition:
    return Transition(mean=step.mean.repeat_interleave(times, 0), std=step.std.repeat_interleave(times, 0))


def _looked_at(task: FlowTask, rows: Rows, t: Tensor, steps: int) -> Tensor:
    """Scores `[B]` of where the ODE takes rows at time `t` in so many equal steps."""
    grid = torch.linspace(float(t), 0.0, steps + 1)
    scores = []
    for of in tiles(len(rows), task.tile):
        part = rows.select(of)
        for now, then in itertools.pairwise(grid):
            part = part.at(task.transition(part, task.velocity(part, now), now, then, kernel="ode").mean)
        scores.append(task.score(task.decode(part), part.prompt))
    return torch.cat(scores)
