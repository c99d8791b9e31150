"""The noise prior against its density, and the step against torch's own optimiser."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Chi2

from plaudit.search.flow.noise_prior import Momentum, clip_rows, descend, norm_penalty, typical_norm


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def log_density_of_norm(radius: Tensor, dimensions: int) -> Tensor:
    """log p(r) = log p_chi2(r^2) + log 2r."""
    return Chi2(torch.tensor(float(dimensions), dtype=radius.dtype)).log_prob(radius.square()) + (2 * radius).log()


# --- the prior -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ((2,), (40,), (4, 10), (4, 16, 16)))
def test_the_penalty_is_minus_the_log_density_of_the_norm(shape: tuple[int, ...]) -> None:
    noise = gaussian(6, *shape) * torch.linspace(0.5, 1.5, 6, dtype=torch.float64).reshape(-1, *[1] * len(shape))
    dimensions = noise[0].numel()
    expected = -log_density_of_norm(noise.flatten(1).norm(dim=1), dimensions)
    penalty = norm_penalty(noise)
    assert penalty.shape == (6,)
    torch.testing.assert_close(penalty - penalty[0], expected - expected[0], rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize("dimensions", (2, 40, 16384))
def test_the_penalty_is_least_at_the_typical_norm(dimensions: int) -> None:
    direction = gaussian(1, dimensions)
    direction = direction / direction.norm()
    radii = typical_norm(dimensions) * torch.linspace(0.5, 1.5, 1001, dtype=torch.float64)
    assert radii[norm_penalty(radii[:, None] * direction).argmin()] == pytest.approx((dimensions - 1) ** 0.5)


def test_its_gradient_vanishes_there_and_points_to_it_from_elsewhere() -> None:
    direction = gaussian(1, 4, 10)
    direction = direction / direction.norm()
    factors = torch.tensor([0.8, 1.0, 1.2], dtype=torch.float64)[:, None, None]
    noise = (factors * typical_norm(40) * direction).requires_grad_()
    (gradient,) = torch.autograd.grad(norm_penalty(noise).sum(), noise)
    along = (gradient * direction).sum((1, 2))
    radius = noise.detach().flatten(1).norm(dim=1)
    torch.testing.assert_close(along, radius - 39 / radius)  # d/dr of 0.5 r^2 - 39 log r
    assert along[0] < -1 and along[1].abs() < 1e-12 and along[2] > 1
    assert torch.autograd.gradcheck(lambda e: norm_penalty(e), noise)


def test_half_precision_is_raised_and_double_kept() -> None:
    noise = gaussian(2, 16384)
    for dtype, kept in ((torch.float16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)):
        penalty = norm_penalty(noise.to(dtype))
        assert penalty.dtype == kept
        torch.testing.assert_close(penalty.double(), norm_penalty(noise.to(dtype).double()), rtol=1e-5, atol=0.1)


def test_a_noise_of_zero_is_infinitely_unlikely() -> None:
    assert norm_penalty(torch.zeros(1, 4)).item() == float("inf")


# --- the step --------------------------------------------------------------------------------------------------------


def loss_of(noise: Tensor, target: Tensor) -> Tensor:
    """A loss `[B]` that is steep at some places and flat at others."""
    return (noise - target).square().flatten(1).sum(1).sin() + 0.01 * norm_penalty(noise)


def by_torch(start: Tensor, target: Tensor, rule: Momentum, steps: int) -> list[Tensor]:
    """One image by `torch.optim.SGD` and `clip_grad_norm_`."""
    noise = start.clone().requires_grad_()
    optimizer = torch.optim.SGD([noise], lr=rule.lr, momentum=rule.momentum, nesterov=rule.momentum > 0)
    path = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(noise, target).sum().backward()
        if rule.clip is not None:
            torch.nn.utils.clip_grad_norm_([noise], rule.clip)
        optimizer.step()
        path.append(noise.detach().clone())
    return path


def by_ours(start: Tensor, target: Tensor, rule: Momentum, steps: int) -> list[Tensor]:
    noise, buffer, path = start, None, []
    for _ in range(steps):
        leaf = noise.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss_of(leaf, target).sum(), leaf)
        moved = descend(noise, gradient, buffer, rule)
        noise, buffer = moved.noise, moved.buffer
        path.append(noise)
    return path


@pytest.mark.parametrize(
    "rule", (Momentum(), Momentum(clip=None, lr=0.01), Momentum(momentum=0.0), Momentum(lr=0.2, momentum=0.5, clip=2.0))
)
def test_a_batch_moves_as_torchs_optimiser_moves_its_images_one_by_one(rule: Momentum) -> None:
    start, target = gaussian(5, 4, 10, seed=1), gaussian(5, 4, 10, seed=2)
    ours = by_ours(start, target, rule, steps=8)
    for row in range(5):
        alone = by_torch(start[row : row + 1], target[row : row + 1], rule, steps=8)
        for step in range(8):
            torch.testing.assert_close(ours[step][row], alone[step][0], rtol=1e-9, atol=1e-9)
    assert (ours[0] - start).abs().amax((1, 2)).min() > 0.01


def test_a_steep_neighbour_slows_nobody_down() -> None:
    gradient = torch.tensor([[3.0, 4.0], [0.03, 0.04], [0.0, 0.0]], dtype=torch.float64)
    clipped = clip_rows(gradient, 0.1)
    torch.testing.assert_close(clipped[0], torch.tensor([0.06, 0.08], dtype=torch.float64), rtol=1e-5, atol=0)
    assert torch.equal(clipped[1:], gradient[1:])


def test_one_missing_gradient_stays_in_its_row() -> None:
    gradient = torch.tensor([[float("nan"), 1.0], [3.0, 4.0]])
    moved = descend(torch.zeros(2, 2), gradient, None, Momentum(lr=1.0, momentum=0.0, clip=None))
    clipped = descend(torch.zeros(2, 2), gradient, None, Momentum(lr=1.0, momentum=0.0, clip=0.1))
    assert torch.equal(moved.noise[1], torch.tensor([-3.0, -4.0]))
    assert clipped.noise[0].isnan().all() and clipped.noise[1].isfinite().all()


def test_descending_the_negative_reward_climbs_it() -> None:
    noise, buffer = torch.zeros(1, 40, dtype=torch.float64) + 0.1, None
    goal = gaussian(1, 40, seed=3)
    before = (noise - goal).norm()
    for _ in range(10):
        moved = descend(noise, 2 * (noise - goal), buffer, Momentum(lr=0.25))  # reward -|e - goal|^2
        noise, buffer = moved.noise, moved.buffer
    assert (noise - goal).norm() < 0.9 * before
