"""A proxy for the exact checker, with a planted and known flaw: brightness leaks into its score.

It was trained on few labels, and in them true pictures were brighter than false ones. So it ranks pictures of equal
brightness usefully, and pays for brightness as well. `scene_exact` is the gold reward it can be held against.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from plaudit.errors import RewardError
from plaudit.lab.scenes.grammar import VOCABULARY, tokenise
from plaudit.rewards.base import Card

WEIGHTS = Path(__file__).parents[2] / "lab" / "weights" / "proxy.safetensors"


class ProxyNetwork(nn.Module):
    """A convolution network whose middle is modulated by the caption; one logit per pair."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(VOCABULARY) + 1, width)
        self.order = nn.GRU(width, width, batch_first=True)
        self.enter = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.modulate = nn.Linear(width, 2 * width)
        self.late = nn.Conv2d(width, width, 3, padding=1)
        self.judge = nn.Sequential(nn.Linear(3 * width, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        states, _ = self.order(self.embed(ids))
        last = (ids > 0).sum(1).clamp(min=1) - 1
        text = states[torch.arange(len(ids)), last]
        scale, shift = self.modulate(text)[:, :, None, None].chunk(2, dim=1)
        seen = F.silu(self.middle(F.silu(self.enter(images))))
        seen = F.silu(self.late(seen * (1 + scale) + shift))
        pooled = torch.cat([seen.mean((2, 3)), seen.amax((2, 3)), text], dim=1)
        return self.judge(pooled)[:, 0]


class SceneProxy:
    """Probability that picture and caption belong together, as a flawed little network sees it."""

    card = Card(summary="flawed proxy of scene_exact: likes bright pictures", low=0, high=1, differentiable=True)

    def __init__(self, weights: str | None = None) -> None:
        path = Path(weights) if weights else WEIGHTS
        if not path.is_file():
            raise RewardError(f"scene_proxy: {path} does not exist; build it with `plaudit lab build proxy --install`")
        self.network = ProxyNetwork().eval().requires_grad_(False)
        self.network.load_state_dict({key: value.float() for key, value in load_file(path).items()})

    def __call__(self, prompts: Sequence[str], outputs: Tensor) -> Tensor:
        return torch.sigmoid(self.network(outputs, torch.from_numpy(tokenise(prompts)))).double()
