"""Prompts to conditions, each encoded once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.errors import PlauditError, RecipeError, first_line
from plaudit.models.flow import EMPTY_PROMPT, Condition, Conditioning, FlowModel


class PromptEncoder:
    """Encodes prompts once: conditions are kept by the prompts' keys, the unconditional one for good."""

    def __init__(self, model: FlowModel, capacity: int = 512) -> None:
        self.model, self.capacity = model, capacity
        self.cache: dict[str, Condition] = {}
        self._unconditional: Condition | None = None

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Prompt], guidance: float) -> Conditioning:
        asked = [p.key for p in prompts]
        new = {key: p for key, p in zip(asked, prompts, strict=True) if key not in self.cache}
        if new:
            encoded = self._encode(list(new.values()))
            if len(self.cache) + len(new) > self.capacity:
                self.cache = {key: self.cache[key] for key in asked if key in self.cache}
            self.cache |= {key: encoded.select(torch.tensor([row])) for row, key in enumerate(new)}
        if guidance != 1.0 and self._unconditional is None:
            self._unconditional = self._encode([EMPTY_PROMPT])
        condition = Condition.cat([self.cache[key] for key in asked])
        return Conditioning(condition=condition, unconditional=self._unconditional, guidance=guidance)

    def _encode(self, prompts: Sequence[Prompt]) -> Condition:
        try:
            encoded = self.model.encode(prompts)
        except PlauditError:
            raise
        except Exception as error:  # the user's model may raise anything
            raise RecipeError(f"{type(self.model).__name__}.encode raised {first_line(error)}") from error
        if not isinstance(encoded, Condition) or not all(isinstance(one, Tensor) for one in encoded.tensors.values()):
            raise RecipeError(
                f"{type(self.model).__name__}.encode gave a {type(encoded).__name__}; it must be a Condition of named tensors "
                "with one row for each prompt"
            )
        for name, tensor in encoded.tensors.items():
            if len(tensor) != len(prompts):
                raise RecipeError(
                    f"{type(self.model).__name__}.encode gave `{name}` of shape {tuple(tensor.shape)} for {len(prompts)} "
                    "prompts; expected one row for each"
                )
        return encoded
