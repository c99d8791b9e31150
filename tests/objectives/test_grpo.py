"""The clipped ratio against loops, its clip sides, and Flow-GRPO's loss on recorded decisions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.reference import losses as reference
from tests.reference.toys import ToyFlowModel, gradients, perturb, rollout_batch, with_trace

from plaudit.objectives.grpo import Grpo, clipped_ratio_loss
from plaudit.objectives.terms import FlowTerms
from plaudit.recipe.objectives import GrpoConfig, KlConfig
from plaudit.recipe.sampling import Sampler
from plaudit.sampling.kernels import kl_divergence
from plaudit.train.trainable import Policy

SAMPLER = Sampler(kernel="flow_sde", steps=5, level=0.7)


@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (5, 11)])
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.1, 0.4), (1e-4, 1e-4)])
def test_the_clipped_ratio_is_the_loops_in_value_and_gradient(shape: tuple[int, int], low: float, high: float) -> None:
    rng = np.random.default_rng(0)
    log_ratio, advantage = rng.normal(0, 0.4, shape), rng.normal(0, 1, shape)
    advantage[0, 0] = 0.0
    expected = reference.clipped_ratio(log_ratio, advantage, low, high)
    leaf = torch.tensor(log_ratio, requires_grad=True)
    loss = clipped_ratio_loss(leaf, torch.tensor(advantage), low, high)
    loss.sum().backward()
    np.testing.assert_allclose(loss.detach().numpy(), expected.value, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(leaf.grad.numpy(), expected.gradient, rtol=1e-12, atol=1e-15)


def test_at_ratio_one_the_gradient_is_the_policy_gradient() -> None:
    advantage = torch.tensor([[2.0, -1.0, 0.0]], dtype=torch.float64)
    leaf = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    loss = clipped_ratio_loss(leaf, advantage, 0.2, 0.2)
    loss.sum().backward()
    assert torch.equal(loss.detach(), -advantage) and torch.equal(leaf.grad, -advantage)


@pytest.mark.parametrize(
    ("advantage", "ratio", "moves"),
    [(1, 1.5, False), (1, 0.5, True), (-1, 0.5, False), (-1, 1.5, True), (1, 1.1, True), (-1, 0.9, True)],
)
def test_only_the_side_that_overshoots_is_clipped(advantage: float, ratio: float, moves: bool) -> None:
    """A good sample may not become much likelier, a bad one not much less likely; the way back is always open."""
    leaf = torch.tensor([[ratio]]).log().requires_grad_()
    clipped_ratio_loss(leaf, torch.tensor([[float(advantage)]]), 0.2, 0.2).sum().backward()
    assert (leaf.grad.item() != 0) == moves
    if moves:
        assert leaf.grad.item() == pytest.approx(-advantage * ratio)


def test_asymmetric_ranges_clip_where_they_say() -> None:
    ratio = torch.tensor([[0.85, 0.95, 1.25, 1.35]]).log()
    for advantage, expected in ((1.0, [-0.85, -0.95, -1.25, -1.3]), (-1.0, [0.9, 0.95, 1.25, 1.35])):
        loss = clipped_ratio_loss(ratio, torch.full_like(ratio, advantage), 0.1, 0.3)
        assert loss[0].tolist() == pytest.approx(expected, rel=1e-6)


def losses_of(config: GrpoConfig, moved: bool, density: str = "exact"):
    model = ToyFlowModel()
    policy = Policy(model)
    policy.take("reference")
    sampler = SAMPLER.model_copy(update={"kernel": "cps" if density == "cps" else SAMPLER.kernel})
    batch = rollout_batch(model, sampler, density=density)
    if moved:
        perturb(model, 0.02)
    objective = Grpo(config)
    return objective.losses(objective.terms(policy, batch)), batch, policy


@pytest.mark.parametrize("density", ("exact", "mean", "cps"))
def test_the_loss_is_the_clipped_ratio_of_recorded_to_replayed(density: str) -> None:
    found, batch, policy = losses_of(GrpoConfig(type="grpo", density=density), moved=True, density=density)
    with torch.no_grad():
        log_ratio = (FlowTerms(policy, batch).log_prob - batch.flow.trace.log_prob).numpy()
    advantage = np.repeat(batch.credit.value.double().numpy()[:, None], log_ratio.shape[1], axis=1)
    expected = reference.clipped_ratio(log_ratio, advantage, 0.2, 0.2)
    np.testing.assert_allclose(found.parts["policy"].detach().numpy(), expected.value, rtol=1e-6)
    assert found.mask.all() and found.mask.shape == (12, 4)
    ratio = np.exp(log_ratio)
    np.testing.assert_allclose(found.metrics["ratio/mean"].numpy(), ratio, rtol=1e-6)
    np.testing.assert_allclose(found.metrics["ratio/deviation"].numpy(), abs(ratio - 1), rtol=1e-5, atol=1e-7)
    assert (found.metrics["clip_ratio/low"].numpy() == ((ratio < 0.8) & (advantage < 0))).all()
    assert (found.metrics["clip_ratio/high"].numpy() == ((ratio > 1.2) & (advantage > 0))).all()
    if density == "exact":
        assert found.metrics["clip_ratio/low"].any() and found.metrics["clip_ratio/high"].any()


def test_before_any_update_the_gradient_is_that_of_weighted_log_likelihood() -> None:
    """REINFORCE, computed without a ratio."""
    model = ToyFlowModel()
    policy, objective = Policy(model), Grpo(GrpoConfig(type="grpo"))
    batch = rollout_batch(model, SAMPLER)
    objective.losses(objective.terms(policy, batch)).parts["policy"].sum().backward()
    ours = gradients(model)
    model.network.zero_grad()
    (-batch.credit.value[:, None] * FlowTerms(policy, batch).log_prob).sum().backward()
    torch.testing.assert_close(ours, gradients(model), rtol=1e-4, atol=1e-5)
    assert ours.norm() > 1e-3


@pytest.mark.parametrize("scaling", ("exact", "mean", "flow_grpo"))
def test_the_kl_part_is_weight_times_kl_with_a_gradient(scaling: str) -> None:
    config = GrpoConfig(type="grpo", kl=KlConfig(weight=0.3, scaling=scaling))
    found, batch, policy = losses_of(config, moved=True)
    terms = FlowTerms(policy, batch)
    t, s = (u.flatten() for u in (batch.flow.trace.times[:, :-1], batch.flow.trace.times[:, 1:]))
    kl = kl_divergence(terms.step, terms.reference.step, t, s, scaling, "flow_sde").reshape(12, 4)
    torch.testing.assert_close(found.parts["kl"], 0.3 * kl)
    torch.testing.assert_close(found.metrics["kl"], kl.detach())
    assert (kl > 0).all()
    found.parts["kl"].sum().backward()
    assert gradients(policy.model).norm() > 1e-4, "pitfall 37: KL computed without gradient"


def test_without_kl_there_is_no_reference_and_no_kl_part() -> None:
    found, _, _ = losses_of(GrpoConfig(type="grpo"), moved=False)
    assert set(found.parts) == {"policy"} and Grpo(GrpoConfig(type="grpo")).snapshots == {}
    assert Grpo(GrpoConfig(type="grpo", kl=KlConfig(weight=0.1))).snapshots == {"reference": None}


def test_mask_leaves_out_missing_samples_and_undrawn_decisions() -> None:
    import dataclasses

    batch = rollout_batch(ToyFlowModel(), SAMPLER)
    valid = batch.valid.clone()
    valid[3] = False
    undrawn = batch.flow.trace.mask.clone()
    undrawn[:, 2] = False
    batch = with_trace(dataclasses.replace(batch, credit=dataclasses.replace(batch.credit, valid=valid)), mask=undrawn)
    mask = Grpo(GrpoConfig(type="grpo")).mask(batch)
    assert not mask[3].any() and not mask[:, 2].any() and mask.sum() == 11 * 3


def test_rows_that_need_no_network_call_depend_on_the_kl() -> None:
    import dataclasses

    batch = rollout_batch(ToyFlowModel(), SAMPLER)
    informative = torch.arange(12) >= 4
    batch = dataclasses.replace(batch, informative=informative)
    assert torch.equal(Grpo(GrpoConfig(type="grpo")).computed(batch), informative)
    assert Grpo(GrpoConfig(type="grpo", kl=KlConfig(weight=0.1))).computed(batch).all()
