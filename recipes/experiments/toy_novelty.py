"""Where novelty over all training helps, and where novelty within the episode (S021).

A context is a chain of four rooms, 3 x 3 cells each, with doors between neighbours; some are repeated, or every episode has a new
one. The start is in the first room and the goal in the last. The bonus of a step is of the cell that it leads to, known by its
position only: 1/sqrt(N) over all training, the indicator of a first visit in the episode, or both by sum or product
(`plaudit.rewards.novelty`). "sum, scaled" divides each bonus by its standard deviation so far.

Departures from the card: a linear Q-learner in place of IMPALA; the indicator in place of E3B, and counts in place of RND or
NovelD; bonuses are not divided by a running deviation except in "sum, scaled", so that the other rows are those of the
reward `novelty`; weights are not tuned for each row. The learner sees its position, its last move, and which neighbours are
closed, open, or visited in this episode: the last stands in for a recurrent policy's memory, without which the episodic
bonus is no function of what the learner knows. All arms of a seed meet the same contexts and the same random numbers.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from plaudit.rewards.compose.running import Moments
from plaudit.rewards.novelty.bonuses import Counts, FirstVisit, combined

MOVES = ((0, 1), (1, 0), (0, -1), (-1, 0))
CLOSED, OPEN, VISITED = 0, 1, 2  # what the learner knows of a neighbour
SLOTS, ROOM, ROOMS = 3, 3, 4  # rooms fill some of 3 x 3 slots, a wall of one cell between them
SIDE = SLOTS * (ROOM + 1) - 1
STEPS, EPISODES = 60, 400
RATE, DISCOUNT, EXPLORE = 0.2, 0.95, 0.1
Cell = tuple[int, int]


# --- contexts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Context:
    cells: Sequence[Cell]  # the first is the start, the last the goal
    leads: Sequence[Sequence[int]]  # [cell][move] to the cell that is reached
    visited: set[int] = field(default_factory=set)  # in training


def winding(rng: np.random.Generator) -> list[Cell]:
    """Slots of the rooms, each beside the one before."""
    while True:
        slots = [(int(rng.integers(SLOTS)), int(rng.integers(SLOTS)))]
        while len(slots) < ROOMS:
            beside = [(slots[-1][0] + dy, slots[-1][1] + dx) for dy, dx in MOVES]
            free = [s for s in beside if min(s) >= 0 and max(s) < SLOTS and s not in slots]
            if not free:
                break
            slots.append(free[rng.integers(len(free))])
        else:
            return slots


def door(slot: Cell, other: Cell, at: int) -> Cell:
    """The cell of the wall between two rooms that opens, `at` cells along."""
    corner = [max(slot[axis], other[axis]) * (ROOM + 1) for axis in (0, 1)]
    across = 0 if slot[0] != other[0] else 1
    corner[across] -= 1
    corner[1 - across] += at
    return corner[0], corner[1]


def room(slot: Cell) -> list[Cell]:
    return [(slot[0] * (ROOM + 1) + dy, slot[1] * (ROOM + 1) + dx) for dy in range(ROOM) for dx in range(ROOM)]


def new_context(rng: np.random.Generator) -> Context:
    slots = winding(rng)
    rooms = [room(slot) for slot in slots]
    start, goal = rooms[0][rng.integers(ROOM**2)], rooms[-1][rng.integers(ROOM**2)]
    doors = [door(a, b, int(rng.integers(ROOM))) for a, b in itertools.pairwise(slots)]
    between = [cell for cell in [*itertools.chain(*rooms), *doors] if cell not in (start, goal)]
    cells = [start, *between, goal]
    number = {cell: i for i, cell in enumerate(cells)}
    leads = [[number.get((y + dy, x + dx), number[y, x]) for dy, dx in MOVES] for y, x in cells]
    return Context(cells=cells, leads=leads)


# --- bonuses ---------------------------------------------------------------------------------------------------------


class Bonus:
    """Of a visit to a cell; `begin` an episode first."""

    def __init__(self, kind: str) -> None:
        self.kind, self.counts, self.seen = kind, Counts(), FirstVisit()
        self.moments = (Moments(), Moments())
        self.scales = (1.0, 1.0)
        self.parts: list[tuple[float, float]] = []

    def begin(self) -> None:
        self.seen = FirstVisit()
        if self.kind == "sum, scaled" and self.parts:
            columns = torch.tensor(self.parts, dtype=torch.float64).T
            of_counts, of_firsts = (m.merged(Moments.of(c)) for m, c in zip(self.moments, columns, strict=True))
            self.moments, self.parts = (of_counts, of_firsts), []
            self.scales = (of_counts.std or 1.0, of_firsts.std or 1.0)  # all are alike if no cell was visited twice

    def visit(self, key: str) -> float:
        globally, locally = self.counts.visit(key), self.seen.bonus(key)
        match self.kind:
            case "none" | "random":
                return 0.0
            case "sum, scaled":
                self.parts.append((globally, locally))
                return combined("sum", globally / self.scales[0], locally / self.scales[1])
            case kind:
                return combined(kind, globally, locally)


# --- learning --------------------------------------------------------------------------------------------------------


class Learner:
    """Q-learning, linear in the position and in what is known of the four neighbours together with the last move."""

    def __init__(self, remembers: bool) -> None:
        self.remembers = remembers  # which cells it has visited in this episode
        self.by_view = np.zeros((3 ** len(MOVES), len(MOVES) + 1, len(MOVES))).tolist()
        self.by_place = np.zeros((SIDE, SIDE, len(MOVES))).tolist()

    def features(self, context: Context, at: int, last: int, visited: set[int]) -> tuple[list[float], list[float]]:
        """The two rows of weights that sum to the values of the moves."""
        view = 0
        for reached in context.leads[at]:
            known = CLOSED if reached == at else VISITED if self.remembers and reached in visited else OPEN
            view = 3 * view + known
        y, x = context.cells[at]
        return self.by_view[view][last], self.by_place[y][x]


@dataclass(frozen=True, kw_only=True)
class Task:
    goal: float = 0.0  # reward
    weight: float = 1.0  # of the bonus
    explore: float = EXPLORE  # share of random moves
    remembers: bool = True


@dataclass(frozen=True, kw_only=True)
class Episode:
    coverage: float
    goal: bool


def run_episode(learner: Learner, bonus: Bonus, context: Context, task: Task, rng: np.random.Generator) -> Episode:
    """One episode, learnt from as it goes; a reward for the goal makes it the end."""
    goal = len(context.cells) - 1
    explored, randomly = (rng.random(STEPS) < task.explore).tolist(), rng.integers(len(MOVES), size=STEPS).tolist()
    ties = (1e-9 * rng.random((STEPS, len(MOVES)))).tolist()
    keys = [str(cell) for cell in context.cells]
    at, visited = 0, {0}
    bonus.begin()
    bonus.visit(keys[at])
    by_view, by_place = learner.features(context, at, len(MOVES), visited)
    values = [a + b for a, b in zip(by_view, by_place, strict=True)]
    for step in range(STEPS):
        ranked = [value + tie for value, tie in zip(values, ties[step], strict=True)]
        move = randomly[step] if explored[step] else ranked.index(max(ranked))
        at = context.leads[at][move]
        visited.add(at)
        ends = task.goal > 0 and at == goal
        reward = task.weight * bonus.visit(keys[at]) + (task.goal if ends else 0.0)
        next_view, next_place = learner.features(context, at, move, visited)
        next_values = [a + b for a, b in zip(next_view, next_place, strict=True)]
        error = reward + (0.0 if ends else DISCOUNT * max(next_values)) - values[move]
        by_view[move] += RATE * error
        by_place[move] += RATE * error
        if ends:
            break
        by_view, by_place = next_view, next_place
        values = [a + b for a, b in zip(by_view, by_place, strict=True)]  # anew: the step may have changed them
    context.visited.update(visited)
    return Episode(coverage=len(visited) / len(context.cells), goal=goal in visited)


@dataclass(frozen=True, kw_only=True)
class Training:
    in_all: float  # coverage of a context by the whole training
    coverage: float  # of an episode at the end
    goal: float  # share of episodes at the end


def train(kind: str, num_contexts: int | None, task: Task, seed: int, num_episodes: int) -> Training:
    """Without `num_contexts`, every episode has a new context."""
    of_contexts, of_moves = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    contexts = [new_context(of_contexts) for _ in range(num_contexts or num_episodes)]
    order = of_contexts.integers(num_contexts, size=num_episodes) if num_contexts else np.arange(num_episodes)
    task = replace(task, explore=1.0) if kind == "random" else task
    learner, bonus = Learner(task.remembers), Bonus(kind)
    episodes = [run_episode(learner, bonus, contexts[i], task, of_moves) for i in order]
    return Training(
        in_all=statistics.fmean(len(c.visited) / len(c.cells) for c in contexts),
        coverage=statistics.fmean(e.coverage for e in episodes[-num_episodes // 4 :]),
        goal=statistics.fmean(e.goal for e in episodes[-num_episodes // 4 :]),
    )


# --- what is measured ------------------------------------------------------------------------------------------------


def measure(
    *, seed: int, quick: bool, bonus: str, contexts: int | None, goal: float, weight: float
) -> dict[str, float]:
    """Over the last quarter of training: the share of cells that an episode visits, and of episodes that reach the goal."""
    found = train(bonus, contexts, Task(goal=goal, weight=weight), seed, 8 if quick else EPISODES)
    return {"coverage": found.coverage, "goal": found.goal, "in_all": found.in_all}
