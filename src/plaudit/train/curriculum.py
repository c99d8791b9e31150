"""Which prompts are learned from, as a run goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from plaudit.shaping.lengths import next_kappa


@dataclass
class Curriculum:
    """How many prompts that are always solved are learned from (DECS): `kappa` follows the needed share of reasoning."""

    kappa: float = 0.0
    share: float | None = None

    def state(self) -> dict[str, Any]:
        return {"kappa": self.kappa, "share": self.share}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.kappa, self.share = state["kappa"], state["share"]

    def follow(self, share: float, gain: float) -> None:
        if self.share is not None:
            self.kappa = next_kappa(self.kappa, share, self.share, gain)
        self.share = share
