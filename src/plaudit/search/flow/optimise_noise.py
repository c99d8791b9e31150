"""Gradient ascent of the reward on the starting noise (ReNO, Eyring et al. 2024, arXiv 2406.04312).

Loss per prompt: prior * (0.5 ||e||^2 - (D - 1) log ||e||) - reward. The weights of several rewards belong to the recipe.
Departures: as many iterates as the budget pays for (the paper: 50); the last one has no gradient, since nothing would follow
it; a prompt whose score or gradient is missing stops; activations are kept, not computed again. The paper's models need one
step; any number works.

Shape legend: B rows, * latent dimensions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from plaudit.errors import RecipeError
from plaudit.sampling.rollout import noise_scale
from plaudit.search.flow.noise_prior import Momentum, descend, norm_penalty
from plaudit.search.flow.task import FlowTask
from plaudit.search.rows import Found, Rows


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Iterate 0 is the plain sample and counts. The defaults are the paper's, for 16384 dimensions and a reward whose
    weights add up to several units; a small latent wants a smaller `lr` (see `Momentum`)."""

    iterations: int | None = None  # iterate 0 included; None: as many as the budget pays for
    lr: float = 5.0
    momentum: float = 0.9
    clip: float | None = 0.1  # norm of a prompt's gradient
    prior: float = 0.01

    def run(self, task: FlowTask) -> Iterator[Found]:
        """One batch of all prompts per iterate; equal cost for every prompt whose scores are there."""
        last = self._count(task)
        rule = Momentum(lr=self.lr, momentum=self.momentum, clip=self.clip)
        prompt = torch.arange(len(task.prompts))
        first = torch.zeros_like(prompt)
        # Moved is the unit noise: its norm is what the prior speaks of, and x = scale * e is what sampling starts from.
        e = task.noise(prompt, first, "initial", task.model.latent_shape)
        rows, buffer = Rows(x=e, prompt=prompt, candidate=first), None
        for iterate in itertools.count() if last is None else range(last):
            if iterate + 1 == last:
                with task.untimed(iterate == 0):
                    yield _numbered(task.finished(task.finish(_started(task, rows))), iterate)
                return
            with task.untimed(iterate == 0):
                found, gradient = self._climb(task, rows)
            yield from (_numbered(batch, iterate) for batch in found)
            there = gradient.isfinite().flatten(1).all(1)
            if not there.any():
                return
            rows, gradient = rows.select(there), gradient[there]
            moved = descend(rows.x, -gradient, None if buffer is None else buffer[there], rule)
            rows, buffer = rows.at(moved.noise), moved.buffer

    def _climb(self, task: FlowTask, rows: Rows) -> tuple[list[Found], Tensor]:
        """The rows' finished samples, scored without the prior, and the gradient `[B, *]` of the reward with it."""
        found: list[Found] = []

        def value(part: Rows) -> Tensor:
            done = task.finish(_started(task, part))
            pictures = task.decode(done)
            score = task.differentiable_score(pictures, part.prompt)
            found.append(task.found(done, pictures, score))
            return score - self.prior * norm_penalty(part.x)

        return found, task.value_and_gradient(rows, value).gradient

    def _count(self, task: FlowTask) -> int | None:
        """Iterates that the budget pays for: all but the last of them have a gradient."""
        if self.iterations is not None and self.iterations < 1:
            raise RecipeError(
                f"noise: {self.iterations} iterations; iterate 0 is the plain sample, so there is at least 1"
            )
        plain, gradient = task.sample_cost, task.cost(gradients=1)
        limits = [
            (limit + getattr(gradient, kind)) // each
            for kind, limit in task.budget.limits().items()
            if (each := getattr(plain + gradient, kind))
        ]
        fits = min(limits) if limits else None
        if self.iterations is None:
            return fits
        if fits is not None and self.iterations > fits:
            raise RecipeError(
                f"noise: the budget {task.budget} pays for {fits} of {self.iterations} iterations; give it more, or leave the "
                "option out"
            )
        return self.iterations


def _started(task: FlowTask, rows: Rows) -> Rows:
    return rows.at(rows.x * noise_scale(task.times[0]))


def _numbered(found: Found, iterate: int) -> Found:
    return replace(found, candidate=torch.full_like(found.candidate, iterate))
