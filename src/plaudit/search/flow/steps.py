"""What methods that look at candidates on their way share: parts of the stock sampler, previews' scores, planning.

Shape legend: B rows, * latent dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from plaudit.errors import RecipeError
from plaudit.sampling.rollout import tiles
from plaudit.search.base import Task
from plaudit.search.budget import KINDS, Cost
from plaudit.search.flow.task import FlowTask
from plaudit.search.rows import Rows

USABLE = 0.8  # of the time that is left
TILES = 16

Judge = Callable[[FlowTask, Tensor, Tensor, Tensor], Tensor]
"""`judge(task, pictures, prompt, t)`: scores `[B]` of previews at time `t`, counted in the ledger."""


def score_total(task: FlowTask, pictures: Tensor, prompt: Tensor, t: Tensor) -> Tensor:
    """The suite's own judgement, which knows nothing of the time."""
    return task.score(pictures, prompt)


def stock_step(task: FlowTask, rows: Rows, v: Tensor, k: int) -> Rows:
    """One step of the stock sampler from `times[k]`, where the velocity is already known."""
    t, t_next = task.times[k], task.times[k + 1]
    if task.solver == "heun" and t_next > 0:
        ahead = rows.at(task.transition(rows, v, t, t_next, kernel="ode").mean)
        v = 0.5 * (v + task.velocity(ahead, t_next))
    return rows.at(task.transition(rows, v, t, t_next, kernel="ode").mean)


def advance(task: FlowTask, rows: Rows, k: int, stop: int) -> Rows:
    """From `times[k]` to `times[stop]` by the stock sampler."""
    for j in range(k, stop):
        rows = stock_step(task, rows, task.velocity(rows, task.times[j]), j)
    return rows


def velocities_between(task: FlowTask, k: int, stop: int) -> int:
    """Velocities of `advance`."""
    return task.velocities_to_finish(k) - task.velocities_to_finish(stop)


def judge_previews(task: FlowTask, rows: Rows, v: Tensor, k: int, judge: Judge = score_total) -> Tensor:
    """Scores `[B]` in float64 of the previews at `times[k]`. No more pictures than a tile exist at a time."""
    t = task.times[k]
    return torch.cat(
        [judge(task, task.preview(rows.select(of), v[of], t), rows.prompt[of], t) for of in tiles(len(rows), task.tile)]
    )


# --- planning --------------------------------------------------------------------------------------------------------


def seconds_of(task: Task, cost: Cost) -> float:
    """What work on every prompt will take, as fast as what has been done so far; time between operations included. Larger
    batches are faster, so this errs on the safe side after the plain samples."""
    assert task.deadline is not None and task.budget.seconds is not None
    counts, seconds = task.ledger.total, task.ledger.total_seconds()
    done = task.ledger.clock() - (task.deadline - task.budget.seconds * len(task.prompts))
    overhead = max(done / measured, 1.0) if (measured := sum(seconds.values())) else 1.0
    rates = {kind: seconds[kind] / count for kind in KINDS if (count := getattr(counts, kind))}
    return len(task.prompts) * overhead * sum(getattr(cost, kind) * rate for kind, rate in rates.items())


def within_means(task: Task, cost: Cost) -> bool:
    """Whether every prompt can pay for `cost` and, where time is limited, it can be expected to be over in good time."""
    if task.deadline is None:
        return task.affords(cost)
    return task.affords(cost) and seconds_of(task, cost) <= USABLE * (task.deadline - task.ledger.clock())


def most_affordable(task: Task, cost: Callable[[int], Cost]) -> int:
    """The largest n, which `cost` grows with, for which every prompt has the means; 0 if none. Where time is limited, no more
    than `TILES` tiles of rows, so that results come now and then."""
    timed = task.deadline is not None
    if task.fits(cost(1)) is None and not timed:
        raise RecipeError(
            f"the budget {task.budget} limits nothing that this method does, so it would never end; limit network calls (nfe), "
            "decodes, rewards or seconds"
        )
    most = max(TILES * task.tile // len(task.prompts), 1) if timed else None

    def possible(n: int) -> bool:
        return (most is None or n <= most) and within_means(task, cost(n))

    low, high = 0, 1
    while possible(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if possible(middle) else (low, middle)
    return low


def rounds(task: Task, cost: Callable[[int], Cost]) -> Iterator[int]:
    """Sizes of the rounds of a search: one as large as the counts allow, or, where time is limited, one after the other while
    there is enough of it, since what a round has not finished in time is lost."""
    while (size := most_affordable(task, cost)) > 0:
        yield size
        if task.deadline is None:
            return


def checked_size(task: Task, asked: int, cost: Callable[[int], Cost], what: str) -> int:
    """A size that the user has set, refused where the counts do not pay for it; `what` names the option."""
    fits = task.fits(cost(asked)) if asked else None
    if fits == 0:
        raise RecipeError(
            f"{what}: besides the plain sample the budget {task.budget} does not pay for {asked}; give it more, or leave the "
            "option out"
        )
    return asked
