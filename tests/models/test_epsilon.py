"""Noise-predicting models against diffusers' DDIM.

The network is the optimal one for pictures from N(m, 0.5^2) with m from the prompt, looked up by its integer timestep:
being one timestep off changes every number.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from plaudit.data.prompt import Prompt
from plaudit.errors import RecipeError
from plaudit.models.epsilon import EpsilonFlowModel
from plaudit.models.flow import Condition, Conditioning
from plaudit.recipe.sampling import Sampler
from plaudit.sampling.kernels import transition
from plaudit.sampling.noise import SampleKey, gaussian
from plaudit.sampling.plan import stochastic_plan
from plaudit.sampling.rollout import draw, replay, replay_log_prob

diffusers = pytest.importorskip("diffusers")

SHAPE = (3, 4, 4)
SPREAD = 0.5
COUNT = 6
PROMPTS = [Prompt(id=str(i), text="dark" if i % 2 else "bright") for i in range(COUNT)]
KEYS = [SampleKey(seed=0, step=0, prompt=prompt.id, index=0) for prompt in PROMPTS]
SPACINGS = [("leading", 0), ("leading", 1), ("trailing", 0)]


class GaussianData(EpsilonFlowModel):
    def encode(self, prompts: Sequence[Prompt]) -> Condition:
        means = torch.tensor([-0.5 if prompt.text == "dark" else 0.5 for prompt in prompts])
        return Condition(tensors={"mean": means[:, None, None, None]})

    def predict_noise(self, x_vp: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        signal, noise = (u[timestep].float()[:, None, None, None] for u in (self.signal, self.noise))
        mean = condition.tensors["mean"]
        return noise * (x_vp - signal * mean) / ((signal * SPREAD).square() + noise.square())

    def decode(self, x0: Tensor) -> Tensor:
        return x0

    def save(self, folder: Path) -> None:
        raise NotImplementedError


def make_scheduler(spacing: str, offset: int):
    return diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing=spacing,
        steps_offset=offset,
    )


def make_model(spacing: str = "leading", offset: int = 0) -> GaussianData:
    table = make_scheduler(spacing, offset).alphas_cumprod
    return GaussianData(nn.Identity(), table, SHAPE, spacing=spacing, steps_offset=offset)


def sizes(times: Tensor) -> Tensor:
    """a + s of flow times: a variance-preserving latent is this times ours."""
    return ((1 - times.double()).square() + times.double().square()).rsqrt().float()


@pytest.mark.parametrize(("spacing", "offset"), SPACINGS)
@pytest.mark.parametrize("steps", [1, 4, 10, 50])
def test_schedule_is_that_of_ddim(spacing: str, offset: int, steps: int):
    model, scheduler = make_model(spacing, offset), make_scheduler(spacing, offset)
    scheduler.set_timesteps(steps)
    times = model.schedule(steps, None)
    assert len(times) == steps + 1
    assert times[-1] == 0
    assert torch.equal(model.timestep(times[:-1]), scheduler.timesteps)


@pytest.mark.parametrize(("spacing", "offset"), SPACINGS)
@pytest.mark.parametrize("steps", [4, 10, 50])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_kernel_is_diffusers_step(spacing: str, offset: int, steps: int, eta: float):
    model, scheduler = make_model(spacing, offset), make_scheduler(spacing, offset)
    scheduler.set_timesteps(steps)
    times = model.schedule(steps, None)
    size, condition = sizes(times), model.encode(PROMPTS)
    for k, timestep in enumerate(scheduler.timesteps):
        x_vp, noise = (gaussian(KEYS, name, SHAPE, k) for name in ("state", "noise"))
        epsilon = model.predict_noise(x_vp, timestep.expand(COUNT), condition)
        theirs = scheduler.step(epsilon, timestep, x_vp, eta=eta, variance_noise=noise).prev_sample

        t, t_next, level = (u.expand(COUNT) for u in (times[k], times[k + 1], torch.tensor(eta)))
        x = x_vp / size[k]
        step = transition("ddim_eta", x, model.velocity(x, t, condition), t, t_next, level)
        ours = (step.mean + step.std[:, None, None, None] * noise) * size[k + 1]
        assert (ours - theirs).abs().max() <= 1e-5
        assert step.std[0] > 0 or eta == 0 or k == steps - 1


def test_times_map_back_to_every_timestep():
    model = make_model()
    assert torch.equal(model.timestep(model.times.float()), torch.arange(1000))


@pytest.mark.parametrize(("spacing", "offset"), SPACINGS)
@pytest.mark.parametrize("kernel", ["ode", "ddim_eta", "cps"])
def test_level_zero_is_ddim_with_eta_zero(spacing: str, offset: int, kernel: str):
    model, scheduler = make_model(spacing, offset), make_scheduler(spacing, offset)
    sampler = Sampler(steps=10, kernel=kernel, level=0.0)
    times = model.schedule(10, None)
    conditioning = Conditioning(condition=model.encode(PROMPTS))
    drawn = draw(model, conditioning, stochastic_plan(sampler, times, KEYS, KEYS), KEYS, tile=4)

    scheduler.set_timesteps(10)
    x_vp = gaussian(KEYS, "initial", SHAPE)
    for timestep in scheduler.timesteps:
        epsilon = model.predict_noise(x_vp, timestep.expand(COUNT), conditioning.condition)
        x_vp = scheduler.step(epsilon, timestep, x_vp).prev_sample
    assert (drawn.latents - x_vp).abs().max() <= 1e-5


def test_ratio_is_one_before_an_update():
    model, sampler = make_model(), Sampler(steps=10, kernel="ddim_eta", level=1.0)
    conditioning = Conditioning(condition=model.encode(PROMPTS))
    plan = stochastic_plan(sampler, model.schedule(10, None), KEYS, KEYS)
    trace = draw(model, conditioning, plan, KEYS, tile=4).trace
    log_ratio = replay_log_prob(trace, replay(model, conditioning, trace), "exact") - trace.log_prob
    assert trace.mask.all()
    assert (log_ratio.exp() - 1).abs().max() <= 1e-6


def test_time_between_timesteps_is_refused():
    model = make_model()
    between = model.times[300:302].mean().float()
    with pytest.raises(RecipeError, match="none of the network's 1000 timesteps"):
        model.velocity(torch.zeros(1, *SHAPE), between[None], model.encode(PROMPTS[:1]))


def test_impossible_schedules_are_refused():
    with pytest.raises(RecipeError, match=r"sampler\.shift"):
        make_model().schedule(10, 3.0)
    with pytest.raises(RecipeError, match=r"sampler\.steps"):
        make_model().schedule(1001, None)
    with pytest.raises(RecipeError, match=r"sampler\.steps"):
        make_model(offset=1).schedule(1000, None)


def test_table_that_ends_in_pure_noise_is_refused():
    table = diffusers.DDIMScheduler(rescale_betas_zero_snr=True).alphas_cumprod
    with pytest.raises(RecipeError, match="zero terminal SNR"):
        GaussianData(nn.Identity(), table, SHAPE)
