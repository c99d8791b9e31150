"""Our formulas against the numbers that the published code of others gives (`published.py`)."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from pydantic import ValidationError
from tests.reference import published
from tests.reference.toys import ToyFlowModel, rollout_batch
from torch import Tensor

from plaudit.objectives.grpo import Grpo
from plaudit.objectives.nft import Nft, nft_loss
from plaudit.recipe.objectives import GrpoConfig, NftConfig
from plaudit.recipe.sampling import Sampler
from plaudit.recipe.schema import Recipe
from plaudit.sampling.kernels import Transition, kl_divergence, log_density, transition
from plaudit.shaping.credit import group_advantage, optimality
from plaudit.train.learn import accumulate
from plaudit.train.trainable import Policy


def latents(*numbers: float) -> Tensor:
    return torch.tensor(numbers).reshape(1, 1, 2, 3)


def one(number: float) -> Tensor:
    return torch.tensor([number])


def our_step(step: published.Step, velocity: tuple[float, ...]) -> Transition:
    times = (one(step.t), one(step.t_next), one(step.level))
    return transition(step.kernel, latents(*published.X), latents(*velocity), *times)


@pytest.mark.parametrize("step", published.STEPS.values(), ids=published.STEPS)
def test_steps_densities_and_kl_are_the_published_ones(step: published.Step) -> None:
    ours = our_step(step, published.V)
    assert ours.std.item() == pytest.approx(step.std, rel=2e-6)
    torch.testing.assert_close(ours.mean, latents(*step.mean), rtol=0, atol=2e-6)
    found = log_density(latents(*published.X_NEXT), ours, step.density, step.kernel)
    assert found.item() == pytest.approx(step.log_density, rel=2e-5)
    if step.kl_scaling is not None:
        reference = our_step(step, published.V_REFERENCE)
        kl = kl_divergence(ours, reference, one(step.t), one(step.t_next), step.kl_scaling, step.kernel)
        assert kl.item() == pytest.approx(step.kl, rel=1e-4)


def test_the_first_step_of_flow_sde_has_the_level_as_its_deviation() -> None:
    """sigma = 1 is replaced by the second sigma in the denominator only."""
    step = transition("flow_sde", torch.ones(1, 1), torch.zeros(1, 1), one(1.0), one(0.9), one(0.7))
    expected = published.ONE_NUMBER
    assert step.std.item() == pytest.approx(expected["std"], rel=1e-6)
    assert step.mean.item() == pytest.approx(expected["mean"], rel=1e-6)
    found = log_density(torch.ones(1, 1), step, "flow_grpo", "flow_sde").item()
    assert found == pytest.approx(expected["log_density"], rel=1e-6)


@pytest.mark.parametrize("step", published.DDIM)
def test_ddim_steps_are_diffusers_and_their_density_ddpos(step: published.Ddim) -> None:
    """In our coordinates a latent is larger by (a + s), with a = sqrt(alpha_bar) and s = sqrt(1 - alpha_bar) = (a + s) t."""
    a, a_next = step.alpha_bar**0.5, step.alpha_bar_next**0.5
    s, s_next = (1 - step.alpha_bar) ** 0.5, (1 - step.alpha_bar_next) ** 0.5
    x, noise = latents(*published.X), latents(*published.V)
    velocity = noise - (x - s * noise) / a
    ours = transition("ddim_eta", x / (a + s), velocity, one(s / (a + s)), one(s_next / (a_next + s_next)), one(0.7))
    size = a_next + s_next
    assert ours.std.item() * size == pytest.approx(step.std, rel=2e-5)
    torch.testing.assert_close(ours.mean * size, latents(*step.mean), rtol=2e-5, atol=2e-5)
    found = log_density(latents(*published.X_NEXT) / size, ours, "mean").item()
    assert found - math.log(size) == pytest.approx(step.log_density, rel=1e-4)


@pytest.mark.parametrize(("t", "t_next", "expected"), published.EULER)
@pytest.mark.parametrize("kernel", ("ode", "flow_sde", "constant_eta", "cps", "ddim_eta"))
def test_level_zero_is_diffusers_euler_step(kernel: str, t: float, t_next: float, expected: tuple[float, ...]) -> None:
    args = one(t), one(t_next), one(0.0)
    found = transition(kernel, latents(*published.X), latents(*published.V), *args).mean
    torch.testing.assert_close(found, latents(*expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("kernel", "objective", "named"),
    [
        ("flow_sde", {"density": "cps"}, "objective.density: cps with sampler.kernel flow_sde"),
        ("constant_eta", {"density": "flow_grpo"}, "objective.density: flow_grpo with sampler.kernel constant_eta"),
        ("ddim_eta", {"density": "flow_grpo"}, "it was published for flow_sde, cps"),
        ("ddim_eta", {"kl": {"scaling": "flow_grpo"}}, "objective.kl.scaling: flow_grpo with sampler.kernel ddim_eta"),
        ("constant_eta", {"kl": {"scaling": "flow_grpo"}}, "or use exact or mean"),
        ("flow_sde", {"kl": {"scaling": "cps"}}, "objective.kl.scaling: cps with sampler.kernel flow_sde"),
    ],
)
def test_combinations_that_nobody_published_are_refused(kernel: str, objective: dict, named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        Recipe.model_validate(
            {"sampler": {"type": "flow", "kernel": kernel}, "objective": {"type": "grpo"} | objective}
        )
    kept = {"flow_sde": "flow_grpo", "cps": "cps"}.get(kernel, "mean")
    objective = {"type": "grpo", "density": kept, "kl": {"scaling": kept}}
    Recipe.model_validate({"sampler": {"type": "flow", "kernel": kernel}, "objective": objective})


# --- advantages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("std", published.ADVANTAGES)
def test_credit_are_those_of_the_named_convention(std: str) -> None:
    """Both add a small number to the deviation, which is undone here; `floor` is our departure."""
    score, group = torch.tensor(published.REWARDS, dtype=torch.float64), torch.arange(12) // 4
    _, _, expected = published.ADVANTAGES[std]
    deviation = {
        "group": score[:4].std(),
        "batch": score.std(),
        "global": score.std(correction=0),
        "none": torch.tensor(math.inf),
    }[std].item()
    undone = 1 + published.STABILISER / deviation
    found = group_advantage(score, group, std=std).value
    assert found.tolist() == pytest.approx([undone * a for a in expected], rel=1e-6)


def grpo_gradient(zero_advantage: str) -> Tensor:
    """Gradient `[9, D]` of an update's loss with respect to the log-probabilities, which are a network's only output here."""
    score, group = torch.tensor(published.FILTERED_REWARDS), torch.arange(9) // 3
    advantage = group_advantage(score, group, std="global").value
    batch = rollout_batch(ToyFlowModel(), Sampler(kernel="flow_sde", steps=4), groups=3, size=3)
    batch = dataclasses.replace(batch, credit=dataclasses.replace(batch.credit, value=advantage))
    objective = Grpo(GrpoConfig(type="grpo", zero_advantage=zero_advantage))
    log_prob = batch.flow.trace.log_prob.clone().requires_grad_()

    class Recorded:
        def __init__(self, part) -> None:
            self.batch, self.log_prob = part, log_prob[[int(k.index) + 3 * int(k.prompt[1:]) for k in part.keys]]

    objective.terms = lambda policy, part: Recorded(part)  # type: ignore[method-assign, assignment]
    accumulate(Policy(ToyFlowModel()), objective, batch, 4)
    assert log_prob.grad is not None
    return log_prob.grad


def test_samples_without_advantage_can_leave_the_divisor_as_in_flow_grpo() -> None:
    deviation = torch.tensor(published.FILTERED_REWARDS).std(correction=0).item()
    expected = (1 + published.STABILISER / deviation) * torch.tensor(published.FILTERED_GRADIENT).double()
    found = grpo_gradient("drop")
    steps = found.shape[1]  # one update of ours holds all steps, theirs one
    torch.testing.assert_close(found * steps, expected[:, None].expand_as(found), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(grpo_gradient("keep"), found * 5 / 9, rtol=1e-5, atol=1e-7)


# --- DiffusionNFT ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "config"),
    [
        (0, {"old_decay_rate": 0.0}),
        (1, {}),
        (2, {"old_decay_flat": 75, "old_decay_rate": 0.0075, "old_decay_max": 0.999}),
    ],
)
def test_every_published_decay_of_the_old_policy_can_be_had(number: int, config: dict) -> None:
    decay = Nft(NftConfig(**config)).old_decay
    for step, expected in published.NFT_DECAY[number].items():
        assert decay(step) == pytest.approx(expected, abs=1e-12), step


@pytest.mark.parametrize(("beta", "t", "advantage", "expected", "slope"), published.NFT_LOSS)
def test_the_loss_of_nft_is_the_published_one(
    beta: float, t: float, advantage: float, expected: float, slope: tuple[float, float]
) -> None:
    v = latents(*published.V).requires_grad_()
    v_old, x, x0 = (latents(*numbers) for numbers in (published.V_REFERENCE, published.X, published.X_NEXT))
    optimal = optimality(one(advantage), 5.0).double()
    loss = 5.0 * nft_loss(v, v_old, x, one(t), x0, optimal, beta).sum()
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert v.grad is not None and v.grad.flatten()[:2].tolist() == pytest.approx(slope, rel=1e-4, abs=1e-6)
