"""The ledger counts before, times after, and refuses what the budget does not pay for."""

from __future__ import annotations

import pytest
import torch

from plaudit.search.budget import Budget, BudgetExceeded, Cost
from plaudit.search.ledger import Ledger


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def ledger(budget: str = "10nfe,4rewards", prompts: int = 3) -> tuple[Ledger, Clock]:
    clock = Clock()
    return Ledger(prompts, Budget.parse(budget), clock), clock


def test_counts_and_seconds_go_to_their_prompts() -> None:
    book, clock = ledger()
    with book.spending("network_calls", torch.tensor([0, 2, 2, 2]), 2):
        clock.now += 8.0
    with book.spending("reward_calls", torch.tensor([1])):
        clock.now += 1.0
    assert book.counts["network_calls"].tolist() == [2, 0, 6]
    assert book.seconds["network_calls"].tolist() == [2.0, 0.0, 6.0]
    assert book.spent(1) == Cost(reward_calls=1)
    assert book.total == Cost(network_calls=8, reward_calls=1)
    assert book.total_seconds() == {"network_calls": 8.0, "decodes": 0.0, "reward_calls": 1.0, "gradient_calls": 0.0}


def test_work_beyond_the_budget_is_refused_before_it_is_done() -> None:
    book, _ = ledger()
    rows = torch.tensor([0, 1, 1])
    with book.spending("network_calls", rows, 4):
        pass
    done = []
    refused = pytest.raises(BudgetExceeded, match="prompt 1: 12 network_calls would exceed the budget's 10")
    with refused, book.spending("network_calls", rows, 2):
        done.append("worked")
    assert not done and book.counts["network_calls"].tolist() == [4, 8, 0]


def test_exactly_the_budget_is_allowed() -> None:
    book, _ = ledger()
    with book.spending("reward_calls", torch.tensor([0, 0, 0, 0])):
        pass
    assert book.spent(0).reward_calls == 4 and not book.fits(Cost(reward_calls=1))


def test_work_that_fails_stays_counted_and_timed() -> None:
    book, clock = ledger()
    with pytest.raises(KeyboardInterrupt), book.spending("decodes", torch.tensor([1, 1])):
        clock.now += 3.0
        raise KeyboardInterrupt
    assert book.spent(1).decodes == 2 and book.total_seconds()["decodes"] == 3.0


def test_the_poorest_prompt_decides_what_fits() -> None:
    book, _ = ledger()
    with book.spending("network_calls", torch.tensor([2]), 7):
        pass
    assert book.fits(Cost(network_calls=1)) == 3
    assert book.fits(Cost(network_calls=1, reward_calls=2)) == 2
    assert book.fits(Cost(decodes=5)) is None


def test_share_is_that_of_the_tightest_limit() -> None:
    book, _ = ledger()
    assert book.share() == 0.0
    with book.spending("network_calls", torch.tensor([0, 1, 2]), 5):
        pass
    assert book.share() == 0.5
    with book.spending("reward_calls", torch.tensor([0, 1, 2]), 3):
        pass
    assert book.share() == 0.75
    assert Ledger(2, Budget.parse("3s")).share() == 0.0
