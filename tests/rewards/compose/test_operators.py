from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import strategies as st
from tests.rewards.compose.batches import NAN, groups, law, numbers, parts, same, tensor

from plaudit.rewards.compose import operators as op

REFERENCES = {
    "mean": (op.mean, lambda row: sum(row) / len(row)),
    "min": (op.minimum, min),
    "max": (op.maximum, max),
    "product": (op.product, math.prod),
    "floored product": (lambda p: op.product(p, floor=0.05), lambda row: math.prod(max(x, 0.05) for x in row)),
    "geometric": (op.geometric_mean, lambda row: math.prod(row) ** (1 / len(row))),
    "harmonic": (op.harmonic_mean, lambda row: len(row) / sum(1 / x for x in row) if min(row) > 0 else 0.0),
    "weighted": (lambda p: op.weighted_sum(p, weights=(2, -1, 0.5)), lambda row: 2 * row[0] - row[1] + 0.5 * row[2]),
}


@pytest.mark.parametrize("name", REFERENCES)
@law(given_parts=parts(3, 0, 2))
def test_as_a_loop_says_and_missing_where_a_part_is(name, given_parts) -> None:
    operator, reference = REFERENCES[name]
    rows = torch.stack(given_parts, 1).tolist()
    expected = [NAN if any(map(math.isnan, row)) else reference(row) for row in rows]
    assert same(operator(given_parts), tensor(*expected))


@pytest.mark.parametrize("name", [name for name in REFERENCES if name != "weighted"])
@law(given_parts=parts(3, 0, 2, missing=False), rise=numbers(0, 1), which=st.integers(0, 2))
def test_a_better_part_never_makes_it_worse(name, given_parts, rise, which) -> None:
    operator = REFERENCES[name][0]
    better = [part + rise if k == which else part for k, part in enumerate(given_parts)]
    assert (operator(better) >= operator(given_parts) - 1e-12).all()


@law(given_parts=parts(3, 0.125, 2, missing=False))
def test_means_lie_in_order_between_the_extremes(given_parts) -> None:
    values = [f(given_parts) for f in (op.minimum, op.harmonic_mean, op.geometric_mean, op.mean, op.maximum)]
    assert all((low <= high + 1e-12).all() for low, high in itertools.pairwise(values))


@law(given_parts=parts(2, 0.125, 2, missing=False), scale=st.floats(0.01, 100))
def test_product_and_geometric_mean_need_no_common_scale(given_parts, scale) -> None:
    first, second = given_parts
    assert same(op.product([first * scale, second]), op.product([first, second]) * scale)
    assert same(op.geometric_mean([first * scale, second]), op.geometric_mean([first, second]) * scale**0.5)


def test_a_zero_part_silences_a_product_unless_floored() -> None:
    zero, others = tensor(0, 0), tensor(0.9, 0.5)
    assert op.product([zero, others]).tolist() == [0, 0] == op.geometric_mean([zero, others]).tolist()
    assert same(op.product([zero, others], floor=0.05), 0.05 * others)
    assert same(op.geometric_mean([zero, others], floor=0.05), (0.05 * others).sqrt())


SMOOTH = {
    "product": op.product,
    "geometric": op.geometric_mean,
    "harmonic": op.harmonic_mean,
    "mean": op.mean,
    "lambda": lambda p: op.lambda_harmonic(*p, balance=0.3),
    "cme": lambda p: op.cme(*p),
    "outcome": lambda p: op.outcome_gate(*p, group=groups(0, 0, 0, 0), anneal=0.5),
    "min": op.minimum,
}


@pytest.mark.parametrize("name", [name for name in SMOOTH if name != "outcome"])
def test_gradients(name) -> None:
    given_parts = torch.rand(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.7 + 0.2
    assert torch.autograd.gradcheck(lambda p: SMOOTH[name](list(p)), given_parts.requires_grad_())


@pytest.mark.parametrize("name", SMOOTH)
def test_a_missing_part_spoils_no_other_gradient(name) -> None:
    first, second = tensor(0.3, NAN, 0.5, 0.4).requires_grad_(), tensor(0.6, 0.7, 0.2, 0.9).requires_grad_()
    total = SMOOTH[name]([first, second])
    assert total.isnan().tolist() == [False, True, False, False]
    total[~total.isnan()].sum().backward()
    assert first.grad[[0, 2, 3]].isfinite().all() and first.grad[[0, 2, 3]].abs().sum() > 0


# --- S107 ------------------------------------------------------------------------------------------------------------


def test_lambda_harmonic_by_hand() -> None:
    image, text = tensor(0.8, 1.0), tensor(0.4, 0.0)
    assert same(op.lambda_harmonic(image, text, balance=0.5), tensor(8 / 15, 0.0), atol=1e-7)
    assert same(op.lambda_harmonic(image, text, balance=0), text, atol=1e-7)
    assert same(op.lambda_harmonic(image, text, balance=1), image, atol=1e-7)
    assert same(op.lambda_harmonic(image, text, balance=0.3), tensor(1 / (0.3 / 0.8 + 0.7 / 0.4), 0.0), atol=1e-7)


# --- S044 ------------------------------------------------------------------------------------------------------------


def test_firm_constants_are_not_swapped() -> None:
    gate, bonus = tensor(1, 1, 0.5, 0), tensor(0, 1, 0.5, 1)
    assert same(op.cme(gate, bonus), tensor(0.6, 1.0, 0.4, 0))
    assert same(op.qma(gate, bonus), tensor(0.4, 1.0, 0.35, 0))


def test_copying_the_input_earns_half_by_the_sum_and_nothing_by_cme() -> None:
    execution, consistency = tensor(0.0), tensor(1.0)
    assert op.weighted_sum([execution, consistency], weights=(0.5, 0.5)).item() == 0.5
    assert op.cme(execution, consistency).item() == 0


@law(given_parts=parts(2, 0, 1), base=st.floats(0, 1))
def test_base_bonus_never_exceeds_its_gate(given_parts, base) -> None:
    gate, bonus = given_parts
    result = op.base_bonus(gate, bonus, base=base)
    needed = gate.isnan() | (bonus.isnan() & (gate != 0))
    assert torch.equal(result.isnan(), needed)
    assert (result[~needed] <= gate[~needed] + 1e-12).all() and (result[~needed] >= 0).all()


# --- S091 ------------------------------------------------------------------------------------------------------------


def test_conciseness_by_hand() -> None:
    outcome, concise = tensor(1, 1, 0, 0, 1), tensor(0.8, 0.05, 1.0, NAN, 2.0)
    result = op.outcome_gate(outcome, concise, group=groups(0, 0, 0, 0, 1), alpha=0.5, anneal=0.25)
    # group 0 passes half the time, group 1 always; conciseness is clipped to 0.1..1
    assert same(result, tensor(1 + 0.5 * 0.8 * 0.75, 1 + 0.5 * 0.1 * 0.75, 0, 0, 1 + 0.5 * 1 * 1.25))


@law(concise=st.lists(numbers(0, 1), min_size=6, max_size=6), anneal=st.floats(0, 1))
def test_brevity_never_pays_a_wrong_answer(concise, anneal) -> None:
    outcome = tensor(1, 0, 1, 0, 0, 1)
    result = op.outcome_gate(outcome, tensor(*concise), group=groups(0, 0, 0, 1, 1, 1), anneal=anneal)
    assert (result[outcome == 0] == 0).all() and (result[outcome == 1] >= 1).all()


def test_a_right_answer_without_its_bonus_is_missing() -> None:
    result = op.outcome_gate(tensor(1, NAN, 0), tensor(NAN, 1, 1), group=groups(0, 0, 0))
    assert result.isnan().tolist() == [True, True, False]


# --- routes ----------------------------------------------------------------------------------------------------------


def test_fallback_takes_the_first_that_is_there() -> None:
    result = op.fallback([tensor(0, NAN, NAN, NAN), tensor(1, 2, NAN, NAN), tensor(5, 6, 7, NAN)])
    assert same(result, tensor(0, 2, 7, NAN))


def test_rule_first() -> None:
    result = op.rule_first(tensor(1, 0, NAN, 1, 0), tensor(-3, 0, 2, NAN, NAN))
    assert same(result, tensor(1, 0.5, 1 / (1 + math.exp(-2)), 1, NAN))


def test_overlength() -> None:
    result = op.overlength(tensor(1, 1, NAN), tensor(300, 310, 400), limit=300, rate=0.01)
    assert same(result, tensor(1, 0.9, NAN))


@pytest.mark.parametrize(
    "senseless",
    [
        lambda p: op.weighted_sum(p, weights=(1.0,)),
        lambda p: op.geometric_mean(p, floor=-1.0),
        lambda p: op.base_bonus(*p, base=1.5),
        lambda p: op.lambda_harmonic(*p, balance=-0.1),
        lambda p: op.outcome_gate(*p, group=groups(0), alpha=-1),
    ],
)
def test_senseless_options_are_refused(senseless) -> None:
    with pytest.raises(ValueError):
        senseless([tensor(0.5), tensor(0.5)])
