"""What a reward is handed: the columns that its signature asks for, and copies where a stranger could write into them."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from plaudit.data.prompt import Prompt, is_conversation, text_of
from plaudit.errors import RewardError
from plaudit.recipe.rewards import key_of
from plaudit.rewards.base import Card, RewardFunction
from plaudit.rewards.calling.meter import Meter
from plaudit.rewards.calling.request import Outputs, Request, column

OUTPUT_NAMES = ("outputs", "completions", "images")
PLURAL = {"image": "pictures", "text": "texts", "audio": "signals", "video": "videos"}
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Arguments:
    """Makes the arguments of one reward's calls."""

    def __init__(self, name: str, function: RewardFunction, card: Card | None, meter: Meter) -> None:
        self.name, self.card, self.meter = name, card, meter
        self.parameters = inspect.signature(function).parameters
        self.ours = _is_ours(function)
        self.sees_request = "request" in self.parameters  # to ask another reward the same
        self.bound = set(function.keywords) if isinstance(function, functools.partial) else set()
        self.takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in self.parameters.values())
        self.output_name = next((name for name in OUTPUT_NAMES if name in self.parameters), "outputs")

    @property
    def kind(self) -> str | None:
        return self.card.kind if self.card else None

    def asks(self, column: str) -> bool:
        return (column in self.parameters or self.takes_all) and column not in self.bound

    def __call__(self, request: Request) -> dict[str, Any]:
        """Only those columns that the signature asks for; copies, where a stranger could write into them."""
        given: dict[str, Any] = {"prompts": self._prompt_copies(request.prompts)}
        given[self.output_name] = self._output_copies(request)
        columns = {
            "ids": lambda: [prompt.id for prompt in request.prompts],
            "group": lambda: list(request.group),
            "step": lambda: request.step,
            "trainer_state": lambda: SimpleNamespace(global_step=request.step),
            "log_metric": lambda: self.meter.log_metric,
            "log_extra": lambda: self.meter.log_extra,
            "facts": lambda: self._copies([prompt.facts for prompt in request.prompts]),
            "inputs": lambda: self._copies([prompt.inputs for prompt in request.prompts]),
        }
        if request.completion_ids is not None:
            columns["completion_ids"] = lambda: [list(ids) for ids in request.completion_ids or ()]
        given |= {name: make() for name, make in columns.items() if self.asks(name)}
        if self.sees_request:
            prompts = self._copies(request.prompts)
            given["request"] = replace(request, prompts=prompts, outputs=given[self.output_name])
        carried = request.columns - given.keys()
        for name in sorted(carried):
            if self.asks(name):
                given[name] = self._copies([column(prompt, name) for prompt in request.prompts])
        absent = [
            name
            for name, parameter in self.parameters.items()
            if name not in given and parameter.default is parameter.empty and parameter.kind in NAMED
        ]
        if "completion_ids" in absent:
            raise RewardError(
                f"{key_of(self.name)} needs `completion_ids`, which exist only where a token model has drawn the outputs; give "
                "them as a fact, or read the texts"
            )
        if absent:
            raise RewardError(
                f"{key_of(self.name)} needs the column {absent[0]!r}, which no prompt carries; prompts carry "
                f"{', '.join(sorted(carried)) or 'no facts or inputs'}; add {absent[0]!r} to the prompts' `facts`"
            )
        return given

    def _copies(self, values: Sequence[Any]) -> list[Any]:
        """What the reward may write into; samples of one prompt share theirs."""
        if self.ours:
            return list(values)
        made: dict[int, Any] = {}
        for value in values:
            if id(value) not in made:
                made[id(value)] = copy.deepcopy(value)
        return [made[id(value)] for value in values]

    def _prompt_copies(self, prompts: Sequence[Prompt]) -> list[Any]:
        """Texts; a function without a card gets conversations as they are, as TRL hands them over."""
        if self.card is not None:
            return [prompt.text for prompt in prompts]
        return [copy.deepcopy(prompt.inputs.get("messages", prompt.text)) for prompt in prompts]

    def _check_kind(self, outputs: Outputs) -> None:
        given = "text" if isinstance(outputs[0], str) or is_conversation(outputs[0]) else None
        given = "image" if isinstance(outputs[0], Tensor) and outputs[0].ndim == 3 else given
        if self.kind == "image" and isinstance(outputs[0], Tensor):
            self._check_pixels(outputs)
        if given and self.kind and given != self.kind and {given, self.kind} != {"image", "video"}:
            raise RewardError(
                f"{key_of(self.name)} looks at {PLURAL[self.kind]}, and these outputs are {PLURAL[given]}; `plaudit rewards "
                f"list --kind {given}` names those for {PLURAL[given]}"
            )

    def _check_pixels(self, outputs: Outputs) -> None:
        first = outputs[0]
        if first.ndim != 3 or first.shape[0] != 3:
            raise RewardError(f"{key_of(self.name)}: a picture is [3, height, width], not {list(first.shape)}")
        most = outputs.max() if isinstance(outputs, Tensor) else max(output.max() for output in outputs)
        if not first.is_floating_point() or most > 2:
            kind = str(first.dtype).removeprefix("torch.")
            raise RewardError(
                f"{key_of(self.name)}: pixels are {kind} up to {float(most):g}; they must be floats in 0..1, so divide by 255"
            )

    def _output_copies(self, request: Request) -> Outputs:
        """In one form for every verb: what has one shape comes as one tensor, however it was kept."""
        outputs = request.outputs
        self._check_kind(outputs)
        if isinstance(outputs, Tensor):
            return outputs.detach() if self.ours else outputs.detach().clone()
        if self.kind == "text":
            return [text_of(output) for output in outputs]
        shapes = {tuple(output.shape) if isinstance(output, Tensor) else None for output in outputs}
        if self.kind != "audio" and len(shapes) == 1 and None not in shapes:
            return torch.stack(list(outputs))
        if self.ours:
            return list(outputs)
        return [self._copy(output, prompt) for output, prompt in zip(outputs, request.prompts, strict=True)]

    def _copy(self, output: Any, prompt: Prompt) -> Any:
        """The answer to a conversation goes on with it where there is no card, as TRL hands it over."""
        if isinstance(output, Tensor):
            return output.clone()
        if self.card is None and isinstance(output, str) and "messages" in prompt.inputs:
            return [{"role": "assistant", "content": output}]
        return copy.deepcopy(output)


def _is_ours(function: RewardFunction) -> bool:
    """Plaudit's own rewards write into nothing that they are handed, so they need no copies."""
    function = function.func if isinstance(function, functools.partial) else function
    home = function.__module__ if inspect.isroutine(function) else type(function).__module__
    return (home or "").startswith("plaudit.")
