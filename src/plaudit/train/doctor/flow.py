"""Checks of what is particular to flow models: kernels, densities and their KL."""

from __future__ import annotations

import dataclasses
import math

import torch

from plaudit.models.flow import Conditioning, guided_velocity
from plaudit.recipe.sampling import Sampler
from plaudit.sampling.drawers import FlowDrawer
from plaudit.sampling.kernels import Transition, kl_divergence, log_density, transition
from plaudit.sampling.noise import gaussian
from plaudit.sampling.path import move
from plaudit.sampling.plan import deterministic_plan
from plaudit.sampling.rollout import FlowSamples, Trace, draw, noise_scale, replay
from plaudit.train.doctor.checks import Check, Patient, not_applicable, within


def trace_of(patient: Patient) -> Trace | None:
    """The recorded decisions, if any was stochastic."""
    assert isinstance(patient.piece.samples, FlowSamples)
    trace = patient.piece.samples.trace
    return trace if trace is not None and trace.mask.any() else None


def _encoded(patient: Patient, count: int | None = None) -> tuple[Sampler, Conditioning]:
    drawer = patient.setup.drawer
    assert isinstance(drawer, FlowDrawer)
    return drawer.sampler, drawer.encoder(patient.prompts[:count], drawer.sampler.guidance)


def level_zero(patient: Patient) -> Check:
    """Every kernel at level 0 is the Euler sampler, written out once more by hand."""
    model = patient.setup.policy.model
    sampler, conditioning = _encoded(patient)
    times = model.schedule(sampler.steps, sampler.shift)
    plan = dataclasses.replace(deterministic_plan(times, len(patient.keys)), kernel=sampler.kernel)
    drawn = draw(model, conditioning, plan, patient.keys, tile=sampler.tile)
    x = gaussian(patient.keys, "initial", model.latent_shape) * noise_scale(times[0])
    with torch.no_grad():
        for t, t_next in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
            x = x + (t_next - t) * guided_velocity(model, x, torch.full((len(x),), t), conditioning)
    deviation = (drawn.latents - x).abs().max().item()
    return within(
        "level 0 is the stock sampler", deviation, 1e-5, "the adapter's velocity or schedule depends on state"
    )


def kl_matches(patient: Patient) -> Check:
    """Our KL against torch.distributions on perturbed replayed steps."""
    name = "KL equals torch.distributions"
    trace = trace_of(patient)
    if trace is None:
        return not_applicable(name, "no stochastic steps")
    _, conditioning = _encoded(patient)
    with torch.no_grad():
        step = replay(patient.setup.policy.model, conditioning, trace)
    other = dataclasses.replace(
        step, mean=step.mean + 0.1 * torch.sin(torch.arange(step.mean.numel())).reshape(step.mean.shape)
    )
    random = step.std > 0
    std = step.std[random].reshape(-1, *[1] * (step.mean.ndim - 1)).double()
    first, second = (torch.distributions.Normal(s.mean[random].double(), std) for s in (step, other))
    exact = torch.distributions.kl_divergence(first, second).flatten(1).sum(1)
    times, next_times = trace.times[:, :-1].flatten(), trace.times[:, 1:].flatten()
    ours = kl_divergence(step, other, times, next_times)[random].double()
    return within(name, ((ours - exact) / exact).abs().max().item(), 1e-5, "a kernel's std drifted from its density")


def draws_match_density(patient: Patient) -> Check:
    """Mean and deviation of 1e5 drawn numbers against the density used for training."""
    name = "draws have the density's mean and std"
    trace = trace_of(patient)
    if trace is None:
        return not_applicable(name, "no stochastic steps")
    d = int(trace.mask[0].nonzero()[0, 0])
    x, t, t_next, level = trace.states[:1, d], trace.times[:1, d], trace.times[:1, d + 1], trace.levels[:1, d]
    _, conditioning = _encoded(patient, 1)
    with torch.no_grad():
        v = guided_velocity(patient.setup.policy.model, x, t, conditioning)
    step = transition(trace.kernel, x, v, t, t_next, level)
    count = -(-100_000 // x[0].numel())
    keys = [dataclasses.replace(patient.keys[0], index=1_000 + i) for i in range(count)]
    wide = Transition(mean=step.mean.expand(count, *x.shape[1:]), std=step.std.expand(count))
    drawn = move(wide, keys, d)
    z = ((drawn - step.mean) / step.std).double()
    surprise = max(abs(z.mean().item()) * z.numel() ** 0.5, abs(z.var().item() - 1) * (z.numel() / 2) ** 0.5)
    normal = torch.distributions.Normal(step.mean.double(), step.std.double().item())
    if not torch.allclose(log_density(drawn, wide), normal.log_prob(drawn.double()).flatten(1).sum(1), rtol=1e-6):
        surprise = math.inf
    return within(name, surprise, 4.5, "a kernel draws with another std than it scores (value in standard errors)")


CHEAP = (level_zero,)
LATER = (kl_matches, draws_match_density)
