"""DiffusionNFT against loops and a gradient derived by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tests.reference import losses as reference
from tests.reference.toys import ToyFlowModel, gradients, keys, perturb, rollout_batch

from plaudit.objectives.nft import Nft, branch_loss, nft_loss
from plaudit.objectives.terms import forward_points, stratified_times
from plaudit.recipe.objectives import NftConfig
from plaudit.recipe.sampling import Sampler
from plaudit.train.trainable import Policy

ODE = Sampler(kernel="ode", steps=4)


def points(shape: tuple[int, ...], rows: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    v, v_old, x, x0 = rng.standard_normal((4, rows, *shape))
    return v, v_old, x, rng.uniform(0.05, 1, rows), x0


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (2, 2, 3)])
@pytest.mark.parametrize("beta", (0.1, 1.0, 2.0))
def test_the_loss_is_the_loops_in_value_and_gradient(shape: tuple[int, ...], beta: float) -> None:
    v, v_old, x, t, x0 = points(shape, 6)
    r = np.array([0.0, 1.0, 0.5, 0.3, 0.9, 0.5])
    v[4] = v_old[4]
    expected = reference.nft(v, v_old, x, t, x0, r, beta)
    leaves = [torch.tensor(a, requires_grad=True) for a in (v, v_old, x, x0)]
    loss = nft_loss(leaves[0], leaves[1], leaves[2], torch.tensor(t), leaves[3], torch.tensor(r), beta)
    loss.sum().backward()
    np.testing.assert_allclose(loss.detach().numpy(), expected.value, rtol=1e-10)
    np.testing.assert_allclose(leaves[0].grad.numpy(), expected.gradient, rtol=1e-8, atol=1e-12)
    assert leaves[1].grad is None, "the old policy is not trained"


def test_the_weights_are_detached_and_floored() -> None:
    x0 = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    exact = x0.clone().requires_grad_()
    branch_loss(exact, x0, torch.ones(())).sum().backward()
    assert torch.equal(exact.grad, torch.zeros(1, 2, dtype=torch.float64))
    close = (x0 + 1e-7).requires_grad_()
    loss = branch_loss(close, x0, torch.ones(()))
    assert loss.item() == pytest.approx(1e-14 / 1e-5, rel=1e-4)
    loss.sum().backward()
    np.testing.assert_allclose(close.grad.numpy(), 1e-7 / 1e-5, rtol=1e-4)


def test_at_the_old_policy_the_loss_is_the_same_for_any_optimality() -> None:
    """v = v_old makes both branches equal: |x0_hat - x0|^2 / mean|x0_hat - x0|, divided by beta."""
    v, _, x, t, x0 = (torch.tensor(a) for a in points((5,), 3))
    error = (x - t[:, None] * v - x0).abs()
    expected = error.square().mean(1) / error.mean(1) / 0.5
    for r in (0.0, 0.5, 1.0):
        found = nft_loss(v, v, x, t, x0, torch.full((3,), r, dtype=torch.float64), 0.5)
        torch.testing.assert_close(found, expected)


def test_at_the_old_policy_a_middling_sample_has_no_gradient_and_good_and_bad_are_opposite() -> None:
    v, _, x, t, x0 = (torch.tensor(a) for a in points((5,), 3))
    slopes = {}
    for r in (0.0, 0.5, 1.0):
        leaf = v.clone().requires_grad_()
        nft_loss(leaf, v, x, t, x0, torch.full((3,), r, dtype=torch.float64), 1.0).sum().backward()
        slopes[r] = leaf.grad
    torch.testing.assert_close(slopes[0.5], torch.zeros_like(v), rtol=0, atol=1e-15)
    torch.testing.assert_close(slopes[1.0], -slopes[0.0])
    toward = (x - x0) / t[:, None] - v  # the velocity that would reach x0
    assert ((-slopes[1.0] * toward).sum(1) > 0).all(), "a good sample pulls the velocity toward itself"


def test_the_objective_is_the_loss_at_the_batchs_points() -> None:
    model = ToyFlowModel()
    policy = Policy(model)
    config = NftConfig(times_per_sample=3, beta=0.7, advantage_clip=2.0, kl_weight=0.05)
    for name in Nft(config).snapshots:
        policy.take(name)
    batch = rollout_batch(model, ODE)
    old = {k: p.detach().clone() for k, p in model.network.named_parameters()}
    perturb(model)
    objective = Nft(config)
    found = objective.losses(objective.terms(policy, batch))
    forward = forward_points(batch, stratified_times(batch.keys, 3, 0.0, 1.0, 1.0))
    condition = batch.flow.conditioning.select(forward.sample).condition
    with torch.no_grad():
        v = model.velocity(forward.x, forward.t, condition)
        v_old = torch.func.functional_call(model.network, old, (forward.x, forward.t, condition.tensors["caption"]))
    r = np.array([reference.optimality(a, 2.0) for a in batch.credit.value.repeat_interleave(3).tolist()])
    arrays = [a.double().numpy() for a in (v, v_old, forward.x, forward.t, forward.x0)]
    expected = reference.nft(*arrays, r, 0.7).value * 2.0
    np.testing.assert_allclose(found.parts["policy"].detach().flatten().numpy(), expected, rtol=1e-4)
    drift = (v - v_old).square().flatten(1).mean(1).numpy()
    np.testing.assert_allclose(found.parts["kl"].detach().flatten().numpy(), 0.05 * drift, rtol=1e-4)
    np.testing.assert_allclose(found.metrics["old_distance"].flatten().numpy(), drift, rtol=1e-4)
    assert found.mask.shape == found.parts["policy"].shape == (12, 3)


def test_the_kl_part_alone_has_a_gradient() -> None:
    model = ToyFlowModel()
    policy, objective = Policy(model), Nft(NftConfig(kl_weight=0.1))
    for name in objective.snapshots:
        policy.take(name)
    batch = rollout_batch(model, ODE)
    perturb(model)
    objective.losses(objective.terms(policy, batch)).parts["kl"].sum().backward()
    assert gradients(model).norm() > 1e-4


def test_without_kl_weight_there_is_no_reference() -> None:
    assert set(Nft(NftConfig(kl_weight=0.0)).snapshots) == {"old"}
    assert Nft(NftConfig(kl_weight=0.1)).snapshots["reference"] is None


def test_the_old_policys_decay_starts_near_zero_and_is_capped() -> None:
    """Pitfall 41: min(rate * step, max)."""
    decay = Nft(NftConfig(old_decay_rate=1e-3, old_decay_max=0.5)).old_decay
    assert [decay(s) for s in (0, 1, 100, 500, 9999)] == [0.0, 0.001, 0.1, 0.5, 0.5]


def test_missing_and_uninformative_samples_are_left_out() -> None:
    batch = rollout_batch(ToyFlowModel(), ODE)
    valid, informative = batch.valid.clone(), batch.informative.clone()
    valid[1], informative[4:8] = False, False
    batch = dataclasses.replace(batch, credit=dataclasses.replace(batch.credit, valid=valid), informative=informative)
    mask = Nft(NftConfig(times_per_sample=2)).mask(batch)
    assert mask.shape == (12, 2) and mask.any(1).tolist() == [i != 1 and not 4 <= i < 8 for i in range(12)]


# --- times and forward points ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", (1, 2, 7))
def test_there_is_one_time_in_every_stratum(count: int) -> None:
    times = stratified_times(keys(500), count, 0.2, 0.8, 1.0)
    edges = torch.linspace(0.2, 0.8, count + 1)
    for k in range(count):
        inside = times[:, k]
        assert (inside >= edges[k] - 1e-6).all() and (inside <= edges[k + 1] + 1e-6).all()
        width = 0.6 / count
        assert inside.mean().item() == pytest.approx(
            (edges[k] + edges[k + 1]).item() / 2, abs=4 * width / np.sqrt(12 * 500)
        )


def test_shift_bends_times_toward_noise() -> None:
    plain, bent = (stratified_times(keys(9), 3, 0.0, 1.0, shift) for shift in (1.0, 3.0))
    torch.testing.assert_close(bent, 3 * plain / (1 + 2 * plain))


def test_forward_points_are_the_straight_path_with_the_samples_own_noise() -> None:
    batch = rollout_batch(ToyFlowModel(), ODE)
    times = stratified_times(batch.keys, 2, 0.0, 1.0, 1.0)
    whole = forward_points(batch, times)
    t = times.flatten()[:, None, None, None]
    torch.testing.assert_close(whole.x, (1 - t) * batch.flow.latents.repeat_interleave(2, 0) + t * whole.noise)
    assert whole.sample.tolist() == [i // 2 for i in range(24)]
    assert torch.unique(whole.noise.flatten(1), dim=0).shape[0] == 24
    rows = torch.tensor([5, 1])
    part = forward_points(batch.select(rows), times[rows])
    pick = torch.tensor([10, 11, 2, 3])
    assert torch.equal(part.noise, whole.noise[pick]) and torch.equal(part.x, whole.x[pick])
