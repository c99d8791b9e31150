"""Tasks on which tests can see every call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from tests.reference.toys import ToyFlowModel, prompts
from torch import Tensor

from plaudit.models.conditioning import PromptEncoder
from plaudit.rewards.base import Card
from plaudit.rewards.calling.call import Caller
from plaudit.rewards.load import Reward
from plaudit.rewards.suite import Suite, make_suite
from plaudit.search.budget import Budget
from plaudit.search.flow.task import FlowTask


class CountingModel(ToyFlowModel):
    """`rows` lists the samples of each network call, `decoded` those of each decode."""

    def __init__(self) -> None:
        super().__init__()
        self.decoded: list[int] = []

    def decode(self, x0: Tensor) -> Tensor:
        self.decoded.append(len(x0))
        return super().decode(x0)


class Green:
    """Mean of the green channel; `seen` lists the outputs of each call. `lost` says which have no score."""

    card = Card(summary="green", low=0, high=1, differentiable=True)

    def __init__(self, lost: Callable[[Tensor], Tensor] | None = None) -> None:
        self.seen: list[int] = []
        self.lost = lost

    def __call__(self, prompts: Sequence[str], outputs: Tensor) -> Tensor:
        self.seen.append(len(outputs))
        value = outputs[:, 1].mean((1, 2))
        return value if self.lost is None else value.masked_fill(self.lost(value), torch.nan)


def suite_of(*functions: Callable, combine: str | None = None) -> Suite:
    rewards = [Reward(name=f"r{i}", caller=Caller(f"r{i}", one)) for i, one in enumerate(functions)]
    return make_suite(rewards, combine)


def make_task(
    model: ToyFlowModel | None = None,
    reward: Callable | Suite | None = None,
    budget: str = "60nfe",
    *,
    count: int = 3,
    steps: int = 5,
    guidance: float = 1.0,
    asked: Sequence | None = None,
    **rest: object,
) -> FlowTask:
    model = model or CountingModel()
    asked = prompts(count) if asked is None else asked
    suite = reward if isinstance(reward, Suite) or reward is None else suite_of(reward)
    conditioning = PromptEncoder(model)(asked, guidance)
    return FlowTask(model, asked, conditioning, suite, Budget.parse(budget), times=model.schedule(steps, None), **rest)
