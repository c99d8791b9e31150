"""Exact against brute force, smooth against exact."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from plaudit.rewards.transport import emd, emd_plan, sinkhorn, sinkhorn_plan


def cost_matrix(n: int, m: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, m, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_equal_sets_match_trying_every_assignment(n: int) -> None:
    cost = cost_matrix(n, n)
    best = min(sum(cost[i, p[i]].item() for i in range(n)) / n for p in itertools.permutations(range(n)))
    assert emd(cost) == pytest.approx(best, abs=1e-12)
    assert emd(cost, np.full(n, 1 / n)) == pytest.approx(best, abs=1e-9), "the linear programme disagrees"


def test_unequal_sets_match_the_assignment_of_copies() -> None:
    """2 against 3 masses of 1/2 and 1/3 are 6 against 6 masses of 1/6."""
    cost = cost_matrix(2, 3)
    copies = cost.repeat_interleave(3, 0).repeat_interleave(2, 1)
    assert emd(cost) == pytest.approx(emd(copies), abs=1e-9)
    assert emd(cost.T) == pytest.approx(emd(cost), abs=1e-9)


def test_on_a_line_it_is_the_area_between_the_distribution_functions() -> None:
    a, b = np.array([0.5, 0.2, 0.0, 0.3]), np.array([0.1, 0.1, 0.7, 0.1])
    place = np.array([0.0, 1.0, 3.0, 4.0])
    expected = (np.abs(np.cumsum(a - b))[:-1] * np.diff(place)).sum()
    cost = np.abs(place[:, None] - place[None])
    assert emd(cost, a, b) == pytest.approx(expected, abs=1e-9)
    assert emd(cost, 10 * a, 10 * b) == pytest.approx(10 * expected, abs=1e-8)
    plan = emd_plan(cost, a, b)
    np.testing.assert_allclose(plan.sum(1), a, atol=1e-9)
    np.testing.assert_allclose(plan.sum(0), b, atol=1e-9)


def test_sinkhorn_approaches_the_exact_distance_from_above() -> None:
    for n, m in [(3, 3), (2, 5), (6, 4)]:
        cost = cost_matrix(n, m, seed=n)
        exact = emd(cost)
        gaps = [sinkhorn(cost, epsilon, iterations=20_000).item() - exact for epsilon in (1.0, 0.1, 0.01)]
        assert gaps[0] > gaps[1] > gaps[2] >= -1e-6
        assert gaps[2] < 5e-3


def test_sinkhorn_with_masses() -> None:
    cost, a = cost_matrix(3, 4), torch.tensor([0.6, 0.0, 0.4], dtype=torch.float64)
    b = torch.tensor([0.1, 0.5, 0.0, 0.4], dtype=torch.float64)
    plan = sinkhorn_plan(cost, 0.02, a, b, iterations=20_000)
    torch.testing.assert_close(plan.sum(1), a, atol=1e-6, rtol=0)
    torch.testing.assert_close(plan.sum(0), b, atol=1e-6, rtol=0)
    assert sinkhorn(cost, 0.005, a, b, iterations=20_000).item() == pytest.approx(emd(cost, a, b), abs=1e-3)


def test_two_by_two_in_closed_form() -> None:
    """For cost [[0, 1], [1, 0]] the plan's diagonal is e^(1/eps) / (2 (1 + e^(1/eps)))."""
    for epsilon in (1.0, 0.3, 1e-3):
        cost = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
        off = 1 / (1 + np.exp(min(1 / epsilon, 700)))
        assert sinkhorn(cost, epsilon).item() == pytest.approx(off, abs=1e-9)


def test_large_epsilon_couples_independently() -> None:
    cost = cost_matrix(4, 3)
    assert sinkhorn(cost, 1e6).item() == pytest.approx(cost.mean().item(), abs=1e-5)


def test_batches_are_the_same_as_one_by_one() -> None:
    costs = torch.stack([cost_matrix(3, 4, seed) for seed in range(3)])
    alone = torch.stack([sinkhorn(cost, 0.1) for cost in costs])
    torch.testing.assert_close(sinkhorn(costs, 0.1), alone, atol=1e-5, rtol=0)


def test_gradient_is_that_of_finite_differences() -> None:
    cost = cost_matrix(3, 4).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda c: sinkhorn(c, 0.2, iterations=100, tolerance=0.0), (cost,))
    assert cost.grad is None
    sinkhorn(cost, 0.2).backward()
    assert cost.grad is not None and cost.grad.sum().item() == pytest.approx(1.0, abs=1e-4), "shift by 1 costs 1"


@pytest.mark.parametrize(
    ("cost", "a", "b", "says"),
    [
        (np.zeros((0, 2)), None, None, "at least one row"),
        ([[np.nan]], None, None, "finite"),
        (np.eye(2), [1.0, 1.0], [0.5, 0.5], "equal totals"),
        (np.eye(2), [1.0, -1.0], None, "non-negative"),
        (np.eye(2), [1.0], None, "expected 2"),
    ],
)
def test_what_cannot_be_transported_is_refused(cost: object, a: object, b: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        emd(cost, a, b)
    with pytest.raises(ValueError, match="positive"):
        sinkhorn(torch.zeros(2, 2), 0.0)
