"""The invariants of a run, checked on the user's own recipe. Each check says what it measured, what is allowed, and what
to do; one that cannot apply says so instead of passing."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from plaudit.errors import SandboxError
from plaudit.objectives.terms import FlowTerms
from plaudit.objectives.token_terms import TokenTerms
from plaudit.pages.showing import Showing, Shown
from plaudit.recipe.load import Source, as_recipe
from plaudit.recipe.objectives import Needs
from plaudit.recipe.sampling import TokenSampling
from plaudit.recipe.schema import Recipe
from plaudit.sampling.rollout import FlowSamples
from plaudit.sampling.tokens import Completions
from plaudit.sandbox import lacking, safe_level
from plaudit.train.doctor import flow as doctor_flow
from plaudit.train.doctor import tokens as doctor_tokens
from plaudit.train.doctor.checks import Check, Patient, admit, drawn, not_applicable, nudged, within
from plaudit.train.doctor.rewards import NO_SCORES, PERMUTATION, REPETITION, permutation, reward_is_deterministic

if TYPE_CHECKING:
    from plaudit.train.setup import Setup


def isolation(patient: Patient) -> Check:
    """How far rewards that run a model's programs keep them from this machine, and why not further."""
    name = "programs are kept from this machine"
    rewards = (*patient.setup.rewards.rewards, patient.setup.truth)
    if not any(reward.card is not None and reward.card.untrusted for reward in rewards):
        return not_applicable(name, "no reward runs programs")
    try:
        value, lacks, remedy = safe_level().name.lower(), "; ".join(lacking()) or "nothing is lacking", ""
    except SandboxError as error:
        value, lacks, remedy = "no", "see below", str(error)
    return Check(name=name, passed=not remedy, value=value, limit=lacks, remedy=remedy)


def ratio_one(patient: Patient) -> Check:
    """What was recorded in drawing, against the replay that training goes through."""
    from plaudit.train.learn import ratio_limit

    name = "ratio is 1 before the first update"
    if (absent := _no_ratio(patient)) is not None:
        return not_applicable(name, absent)
    decisions = patient.piece.samples.decisions
    assert decisions is not None
    deviation = _drift(patient).expm1().abs().max().item()
    limit = patient.recipe.train.ratio_tolerance * decisions.rounding
    if deviation > limit:
        setup = patient.setup
        limit = ratio_limit(setup.recipe.train, setup.policy, setup.objective, patient.batch(), deviation)
    remedy = (
        "use float32, no dropout, and the same guidance or temperature in rollout and replay; train.ratio_tolerance is "
        f"{patient.recipe.train.ratio_tolerance:g}"
    )
    return within(name, deviation, limit, remedy)


def mismatch_kl(patient: Patient) -> Check:
    """How far apart the distributions of drawing and of replay are on average, as training gates it."""
    name = "drawing and replay are one distribution"
    if (absent := _no_ratio(patient)) is not None:
        return not_applicable(name, absent)
    drift = _drift(patient)
    kl = (drift.expm1() - drift).mean().item()
    return within(name, kl, patient.recipe.train.mismatch_kl, "use one precision for both, or raise train.mismatch_kl")


def _no_ratio(patient: Patient) -> str | None:
    """Why there is no ratio to look at, if there is none."""
    if patient.setup.objective.needs.feed != "rollouts":
        return "the objective does not learn from rollouts"
    decisions = patient.piece.samples.decisions
    return "no stochastic steps" if decisions is None or not decisions.mask.any() else None


@torch.no_grad()
def _drift(patient: Patient) -> Tensor:
    """Log-probability in the replay minus that of the draw, of every decision."""
    batch = dataclasses.replace(patient.batch(), samples=patient.piece.samples)
    sampler, decisions = patient.recipe.sampler, patient.piece.samples.decisions
    assert decisions is not None
    if isinstance(sampler, TokenSampling):
        log_prob = TokenTerms(patient.setup.policy, batch, sampler.pack).log_prob
    else:
        log_prob = FlowTerms(patient.setup.policy, batch).log_prob
    return (log_prob - decisions.log_prob)[decisions.mask]


def kl_has_gradient(patient: Patient) -> Check:
    name = "the KL term has a gradient"
    if (absent := _no_kl(patient.setup.objective.needs)) is not None:
        return not_applicable(name, absent)
    policy = patient.setup.policy
    with nudged(policy):
        objective = patient.setup.objective
        batch = objective.prepare(policy, patient.batch())
        kl = objective.losses(objective.terms(policy, batch)).parts["kl"].sum()
        parameters = list(policy.trainable.values())
        gradient = torch.autograd.grad(kl, parameters, allow_unused=True) if kl.requires_grad else ()
    size = sum(g.abs().sum().item() for g in gradient if g is not None)
    return Check(
        name=name, passed=size > 0, value=f"{size:.2e}", limit="> 0", remedy="the KL is computed without gradient"
    )


def _no_kl(needs: Needs) -> str | None:
    """Why an objective has no KL in its loss, if it has none."""
    if needs.kl is None:
        return "the objective has none of its own"
    if needs.kl.place == "reward":
        return "it is taken from the reward"
    return None if needs.kl.weight > 0 else "its weight is 0"


def micro_batches(patient: Patient) -> Check:
    """Gradients of one update whole and split."""
    from plaudit.train.learn import accumulate

    name, policy, batch = "gradients do not depend on the split", patient.setup.policy, patient.batch()
    gradients = []
    for micro_batch in (len(batch), 5):
        policy.model.network.zero_grad(set_to_none=True)
        accumulate(policy, patient.setup.objective, batch, micro_batch)
        found = [p.grad.flatten() for p in policy.trainable.values() if p.grad is not None]
        policy.model.network.zero_grad(set_to_none=True)
        if not found:
            return not_applicable(name, "the objective learns nothing from this small rollout")
        gradients.append(torch.cat(found))
    deviation = ((gradients[0] - gradients[1]).norm() / gradients[0].norm()).item()
    return within(name, deviation, 1e-4, "a loss term divides by its own micro-batch")


def batch_size(patient: Patient) -> Check:
    """The same samples one by one. The limit leaves room for matrix products that round differently in other shapes."""
    parts = zip(patient.prompts, patient.keys, patient.first_of_group, strict=True)
    alone = [drawn(patient.setup, [prompt], [key], [first]).samples for prompt, key, first in list(parts)[:3]]
    together = patient.piece.samples
    if isinstance(together, Completions):
        rows = together.rows()
        deviation: float = sum(
            row != one.rows()[0] for row, one in zip(rows, alone, strict=False) if isinstance(one, Completions)
        )
    else:
        assert isinstance(together, FlowSamples)
        latents = torch.cat([one.latents for one in alone if isinstance(one, FlowSamples)])
        deviation = (latents - together.latents[:3]).abs().max().item()
    return within(
        "samples do not depend on the batch", deviation, 1e-3, "batch statistics, padding or shared noise in the model"
    )


def mismatch(patient: Patient) -> Check:
    name = "mismatched prompts score lower"
    distinct = len({prompt.id for prompt in patient.prompts})
    if distinct < 2:
        return not_applicable(name, "one prompt only")
    count = len(patient.prompts)
    others = [patient.prompts[(i + 4) % count] for i in range(count)]
    own, other = patient.scored().total, patient.scored(others).total
    if own.isnan().all() or other.isnan().all():
        return not_applicable(name, NO_SCORES)
    straight, crossed = own.nanmean().item(), other.nanmean().item()
    if straight == crossed:
        return not_applicable(
            name, f"both {straight:.3f}: the reward does not read the prompt, or the model solves none"
        )
    return Check(
        name=name,
        passed=straight > crossed,
        value=f"{straight:.3f} against {crossed:.3f}",
        limit="higher than mismatched",
        remedy="the reward may be given the wrong prompts, or prefer outputs of other prompts",
    )


def constant_group(patient: Patient) -> Check:
    from plaudit.shaping.credit import group_advantage

    shaping = patient.recipe.shaping
    group = torch.arange(3).repeat_interleave(7)  # seven times 1000.1 has a float mean that is not 1000.1
    score = torch.tensor([0.1, 1000.1, 1000.3], dtype=torch.float64)[group]
    value = group_advantage(score, group, std=shaping.std, floor=shaping.floor).value.abs().max().item()
    return within("a constant group gets advantage 0", value, 0.0, "the deviation floor is missing")


def frozen(patient: Patient) -> Check:
    """Of the generator, and of every reward that learns."""
    setup = patient.setup
    networks = {"": setup.policy.network, **{f"{name} ": one.network for name, one in setup.learners.items()}}
    parameters = {name: list(network.parameters()) for name, network in networks.items()}
    trainable = {name: sum(p.numel() for p in own if p.requires_grad) for name, own in parameters.items()}
    said = [f"{name}{trainable[name]:,} of {sum(p.numel() for p in own):,}" for name, own in parameters.items()]
    return Check(
        name="something is trainable",
        passed=min(trainable.values()) > 0,
        value=f"{'; '.join(said)} parameters",
        limit="> 0",
        remedy="set model.lora, or leave it out for full tuning; a reward that learns needs parameters that do",
    )


def lora_zero(patient: Patient) -> Check:
    """Adapters at the start change nothing: the velocity with and without them."""
    name = "LoRA starts at zero"
    if patient.recipe.model.lora is None:
        return not_applicable(name, "full tuning")
    products = [p for key, p in patient.setup.policy.trainable.items() if "lora_B" in key]
    size = max(p.detach().abs().max().item() for p in products) if products else float("inf")
    return within(name, size, 0.0, "adapters are not at their initial zero; load none before training")


Checks = tuple[Callable[[Patient], Check], ...]
FIRST: Checks = (isolation, frozen, lora_zero)
CHEAP: Checks = (ratio_one, mismatch_kl, constant_group, permutation, reward_is_deterministic)
LATER: Checks = (mismatch, kl_has_gradient, micro_batches, batch_size)
OF_DRAWN_SAMPLES: dict[Callable[[Patient], Check], str] = {
    doctor_tokens.ends: doctor_tokens.ENDS,
    permutation: PERMUTATION,
    reward_is_deterministic: REPETITION,
}


def cheap_checks(setup: Setup) -> list[Check]:
    """What `align` insists on before step 0. An objective that learns from data is not held up by drawing: no sample of the
    model's own, and no reward, reaches its training."""
    own = doctor_tokens.CHEAP if setup.recipe.model.family == "tokens" else doctor_flow.CHEAP
    checks: Checks = (*FIRST, *own, *CHEAP)
    if setup.objective.needs.feed != "rollouts":
        checks = tuple(_left_to_the_doctor(check) for check in checks)
    return _run(checks, setup)


def _left_to_the_doctor(check: Callable[[Patient], Check]) -> Callable[[Patient], Check]:
    if check not in OF_DRAWN_SAMPLES:
        return check
    why = "the objective does not learn from rollouts; `plaudit doctor` draws samples and checks it"
    return lambda patient: not_applicable(OF_DRAWN_SAMPLES[check], why)


def examine(recipe: Recipe) -> list[Check]:
    """Every check, on a fresh set-up of the recipe."""
    from plaudit.train.evaluate import calibrate
    from plaudit.train.setup import prepare

    setup = prepare(recipe)
    calibrate(setup)
    own = doctor_tokens if recipe.model.family == "tokens" else doctor_flow
    return _run((*FIRST, *own.CHEAP, *CHEAP, *own.LATER, *LATER), setup)


class Diagnosis(Shown, list[Check]):
    """The checks of a recipe, which show themselves as a table."""

    def showing(self) -> Showing:
        failed = sum(check.passed is False for check in self)
        words = {True: "ok", False: "FAILED", None: "n/a"}
        return Showing(
            title=f"{failed} of {len(self)} checks failed",
            header=("check", "verdict", "value", "limit", "what to do"),
            rows=[(c.name, words[c.passed], c.value, c.limit, c.remedy if c.passed is False else "") for c in self],
        )


def doctor(recipe: Recipe | Source = "default") -> Diagnosis:
    """Check the invariants of a recipe before training: a Recipe, a shipped name, a file, a run folder or a mapping."""
    return Diagnosis(examine(as_recipe(recipe, "doctor")))


def _run(checks: Checks, setup: Setup) -> list[Check]:
    patient, results = admit(setup), []
    for check in checks:
        started = time.perf_counter()
        result = check(patient)
        results.append(dataclasses.replace(result, seconds=round(time.perf_counter() - started, 3)))
    return results


def failed_message(checks: list[Check]) -> str:
    failed = [f"  {c.name}: {c.value}, allowed {c.limit}; {c.remedy}" for c in checks if c.passed is False]
    return "the run was not started because a check failed:\n" + "\n".join(failed)
