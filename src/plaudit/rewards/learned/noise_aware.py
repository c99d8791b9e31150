"""Noise-aware rewards: what the final picture will score, told from a preview (TTSnap, S090).

A preview of an early step is an average over pictures, which no reward has been trained on. The lab's is the `scene_proxy`
with one more input, the time, fine-tuned on previews so that it says what the frozen proxy says of the final picture of the
same trajectory (`plaudit lab build previews-pixels`).

Departures. The paper keeps weights per step; here one network is conditioned on the time, which is a fraction of the size.
The paper leaves the last quarter of the way to the unchanged reward; here only the first quarter is learnt, because later
the proxy's own ranks were better than those of any weights that we trained (see `plaudit.builds.previews`).

Shape legend: B pictures, L caption tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from plaudit.errors import RewardError
from plaudit.lab.networks import WEIGHTS, ProxyNetwork, time_features
from plaudit.lab.scenes.grammar import tokenise
from plaudit.rewards.learned.proxy import SceneProxy

NONE = "none"
UNCHANGED = 0.75  # up to this time the frozen proxy judges


class PreviewNetwork(ProxyNetwork):
    """The proxy's network, every layer of which also knows the time of the preview. Untrained, it ignores it."""

    def __init__(self, width: int = 48) -> None:
        super().__init__(width)
        self.time = nn.Linear(width, 5 * width)  # beside the caption; scale and shift of the first two layers
        nn.init.zeros_(self.time.weight)
        nn.init.zeros_(self.time.bias)

    def forward(self, images: Tensor, ids: Tensor, t: Tensor) -> Tensor:  # type: ignore[override]
        """Logits `[B]` for pictures `[B, 3, H, W]`, captions `[B, L]` and times `[B]`."""
        states, _ = self.order(self.embed(ids))
        last = (ids > 0).sum(1).clamp(min=1) - 1
        beside, *modulation = self.time(time_features(t, self.time.in_features)).chunk(5, dim=1)
        scale_1, shift_1, scale_2, shift_2 = (part[:, :, None, None] for part in modulation)
        text = states[torch.arange(len(ids)), last] + beside
        scale, shift = self.modulate(text)[:, :, None, None].chunk(2, dim=1)
        seen = F.silu(self.enter(images) * (1 + scale_1) + shift_1)
        seen = F.silu(self.middle(seen) * (1 + scale_2) + shift_2)
        seen = F.silu(self.late(seen * (1 + scale) + shift))
        pooled = torch.cat([seen.mean((2, 3)), seen.amax((2, 3)), text], dim=1)
        return self.judge(pooled)[:, 0]


def from_proxy() -> PreviewNetwork:
    """The frozen proxy itself, before any training on previews."""
    network = PreviewNetwork()
    missing, unexpected = network.load_state_dict(SceneProxy().network.state_dict(), strict=False)
    assert set(missing) == {"time.weight", "time.bias"} and not unexpected
    return network


def load_previews(name: str) -> PreviewNetwork:
    """`pixels` is the built-in of that name; a path ends in .safetensors."""
    path = Path(name) if name.endswith(".safetensors") else WEIGHTS / f"previews-{name}.safetensors"
    if not path.is_file():
        built_in = sorted(file.stem.removeprefix("previews-") for file in WEIGHTS.glob("previews-*.safetensors"))
        raise RewardError(
            f"previews {name!r}: {path} does not exist; allowed: {NONE}, {', '.join(built_in)}, or a file that "
            "`plaudit lab build previews-pixels` has written"
        )
    network = PreviewNetwork().eval().requires_grad_(False)
    network.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    return network


class NoiseAware:
    """Expected scores of the final pictures."""

    def __init__(self, network: PreviewNetwork) -> None:
        self.network, self.unchanged = network, SceneProxy()

    def __call__(self, captions: Sequence[str], pictures: Tensor, t: float) -> Tensor:
        """`[B]` in float64, told from previews `[B, 3, H, W]` at time `t`."""
        if t <= UNCHANGED:
            return self.unchanged(captions, pictures)
        ids = torch.from_numpy(tokenise(captions))
        return torch.sigmoid(self.network(pictures, ids, torch.full((len(pictures),), t))).double()
