"""Token credit (DECS) and the tilt of right outputs (DRPO) against their formulas and released code's gradients."""

from __future__ import annotations

import itertools
import math
import statistics
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from plaudit.shaping.credit import group_advantage
from plaudit.shaping.dense import position_credit
from plaudit.shaping.lengths import (
    barrier_weight,
    contrast,
    decoupled_credit,
    decoupled_scores,
    kept_groups,
    next_kappa,
    tilt,
)

NAN = math.nan


def doubles(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- DECS ------------------------------------------------------------------------------------------------------------


def test_token_scores_are_the_formula() -> None:
    redundant = torch.tensor([[False, True, False]] * 4)
    found = decoupled_scores(doubles([1, 0, 1, NAN]), torch.tensor([40, 40, 400, 3]), redundant, limit=100, beta=0.1)
    assert found[0].tolist() == pytest.approx([1.1, 1.06, 1.1])
    assert found[1].tolist() == [0, 0, 0] and found[2].tolist() == pytest.approx([1.1, 1.0, 1.1])
    assert found[3].isnan().all()


def advantage(score: Tensor, after: Tensor, valid: Tensor, group: list[int], **rest):
    return position_credit(score, after, valid, torch.tensor(group), **rest)


def example() -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """Four outputs of 2 to 4 tokens: brief and right, long and right with a redundant tail, wrong, right."""
    score = doubles([[1.1, 1.1, NAN, NAN], [1.1, 1.1, 1.05, 1.1], [0, 0, 0, NAN], [1.1, 1.1, 1.1, NAN]])
    return score, doubles([1.1, 1.1, 0, 1.1]), ~score.isnan(), [0, 0, 0, 0]


def test_credit_are_taken_position_by_position_with_ended_outputs_in_the_statistics() -> None:
    score, after, valid, group = example()
    found = advantage(score, after, valid, group)
    for t in range(4):
        column = [float(score[i, t]) if valid[i, t] else float(after[i]) for i in range(4)]
        mean, std = statistics.fmean(column), statistics.stdev(column)
        expected = [(c - mean) / std if valid[i, t] else 0.0 for i, c in enumerate(column)]
        assert found.value[:, t].tolist() == pytest.approx(expected)
    assert torch.equal(found.valid, valid.any(1)) and (found.groups, found.constant_groups) == (1, 0)


def test_a_redundant_token_is_pushed_less_than_a_needed_one_at_its_place() -> None:
    score, after, valid, group = example()
    found = advantage(score, after, valid, group).value
    assert found[1, 2] < found[3, 2] and found[1, 1] == found[0, 1] > 0 > found[2, 1]
    right = advantage(score[[0, 1, 3]], after[[0, 1, 3]], valid[[0, 1, 3]], [0] * 3).value
    assert right[1, 2] < 0 and right[1, [0, 1, 3]].tolist() == [
        0,
        0,
        0,
    ]  # among right outputs only the tail is pushed down


def test_equal_rewards_give_exactly_nothing() -> None:
    score = torch.full((3, 5), 0.1 + 1e-9)
    found = advantage(score, score[:, 0], torch.ones(3, 5, dtype=torch.bool), [4, 4, 4])
    assert (found.value == 0).all() and found.constant_groups == 1


def test_without_redundancy_every_token_gets_the_outputs_advantage() -> None:
    correct, group = doubles([1, 0, 0, 1, 1, 0]), [0, 0, 0, 5, 5, 5]
    score = decoupled_scores(correct, torch.tensor([4] * 6), torch.zeros(6, 4, dtype=torch.bool), limit=9)
    found = advantage(score, 1.1 * correct, torch.ones(6, 4, dtype=torch.bool), group).value
    whole = group_advantage(correct, torch.tensor(group)).value
    assert (found - whole[:, None]).abs().max() < 1e-9 and whole.abs().max() > 0.5


def test_groups_and_missing_outputs_do_not_touch_others() -> None:
    score, after, valid, _ = example()
    alone = advantage(score, after, valid, [0] * 4).value
    twice = advantage(
        torch.cat([score, score + 5])[[4, 0, 1, 5, 2, 3]],
        torch.cat([after, after + 5])[[4, 0, 1, 5, 2, 3]],
        torch.cat([valid, valid])[[4, 0, 1, 5, 2, 3]],
        [9, 2, 2, 9, 2, 2],
    ).value
    assert torch.allclose(twice[[1, 2, 4, 5]], alone)
    gone = advantage(
        torch.cat([score, torch.full((1, 4), NAN)]),
        torch.cat([after, doubles([NAN])]),
        torch.cat([valid, valid[1:2]]),
        [0] * 5,
    )
    assert torch.allclose(gone.value[:4], alone) and (gone.value[4] == 0).all() and not gone.valid[4]


def test_kappa_follows_the_needed_share_and_telescopes() -> None:
    kappa, shares = 0.0, [0.5, 0.7, 0.65, 0.9]
    for before, now in itertools.pairwise(shares):
        kappa = next_kappa(kappa, now, before)
    assert kappa == pytest.approx(0.2 * (0.9 - 0.5)) and next_kappa(0.0, 0.4, 0.5) < 0


def test_kept_groups_are_the_mixed_ones_and_a_share_of_the_solved() -> None:
    rates = {g: Fraction(1, 2) for g in range(6)} | {g: Fraction(1) for g in (10, 11, 12)} | {20: Fraction(0)}
    draws = {g: -float(g) for g in rates}
    mixed = set(range(6))
    assert kept_groups(rates, 0.0, draws) == kept_groups(rates, -0.3, draws) == mixed
    assert kept_groups(rates, 0.25, draws) == mixed | {12, 11}  # floor(0.25 * 6 / 0.75) = 2
    assert kept_groups(rates, 0.24, draws) == mixed | {12}
    assert kept_groups(rates, 0.9, draws) == mixed | {10, 11, 12}


# --- DRPO ------------------------------------------------------------------------------------------------------------


def released_objective(
    score: Tensor, preference: Tensor, correct: Tensor, group: Tensor, lam: float, tau: float
) -> Tensor:
    """J by plain loops: the mean over questions of the tilted positives less tau log mean exp of the negatives."""
    total, questions = torch.zeros((), dtype=torch.float64), sorted(set(group.tolist()))
    for q in questions:
        right = [i for i in range(len(group)) if group[i] == q and correct[i] == 1]
        wrong = [i for i in range(len(group)) if group[i] == q and correct[i] == 0]
        if right and wrong:
            weights = [math.exp(float(preference[i]) / lam) for i in right]
            tilted = sum(w * score[i] for w, i in zip(weights, right, strict=True)) / sum(weights)
            total = total + tilted - tau * torch.stack([(score[j] / tau).exp() for j in wrong]).mean().log()
    return total / len(questions)


def batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    score = -3 * torch.rand(16, generator=generator, dtype=torch.float64)
    preference = torch.rand(16, generator=generator, dtype=torch.float64)
    correct = doubles([1, 0, 1, 0, 1, 1, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0])
    group = torch.tensor([0, 0, 0, 0, 3, 3, 3, 3, 5, 5, 5, 5, 9, 9, 9, 9])
    order = torch.randperm(16, generator=generator)
    return score[order], preference[order], correct[order], group[order]


@pytest.mark.parametrize(("lam", "tau"), [(0.1, 10.0), (0.5, 1.0), (2.0, 0.3)])
def test_the_credit_is_the_gradient_of_the_objective(lam: float, tau: float) -> None:
    score, preference, correct, group = batch()
    score.requires_grad_()
    (gradient,) = torch.autograd.grad(released_objective(score, preference, correct, group, lam, tau), score)
    found = decoupled_credit(score, preference, correct, group, temperature=lam, contrast_temperature=tau)
    assert (found.groups, found.constant_groups) == (4, 2) and not found.value.requires_grad
    assert torch.allclose(found.value / found.groups, gradient, atol=1e-12) and gradient.abs().max() > 0.01


def test_a_long_right_output_is_never_pushed_down_though_grpo_pushes_it() -> None:
    """The identity check of the paper: right and short, right and long, wrong."""
    correct, preference, group = doubles([1, 1, 0]), doubles([0.9, 0.05, 0.9]), torch.zeros(3, dtype=torch.long)
    grpo = group_advantage(correct * (1 + 3 * preference), group).value
    assert grpo[1] < 0
    found = decoupled_credit(doubles([-1, -1, -1]), preference, correct, group).value
    assert found[0] > found[1] >= 0 > found[2] and found[:2].sum() == pytest.approx(1) and found[2] == pytest.approx(-1)


def test_the_wrong_ones_do_not_feel_the_lengths_of_the_right_ones() -> None:
    score, preference, correct, group = batch(1)
    wrong = correct == 0
    other = torch.where(wrong, preference, preference.flip(0) * 3)
    first, second = (decoupled_credit(score, p, correct, group).value for p in (preference, other))
    assert torch.equal(first[wrong], second[wrong]) and not torch.allclose(first[~wrong], second[~wrong])
    own = torch.where(wrong, preference + 7, preference)  # nor their own
    assert torch.equal(decoupled_credit(score, own, correct, group).value, first)


def test_the_tilt_sees_differences_of_length_only_and_infinity_is_no_tilt() -> None:
    _, preference, correct, group = batch(2)
    right = correct == 1
    plain = tilt(preference, right, group, 0.1)
    assert torch.allclose(tilt(preference + 100, right, group, 0.1), plain)
    assert torch.allclose(tilt(preference * 3, right, group, 0.3), plain)
    even = tilt(preference, right, group, math.inf)
    counts = torch.stack([right[group == g].sum() for g in group])
    assert torch.allclose(even[right], 1 / counts[right].double()) and (even[~right] == 0).all()
    for g in (0, 3, 5):
        assert float(plain[group == g].sum()) == pytest.approx(1)
    assert float(plain[group == 9].abs().sum()) == 0


def test_the_contrast_leans_on_the_likeliest_wrong_output_without_overflow() -> None:
    group = torch.zeros(4, dtype=torch.long)
    found = contrast(doubles([1e5, 1e5 - 10, 1e6, -1e9]), torch.tensor([True, True, False, True]), group, 10.0)
    assert found.tolist() == pytest.approx([1 / (1 + math.exp(-1)), math.exp(-1) / (1 + math.exp(-1)), 0, 0])


def test_an_unknown_output_is_in_neither_camp() -> None:
    score, preference, correct, group = batch(3)
    gone = correct.clone()
    gone[4] = NAN
    found = decoupled_credit(score, preference, gone, group)
    kept = [i for i in range(16) if i != 4]
    rest = decoupled_credit(score[kept], preference[kept], correct[kept], group[kept])
    assert found.value[4] == 0 and not found.valid[4] and torch.allclose(found.value[kept], rest.value)


def test_the_barrier_is_the_derivative_of_a_squared_hinge() -> None:
    for kl in (0.0, 1e-4, 5e-4, 0.02):
        x = doubles(kl).requires_grad_()
        (slope,) = torch.autograd.grad(0.5 * 1e3 * (x - 1e-4).clamp(min=0) ** 2, x)
        assert float(barrier_weight(x)) == pytest.approx(float(slope)) and not barrier_weight(x).requires_grad
    assert float(barrier_weight(doubles(0.02))) == pytest.approx(19.9)
