"""The walk: gradients through it equal finite differences, with and without recomputation, whole and cut."""

from __future__ import annotations

import functools

import pytest
import torch
from tests.reference.toys import ToyFlowModel, conditioning, keys, prompts
from torch import Tensor

from plaudit.models.flow import guided_velocity
from plaudit.sampling.kernels import transition
from plaudit.sampling.noise import gaussian
from plaudit.sampling.path import carried_steps, path, walked
from plaudit.sampling.plan import SamplingPlan

B, K = 6, 4
KERNELS = (("ode", "euler"), ("ode", "heun"), ("flow_sde", "euler"), ("cps", "euler"), ("ddim_eta", "euler"))


def plan_of(kernel: str, solver: str) -> SamplingPlan:
    levels = torch.full((B, K), 0.0 if kernel == "ode" else 0.5)
    levels[:, -1] = 0
    first = torch.zeros(B, dtype=torch.long)
    times = torch.linspace(1, 0, K + 1)
    return SamplingPlan(kernel=kernel, times=times, levels=levels, first=first, decisions=K - 1, solver=solver)


def value(model: ToyFlowModel, plan: SamplingPlan, guidance: float = 1.0, start: int = 0, **how: object) -> Tensor:
    """A smooth function of where the path ends."""
    at = keys(B)
    velocity = functools.partial(guided_velocity, model, conditioning=conditioning(model, prompts(B), guidance))
    x = gaussian(at, "initial", model.latent_shape)
    end = walked(path(velocity, x, plan, at, start=start, **how), x)
    return (torch.sin(end) * gaussian(at, "weights", model.latent_shape)).sum()


def gradient(model: ToyFlowModel, loss: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.network.parameters()))])


def shifted(model: ToyFlowModel, direction: Tensor, size: float) -> None:
    at = 0
    for parameter in model.network.parameters():
        parameter.data += size * direction[at : at + parameter.numel()].view_as(parameter)
        at += parameter.numel()


@pytest.mark.parametrize("recompute", (False, True))
@pytest.mark.parametrize("guidance", (1.0, 2.5))
@pytest.mark.parametrize(("kernel", "solver"), KERNELS)
def test_the_gradient_equals_finite_differences(kernel: str, solver: str, guidance: float, recompute: bool) -> None:
    model, plan = ToyFlowModel(), plan_of(kernel, solver)
    every = carried_steps("none", K, keys(B))
    found = gradient(model, value(model, plan, guidance, carries=every, recompute=recompute))
    size = 5e-3
    for seed in range(3):
        direction = torch.randn(len(found), generator=torch.Generator().manual_seed(seed))
        direction /= direction.norm()
        values = []
        for sign in (1, -1, -1):
            shifted(model, direction, sign * size)
            values.append(value(model, plan, guidance).item())
        shifted(model, direction, size)
        slope = (values[0] - values[2]) / (2 * size)
        assert slope == pytest.approx(float(found @ direction), rel=5e-3, abs=1e-3)
    assert found.abs().max() > 0.05


def cut_by_hand(model: ToyFlowModel, plan: SamplingPlan, carries: Tensor) -> Tensor:
    """The same value, sample by sample, with every velocity that carries nothing taken as a number."""
    at, condition, total = keys(B), conditioning(model, prompts(B)), torch.zeros(())
    for i in range(B):
        row = torch.tensor([i])
        x = gaussian([at[i]], "initial", model.latent_shape)
        for k in range(plan.steps):
            t, t_next, level = plan.times[k : k + 1], plan.times[k + 1 : k + 2], plan.levels[row, k]
            v = guided_velocity(model, x, t, condition.select(row))
            v = v if carries[i, k] else v.detach()
            step = transition(plan.kernel, x, v, t, t_next, level)
            noise = gaussian([at[i]], "transition", model.latent_shape, k)
            x = step.mean + step.std.reshape(-1, 1, 1, 1) * noise
        total = total + (torch.sin(x) * gaussian([at[i]], "weights", model.latent_shape)).sum()
    return total


@pytest.mark.parametrize("truncation", ("none", "last", "suffix", "per_step"))
@pytest.mark.parametrize("kernel", ("ode", "flow_sde"))
def test_cut_gradients_equal_those_of_a_loop_with_detached_velocities(kernel: str, truncation: str) -> None:
    model, plan = ToyFlowModel(), plan_of(kernel, "euler")
    carries = carried_steps(truncation, K, keys(B), last=2)
    found = [gradient(model, value(model, plan, carries=carries, recompute=again)) for again in (False, True)]
    expected = gradient(model, cut_by_hand(model, plan, carries))
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-7)
    whole = gradient(model, value(model, plan, carries=torch.ones_like(carries)))
    assert (truncation == "none") == torch.allclose(found[0], whole, rtol=1e-3)


def test_steps_that_carry_nothing_cost_no_graph() -> None:
    """The network is asked once a step on the way there, and again on the way back for the carrying steps alone."""
    model, plan = ToyFlowModel(), plan_of("ode", "euler")
    loss = value(model, plan, carries=carried_steps("last", K, keys(B), last=1))
    assert len(model.rows) == K
    loss.backward()
    assert len(model.rows) == K + 1


def test_which_steps_carry() -> None:
    many = keys(4000)
    assert carried_steps("last", 3, keys(2), last=2).tolist() == [[False, True, True]] * 2
    suffix, single = carried_steps("suffix", K, many), carried_steps("per_step", K, many)
    assert (suffix[:, 1:] >= suffix[:, :-1]).all(), "a suffix once begun goes on to the end"
    lengths = torch.bincount(suffix.sum(1), minlength=K + 1) / len(many)
    torch.testing.assert_close(lengths, torch.full((K + 1,), 1 / (K + 1)), atol=0.03, rtol=0)
    expected = (torch.arange(K) + 1) / (K + 1)
    torch.testing.assert_close(single.float().mean(0), expected, atol=0.03, rtol=0)
    torch.testing.assert_close(
        (single[:, 1] & single[:, 2]).float().mean(), expected[1] * expected[2], atol=0.03, rtol=0
    )
    assert torch.equal(carried_steps("suffix", K, many[7:9]), suffix[7:9]), "a sample's own number, whatever the batch"


def test_a_walk_goes_on_where_another_stopped() -> None:
    model, plan, at = ToyFlowModel(), plan_of("flow_sde", "euler"), keys(B)
    velocity = functools.partial(guided_velocity, model, conditioning=conditioning(model, prompts(B)))
    x = gaussian(at, "initial", model.latent_shape)
    with torch.no_grad():
        middle = walked(path(velocity, x, plan, at, stop=2), x)
        assert torch.equal(
            walked(path(velocity, middle, plan, at, start=2), middle), walked(path(velocity, x, plan, at), x)
        )
