"""The invariants of a run, checked on the user's own recipe. Each check says what it measured, what is allowed, and what
to do; one that cannot apply says so instead of passing."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from plaudit.models.flow import guided_velocity
from plaudit.objectives.terms import Batch
from plaudit.recipe.schema import GrpoConfig, Recipe
from plaudit.sampling.kernels import Transition, kl_divergence, log_density, transition
from plaudit.sampling.noise import gaussian
from plaudit.sampling.plan import deterministic_plan, stochastic_plan
from plaudit.sampling.rollout import Samples, Trace, draw, move, noise_scale, replay, replay_log_prob

if TYPE_CHECKING:
    from plaudit.train.policy import Policy
    from plaudit.train.setup import Setup


@dataclass(frozen=True, kw_only=True)
class Check:
    """One verdict; `passed` is None where the check does not apply."""

    name: str
    passed: bool | None
    value: str
    limit: str
    remedy: str
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class Patient:
    """What the checks look at: a set-up and one small rollout of it."""

    setup: Setup
    prompts: list
    keys: list
    first_of_group: list
    drawn: Samples
    group: Tensor

    @property
    def recipe(self) -> Recipe:
        return self.setup.recipe

    @property
    def trace(self) -> Trace | None:
        """The recorded decisions, if any was stochastic."""
        trace = self.drawn.trace
        return trace if trace is not None and trace.mask.any() else None


def _within(name: str, value: float, limit: float, remedy: str) -> Check:
    return Check(name=name, passed=value <= limit, value=f"{value:.2e}", limit=f"<= {limit:g}", remedy=remedy)


def _not_applicable(name: str, why: str) -> Check:
    return Check(name=name, passed=None, value=why, limit="", remedy="")


def admit(setup: Setup, prompts: int = 3, size: int = 4) -> Patient:
    """Draw a small rollout with the recipe's own sampler."""
    from plaudit.train.collect import expand_groups

    recipe = setup.recipe
    chosen = setup.prompts.batch(0, prompts, recipe.run.seed)
    members, group, keys = expand_groups(chosen, size, recipe.run.seed, 0)
    first = [keys[i - i % size] for i in range(len(keys))]
    drawn = _draw(setup, members, keys, first, recipe.sampler.tile)
    return Patient(setup=setup, prompts=members, keys=keys, first_of_group=first, drawn=drawn, group=group)


def _draw(setup: Setup, prompts: list, keys: list, first: list, tile: int) -> Samples:
    sampler, model = setup.recipe.sampler, setup.policy.model
    plan = stochastic_plan(sampler, model.schedule(sampler.steps, sampler.shift), keys, first)
    return draw(model, setup.encoder(prompts, sampler.guidance), plan, keys, tile=tile)


# --- the checks ----------------------------------------------------------------------------------------------------


def level_zero(patient: Patient) -> Check:
    """Every kernel at level 0 is the Euler sampler, written out once more by hand."""
    model, sampler = patient.setup.policy.model, patient.recipe.sampler
    conditioning = patient.setup.encoder(patient.prompts, sampler.guidance)
    times = model.schedule(sampler.steps, sampler.shift)
    plan = dataclasses.replace(deterministic_plan(times, len(patient.keys)), kernel=sampler.kernel)
    drawn = draw(model, conditioning, plan, patient.keys, tile=sampler.tile)
    x = gaussian(patient.keys, "initial", model.latent_shape) * noise_scale(times[0])
    with torch.no_grad():
        for t, t_next in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
            x = x + (t_next - t) * guided_velocity(model, x, torch.full((len(x),), t), conditioning)
    deviation = (drawn.latents - x).abs().max().item()
    return _within(
        "level 0 is the stock sampler", deviation, 1e-5, "the adapter's velocity or schedule depends on state"
    )


def ratio_one(patient: Patient) -> Check:
    name = "ratio is 1 before the first update"
    trace = patient.trace
    if trace is None:
        return _not_applicable(name, "no stochastic steps")
    sampler = patient.recipe.sampler
    conditioning = patient.setup.encoder(patient.prompts, sampler.guidance)
    with torch.no_grad():
        again = replay_log_prob(trace, replay(patient.setup.policy.model, conditioning, trace), "exact")
    deviation = ((again - trace.log_prob).exp() - 1).abs()[trace.mask].max().item()
    limit = patient.recipe.train.ratio_tolerance * trace.rounding
    return _within(name, deviation, limit, "use float32, no dropout, and the same guidance in rollout and replay")


def kl_matches(patient: Patient) -> Check:
    """Our KL against torch.distributions on perturbed replayed steps."""
    name = "KL equals torch.distributions"
    trace = patient.trace
    if trace is None:
        return _not_applicable(name, "no stochastic steps")
    conditioning = patient.setup.encoder(patient.prompts, patient.recipe.sampler.guidance)
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
    return _within(name, ((ours - exact) / exact).abs().max().item(), 1e-5, "a kernel's std drifted from its density")


def draws_match_density(patient: Patient) -> Check:
    """Mean and deviation of 1e5 drawn numbers against the density used for training."""
    name = "draws have the density's mean and std"
    trace = patient.trace
    if trace is None:
        return _not_applicable(name, "no stochastic steps")
    d = int(trace.mask[0].nonzero()[0, 0])
    x, t, t_next, level = trace.states[:1, d], trace.times[:1, d], trace.times[:1, d + 1], trace.levels[:1, d]
    conditioning = patient.setup.encoder(patient.prompts[:1], patient.recipe.sampler.guidance)
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
    return _within(name, surprise, 4.5, "a kernel draws with another std than it scores (value in standard errors)")


def kl_has_gradient(patient: Patient) -> Check:
    name = "the KL term has a gradient"
    objective = patient.recipe.objective
    weight = objective.kl.weight if isinstance(objective, GrpoConfig) else objective.kl_weight
    if weight == 0:
        return _not_applicable(name, "its weight is 0")
    policy = patient.setup.policy
    with _nudged(policy):
        terms = patient.setup.objective.terms(policy, _batch(patient))
        losses = patient.setup.objective.losses(terms)
        kl, parameters = losses.parts["kl"].sum(), list(policy.trainable.values())
        gradient = torch.autograd.grad(kl, parameters, allow_unused=True) if kl.requires_grad else ()
    size = sum(g.abs().sum().item() for g in gradient if g is not None)
    return Check(
        name=name, passed=size > 0, value=f"{size:.2e}", limit="> 0", remedy="the KL is computed without gradient"
    )


def micro_batches(patient: Patient) -> Check:
    """Gradients of one update whole and split."""
    from plaudit.train.learn import accumulate

    policy, batch = patient.setup.policy, _batch(patient)
    gradients = []
    for micro_batch in (len(batch), 5):
        policy.model.network.zero_grad(set_to_none=True)
        accumulate(policy, patient.setup.objective, batch, micro_batch)
        gradients.append(torch.cat([p.grad.flatten() for p in policy.trainable.values() if p.grad is not None]))
    policy.model.network.zero_grad(set_to_none=True)
    deviation = ((gradients[0] - gradients[1]).norm() / gradients[0].norm()).item()
    return _within(
        "gradients do not depend on the split", deviation, 1e-4, "a loss term divides by its own micro-batch"
    )


def batch_size(patient: Patient) -> Check:
    """The same samples one by one. The limit leaves room for matrix products that round differently in other shapes."""
    alone = [
        _draw(patient.setup, [prompt], [key], [first], 1).latents
        for prompt, key, first in list(zip(patient.prompts, patient.keys, patient.first_of_group, strict=True))[:3]
    ]
    deviation = (torch.cat(alone) - patient.drawn.latents[:3]).abs().max().item()
    return _within(
        "samples do not depend on the batch", deviation, 1e-3, "batch statistics or shared noise in the model"
    )


def permutation(patient: Patient) -> Check:
    """Scores follow their prompts, and mismatched pairs score lower on average."""
    setup = patient.setup
    with torch.no_grad():
        pictures = setup.policy.model.decode(patient.drawn.latents)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(pictures)))  # no shift: an off-by-one follows it
    straight = setup.rewards(patient.prompts, pictures).total
    moved = setup.rewards([patient.prompts[i] for i in order.tolist()], pictures[order]).total
    deviation = _largest_difference(straight[order], moved)
    return _within("permuting the batch permutes the rewards", deviation, 1e-6, "a reward reads another item's prompt")


def _largest_difference(first: Tensor, second: Tensor) -> float:
    """Infinite where a score is missing on one side only."""
    both_missing = first.isnan() & second.isnan()
    return torch.where(both_missing, 0.0, (first - second).abs()).nan_to_num(torch.inf).max().item()


def mismatch(patient: Patient) -> Check:
    name = "mismatched prompts score lower"
    setup = patient.setup
    distinct = len({prompt.id for prompt in patient.prompts})
    if distinct < 2:
        return _not_applicable(name, "one prompt only")
    with torch.no_grad():
        pictures = setup.policy.model.decode(patient.drawn.latents)
    straight = setup.rewards(patient.prompts, pictures).total.nanmean().item()
    wrong = [patient.prompts[(i + 4) % len(pictures)] for i in range(len(pictures))]
    crossed = setup.rewards(wrong, pictures).total.nanmean().item()
    if straight == crossed:
        return _not_applicable(
            name, f"both {straight:.3f}: the reward does not read the prompt, or the model solves none"
        )
    return Check(
        name=name,
        passed=straight > crossed,
        value=f"{straight:.3f} against {crossed:.3f}",
        limit="higher than mismatched",
        remedy="the reward may be given the wrong prompts, or prefer pictures of other prompts",
    )


def reward_is_deterministic(patient: Patient) -> Check:
    with torch.no_grad():
        pictures = patient.setup.policy.model.decode(patient.drawn.latents)
    first, second = (patient.setup.rewards(patient.prompts, pictures).total for _ in range(2))
    deviation = _largest_difference(first, second)
    return _within(
        "scoring twice gives the same scores", deviation, 1e-6, "the reward is random: average it or fix its seed"
    )


def constant_group(patient: Patient) -> Check:
    from plaudit.shaping.advantages import group_advantage

    shaping = patient.recipe.shaping
    group = torch.arange(3).repeat_interleave(7)  # seven times 1000.1 has a float mean that is not 1000.1
    score = torch.tensor([0.1, 1000.1, 1000.3], dtype=torch.float64)[group]
    value = group_advantage(score, group, std=shaping.std, floor=shaping.floor).value.abs().max().item()
    return _within("a constant group gets advantage 0", value, 0.0, "the deviation floor is missing")


def frozen(patient: Patient) -> Check:
    network = patient.setup.policy.model.network
    trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
    total = sum(p.numel() for p in network.parameters())
    return Check(
        name="something is trainable",
        passed=trainable > 0,
        value=f"{trainable:,} of {total:,} parameters",
        limit="> 0",
        remedy="set model.lora, or leave it out for full tuning",
    )


def lora_zero(patient: Patient) -> Check:
    """Adapters at the start change nothing: the velocity with and without them."""
    name = "LoRA starts at zero"
    if patient.recipe.model.lora is None:
        return _not_applicable(name, "full tuning")
    products = [p for key, p in patient.setup.policy.trainable.items() if "lora_B" in key]
    size = max(p.detach().abs().max().item() for p in products) if products else float("inf")
    return _within(name, size, 0.0, "adapters are not at their initial zero; load none before training")


CHEAP: tuple[Callable[[Patient], Check], ...] = (
    frozen,
    lora_zero,
    level_zero,
    ratio_one,
    constant_group,
    permutation,
    reward_is_deterministic,
)
ALL: tuple[Callable[[Patient], Check], ...] = (
    *CHEAP,
    mismatch,
    kl_matches,
    draws_match_density,
    kl_has_gradient,
    micro_batches,
    batch_size,
)


def _run(checks: tuple[Callable[[Patient], Check], ...], setup: Setup) -> list[Check]:
    patient, results = admit(setup), []
    for check in checks:
        started = time.perf_counter()
        result = check(patient)
        results.append(dataclasses.replace(result, seconds=round(time.perf_counter() - started, 3)))
    return results


def cheap_checks(setup: Setup) -> list[Check]:
    """What `align` insists on before step 0."""
    return _run(CHEAP, setup)


def examine(recipe: Recipe) -> list[Check]:
    """Every check, on a fresh set-up of the recipe."""
    from plaudit.train.evaluate import calibrate
    from plaudit.train.setup import prepare

    setup = prepare(recipe)
    calibrate(setup)
    return _run(ALL, setup)


def failed_message(checks: list[Check]) -> str:
    failed = [f"  {c.name}: {c.value}, allowed {c.limit}; {c.remedy}" for c in checks if c.passed is False]
    return "the run was not started because a check failed:\n" + "\n".join(failed)


def _batch(patient: Patient) -> Batch:
    """A batch with made-up advantages of both signs."""
    drawn = patient.drawn
    advantage = torch.cos(torch.arange(len(patient.keys)).float() + 0.5)
    true = torch.ones(len(patient.keys), dtype=torch.bool)
    return Batch(
        conditioning=patient.setup.encoder(patient.prompts, patient.recipe.sampler.guidance),
        latents=drawn.latents,
        trace=drawn.trace,
        keys=tuple(patient.keys),
        advantage=advantage,
        valid=true,
        informative=true,
    )


@contextlib.contextmanager
def _nudged(policy: Policy) -> Iterator[None]:
    """Slightly other weights for a moment, so that the policy differs from its reference."""
    own = {key: parameter.data for key, parameter in policy.trainable.items()}
    try:
        for parameter in policy.trainable.values():
            parameter.data = parameter.data + 1e-3 * parameter.data.abs().mean().clamp(min=1e-2)
        yield
    finally:
        for key, parameter in policy.trainable.items():
            parameter.data = own[key]
