"""A batch that is to be scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.errors import RewardError

Outputs = Any  # Tensor [B, ...], or a list with one output each


@dataclass(frozen=True, kw_only=True)
class Request:
    """A batch to be scored. `group [B]` tells which outputs answer the same prompt; `step` is the training step; `columns`
    are the names of all facts and inputs, which a larger batch that this is a part of may have more of. `completion_ids`
    are there where a token model has drawn the outputs."""

    prompts: Sequence[Prompt]
    outputs: Outputs
    group: Sequence[int]
    step: int = 0
    columns: frozenset[str] = frozenset()
    completion_ids: Sequence[Sequence[int]] | None = None

    def __post_init__(self) -> None:
        distinct = {id(prompt): prompt for prompt in self.prompts}.values()
        own = {name for prompt in distinct for name in (*prompt.facts, *prompt.inputs)}
        object.__setattr__(self, "columns", self.columns | own)

    def __len__(self) -> int:
        return len(self.prompts)

    def rows(self, rows: Sequence[int]) -> Request:
        return Request(
            prompts=[self.prompts[i] for i in rows],
            outputs=select(self.outputs, rows),
            group=[self.group[i] for i in rows],
            columns=self.columns,
            step=self.step,
            completion_ids=None if self.completion_ids is None else [self.completion_ids[i] for i in rows],
        )


def make_request(
    prompts: Sequence[Prompt],
    outputs: Outputs,
    group: Sequence[int] | Tensor | None = None,
    step: int = 0,
    columns: frozenset[str] = frozenset(),
    completion_ids: Sequence[Sequence[int]] | None = None,
) -> Request:
    """Without `group`, outputs of the same prompt belong together. `columns` are those of a larger batch."""
    if len(prompts) != len(outputs):
        raise RewardError(f"{len(prompts)} prompts for {len(outputs)} outputs; give one prompt per output")
    if group is None:
        seen: dict[str, int] = {}
        group = [seen.setdefault(prompt.key, len(seen)) for prompt in prompts]
    members = group.tolist() if isinstance(group, Tensor) else list(group)
    return Request(
        prompts=prompts, outputs=outputs, group=members, step=step, columns=columns, completion_ids=completion_ids
    )


def select(outputs: Outputs, rows: Sequence[int]) -> Outputs:
    return outputs[list(rows)] if isinstance(outputs, Tensor) else [outputs[i] for i in rows]


def column(prompt: Prompt, name: str) -> Any:
    return prompt.facts.get(name, prompt.inputs.get(name))
