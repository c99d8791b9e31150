"""What a state on the way is worth: the reward of its preview, or a model of the final reward that reads noisy states.

A `Lookout` says so to `particles`, which compares states, and to `guidance`, which follows the slope. Where its values are the
mean reward of what becomes of a state, it is a value function; the reward of the preview is so only for a linear reward.

    preview                 the total of x - t v: needs the state's velocity, a decode and the rewards
    FILE.safetensors        a stitched value model (`plaudit.rewards.learned.stitched`): a part of the network and of the reward
    package.module:Class    any other, such as a reward that was trained on noisy states

Shape legend: B rows, * latent dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from plaudit.dotted import import_dotted
from plaudit.errors import RecipeError
from plaudit.search.budget import Cost
from plaudit.search.flow.steps import judge_previews
from plaudit.search.flow.task import FlowTask, Time
from plaudit.search.rows import Rows

PREVIEW = "preview"


@dataclass(frozen=True, kw_only=True)
class Worth:
    """Values `[B]` with a graph to the states, and the velocities `[B, *]` if they were made on the way."""

    value: Tensor
    v: Tensor | None


class Lookout(Protocol):
    """`cost` is that of one look besides the velocity, which only some need."""

    needs_velocity: bool

    def check(self, task: FlowTask) -> None:
        """Raise if it cannot judge states of this task."""
        ...

    def cost(self, task: FlowTask) -> Cost: ...

    def scores(self, task: FlowTask, rows: Rows, v: Tensor | None, k: int) -> Tensor:
        """Values `[B]` at times[k] without a graph, NaN where one is missing."""
        ...

    def worth(self, task: FlowTask, rows: Rows, t: Time) -> Worth:
        """The same inside of `task.value_and_gradient`."""
        ...


class Preview:
    """The reward of the clean state that the velocity points to."""

    needs_velocity = True

    def check(self, task: FlowTask) -> None:
        """Every task has previews."""

    def cost(self, task: FlowTask) -> Cost:
        return task.cost(decodes=1, scores=1)

    def scores(self, task: FlowTask, rows: Rows, v: Tensor | None, k: int) -> Tensor:
        assert v is not None, "a preview needs the velocity"
        return judge_previews(task, rows, v, k)

    def worth(self, task: FlowTask, rows: Rows, t: Time) -> Worth:
        v = task.velocity(rows, t)
        return Worth(value=task.differentiable_score(task.preview(rows, v, t), rows.prompt), v=v)


def find_lookout(name: str) -> Lookout:
    if name == PREVIEW:
        return Preview()
    if name.endswith(".safetensors"):
        from plaudit.rewards.learned.stitched import StitchedLookout

        return StitchedLookout.load(name)
    if ":" in name:
        made: Lookout = import_dotted(name, "value")()
        return made
    raise RecipeError(
        f"value {name!r} is not known; allowed: {PREVIEW}, a file of a stitched value model (.safetensors), or a dotted path "
        "`package.module:Class`"
    )
