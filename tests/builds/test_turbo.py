"""The few-step generator: its losses against slow versions, its build for a few steps, and what ships."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from plaudit.builds import turbo
from plaudit.builds.turbo import (
    PLAN,
    Pairs,
    accuracy,
    build_turbo,
    draw_pairs,
    load_pairs,
    matching_gradient,
    regression_loss,
    student_samples,
)
from plaudit.errors import RunError
from plaudit.lab.networks import WEIGHTS
from plaudit.lab.scenes.grammar import evaluation_prompts
from plaudit.models.flow import EMPTY_PROMPT, Conditioning
from plaudit.models.lab import LabFlowModel
from plaudit.sampling.noise import gaussian as gaussian_noise
from plaudit.sampling.noise import numbered_keys
from plaudit.sampling.plan import deterministic_plan
from plaudit.sampling.rollout import draw


@pytest.fixture(scope="module")
def teacher() -> LabFlowModel:
    return LabFlowModel("slots")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = dataclasses.replace(PLAN, batch=3, teacher_steps=2, num_pairs=6, regression_steps=2, warmup=1, save_every=2)
    monkeypatch.setattr(turbo, "PLAN", plan)
    monkeypatch.setattr(turbo, "CHUNK", 4)
    monkeypatch.setattr(turbo, "accuracy", lambda model, steps, count=12: 0.0)


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- what is minimised -----------------------------------------------------------------------------------------------


def test_a_pair_is_a_noise_and_where_guided_euler_steps_take_it(teacher: LabFlowModel) -> None:
    plan = dataclasses.replace(PLAN, teacher_steps=3, guidance=2.5)
    pairs = draw_pairs(teacher, plan, seed=1, chunk=7)
    x = pairs.noise.clone()
    with torch.no_grad():
        for k in range(3):
            t = torch.full((len(x),), 1 - k / 3)
            with_caption = teacher.velocity(x, t, pairs.condition)
            without = teacher.velocity(x, t, teacher.encode([EMPTY_PROMPT] * len(x)))
            x = x - (without + 2.5 * (with_caption - without)) / 3
    torch.testing.assert_close(pairs.endpoint, x, atol=1e-4, rtol=0)
    assert pairs.noise.std() == pytest.approx(1, abs=0.05) and (pairs.noise - x).std() > 0.5


def test_regression_is_on_the_straight_line(teacher: LabFlowModel) -> None:
    condition = teacher.encode(evaluation_prompts("heldout", 4))
    pairs = Pairs(noise=gaussian(4, 4, 10), endpoint=gaussian(4, 4, 10, seed=1), condition=condition)
    t, total = torch.tensor([1.0, 0.5, 0.5, 1.0]), 0.0
    for i in range(4):
        x_t = (1 - t[i]) * pairs.endpoint[i] + t[i] * pairs.noise[i]
        v = teacher.velocity(x_t[None], t[i][None], condition.select(torch.tensor([i])))[0]
        total += (v - (pairs.noise[i] - pairs.endpoint[i])).square().sum().item()
    assert regression_loss(teacher, pairs, t).item() == pytest.approx(total / 160, rel=1e-4)


def test_student_samples_are_what_one_and_two_euler_steps_draw(teacher: LabFlowModel) -> None:
    prompts = evaluation_prompts("heldout", 6)
    keys, condition = numbered_keys(prompts, seed=0, step=0), teacher.encode(prompts)
    noise = gaussian_noise(keys, "initial", teacher.latent_shape)
    for steps, t in ((1, 1.0), (2, 0.5)):
        plan = deterministic_plan(teacher.schedule(steps, None), len(keys))
        drawn = draw(teacher, Conditioning(condition=condition), plan, keys, tile=64).latents
        ours = student_samples(teacher, noise, torch.full((6,), t), condition)
        torch.testing.assert_close(ours, drawn, atol=1e-5, rtol=0)
    mixed = student_samples(teacher, noise, torch.tensor([1.0, 0.5] * 3), condition)
    torch.testing.assert_close(mixed[1::2], drawn[1::2], atol=1e-5, rtol=0)


def gaussian_velocity(x: Tensor, t: Tensor, mean: float, std: float = 0.5) -> Tensor:
    """Velocity E[e - x_0 | x_t] of a flow whose data are N(mean, std^2)."""
    t = t[:, None]
    x0 = mean + (1 - t) * std**2 / ((1 - t) ** 2 * std**2 + t**2) * (x - (1 - t) * mean)
    return (x - x0) / t


def test_the_matching_gradient_of_two_gaussians_is_known() -> None:
    t, x0, noise = torch.tensor([0.2, 0.5, 0.9]), gaussian(3, 4, seed=2) * 0.5 - 1, gaussian(3, 4, seed=3)
    x_t = (1 - t[:, None]) * x0 + t[:, None] * noise
    gradient = matching_gradient(x0, noise, t, gaussian_velocity(x_t, t, 2.0), gaussian_velocity(x_t, t, -1.0))
    for i in range(3):
        shrink = 1 - (1 - t[i]) ** 2 * 0.25 / ((1 - t[i]) ** 2 * 0.25 + t[i] ** 2)
        real = x_t[i] - t[i] * gaussian_velocity(x_t[i : i + 1], t[i : i + 1], 2.0)[0]
        expected = (-1.0 - 2.0) * shrink / (x0[i] - real).abs().mean()
        torch.testing.assert_close(gradient[i], expected.expand(4), rtol=1e-4, atol=1e-5)


def test_following_it_brings_samples_to_the_teachers_mean() -> None:
    x0 = gaussian(200, 1, seed=4) * 0.5 - 1
    for step in range(150):
        t, noise = (
            0.02 + 0.96 * torch.rand(200, generator=torch.Generator().manual_seed(step)),
            gaussian(200, 1, seed=step),
        )
        x_t = (1 - t[:, None]) * x0 + t[:, None] * noise
        critic = gaussian_velocity(x_t, t, x0.mean().item())
        x0 = x0 - 0.1 * matching_gradient(x0, noise, t, gaussian_velocity(x_t, t, 2.0), critic)
    assert x0.mean().item() == pytest.approx(2.0, abs=0.1)


# --- the build -------------------------------------------------------------------------------------------------------


def test_a_build_is_a_function_of_its_seed(small: None, tmp_path: Path) -> None:
    first, again, other = (
        load_file(build_turbo(tmp_path / name, steps=4, seed=seed)) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_a_resumed_build_equals_an_uninterrupted_one(small: None, tmp_path: Path) -> None:
    """Steps 0 and 1 are regression, 2 and 3 matching; the second run goes on from step 2."""
    whole = load_file(build_turbo(tmp_path / "whole", steps=4))
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "checkpoints" / "step_4")
    resumed = load_file(build_turbo(tmp_path / "half", steps=4))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    teacher = load_file(WEIGHTS / "slots.safetensors")
    assert whole.keys() == teacher.keys()
    assert any(not torch.equal(whole[key], teacher[key]) for key in whole)


def test_pairs_of_another_seed_are_refused(teacher: LabFlowModel, small: None, tmp_path: Path) -> None:
    made = load_pairs(teacher, turbo.PLAN, 0, 6, tmp_path / "pairs")
    again = load_pairs(teacher, turbo.PLAN, 0, 6, tmp_path / "pairs")
    assert len(made.noise) == 6 and torch.equal(made.endpoint, again.endpoint)
    with pytest.raises(RunError, match="another --out"):
        load_pairs(teacher, turbo.PLAN, 1, 6, tmp_path / "pairs")


# --- what ships ------------------------------------------------------------------------------------------------------


def test_one_step_draws_what_the_teacher_needs_several_for(teacher: LabFlowModel) -> None:
    turbo = LabFlowModel("slots-turbo")
    assert accuracy(teacher, 1, count=120) < 0.05
    assert accuracy(turbo, 1, count=120) > 0.4
    assert accuracy(turbo, 2, count=120) > accuracy(teacher, 2, count=120) + 0.2
    assert (WEIGHTS / "slots-turbo.safetensors").stat().st_size < 1_000_000


def test_it_is_differentiable_from_noise_to_picture() -> None:
    turbo = LabFlowModel("slots-turbo")
    turbo.network.double()
    condition = turbo.encode(evaluation_prompts("heldout", 1))
    weight = gaussian(1, 3, 32, 32, seed=5, dtype=torch.float64)

    def seen(noise: Tensor) -> Tensor:
        t = torch.ones(1, dtype=torch.float64)
        return (turbo.decode(noise - turbo.velocity(noise, t, condition)) * weight).sum()

    noise = gaussian(1, 4, 10, seed=6, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(seen, noise, eps=1e-6, atol=1e-3, rtol=1e-3)
    (gradient,) = torch.autograd.grad(seen(noise), noise)
    assert gradient.abs().mean() > 0.1
