"""Losses of preferences against their formulas written out, their gradients, and the models of choice that they come from."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from plaudit.fit.losses import bradley_terry, centring, losses, rao_kupper, unary
from plaudit.recipe.fit import BradleyTerry, Ties, Unary

VALUES = list(itertools.product((-3.0, -0.5, 0.0, 2.0), repeat=2))
A, B = (torch.tensor([pair[side] for pair in VALUES], dtype=torch.float64) for side in (0, 1))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(("smoothing", "margin"), ((0.0, 0.0), (0.1, 0.0), (0.0, 0.75), (0.2, 0.75)))
def test_bradley_terry_is_its_formula(smoothing: float, margin: float) -> None:
    found = bradley_terry(A, B, smoothing=smoothing, margin=torch.full_like(A, margin))
    expected = [
        -(1 - smoothing) * math.log(sigmoid(a - b - margin)) - smoothing * math.log(sigmoid(b - a + margin))
        for a, b in VALUES
    ]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("theta", (1.5, 5.0))
def test_a_win_a_loss_and_a_tie_are_all_that_can_be(theta: float) -> None:
    """Probabilities of Rao and Kupper's model, which add up to 1."""
    no, yes = torch.zeros_like(A, dtype=torch.bool), torch.ones_like(A, dtype=torch.bool)
    win, loss, tie = (
        (-rao_kupper(*pair, told, theta=theta)).exp() for pair, told in (((A, B), no), ((B, A), no), ((A, B), yes))
    )
    torch.testing.assert_close(win + loss + tie, torch.ones_like(A))
    p, q = A.exp(), B.exp()
    torch.testing.assert_close(win, p / (p + theta * q))
    torch.testing.assert_close(tie, (theta**2 - 1) * p * q / ((p + theta * q) * (q + theta * p)))


def test_a_tie_is_likeliest_at_equal_scores() -> None:
    gap = torch.linspace(-2, 2, 41, dtype=torch.float64, requires_grad=True)
    loss = rao_kupper(gap, torch.zeros_like(gap), torch.ones_like(gap, dtype=torch.bool), theta=5.0)
    assert loss.argmin() == 20
    loss.sum().backward()
    assert (gap.grad[:20] < 0).all() and (gap.grad[21:] > 0).all()


def test_unary_judges_each_by_itself() -> None:
    torch.testing.assert_close(
        unary(A, B),
        torch.tensor([-math.log(sigmoid(a)) - math.log(sigmoid(-b)) for a, b in VALUES], dtype=torch.float64),
    )


CONFIGS = (
    BradleyTerry(),
    BradleyTerry(smoothing=0.1, margins=True, centre=0.3),
    Ties(type="ties"),
    Unary(type="unary"),
)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.type)
def test_gradients_equal_finite_differences_and_raise_the_better(config: BradleyTerry | Ties | Unary) -> None:
    tie, margin = torch.zeros_like(A, dtype=torch.bool), torch.linspace(0, 1, len(A), dtype=torch.float64)
    better, worse = A.clone().requires_grad_(), B.clone().requires_grad_()

    def value(better: Tensor, worse: Tensor) -> Tensor:
        return losses(config, better, worse, tie, margin)

    assert torch.autograd.gradcheck(value, (better, worse))
    value(better, worse).sum().backward()
    if getattr(config, "centre", 0) == 0:
        assert (better.grad < 0).all() and (worse.grad > 0).all()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.type)
def test_ties_teach_those_who_know_of_them(config: BradleyTerry | Ties | Unary) -> None:
    better = A.clone().requires_grad_()
    losses(config, better, B, torch.ones_like(A, dtype=torch.bool), torch.zeros_like(A)).sum().backward()
    assert bool(better.grad.any()) == isinstance(config, Ties)


def test_centring_pulls_both_to_the_middle() -> None:
    torch.testing.assert_close(centring(A, B), (A + B).square())
    plain, pulled = (losses(BradleyTerry(centre=c), A, B, torch.zeros_like(A, dtype=torch.bool), A) for c in (0, 0.5))
    torch.testing.assert_close(pulled - plain, 0.5 * (A + B).square())


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(AssertionError):
        bradley_terry(A, B[:, None])
