from __future__ import annotations

import math
import statistics

import pytest
import torch
from tests.rewards.compose.batches import NAN, law, parts, same, tensor

from plaudit.rewards.compose import trust as tr


@law(members=parts(3))
def test_ensembles_as_a_loop_says(members) -> None:
    rows = torch.stack(members, 1).tolist()
    present = [not any(map(math.isnan, row)) for row in rows]

    def loop(function):
        return tensor(*[function(row) if ok else NAN for row, ok in zip(rows, present, strict=True)])

    sigma = loop(statistics.pstdev)
    for ensemble, value in (
        (tr.ensemble_mean(members), loop(statistics.fmean)),
        (tr.ensemble_min(members), loop(min)),
        (tr.ensemble_lower(members, k=2), loop(lambda row: statistics.fmean(row) - 2 * statistics.pstdev(row))),
        (
            tr.ensemble_uwo(members, penalty=0.3),
            loop(lambda row: statistics.fmean(row) - 0.3 * statistics.pvariance(row)),
        ),
    ):
        assert same(ensemble.value, value) and same(ensemble.sigma, sigma, atol=1e-7)
    assert same(tr.lower(members, k=2), tr.ensemble_lower(members, k=2).value)
    assert same(tr.uwo(members, penalty=0.3), tr.ensemble_uwo(members, penalty=0.3).value)
    assert same(tr.spread(members), sigma, atol=1e-7)


def test_members_that_agree_lose_nothing() -> None:
    member = tensor(0.1, 0.7)
    for ensemble in (tr.ensemble_mean, tr.ensemble_min, tr.ensemble_lower, tr.ensemble_uwo):
        assert same(ensemble([member] * 3).value, member) and ensemble([member] * 3).sigma.max() < 1e-12


def test_disagreement_is_never_rewarded() -> None:
    for refused in (lambda p: tr.lower(p, k=-1), lambda p: tr.uwo(p, penalty=-1), lambda p: tr.discounted(*p, rate=-1)):
        with pytest.raises(ValueError, match="negative"):
            refused([tensor(1.0), tensor(2.0)])


def test_discounted() -> None:
    assert same(tr.discounted(tensor(2, 2, NAN), tensor(0, 1, 1), rate=0.5), tensor(2, 2 * math.exp(-0.5), NAN))


# --- S048 ------------------------------------------------------------------------------------------------------------


def test_leverage_is_the_norm_of_the_theory_and_not_that_of_the_released_code() -> None:
    generator = torch.Generator().manual_seed(0)
    train = torch.randn(50, 4, dtype=torch.float64, generator=generator)
    z = torch.randn(6, 4, dtype=torch.float64, generator=generator)
    matrix = tr.leverage_matrix(train, ridge=0.5)
    assert same(matrix, 0.5 * torch.eye(4, dtype=torch.float64) + sum(torch.outer(row, row) for row in train))
    expected = tensor(*[math.sqrt(row @ torch.linalg.inv(matrix) @ row) for row in z])
    assert same(tr.leverage(z, matrix), expected)
    assert not same(tr.leverage(z, matrix), (z @ torch.linalg.inv(matrix)).norm(dim=1))


def test_leverage_grows_away_from_the_data_and_bounds_the_error() -> None:
    """On shifted inputs, leverage and the error of a fitted linear head rise together."""
    generator = torch.Generator().manual_seed(1)
    scales = torch.tensor([3.0, 1.0, 0.1, 0.05], dtype=torch.float64)
    train = torch.randn(200, 4, dtype=torch.float64, generator=generator) * scales
    truth = torch.randn(4, dtype=torch.float64, generator=generator)
    ratings = train @ truth + 0.3 * torch.randn(200, dtype=torch.float64, generator=generator)
    matrix = tr.leverage_matrix(train, ridge=1e-3)
    head = torch.linalg.solve(matrix, train.T @ ratings)
    shifted = torch.randn(300, 4, dtype=torch.float64, generator=generator)
    error, lever = (shifted @ (head - truth)).abs(), tr.leverage(shifted, matrix)
    ranks = torch.stack([error.argsort().argsort(), lever.argsort().argsort()]).double()
    assert torch.corrcoef(ranks)[0, 1] > 0.3
    assert (error <= lever * math.sqrt((head - truth) @ matrix @ (head - truth)) + 1e-9).all()


def test_trust_weight_amplifies_and_never_damps() -> None:
    weight = tr.trust_weight(tensor(0, 6, 14, 1000))
    assert same(weight, tensor(math.exp(0.7), math.exp(0.4), 1, 1))
    assert weight.max() < 2.21


# --- S009 ------------------------------------------------------------------------------------------------------------


def test_classes_that_are_ruled_out_add_nothing_to_the_disagreement() -> None:
    rest = torch.tensor([[0.3, 0.1, -0.5]], requires_grad=True)
    ruled_out = torch.cat([rest, torch.tensor([[-torch.inf]])], 1)
    first = torch.cat([rest.flip(1), torch.tensor([[-torch.inf]])], 1)
    found = tr.kl_disagreement(first, ruled_out)
    torch.testing.assert_close(found, tr.kl_disagreement(rest.flip(1), rest))
    assert torch.autograd.grad(found.sum(), rest)[0].isfinite().all()


def test_kl_disagreement_is_of_the_second_from_the_first() -> None:
    first, second = torch.tensor([[0.0, 1.0, -1.0]]), torch.tensor([[2.0, 0.0, 0.5]])
    p, q = torch.distributions.Categorical(logits=second), torch.distributions.Categorical(logits=first)
    assert torch.allclose(tr.kl_disagreement(first, second, scale=2.0), 2 * torch.distributions.kl_divergence(p, q))
    pixels = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert tr.kl_disagreement(pixels, pixels).abs().max() < 1e-6 and tr.kl_disagreement(pixels, pixels).shape == (
        2,
        4,
        5,
    )
    assert tr.absolute_disagreement(tensor(1.0), tensor(3.0)).item() == 2


def test_disagreement_loss_by_hand_and_its_gradient_through_both_places() -> None:
    loss, u = tensor(1.0, 2.0, 50.0).requires_grad_(), tensor(0.5, 0.0, 3.0).requires_grad_()
    valid = torch.tensor([True, True, False])
    total = tr.disagreement_loss(loss, u, valid, price=0.1)
    assert total.item() == pytest.approx((math.exp(-0.5) + 2 + 0.1 * 0.5) / 2)
    total.backward()
    assert same(loss.grad, tensor(math.exp(-0.5) / 2, 0.5, 0))
    assert same(u.grad, tensor((-math.exp(-0.5) + 0.1) / 2, (-2 + 0.1) / 2, 0))


def test_the_price_stops_disagreement_from_growing() -> None:
    """Minimised over U alone, l exp(-U) + U is lowest at U = log l, and without a price at infinity."""
    u = tensor(0.0).requires_grad_()
    for _ in range(60):
        (slope,) = torch.autograd.grad(tr.disagreement_loss(tensor(5.0), u, torch.tensor([True])), u)
        u = (u - 0.5 * slope).detach().requires_grad_()
    assert u.item() == pytest.approx(math.log(5), abs=1e-3)
