"""One step's updates: logged numbers, and stopping before the weights are spoiled."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from tests.reference.toys import ToyFlowModel, gradients, perturb, rollout_batch, with_samples, with_trace

import plaudit.train.learn as learning
from plaudit.errors import RunError
from plaudit.objectives.base import Losses
from plaudit.objectives.batch import Batch
from plaudit.objectives.grpo import Grpo
from plaudit.objectives.nft import Nft
from plaudit.objectives.terms import FlowTerms
from plaudit.recipe.objectives import GrpoConfig, KlConfig, NftConfig
from plaudit.recipe.sampling import Sampler
from plaudit.recipe.schema import Recipe, Train
from plaudit.train.learn import learn
from plaudit.train.trainable import Policy

SDE = Sampler(kernel="flow_sde", steps=4, level=0.7)
GRPO = GrpoConfig(type="grpo", kl=KlConfig(weight=0.1))


def recipe(**train) -> Recipe:
    sizes = {"minutes": 1, "prompts_per_step": 3, "samples_per_prompt": 4, "micro_batch": 5, "lr": 0.01}
    return Recipe(train=Train(**{**sizes, **train}))


def ready(objective_config) -> tuple[Policy, ToyFlowModel, Batch]:
    model = ToyFlowModel()
    policy = Policy(model)
    policy.take("reference"), policy.take("old")
    return policy, model, rollout_batch(model, SDE)


def run(policy, config, batch, plan: Recipe, step: int = 0):
    objective = Grpo(config) if isinstance(config, GrpoConfig) else Nft(config)
    policy.optimise(plan.train)
    return learn(plan, policy, objective, batch, step), policy.optimizer


# --- what is logged --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("updates", (1, 2, 4))
@pytest.mark.parametrize("config", (GRPO, NftConfig(kl_weight=0.2)), ids=("grpo", "nft"))
def test_logged_parts_sum_to_the_logged_loss(config, updates: int) -> None:
    """Pitfall 38. The parts must be different numbers, or an alias could hide."""
    policy, model, batch = ready(config)
    if isinstance(config, NftConfig):
        perturb(model)
    metrics, _ = run(policy, config, batch, recipe(updates_per_step=updates))
    parts = {name: value for name, value in metrics.items() if name.startswith("loss/")}
    assert set(parts) == {"loss/policy", "loss/kl"}
    assert metrics["loss"] == pytest.approx(sum(parts.values()), rel=1e-9, abs=1e-12)
    assert (parts["loss/policy"] != 0 and metrics["loss"] != parts["loss/policy"]) or updates == 1


def test_logged_parts_sum_to_the_loss_when_an_update_has_no_contrast() -> None:
    policy, _, batch = ready(NftConfig())
    rows = list(learning.update_rows(torch.arange(12) // 4, 2, 0, 0))
    informative = torch.zeros(12, dtype=torch.bool)
    informative[rows[1]] = True
    metrics, _ = run(
        policy, NftConfig(), dataclasses.replace(batch, informative=informative), recipe(updates_per_step=2)
    )
    assert metrics["loss"] != 0
    assert metrics["loss"] == pytest.approx(metrics["loss/policy"] + metrics["loss/kl"], rel=1e-9)


def test_the_logged_loss_is_the_loss_that_was_differentiated() -> None:
    policy, model, batch = ready(GRPO)
    perturb(model, 0.02)
    losses = Grpo(GRPO).losses(Grpo(GRPO).terms(policy, batch))
    loss = sum(part.sum() for part in losses.parts.values()) / 36
    loss.backward()
    norm, kl = gradients(model).norm().item(), losses.metrics["kl"].mean().item()
    metrics, _ = run(policy, GRPO, batch, recipe(ratio_tolerance=10, mismatch_kl=10))
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert metrics["kl"] == pytest.approx(kl, rel=1e-5) and kl > 0
    assert metrics["loss/kl"] == pytest.approx(0.1 * kl, rel=1e-5)


def test_metrics_are_means_over_what_was_computed() -> None:
    """The ratio's mean is 1 also when half of the batch needed no network call."""
    policy, _, batch = ready(None)
    informative = torch.arange(12) < 4
    batch = dataclasses.replace(
        batch, informative=informative, credit=dataclasses.replace(batch.credit, value=batch.credit.value * informative)
    )
    metrics, _ = run(policy, GrpoConfig(type="grpo"), batch, recipe())
    assert metrics["ratio/mean"] == pytest.approx(1.0, abs=1e-6)
    assert metrics["loss/policy"] == pytest.approx(-batch.credit.value.mean().item(), rel=1e-4)


def test_a_step_without_any_contrast_changes_nothing_and_says_so() -> None:
    for config in (GrpoConfig(type="grpo"), NftConfig()):
        policy, _model, batch = ready(config)
        before = {k: p.detach().clone() for k, p in policy.trainable.items()}
        nothing = torch.zeros(12, dtype=torch.bool)
        batch = dataclasses.replace(
            batch, informative=nothing, credit=dataclasses.replace(batch.credit, value=torch.zeros(12))
        )
        metrics, _ = run(policy, config, batch, recipe(weight_decay=0.5))
        assert metrics["loss"] == 0 and metrics["grad_norm"] == 0
        assert all(torch.equal(p, before[k]) for k, p in policy.trainable.items()), "weight decay on nothing"
        assert not policy.optimizer.state


@pytest.mark.parametrize("updates", (1, 3))
def test_every_update_takes_one_optimiser_step_from_fresh_gradients(updates: int, monkeypatch) -> None:
    policy, model, batch = ready(NftConfig())
    norms = []
    real = torch.optim.AdamW.step

    def step(self):
        norms.append(gradients(model).norm().item())
        real(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    metrics, optimizer = run(policy, NftConfig(), batch, recipe(updates_per_step=updates, grad_clip=1e9))
    assert len(norms) == updates
    assert metrics["grad_norm"] == pytest.approx(sum(norms) / updates, rel=1e-5)
    assert {int(s["step"]) for s in optimizer.state.values()} == {updates}


def test_updates_of_a_step_equal_separate_batches() -> None:
    """Two updates are two optimiser steps on the two parts, one after the other."""
    policy, _, batch = ready(NftConfig())
    run(policy, NftConfig(), batch, recipe(updates_per_step=2, micro_batch=64))
    together = torch.cat([p.detach().flatten() for p in policy.trainable.values()])
    policy, _, batch = ready(NftConfig())
    policy.optimise(recipe().train)
    for rows in learning.update_rows(torch.arange(12) // 4, 2, 0, 0):
        learn(recipe(micro_batch=64), policy, Nft(NftConfig()), batch.select(rows), 0)
    apart = torch.cat([p.detach().flatten() for p in policy.trainable.values()])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-6)


def test_the_gradient_is_clipped_by_its_norm() -> None:
    policy, model, batch = ready(NftConfig())
    metrics, _ = run(policy, NftConfig(), batch, recipe(grad_clip=1e-3))
    assert metrics["grad_norm"] > 1e-2, "what is logged is the norm before clipping"
    assert gradients(model).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_the_optimiser_is_the_recipes() -> None:
    policy, _, _ = ready(None)
    policy.optimise(recipe(lr=0.3, betas=(0.5, 0.7), weight_decay=0.2).train)
    group = policy.optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.3, (0.5, 0.7), 0.2)
    assert len(group["params"]) == len(policy.trainable)


# --- what stops a run ------------------------------------------------------------------------------------------------


class Poisoned(Nft):
    """An objective whose loss or gradient is not finite from some element on."""

    def __init__(self, kind: str) -> None:
        super().__init__(NftConfig())
        self.kind = kind

    def losses(self, terms: FlowTerms) -> Losses:
        losses = super().losses(terms)
        policy = losses.parts["policy"]
        harm = {
            "nan loss": policy * float("nan"),
            "infinite loss": policy + float("inf"),
            "nan gradient": policy + (policy - policy.detach()).sqrt(),
        }[self.kind]
        return dataclasses.replace(losses, parts=losses.parts | {"policy": harm})


@pytest.mark.parametrize("kind", ("nan loss", "infinite loss", "nan gradient"))
def test_a_loss_or_gradient_that_is_not_finite_stops_before_the_optimiser_step(kind: str) -> None:
    policy, _, batch = ready(None)
    objective = Poisoned(kind)
    policy.optimise(recipe().train)
    before = {k: p.detach().clone() for k, p in policy.trainable.items()}
    with pytest.raises(
        RunError, match=r"step 7: the loss is .* and the gradient norm .*optimiser step was not taken.*--resume"
    ):
        learn(recipe(), policy, objective, batch, 7)
    assert all(torch.equal(p, before[k]) for k, p in policy.trainable.items()) and not policy.optimizer.state


def test_a_ratio_that_is_not_one_before_the_first_update_stops_the_run() -> None:
    """Pitfall 10: whatever changed between rollout and replay."""
    policy, _model, batch = ready(GRPO)
    other = dataclasses.replace(batch.flow.conditioning, guidance=1.5)
    before = {k: p.detach().clone() for k, p in policy.trainable.items()}
    with pytest.raises(
        RunError, match=r"step 3: the importance ratio deviates from 1 by .*conditioning, guidance, precision"
    ):
        run(policy, GRPO, with_samples(batch, conditioning=other), recipe(), step=3)
    assert all(torch.equal(p, before[k]) for k, p in policy.trainable.items())
    metrics, _ = run(policy, GRPO, batch, recipe())
    assert metrics["ratio/first_step_max_dev"] <= 1e-6


def test_one_decision_off_is_enough() -> None:
    policy, _, batch = ready(GRPO)
    log_prob = batch.flow.trace.log_prob.clone()
    log_prob[7, 1] -= 2e-5
    batch = with_trace(batch, log_prob=log_prob)
    with pytest.raises(RunError, match="deviates from 1 by 2"):
        run(policy, GRPO, batch, recipe())
    run(policy, GRPO, batch, recipe(ratio_tolerance=1e-5))


def test_a_small_drift_of_every_decision_is_a_mismatch_too() -> None:
    """Each ratio within its tolerance, and together still another policy than the one that drew."""
    policy, _, batch = ready(GRPO)
    batch = with_trace(batch, log_prob=batch.flow.trace.log_prob - 0.1)
    before = {k: p.detach().clone() for k, p in policy.trainable.items()}
    with pytest.raises(
        RunError, match=r"step 2: the KL between drawing and replay is 5.17e-03 .*train.mismatch_kl 0.001"
    ):
        run(policy, GRPO, batch, recipe(ratio_tolerance=1), step=2)
    assert all(torch.equal(p, before[k]) for k, p in policy.trainable.items())
    metrics, _ = run(policy, GRPO, batch, recipe(ratio_tolerance=1, mismatch_kl=6e-3))
    assert metrics["mismatch_kl"] == pytest.approx(math.exp(0.1) - 1 - 0.1, rel=1e-4)


def test_the_ratio_may_move_after_the_first_update() -> None:
    policy, _, batch = ready(GRPO)
    metrics, _ = run(policy, GRPO, batch, recipe(updates_per_step=3, lr=0.05))
    assert metrics["ratio/first_step_max_dev"] <= 1e-6 < metrics["ratio/deviation"]


def test_the_ratio_is_checked_where_decisions_count_only() -> None:
    """A missing sample is not computed; an undrawn decision has ratio 1 by definition."""
    policy, _, batch = ready(GRPO)
    log_prob, valid = batch.flow.trace.log_prob.clone(), batch.valid.clone()
    log_prob[2], valid[2] = 55.0, False
    batch = with_trace(
        dataclasses.replace(batch, credit=dataclasses.replace(batch.credit, valid=valid)), log_prob=log_prob
    )
    run(policy, GRPO, batch, recipe())


def test_metrics_are_means_over_what_is_there() -> None:
    """Where there is no decision or no token, nothing is measured, whatever stands in the tensor."""
    mask = torch.tensor([[True, True, False], [True, False, False]])
    losses = Losses(
        parts={"policy": torch.ones(2, 3)},
        weights=mask.double(),
        mask=mask,
        metrics={"entropy": torch.tensor([[1.0, 2.0, 50.0], [6.0, 70.0, 80.0]])},
    )
    sums = learning.Sums()
    sums.add(losses, count=3)
    assert sums.totals == pytest.approx({"loss/policy": 1.0, "entropy": 3.0})


@pytest.mark.parametrize("rounds", (True, False))
def test_a_model_that_rounds_otherwise_in_other_shapes_is_allowed_that_and_no_more(rounds: bool, monkeypatch) -> None:
    """As a U-Net in float32 does; the same size of deviation from another guidance is still a mismatch."""
    velocity = ToyFlowModel.velocity

    def rounding(self, x, t, condition):
        return velocity(self, x, t, condition) * (1 + (3e-6 * math.sin(len(x)) if rounds else 0))

    monkeypatch.setattr(ToyFlowModel, "velocity", rounding)
    policy, _, batch = ready(GRPO)
    if rounds:
        metrics, _ = run(policy, GRPO, batch, recipe())
        stated = 1e-6 * batch.samples.decisions.rounding
        assert stated < metrics["ratio/first_step_max_dev"] <= metrics["ratio/limit"] < 31 * stated
        other = dataclasses.replace(batch.flow.conditioning, guidance=1.5)
    else:
        other = dataclasses.replace(batch.flow.conditioning, guidance=1 + 1e-5)
    with pytest.raises(RunError, match=r"train\.ratio_tolerance 1e-06"):
        run(policy, GRPO, with_samples(batch, conditioning=other), recipe())
