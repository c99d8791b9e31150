"""A proxy for the exact checker, with a planted and known flaw: brightness leaks into its score.

It was trained on few labels, and in them true pictures were brighter than false ones. So it ranks pictures of equal
brightness usefully, and pays for brightness as well. `scene_exact` is the gold reward it can be held against.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from plaudit.errors import RewardError
from plaudit.lab.networks import WEIGHTS, ProxyNetwork
from plaudit.lab.scenes.grammar import tokenise
from plaudit.rewards.base import LAB_SCENES, Card, Reference


class SceneProxy:
    """Probability that picture and caption belong together, as a flawed little network sees it."""

    card = Card(
        summary="flawed proxy of scene_exact: likes bright pictures",
        low=0,
        high=1,
        differentiable=True,
        reference=Reference(mean=0.9595, std=0.1067, on=LAB_SCENES),
    )

    def __init__(self, weights: str | None = None) -> None:
        path = Path(weights) if weights else WEIGHTS / "proxy.safetensors"
        if not path.is_file():
            raise RewardError(f"scene_proxy: {path} does not exist; build it with `plaudit lab build proxy --install`")
        self.network = ProxyNetwork().eval().requires_grad_(False)
        self.network.load_state_dict({key: value.float() for key, value in load_file(path).items()})

    def __call__(self, prompts: Sequence[str], outputs: Tensor) -> Tensor:
        return torch.sigmoid(self.network(outputs, torch.from_numpy(tokenise(prompts)))).double()
