"""What a state on the way is worth: the reward of its preview, or a model of the final reward that reads noisy states.

A `Lookout` says so to `particles`, which compares states, and to `guidance`, which follows the slope. Where its values are the
mean reward of what becomes of a state, it is a value function; the reward of the preview is so only for a linear reward.

    preview                 the total of x - t v: needs the state's velocity, a decode and the rewards
    FILE.safetensors        a stitched value model (`plaudit.rewards.learned.stitched`): a part of the network and of the reward
    package.module:Class    any other, such as a reward that was trained on noisy states

Shape legend: B rows, * latent dimensions.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from plaudit.dotted import import_dotted
from plaudit.errors import RecipeError
from plaudit.rewards.learned.noise_aware import NoiseAware, load_previews
from plaudit.rewards.learned.stitched import StitchedValue
from plaudit.search.budget import Cost
from plaudit.search.flow.steps import Judge, judge_previews
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


class StitchedLookout:
    """Stitched values for a search. One costs part of a network call and part of a reward call, and is counted as one each:
    more than it is."""

    needs_velocity = False

    def __init__(self, value: StitchedValue) -> None:
        self.value = value

    @staticmethod
    def load(name: str) -> StitchedLookout:
        return StitchedLookout(StitchedValue.load(Path(name)))

    def check(self, task: FlowTask) -> None:
        blocks = getattr(getattr(task.model.network, "trunk", None), "blocks", None)
        if blocks is None or not getattr(blocks[0], "side", None):
            raise RecipeError(
                "value: a stitched value model reads the blocks of the lab's `pixels` generator; search that one, or use "
                "value=preview"
            )

    def cost(self, task: FlowTask) -> Cost:
        return Cost(network_calls=1, reward_calls=1)

    def scores(self, task: FlowTask, rows: Rows, v: Tensor | None, k: int) -> Tensor:
        return self.worth(task, rows, task.times[k]).value

    def worth(self, task: FlowTask, rows: Rows, t: Time) -> Worth:
        at = torch.as_tensor(t, dtype=torch.float32).expand(len(rows))
        texts = [prompt.text for prompt in task.prompts_of(rows.prompt)]
        with task.spending("network_calls", rows.prompt), task.spending("reward_calls", rows.prompt):
            value = self.value.score(task.model.network, rows.x, at, texts)
        return Worth(value=value.double(), v=None)


def find_lookout(name: str) -> Lookout:
    if name == PREVIEW:
        return Preview()
    if name.endswith(".safetensors"):
        return StitchedLookout.load(name)
    if ":" in name:
        made: Lookout = import_dotted(name, "value")()
        return made
    raise RecipeError(
        f"value {name!r} is not known; allowed: {PREVIEW}, a file of a stitched value model (.safetensors), or a dotted path "
        "`package.module:Class`"
    )


def noise_aware(name: str) -> Judge:
    """A judge of previews. It counts as one reward call per preview, however many rewards the suite has."""
    scores = _loaded(name)

    def judge(task: FlowTask, pictures: Tensor, prompt: Tensor, t: Tensor) -> Tensor:
        with task.spending("reward_calls", prompt):
            return scores([one.text for one in task.prompts_of(prompt)], pictures, float(t))

    return judge


@functools.cache
def _loaded(name: str) -> NoiseAware:
    return NoiseAware(load_previews(name))
