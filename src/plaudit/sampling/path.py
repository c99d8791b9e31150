"""The one walk along a flow: drawing, completion from any state, lookahead, and the way back of a gradient.

Whoever walks brings the velocity (tiled, counted, guided: `path` does not ask) and takes what it needs of every visit.

    for visit in path(velocity, x, plan, keys):  ...                        draw; `visit.step` is the transition drawn from
    for visit in path(velocity, x, plan, keys, start=k):  ...               complete a state at times[k]
    for visit in path(velocity, x, plan, keys, carries=carries):  ...       with the gradient of some steps

A step that carries no gradient has its velocity detached, as in AlignProp; the states are never cut, so that the gradient of
later steps still flows along the linear part of the path (it ends in the noise, which has no parameters).

Shape legend: B samples, K steps, * latent dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from plaudit.models.flow import per_sample
from plaudit.sampling.kernels import Transition, transition
from plaudit.sampling.noise import SampleKey, gaussian, uniform
from plaudit.sampling.plan import SamplingPlan

Velocity = Callable[[Tensor, Tensor], Tensor]
"""`velocity(x [B, *], t [B]) -> [B, *]`."""


@dataclass(frozen=True, kw_only=True)
class Visit:
    """Step `k` from `x` to `x_next`, drawn from `step`."""

    k: int
    x: Tensor
    step: Transition
    x_next: Tensor


def path(
    velocity: Velocity,
    x: Tensor,
    plan: SamplingPlan,
    keys: Sequence[SampleKey],
    *,
    start: int = 0,
    stop: int | None = None,
    carries: Tensor | None = None,
    recompute: bool = True,
) -> Iterator[Visit]:
    """Steps `start` to `stop` of the plan. `carries [B, K]` says which steps of which samples keep the gradient of their
    velocity; without it nothing changes what the caller has enabled. `recompute` keeps no activations of the network and
    computes them again on the way back."""
    for k in range(start, plan.steps if stop is None else stop):
        t, t_next = (plan.times[j].expand(len(x)) for j in (k, k + 1))
        at = _carrying(velocity, None if carries is None else carries[:, k], recompute)
        v = at(x, t)
        if plan.solver == "heun" and t_next[0] > 0:
            ahead = transition("ode", x, v, t, t_next, plan.levels[:, k]).mean
            v = 0.5 * (v + at(ahead, t_next))
        step = transition(plan.kernel, x, v, t, t_next, plan.levels[:, k])
        x_next = move(step, keys, k)
        yield Visit(k=k, x=x, step=step, x_next=x_next)
        x = x_next


def walked(visits: Iterator[Visit], x: Tensor) -> Tensor:
    """Where a path that begins at `x` ends."""
    for visit in visits:
        x = visit.x_next
    return x


def move(step: Transition, keys: Sequence[SampleKey], decision: int) -> Tensor:
    """Draw the next state; rows without noise get none, and cost none."""
    random = (step.std > 0).nonzero()[:, 0]
    if not len(random):
        return step.mean
    noise = gaussian([keys[i] for i in random.tolist()], "transition", step.mean.shape[1:], decision)
    return step.mean.index_add(0, random, per_sample(step.std[random], noise) * noise)


def _carrying(velocity: Velocity, carries_B: Tensor | None, recompute: bool) -> Velocity:
    if carries_B is None:
        return velocity

    def at(x: Tensor, t: Tensor) -> Tensor:
        if not carries_B.any():
            with torch.no_grad():
                return velocity(x, t)
        with torch.enable_grad():
            v: Tensor = (
                checkpoint(velocity, x, t, use_reentrant=False, preserve_rng_state=False)
                if recompute
                else velocity(x, t)
            )
        return v if carries_B.all() else torch.where(per_sample(carries_B, v), v, v.detach())

    return at


Truncation = Literal["none", "last", "suffix", "per_step"]


def carried_steps(truncation: Truncation, steps: int, keys: Sequence[SampleKey], last: int = 1) -> Tensor:
    """Which of the steps `[B, K]` carry a gradient.

    `none` all of them; `last` the last few (DRaFT-K); `suffix` for each sample as many of the last as it draws from 0 to K
    (AlignProp's paper); `per_step` step i with probability (i + 1) / (K + 1) by itself (AlignProp's first code; its later code
    cuts a batch once).
    """
    place = torch.arange(steps)
    match truncation:
        case "none":
            return torch.ones(len(keys), steps, dtype=torch.bool)
        case "last":
            return (place >= steps - last).expand(len(keys), -1)
        case "suffix":
            drawn = (uniform(keys, "truncation", 1) * (steps + 1)).floor()
            return place >= steps - drawn
        case "per_step":
            return (uniform(keys, "truncation", steps) * (steps + 1)).floor() <= place
