"""Drawing samples, and replaying the stochastic decisions with gradients.

Both go through `kernels.transition`; there is no second copy of a formula.

Shape legend: B samples, K steps, D recorded decisions, * latent dimensions.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from plaudit.models.flow import Conditioning, FlowModel, guided_velocity
from plaudit.sampling.kernels import Transition, log_density, transition
from plaudit.sampling.noise import SampleKey, gaussian
from plaudit.sampling.path import path
from plaudit.sampling.plan import SamplingPlan


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What replay needs of a rollout: the visited states around the decisions, their times and levels."""

    kernel: str
    states: Tensor  # [B, D + 1, *]
    times: Tensor  # [B, D + 1]
    levels: Tensor  # [B, D]
    mask: Tensor  # [B, D] bool: a decision was drawn here
    log_prob: Tensor  # [B, D] float64, of the policy that drew, in the `density` it was recorded with
    density: str

    @property
    def limit(self) -> int:
        return self.levels.shape[1]

    @property
    def rounding(self) -> float:
        """How float32 rounding grows in a log-ratio: a density that sums over dimensions adds up their independent
        errors, like the square root of their number."""
        return float(self.states[0, 0].numel() ** 0.5) if self.density == "exact" else 1.0

    def select(self, rows: Tensor) -> Trace:
        return Trace(
            kernel=self.kernel,
            states=self.states[rows],
            times=self.times[rows],
            levels=self.levels[rows],
            mask=self.mask[rows],
            log_prob=self.log_prob[rows],
            density=self.density,
        )

    @staticmethod
    def cat(parts: Sequence[Trace]) -> Trace:
        return replace(
            parts[0],
            states=torch.cat([part.states for part in parts]),
            times=torch.cat([part.times for part in parts]),
            levels=torch.cat([part.levels for part in parts]),
            mask=torch.cat([part.mask for part in parts]),
            log_prob=torch.cat([part.log_prob for part in parts]),
        )


@dataclass(frozen=True, kw_only=True)
class Starts:
    """What samples would be drawn from, for objectives that draw them themselves."""

    conditioning: Conditioning
    plan: SamplingPlan
    keys: tuple[SampleKey, ...]
    initial_keys: tuple[SampleKey, ...]
    decisions: None = None

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def network_calls(self) -> int:
        return len(self) * self.plan.velocities * self.conditioning.calls_per_velocity

    def noise(self, latent_shape: Sequence[int]) -> Tensor:
        return gaussian(self.initial_keys, "initial", latent_shape) * noise_scale(self.plan.times[0])

    def select(self, rows: Tensor) -> Starts:
        order = rows.tolist()
        return Starts(
            conditioning=self.conditioning.select(rows),
            plan=self.plan.select(rows),
            keys=tuple(self.keys[i] for i in order),
            initial_keys=tuple(self.initial_keys[i] for i in order),
        )


@dataclass(frozen=True, kw_only=True)
class FlowSamples:
    """Clean latents `[B, *]` of a batch with what they were drawn under, and the trace when there were stochastic
    decisions."""

    conditioning: Conditioning
    latents: Tensor
    trace: Trace | None
    network_calls: int

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def decisions(self) -> Trace | None:
        return self.trace

    def select(self, rows: Tensor) -> FlowSamples:
        return replace(
            self,
            conditioning=self.conditioning.select(rows),
            latents=self.latents[rows],
            trace=self.trace.select(rows) if self.trace else None,
        )

    @staticmethod
    def cat(parts: Sequence[FlowSamples]) -> FlowSamples:
        traces = [part.trace for part in parts if part.trace is not None]
        return FlowSamples(
            conditioning=Conditioning.cat([part.conditioning for part in parts]),
            latents=torch.cat([part.latents for part in parts]),
            trace=Trace.cat(traces) if traces else None,
            network_calls=sum(part.network_calls for part in parts),
        )


def tiles(count: int, tile: int) -> list[Tensor]:
    """Rows in pieces of at most `tile`, equally large: a small remainder would be rounded otherwise than the replay, which
    shows in the ratio."""
    return list(torch.arange(count).tensor_split(max(-(-count // tile), 1)))


def tiled_velocity(model: FlowModel, x: Tensor, t: Tensor, conditioning: Conditioning, tile: int) -> Tensor:
    """Velocity in network calls of at most `tile` samples."""
    if len(x) <= tile:
        return guided_velocity(model, x, t, conditioning)
    parts = [guided_velocity(model, x[rows], t[rows], conditioning.select(rows)) for rows in tiles(len(x), tile)]
    return torch.cat(parts)


def noise_scale(t: Tensor) -> Tensor:
    """Deviation of what sampling starts from: 1 at t = 1. A variance-preserving table ends a little before, at a state of
    unit variance in its own coordinates."""
    return ((1 - t).square() + t.square()).sqrt()


@torch.no_grad()
def draw(
    model: FlowModel,
    conditioning: Conditioning,
    plan: SamplingPlan,
    keys: Sequence[SampleKey],
    *,
    tile: int,
    initial_keys: Sequence[SampleKey] | None = None,
    density: str = "exact",
) -> FlowSamples:
    """Sample from noise to data, recording the stochastic decisions of the plan."""
    x = gaussian(initial_keys or keys, "initial", model.latent_shape) * noise_scale(plan.times[0])
    B, D = len(x), plan.decisions
    states = x.new_zeros(B, D + 1, *model.latent_shape)
    log_prob = torch.zeros(B, D, dtype=torch.float64)
    rows, velocity = torch.arange(B), functools.partial(tiled_velocity, model, conditioning=conditioning, tile=tile)
    for visit in path(velocity, x, plan, keys):
        slot = visit.k - plan.first
        inside = (slot >= 0) & (slot < D)
        if inside.any():
            states[rows[inside], slot[inside]] = visit.x[inside]
            states[rows[inside], slot[inside] + 1] = visit.x_next[inside]
            log_prob[rows[inside], slot[inside]] = log_density(visit.x_next, visit.step, density, plan.kernel)[inside]
        x = visit.x_next
    calls = B * plan.velocities * conditioning.calls_per_velocity
    trace = _trace(plan, states, log_prob, density) if D else None
    return FlowSamples(conditioning=conditioning, latents=x, trace=trace, network_calls=calls)


def _trace(plan: SamplingPlan, states: Tensor, log_prob: Tensor, density: str) -> Trace:
    index = plan.first[:, None] + torch.arange(plan.decisions + 1)
    levels = plan.levels.gather(1, index[:, :-1])
    return Trace(
        kernel=plan.kernel,
        states=states,
        times=plan.times[index],
        levels=levels,
        mask=levels > 0,
        log_prob=log_prob,
        density=density,
    )


def replay(model: FlowModel, conditioning: Conditioning, trace: Trace) -> Transition:
    """The transitions `[B * D]` of the current weights at the recorded states: all steps in one network call."""
    B, D = trace.levels.shape
    x = trace.states[:, :D].flatten(0, 1)
    t, t_next, level = trace.times[:, :D].flatten(), trace.times[:, 1:].flatten(), trace.levels.flatten()
    each = torch.arange(B).repeat_interleave(D)
    v = guided_velocity(model, x, t, conditioning.select(each))
    return transition(trace.kernel, x, v, t, t_next, level)


def replay_log_prob(trace: Trace, step: Transition, density: str) -> Tensor:
    """Log-density `[B, D]` of the recorded next states under replayed transitions."""
    return log_density(trace.states[:, 1:].flatten(0, 1), step, density, trace.kernel).reshape(trace.levels.shape)
