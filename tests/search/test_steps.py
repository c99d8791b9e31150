"""Planning: what fits a budget of counts, and what can be expected to fit the time that is left."""

from __future__ import annotations

import pytest
import torch
from tests.search.test_ledger import Clock
from tests.search.toys import CountingModel, Green, make_task

from plaudit.errors import RecipeError
from plaudit.search.budget import Cost
from plaudit.search.flow.steps import (
    advance,
    most_affordable,
    rounds,
    seconds_of,
    stock_step,
    velocities_between,
    within_means,
)


def square(n: int) -> Cost:
    return Cost(network_calls=n * n, reward_calls=n)


@pytest.mark.parametrize(
    ("budget", "size"), (("1nfe", 1), ("99nfe", 9), ("100nfe", 10), ("100nfe,7rewards", 7), ("9999rewards", 9999))
)
def test_the_largest_size_that_fits(budget: str, size: int) -> None:
    assert most_affordable(make_task(None, Green(), budget), square) == size
    assert list(rounds(make_task(None, Green(), budget), square)) == [size]


def test_a_budget_that_limits_nothing_of_the_method_is_refused() -> None:
    with pytest.raises(RecipeError, match="would never end"):
        most_affordable(make_task(None, Green(), "9gradients"), square)


def test_seconds_are_estimated_from_what_was_done() -> None:
    """2 s per network row and 1 s per reward row so far, and as much again between the operations."""
    clock = Clock()
    task = make_task(None, Green(), "100s", count=2, clock=clock)
    task.deadline = 200.0
    for kind, seconds in (("network_calls", 2.0), ("reward_calls", 1.0)):
        with task.ledger.spending(kind, torch.tensor([0, 0, 1, 1])):
            clock.now += 4 * seconds
    clock.now += 12.0
    assert seconds_of(task, Cost(network_calls=3, reward_calls=5)) == pytest.approx(2 * 2 * (3 * 2 + 5))
    assert within_means(task, Cost(reward_calls=35)) and not within_means(task, Cost(reward_calls=36))  # 0.8 of 176 s
    assert most_affordable(task, lambda n: Cost(reward_calls=n)) == 35
    assert most_affordable(task, lambda n: Cost()) == 512  # 16 tiles of 64 rows, for two prompts
    task.tile = 0
    assert most_affordable(task, lambda n: Cost()) == 1
    clock.now = 201.0
    assert list(rounds(task, lambda n: Cost(reward_calls=n))) == []


@torch.no_grad()
@pytest.mark.parametrize("solver", ("euler", "heun"))
def test_parts_of_the_way_are_the_stock_sampler_bit_for_bit(solver: str) -> None:
    model = CountingModel()
    task = make_task(model, Green(), "9999nfe", solver=solver)
    rows = task.start(torch.arange(3), torch.arange(3))
    whole, calls = task.finish(rows), sum(model.rows)
    model.rows.clear()
    half = advance(task, rows, 0, 2)
    assert sum(model.rows) == 3 * velocities_between(task, 0, 2)
    v = task.velocity(half, task.times[2])
    assert torch.equal(task.finish(stock_step(task, half, v, 2), 3).x, whole.x)
    assert sum(model.rows) == calls == 3 * velocities_between(task, 0, 5)
