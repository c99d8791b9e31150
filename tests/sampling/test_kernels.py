"""Kernels against the papers' formulas in numpy, the densities against scipy and torch, and the flows they must preserve."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from tests.reference import kernels as reference
from tests.reference.toys import ExactFlow, keys
from torch import Tensor

from plaudit.errors import RecipeError
from plaudit.models.flow import Condition, Conditioning
from plaudit.recipe.objectives import KLS
from plaudit.sampling.kernels import KERNELS, Transition, kl_divergence, log_density, transition
from plaudit.sampling.noise import gaussian
from plaudit.sampling.plan import SamplingPlan
from plaudit.sampling.rollout import draw

STOCHASTIC = ("flow_sde", "constant_eta", "cps", "ddim_eta")
STEPS = [(1.0, 0.9), (1.0, 0.999), (0.9, 0.75), (0.5, 0.49), (0.31, 0.02), (0.02, 0.001)]
LAST_STEPS = [(0.1, 0.0), (1.0, 0.0), (0.5, 0.0)]
LEVELS = (0.0, 0.3, 0.7, 1.0)
SHAPES = [(1,), (7,), (3, 5), (2, 3, 4)]


def state(shape: tuple[int, ...], rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    x, v = (rng.standard_normal((rows, *shape)).astype(np.float32) for _ in range(2))
    return torch.from_numpy(x), torch.from_numpy(1.5 * v + 0.2)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kernel", STOCHASTIC)
def test_every_step_is_the_papers(kernel: str, shape: tuple[int, ...]) -> None:
    """Rows with different times and levels in one batch: each must be its own sample's formula."""
    cases = [(t, s, level) for t, s in STEPS + LAST_STEPS for level in LEVELS]
    x, v = state(shape, len(cases))
    step = transition(kernel, x, v, *(column(*c) for c in zip(*cases, strict=True)))
    assert step.mean.shape == x.shape and step.std.shape == (len(cases),)
    for row, (t, s, level) in enumerate(cases):
        t, s = float(np.float32(t)), float(np.float32(s))
        expected = reference.KERNELS[kernel](x[row].double().numpy(), v[row].double().numpy(), t, s, level)
        np.testing.assert_allclose(
            step.mean[row].numpy(), expected.mean, rtol=2e-4, atol=2e-5, err_msg=f"{t} {s} {level}"
        )
        # float32 rounding of 1 - t is all that separates the two near t = 1
        np.testing.assert_allclose(step.std[row].item(), expected.std, rtol=2e-4, atol=1e-7, err_msg=f"{t} {s} {level}")


@pytest.mark.parametrize(("t", "s"), [(1.0, 0.9), (0.9, 0.75), (0.31, 0.02)])
def test_flow_sde_is_what_flow_grpo_published(t: float, s: float) -> None:
    x, v = state((6,), 1)
    step = transition("flow_sde", x, v, column(t), column(s), column(0.7))
    expected = reference.flow_sde_as_published(x[0].double().numpy(), v[0].double().numpy(), t, s, 0.7)
    np.testing.assert_allclose(step.mean[0].numpy(), expected.mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(step.std.item(), expected.std, rtol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("t", "s"), STEPS + LAST_STEPS)
def test_level_zero_is_euler(kernel: str, t: float, s: float) -> None:
    x, v = state((4, 3), 5)
    step = transition(kernel, x, v, *(torch.full((5,), value) for value in (t, s, 0.0)))
    torch.testing.assert_close(step.mean, x - (torch.tensor(t) - torch.tensor(s)) * v, rtol=0, atol=2e-6)
    assert torch.equal(step.std, torch.zeros(5))


@pytest.mark.parametrize("kernel", ("ode", "flow_sde", "constant_eta"))
def test_level_zero_is_euler_to_the_last_bit_where_the_formula_allows(kernel: str) -> None:
    x, v = state((4, 3), 5)
    step = transition(kernel, x, v, *(torch.full((5,), value) for value in (0.6, 0.45, 0.0)))
    assert torch.equal(step.mean, x - (torch.tensor(0.6) - torch.tensor(0.45)) * v)


@pytest.mark.parametrize("kernel", STOCHASTIC)
@pytest.mark.parametrize("level", (0.3, 1.0, 1.5))
def test_the_step_to_data_is_deterministic(kernel: str, level: float) -> None:
    x, v = state((5,), 3)
    for t in (1.0, 0.4, 0.01):
        step = transition(kernel, x, v, torch.full((3,), t), torch.zeros(3), torch.full((3,), level))
        assert torch.equal(step.std, torch.zeros(3))
        torch.testing.assert_close(step.mean, x - t * v, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_both_ends_are_finite_in_value_and_gradient(kernel: str) -> None:
    times = torch.tensor([1.0, 0.5, 0.0])
    for t, s in itertools.pairwise(times):
        x, v = state((3,), 2)
        v.requires_grad_()
        step = transition(kernel, x, v, t.expand(2), s.expand(2), torch.full((2,), 0.7))
        (step.mean.sum() + log_density(x, step).sum()).backward()
        for tensor in (step.mean, step.std, v.grad):
            assert tensor.isfinite().all()
        assert v.grad.abs().sum() > 0


@pytest.mark.parametrize("kernel", STOCHASTIC)
def test_the_mean_carries_the_gradient_to_the_velocity(kernel: str) -> None:
    x, v = state((4,), 3)
    v.requires_grad_()
    times = [torch.full((3,), value) for value in (0.8, 0.6, 0.7)]
    weight = torch.arange(12.0).reshape(3, 4) + 1
    (transition(kernel, x, v, *times).mean * weight).sum().backward()
    shift = 1e-3
    for row, dim in ((0, 0), (1, 2), (2, 3)):
        high, low = v.detach().clone().numpy().astype(float), v.detach().clone().numpy().astype(float)
        high[row, dim] += shift
        low[row, dim] -= shift
        step = [
            reference.KERNELS[kernel](x[row].double().numpy(), side[row], 0.8, 0.6, 0.7).mean for side in (high, low)
        ]
        slope = ((step[0] - step[1]) * weight[row].numpy()).sum() / (2 * shift)
        assert v.grad[row, dim].item() == pytest.approx(slope, rel=1e-3)


def test_half_precision_inputs_are_computed_in_float32() -> None:
    x, v = state((8,), 2)
    args = [torch.full((2,), value) for value in (0.9, 0.8, 0.7)]
    half = transition("flow_sde", x.bfloat16(), v.bfloat16(), *args)
    assert half.mean.dtype == torch.float32
    torch.testing.assert_close(
        half.mean, transition("flow_sde", x.bfloat16().float(), v.bfloat16().float(), *args).mean
    )


# --- densities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kernel", STOCHASTIC)
def test_log_density_is_scipys(kernel: str, shape: tuple[int, ...]) -> None:
    x, v = state(shape, 3)
    x_next, _ = state(shape, 3, seed=1)
    step = transition(kernel, x, v, column(1.0, 0.7, 0.2), column(0.9, 0.6, 0.1), column(0.7, 0.3, 1.0))
    exact, mean = (log_density(x_next, step, d, kernel) for d in ("exact", "mean"))
    distance = log_density(x_next, step, "cps", "cps")
    for row in range(3):
        parts = reference.log_density(
            x_next[row].double().numpy(), step.mean[row].double().numpy(), step.std[row].item()
        )
        assert exact[row].item() == pytest.approx(sum(parts), rel=1e-9)
        assert mean[row].item() == pytest.approx(sum(parts) / len(parts), rel=1e-9)
        squares = [
            (a - b) ** 2 for a, b in zip(x_next[row].ravel().tolist(), step.mean[row].ravel().tolist(), strict=True)
        ]
        assert distance[row].item() == pytest.approx(-sum(squares) / len(squares), rel=1e-6)
    assert exact.dtype == torch.float64


def test_log_density_gradient_is_the_gaussian_score() -> None:
    """d log p / d mean = (x' - mean) / std^2, and the gradient must reach the mean in every scaling."""
    mean, x_next = state((5,), 2)
    std = column(0.3, 0.8)
    expected = (x_next - mean) / std[:, None] ** 2
    for density, scale in (("exact", expected), ("mean", expected / 5), ("cps", 2 * (x_next - mean) / 5)):
        leaf = mean.clone().requires_grad_()
        log_density(x_next, Transition(mean=leaf, std=std), density, "cps").sum().backward()
        torch.testing.assert_close(leaf.grad, scale, rtol=1e-5, atol=1e-6)


def test_deterministic_steps_have_log_density_and_kl_zero_and_no_nan_gradient() -> None:
    mean, x_next = state((5,), 2)
    leaf = mean.clone().requires_grad_()
    step = Transition(mean=leaf, std=column(0.0, 0.5))
    value = log_density(x_next, step)
    kl = kl_divergence(step, Transition(mean=x_next, std=step.std), column(0.5, 0.5), column(0.4, 0.4))
    assert value[0] == 0 and kl[0] == 0 and value[1] != 0 and kl[1] > 0
    (value.sum() + 3 * kl.sum()).backward()  # with equal weights the two cancel
    assert torch.equal(leaf.grad[0], torch.zeros(5)) and leaf.grad.isfinite().all() and leaf.grad[1].abs().sum() > 0


def test_unknown_scalings_are_refused() -> None:
    step = Transition(mean=torch.zeros(1, 2), std=torch.ones(1))
    with pytest.raises(ValueError, match="allowed: exact, mean, flow_grpo, cps"):
        log_density(torch.zeros(1, 2), step, "sum")
    with pytest.raises(ValueError, match="allowed: exact, mean, flow_grpo, cps"):
        kl_divergence(step, step, torch.ones(1), torch.zeros(1), "sum")
    with pytest.raises(ValueError, match="flow_grpo was not published for kernel 'ddim_eta'; allowed: flow_sde, cps"):
        log_density(torch.zeros(1, 2), step, "flow_grpo", "ddim_eta")
    with pytest.raises(ValueError, match="cps was not published for kernel 'flow_sde'; allowed: cps"):
        kl_divergence(step, step, torch.ones(1), torch.zeros(1), "cps", "flow_sde")


@pytest.mark.parametrize("kernel", STOCHASTIC)
def test_1e5_draws_have_the_densitys_mean_and_variance(kernel: str) -> None:
    """Through the sampler itself: one stochastic step drawn 1e5 times, then the mean and the deviation it was scored with."""
    numbers, rows = 100, 1000
    _, v0 = state((numbers,), 1)
    model = ExactFlow(lambda x, t: v0.expand_as(x), (numbers,))
    plan = SamplingPlan(
        kernel=kernel,
        times=column(0.7, 0.6),
        levels=torch.full((rows, 1), 0.7),
        first=torch.zeros(rows, dtype=torch.long),
        decisions=1,
    )
    none = Conditioning(condition=Condition(tensors={"n": torch.zeros(rows)}))
    drawn = draw(model, none, plan, keys(rows), tile=rows, initial_keys=[keys(1)[0]] * rows)
    assert drawn.trace is not None
    start = drawn.trace.states[:1, 0]
    step = transition(kernel, start, v0, column(0.7), column(0.6), column(0.7))
    z = ((drawn.latents - step.mean) / step.std).double()
    count = z.numel()
    assert abs(z.mean().item()) * math.sqrt(count) < 4.5
    assert chi2.ppf(1e-5, count) < z.square().sum().item() < chi2.ppf(1 - 1e-5, count)
    entropy = numbers * (step.std.log().item() + 0.5 + 0.5 * math.log(2 * math.pi))
    assert -drawn.trace.log_prob.mean().item() == pytest.approx(entropy, abs=4.5 * math.sqrt(numbers / 2 / rows))


# --- KL --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kernel", STOCHASTIC)
def test_kl_is_torchs_at_every_step(kernel: str, shape: tuple[int, ...]) -> None:
    """Pitfall 1: a KL without dt is 0.04 to 0.18 of the true value at ten steps."""
    times = torch.linspace(1, 0, 11)[:-1]
    t, s = times[:-1], times[1:]
    x, v = state(shape, len(t))
    _, v_reference = state(shape, len(t), seed=3)
    level = torch.full_like(t, 0.7)
    ours, theirs = (transition(kernel, x, u, t, s, level) for u in (v, v_reference))
    spread = ours.std.reshape(-1, *[1] * len(shape)).double()
    normal = [torch.distributions.Normal(step.mean.double(), spread) for step in (ours, theirs)]
    exact = torch.distributions.kl_divergence(*normal).flatten(1)
    torch.testing.assert_close(kl_divergence(ours, theirs, t, s).double(), exact.sum(1), rtol=1e-4, atol=0)
    torch.testing.assert_close(kl_divergence(ours, theirs, t, s, "mean").double(), exact.mean(1), rtol=1e-4, atol=0)
    if kernel in KLS["flow_grpo"]:
        published = kl_divergence(ours, theirs, t, s, "flow_grpo", kernel).double()
        factor = t - s if kernel == "flow_sde" else 1.0
        torch.testing.assert_close(published, exact.mean(1) * factor, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("kernel", "scaling"),
    [
        *itertools.product(STOCHASTIC, ("exact", "mean")),
        *((kernel, name) for name, kernels in KLS.items() for kernel in kernels),
    ],
)
def test_kl_has_a_gradient(kernel: str, scaling: str) -> None:
    x, v = state((4,), 2)
    v.requires_grad_()
    args = column(0.8, 0.3), column(0.7, 0.1), column(0.7, 0.7)
    step = transition(kernel, x, v, *args)
    other = transition(kernel, x, v.detach() + 0.3, *args)
    kl_divergence(step, other, args[0], args[1], scaling, kernel).sum().backward()
    assert (v.grad.abs() > 1e-8).all()
    assert (v.grad < 0).all(), "moving toward the reference must lower the KL"


# --- what a kernel preserves -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", (0.2, 0.7, 1.0))
@pytest.mark.parametrize("kernel", ("cps", "ddim_eta"))
def test_coefficients_are_preserved_for_known_data_and_noise(kernel: str, level: float) -> None:
    """With the true x_0 and e, x_s has mean (1 - s) x_0 and variance s^2, whatever the level."""
    rows = 40_000
    x0, e, fresh = torch.full((rows,), 1.3), *gaussian(keys(2), "initial", (rows,))
    for t, s in ((1.0, 0.8), (0.6, 0.5), (0.3, 0.05)):
        x = (1 - t) * x0 + t * e
        step = transition(kernel, x[:, None], (e - x0)[:, None], *(torch.full((rows,), u) for u in (t, s, level)))
        x_next = step.mean[:, 0] + step.std * fresh
        error = s / math.sqrt(rows)
        assert abs(x_next.mean().item() - (1 - s) * 1.3) < 4 * error
        assert x_next.var().item() == pytest.approx(s**2, rel=4 * math.sqrt(2 / rows))


@pytest.mark.parametrize(
    ("kernel", "level"),
    [
        ("flow_sde", 0.3),
        ("flow_sde", 0.7),
        ("flow_sde", 1.0),
        ("constant_eta", 0.5),
        ("constant_eta", 1.0),
        ("ddim_eta", 0.5),
        ("ddim_eta", 1.0),
        ("ode", 0.0),
    ],
)
def test_a_known_flow_ends_in_its_data(kernel: str, level: float) -> None:
    """Many small steps on the exact velocity of N(0.8, 0.6^2): a drift of the wrong sign or size ends elsewhere."""
    flow = reference.GaussianFlow(mean=0.8, std=0.6)
    rows, steps = 4000, 300
    times = torch.linspace(1, 0, steps + 1)
    numbers = gaussian(keys(steps + 1), "transition", (rows,))
    x = numbers[0][:, None]
    for k in range(steps):
        t, s = times[k].item(), times[k + 1].item()
        step = transition(kernel, x, flow.velocity(x, t), *(torch.full((rows,), u) for u in (t, s, level)))
        x = step.mean + step.std[:, None] * numbers[k + 1][:, None]
    assert abs(x.mean().item() - 0.8) < 4.5 * 0.6 / math.sqrt(rows) + 0.005
    assert x.std().item() == pytest.approx(0.6, rel=4.5 / math.sqrt(2 * rows) + 0.01)


def _ends_noisy(x: Tensor, v: Tensor, t: Tensor, t_next: Tensor, level: Tensor) -> Transition:
    return Transition(mean=x, std=level)


def _of_a_batch(x: Tensor, v: Tensor, t: Tensor, t_next: Tensor, level: Tensor) -> Transition:
    return Transition(mean=x, std=level.mean())


@pytest.mark.parametrize(
    ("kernel", "said"),
    [("_ends_noisy", "a std of 0 at level 0 and in the step to t = 0"), ("_of_a_batch", "a std for each sample")],
)
def test_a_kernel_of_ones_own_is_held_to_the_conventions(kernel: str, said: str) -> None:
    x, v = state((3,), 2)
    with pytest.raises(RecipeError, match=said):
        transition(f"{__name__}:{kernel}", x, v, column(0.5, 0.5), column(0.4, 0.0), column(0.3, 0.3))
