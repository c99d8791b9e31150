"""Prompts to conditions, each encoded once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from plaudit.data.prompt import Prompt
from plaudit.models.flow import EMPTY_PROMPT, Condition, Conditioning, FlowModel


class PromptEncoder:
    """Encodes prompts once: conditions are kept by id and text (ids may repeat between files), the unconditional one for
    good."""

    def __init__(self, model: FlowModel, capacity: int = 512) -> None:
        self.model, self.capacity = model, capacity
        self.cache: dict[tuple[str, str], Condition] = {}
        self._unconditional: Condition | None = None

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Prompt], guidance: float) -> Conditioning:
        asked = [(p.id, p.text) for p in prompts]
        new = {key: p for key, p in zip(asked, prompts, strict=True) if key not in self.cache}
        if new:
            encoded = self.model.encode(list(new.values()))
            if len(self.cache) + len(new) > self.capacity:
                self.cache = {key: self.cache[key] for key in asked if key in self.cache}
            self.cache |= {key: encoded.select(torch.tensor([row])) for row, key in enumerate(new)}
        if guidance != 1.0 and self._unconditional is None:
            self._unconditional = self.model.encode([EMPTY_PROMPT])
        condition = Condition.cat([self.cache[key] for key in asked])
        return Conditioning(condition=condition, unconditional=self._unconditional, guidance=guidance)
