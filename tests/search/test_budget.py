"""Budgets and costs as numbers."""

from __future__ import annotations

import pytest

from plaudit.errors import RecipeError
from plaudit.search.budget import Budget, Cost


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("200nfe", Budget(network_calls=200)),
        ("64rewards", Budget(reward_calls=64)),
        ("1.5s", Budget(seconds=1.5)),
        (" 2e3 nfe , 64rewards,30s", Budget(network_calls=2000, reward_calls=64, seconds=30.0)),
        ("9gradients,4decodes", Budget(gradient_calls=9, decodes=4)),
    ],
)
def test_parsed(text: str, expected: Budget) -> None:
    assert Budget.parse(text) == expected
    assert Budget.parse(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("200", "not a number and a unit"),
        ("", "not a number and a unit"),
        ("-3nfe", "not a number and a unit"),
        ("200nfes", "did you mean nfe"),
        ("20reward", "did you mean rewards"),
        ("1.5nfe", "not a whole number of network_calls"),
        ("0nfe", "must be more than 0"),
        ("0s", "must be more than 0"),
        ("1e999s", "must be more than 0"),
        ("20nfe,30nfe", "limited twice"),
        ("1e+e2nfe", "is not a number"),
    ],
)
def test_refused(text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Budget.parse(text)


def test_a_budget_without_limits_is_refused() -> None:
    with pytest.raises(RecipeError, match="would never end"):
        Budget()


def test_costs_add_up() -> None:
    one = Cost(network_calls=10, decodes=1, reward_calls=2)
    assert 3 * one + Cost(gradient_calls=4) == Cost(network_calls=30, decodes=3, reward_calls=6, gradient_calls=4)


def test_how_often_a_budget_pays() -> None:
    one = Cost(network_calls=10, decodes=1, reward_calls=2)
    assert Budget.parse("99nfe").times(one) == 9
    assert Budget.parse("99nfe,8rewards").times(one) == 4
    assert Budget.parse("9nfe").times(one) == 0
    assert Budget.parse("30s").times(one) is None
    assert Budget.parse("3gradients").times(one) is None
