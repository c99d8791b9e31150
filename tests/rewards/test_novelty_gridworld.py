"""The experiment of S021 in small: where novelty over all training helps, where novelty within the episode, where both.

A corridor of 16 cells winds through a 9 x 9 grid; the goal is its other end, 40 steps are given. A context is a corridor.
The learner (linear Q-learning) sees its position, the open directions and its last move; bonuses see the position only.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest

from plaudit.rewards.novelty.bonuses import Counts, FirstVisit, combined

MOVES = ((0, 1), (1, 0), (0, -1), (-1, 0))
SIZE, LENGTH, STEPS, EPISODES = 9, 16, 40, 400
RATE, DISCOUNT, EXPLORE = 0.2, 0.9, 0.15
Cell = tuple[int, int]


def neighbours(cell: Cell) -> list[Cell]:
    return [(cell[0] + dy, cell[1] + dx) for dy, dx in MOVES]


def corridor(rng: np.random.Generator) -> list[Cell]:
    """A random path whose cells touch only the ones before and after them."""
    while True:
        path = [(int(rng.integers(SIZE)), int(rng.integers(SIZE)))]
        while len(path) < LENGTH:
            free = [
                cell
                for cell in neighbours(path[-1])
                if min(cell) >= 0 and max(cell) < SIZE and sum(other in path for other in neighbours(cell)) == 1
            ]
            if not free:
                break
            path.append(free[rng.integers(len(free))])
        else:
            return path


def success(bonus: str | None, num_contexts: int | None, seed: int) -> float:
    """How often the goal is reached in the last quarter of training; without `num_contexts` every episode is new."""
    rng = np.random.default_rng(seed)
    contexts = [corridor(rng) for _ in range(num_contexts or 0)]
    by_view, by_place = (
        np.zeros((16, 5, 4)),
        np.zeros((SIZE, SIZE, 4)),
    )  # weights: (open directions, last move), position
    counts, wins = Counts(), []
    for _ in range(EPISODES):
        path = contexts[rng.integers(len(contexts))] if contexts else corridor(rng)
        seen, cell, last, won = FirstVisit(), path[0], 4, False
        seen.bonus(str(cell))
        explored, random_moves, ties = rng.random(STEPS) < EXPLORE, rng.integers(4, size=STEPS), rng.random((STEPS, 4))
        view = {c: sum(1 << d for d, other in enumerate(neighbours(c)) if other in path) for c in path}
        for step in range(STEPS):
            value = by_view[view[cell], last] + by_place[cell]
            move = int(random_moves[step]) if explored[step] else int((value + 1e-9 * ties[step]).argmax())
            target_cell = neighbours(cell)[move]
            reached = target_cell if target_cell in view else cell
            won = reached == path[-1]
            novelty = combined(bonus, counts.visit(str(reached)), seen.bonus(str(reached))) if bonus else 0.0
            future = 0.0 if won else DISCOUNT * (by_view[view[reached], move] + by_place[reached]).max()
            error = won + novelty + future - value[move]
            by_view[view[cell], last, move] += RATE * error
            by_place[cell][move] += RATE * error
            cell, last = reached, move
            if won:
                break
        wins.append(won)
    return float(np.mean(wins[-EPISODES // 4 :]))


@functools.cache
def mean_success(bonus: str | None, num_contexts: int | None) -> float:
    return float(np.mean([success(bonus, num_contexts, seed) for seed in range(3)]))


def test_without_a_bonus_the_goal_is_seldom_found() -> None:
    assert mean_success(None, 1) < 0.4 and mean_success(None, None) < 0.05


def test_in_one_context_novelty_over_training_wins() -> None:
    assert mean_success("global", 1) > 0.95
    assert mean_success("episodic", 1) < 0.6


def test_over_ever_new_contexts_only_the_episode_knows_what_is_new() -> None:
    """Every position was seen before, in some other corridor: the global bonus says nothing any more."""
    assert mean_success("global", None) < 0.05
    assert mean_success("episodic", None) > 0.2, "as good as in one context"


def test_the_product_is_good_throughout_and_the_sum_is_not() -> None:
    assert mean_success("product", 1) > 0.95
    assert mean_success("product", 3) > 0.9 > 0.75 > max(mean_success("sum", 3), mean_success("global", 3))
    assert mean_success("product", None) > mean_success("global", None) + 0.03


@pytest.mark.parametrize("bonus", ("global", "episodic"))
def test_a_run_is_its_seed(bonus: str) -> None:
    assert success(bonus, 3, 5) == success(bonus, 3, 5)
