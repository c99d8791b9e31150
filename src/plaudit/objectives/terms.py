"""What an objective may ask for of a flow model, computed when it is first read and only then.

`terms.log_prob`, `terms.old.velocity`, `terms.reference.step` ... are bound to one micro-batch. All policies see the same
noise, times and recorded states; snapshots are evaluated without gradient.

Shape legend: B samples, D recorded decisions, T forward-process times per sample, * latent dimensions.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from plaudit.models.flow import clean_prediction, guided_velocity, per_sample
from plaudit.objectives.batch import Batch, SnapshotPolicy
from plaudit.objectives.estimates import kl_estimate
from plaudit.sampling.kernels import Transition, kl_divergence
from plaudit.sampling.noise import SampleKey, gaussian, uniform
from plaudit.sampling.rollout import Trace, replay, replay_log_prob

R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Forward:
    """Points of the forward process `x_t = (1 - t) x_0 + t e`, T per sample, flattened to B * T rows."""

    x0: Tensor
    x: Tensor
    t: Tensor
    noise: Tensor
    sample: Tensor  # [B * T]: which sample a row belongs to


def forward_points(batch: Batch, times: Tensor) -> Forward:
    """Noise every sample to its times `[B, T]` with its own counter-based noise."""
    B, T = times.shape
    sample = torch.arange(B).repeat_interleave(T)
    latents = batch.flow.latents
    noise = gaussian(batch.keys, "forward", (T, *latents.shape[1:])).flatten(0, 1)
    t, x0 = times.flatten(), latents[sample]
    spread = per_sample(t, x0)
    return Forward(x0=x0, x=(1 - spread) * x0 + spread * noise, t=t, noise=noise, sample=sample)


def stratified_times(keys: Sequence[SampleKey], count: int, low: float, high: float, shift: float) -> Tensor:
    """Times `[B, count]` in (low, high), one in each of `count` equal strata, bent toward noise by `shift`."""
    position = (torch.arange(count) + uniform(keys, "times", count)) / count
    t = low + (high - low) * position
    return shift * t / (1 + (shift - 1) * t)


class FlowPolicyTerms:
    """One policy's view of the micro-batch."""

    def __init__(self, policy: SnapshotPolicy, name: str, batch: Batch, forward: Forward | None) -> None:
        self._policy, self._name, self._batch, self._forward = policy, name, batch, forward

    def _evaluate(self, compute: functools.partial[R]) -> R:
        if self._name == "current":
            return compute()
        with torch.no_grad(), self._policy.using(self._name):
            return compute()

    @functools.cached_property
    def velocity(self) -> Tensor:
        """Velocity `[B * T, *]` at the forward points."""
        points = self._points
        conditioning = self._batch.flow.conditioning.select(points.sample)
        return self._evaluate(functools.partial(guided_velocity, self._policy.model, points.x, points.t, conditioning))

    @functools.cached_property
    def x0(self) -> Tensor:
        """Clean prediction `[B * T, *]`."""
        return clean_prediction(self._points.x, self.velocity, self._points.t)

    @functools.cached_property
    def error(self) -> Tensor:
        """Mean squared velocity error `[B * T]`."""
        points = self._points
        return (self.velocity - (points.noise - points.x0)).square().flatten(1).mean(1)

    @functools.cached_property
    def step(self) -> Transition:
        """Replayed transitions `[B * D]`."""
        trace = self._trace
        return self._evaluate(functools.partial(replay, self._policy.model, self._batch.flow.conditioning, trace))

    @functools.cached_property
    def log_prob(self) -> Tensor:
        """Log-density `[B, D]` of the recorded decisions, in the density they were recorded with."""
        return replay_log_prob(self._trace, self.step, self._trace.density)

    @property
    def exact_log_prob(self) -> Tensor:
        """The log-density itself `[B, D]`, whatever scaling of it the ratio takes: what estimates of a KL are made of."""
        scaled = self._trace.density != "exact"
        return replay_log_prob(self._trace, self.step, "exact") if scaled else self.log_prob

    @property
    def _points(self) -> Forward:
        assert self._forward is not None, "this objective did not ask for forward points"
        return self._forward

    @property
    def _trace(self) -> Trace:
        trace = self._batch.flow.trace
        assert trace is not None, "this objective needs a rollout with stochastic steps"
        return trace


class FlowTerms(FlowPolicyTerms):
    """The current policy's terms, and by name those of its snapshots."""

    def __init__(self, policy: SnapshotPolicy, batch: Batch, times: Tensor | None = None) -> None:
        forward = None if times is None else forward_points(batch, times)
        super().__init__(policy, "current", batch, forward)
        self.batch, self.forward = batch, forward
        self._views: dict[str, FlowPolicyTerms] = {}

    def snapshot(self, name: str) -> FlowPolicyTerms:
        if name not in self._views:
            self._views[name] = FlowPolicyTerms(self._policy, name, self.batch, self.forward)
        return self._views[name]

    @property
    def old(self) -> FlowPolicyTerms:
        return self.snapshot("old")

    @property
    def reference(self) -> FlowPolicyTerms:
        return self.snapshot("reference")

    def kl(self, scaling: str) -> Tensor:
        """KL to the reference `[B, D]`, of the Gaussian transitions or estimated from the drawn decisions."""
        if scaling in ("k1", "k2", "k3"):
            return kl_estimate(self.exact_log_prob - self.reference.exact_log_prob, scaling)
        trace = self._trace
        times, next_times = (u.flatten() for u in (trace.times[:, :-1], trace.times[:, 1:]))
        kl = kl_divergence(self.step, self.reference.step, times, next_times, scaling, trace.kernel)
        per_decision: Tensor = kl.unflatten(0, trace.levels.shape)
        return per_decision
