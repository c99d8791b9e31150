"""The lab's networks: a slot transformer and a convolution/attention hybrid that give velocities, and the proxy reward.

The first two read caption token ids and a noisy latent in one stream, modulated by time and the pooled caption (adaLN). They are
plain torch modules with named Linear layers, so LoRA and full tuning treat them like any larger model.

Shape legend: B batch, L caption tokens, N state tokens, T = L + N, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plaudit.data.prompt import Prompt
from plaudit.lab.scenes.grammar import MAX_OBJECTS, MAX_TOKENS, VOCABULARY, sample_prompts, tokenise
from plaudit.lab.scenes.render import BACKGROUND, SLOT_DIM, rasterise, sample_scenes

WEIGHTS = Path(__file__).parent / "weights"  # all that ship
PIXEL_SCALE = 2.0


def time_features(t: Tensor, width: int) -> Tensor:
    """Sinusoidal features `[B, width]` of times in [0, 1]."""
    frequency = torch.exp(torch.arange(width // 2, device=t.device) * (-math.log(1000.0) / (width // 2 - 1)))
    angle = 1000.0 * t.float()[:, None] * frequency[None] / 10
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def grid_features(side: int, width: int) -> Tensor:
    """Sine-cosine features `[side * side, width]` of 2-D positions."""
    frequency = torch.exp(torch.arange(width // 4) * (-math.log(100.0) / (width // 4)))
    axis = torch.arange(side)[:, None] * frequency[None]
    one = torch.cat([axis.sin(), axis.cos()], dim=-1)
    rows, columns = one[:, None].expand(-1, side, -1), one[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=-1).reshape(side * side, width)


class Modulation(nn.Module):
    """Time and pooled caption to a conditioning vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.text = nn.Linear(width, width)
        self.width = width

    def forward(self, t: Tensor, text_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        weight = mask_BL[..., None].to(text_BLD.dtype)
        pooled = (text_BLD * weight).sum(1) / weight.sum(1).clamp(min=1)
        return F.silu(self.time(time_features(t, self.width).to(text_BLD.dtype)) + self.text(pooled))


class Block(nn.Module):
    """Pre-norm attention and MLP with adaLN; on a picture grid also a depthwise 3x3 convolution of the image tokens."""

    def __init__(self, width: int, heads: int, expansion: int, side: int | None) -> None:
        super().__init__()
        self.heads, self.side = heads, side
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.up = nn.Linear(width, expansion * width)
        self.down = nn.Linear(expansion * width, width)
        self.shift = nn.Parameter(torch.zeros(6, width))
        self.query_norm = nn.RMSNorm(width // heads)
        self.key_norm = nn.RMSNorm(width // heads)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width) if side else None
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.down.weight)

    def attend(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        q, k, v = self.qkv(x_BTD).reshape(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        q, k = self.query_norm(q), self.key_norm(k)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_BT[:, None, None, :])
        return self.project(mixed.transpose(1, 2).reshape(B, T, D))

    def forward(self, x_BTD: Tensor, modulation_B6D: Tensor, mask_BT: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (modulation_B6D + self.shift).unbind(1)
        width = x_BTD.shape[-1]
        h = F.layer_norm(x_BTD, (width,)) * (1 + scale_a[:, None]) + shift_a[:, None]
        x_BTD = x_BTD + (1 + gate_a[:, None]) * self.attend(h, mask_BT)
        if self.depthwise is not None:
            x_BTD = self.convolve(x_BTD)
        h = F.layer_norm(x_BTD, (width,)) * (1 + scale_m[:, None]) + shift_m[:, None]
        return x_BTD + (1 + gate_m[:, None]) * self.down(F.gelu(self.up(h), approximate="tanh"))

    def convolve(self, x_BTD: Tensor) -> Tensor:
        assert self.depthwise is not None and self.side is not None
        length = x_BTD.shape[1] - self.side**2
        text, image = x_BTD[:, :length], x_BTD[:, length:]
        grid = image.transpose(1, 2).unflatten(2, (self.side, self.side))
        return torch.cat([text, image + self.depthwise(grid).flatten(2).transpose(1, 2)], dim=1)


class Trunk(nn.Module):
    """Caption embedding and the stack of blocks that the generators share."""

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        expansion: int,
        side: int | None,
        words: int = len(VOCABULARY),
        length: int = MAX_TOKENS,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(words + 1, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        self.modulation = Modulation(width)
        self.adaln = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(Block(width, heads, expansion, side) for _ in range(depth))
        nn.init.normal_(self.embed.weight, std=0.5)
        nn.init.zeros_(self.adaln.weight)

    def forward(self, state_BND: Tensor, t: Tensor, ids_BL: Tensor) -> Tensor:
        mask_BL = ids_BL > 0
        text = self.embed(ids_BL) + self.position
        modulation = self.adaln(self.modulation(t, text, mask_BL)).unflatten(-1, (6, -1))
        # The first caption position stays visible, so that the empty caption attends to something of its own.
        visible = torch.cat([mask_BL[:, :1] | True, mask_BL[:, 1:], mask_BL.new_ones(state_BND.shape[:2])], dim=1)
        x = torch.cat([text, state_BND], dim=1)
        for block in self.blocks:
            x = block(x, modulation, visible)
        return F.layer_norm(x[:, ids_BL.shape[1] :], (x.shape[-1],))


class SlotNetwork(nn.Module):
    """Velocity of `[B, K, 10]` slot latents."""

    def __init__(self, width: int = 96, depth: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.enter = nn.Linear(SLOT_DIM, width)
        self.trunk = Trunk(width, depth, heads, expansion=3, side=None)
        self.leave = nn.Linear(width, SLOT_DIM)
        nn.init.zeros_(self.leave.weight)

    latent_shape = (MAX_OBJECTS, SLOT_DIM)

    @staticmethod
    def read(prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        return {"ids": torch.from_numpy(tokenise([prompt.text for prompt in prompts]))}

    @staticmethod
    def examples(count: int, rng: np.random.Generator) -> tuple[Tensor, Sequence[Prompt]]:
        prompts = sample_prompts("train", count, rng)
        return sample_scenes(prompts, rng), prompts

    @staticmethod
    def decode(latents: Tensor) -> Tensor:
        return rasterise(latents)

    def forward(self, x_BKC: Tensor, t: Tensor, ids_BL: Tensor) -> Tensor:
        return self.leave(self.trunk(self.enter(x_BKC), t, ids_BL))


class PixelNetwork(nn.Module):
    """Velocity of `[B, 3, 32, 32]` pixel latents, through a prediction of the clean picture.

    An overlapping convolution stem brings the picture to 8x8 tokens; the head brings them back with a skip at 16x16.
    Nothing runs at full resolution: on a CPU those layers cost as much as the trunk.
    """

    def __init__(self, width: int = 128, depth: int = 6, heads: int = 4, base: int = 64) -> None:
        super().__init__()
        self.stem_16 = nn.Conv2d(3, base, 4, stride=2, padding=1)
        self.stem_8 = nn.Conv2d(base, width, 4, stride=2, padding=1)
        self.register_buffer("grid", grid_features(8, width), persistent=False)
        self.trunk = Trunk(width, depth, heads, expansion=4, side=8)
        self.rise_16 = nn.Conv2d(width, 4 * base, 1)
        self.mix_16 = nn.Conv2d(base, base, 3, padding=1)
        self.leave = nn.Conv2d(base, 4 * 3, 3, padding=1)
        nn.init.zeros_(self.leave.weight)

    latent_shape = (3, 32, 32)
    read = staticmethod(SlotNetwork.read)

    @staticmethod
    def examples(count: int, rng: np.random.Generator) -> tuple[Tensor, Sequence[Prompt]]:
        scenes, prompts = SlotNetwork.examples(count, rng)
        return to_pixel_latents(rasterise(scenes)), prompts

    @staticmethod
    def decode(latents: Tensor) -> Tensor:
        return from_pixel_latents(latents)

    smallest_time = 0.05  # below it the clean prediction is divided by this instead of t

    def clean(self, x: Tensor, t: Tensor, ids_BL: Tensor) -> Tensor:
        at_16 = self.stem_16(x)
        tokens = self.stem_8(F.silu(at_16)).flatten(2).transpose(1, 2) + self.grid
        h = self.trunk(tokens, t, ids_BL).transpose(1, 2).unflatten(2, (8, 8))
        h = F.pixel_shuffle(self.rise_16(h), 2) + at_16
        h = h + self.mix_16(F.silu(h))
        return F.pixel_shuffle(self.leave(F.silu(h)), 2)

    def forward(self, x: Tensor, t: Tensor, ids_BL: Tensor) -> Tensor:
        return (x - self.clean(x, t, ids_BL)) / t.clamp(min=self.smallest_time)[:, None, None, None]


class PairTrunk(nn.Module):
    """A convolution network whose middle is modulated by the caption: features `[B, F]` of pairs."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.width = 3 * width
        self.embed = nn.Embedding(len(VOCABULARY) + 1, width)
        self.order = nn.GRU(width, width, batch_first=True)
        self.enter = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.modulate = nn.Linear(width, 2 * width)
        self.late = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        states, _ = self.order(self.embed(ids))
        last = (ids > 0).sum(1).clamp(min=1) - 1
        text = states[torch.arange(len(ids)), last]
        scale, shift = self.modulate(text)[:, :, None, None].chunk(2, dim=1)
        seen = F.silu(self.middle(F.silu(self.enter(images))))
        seen = F.silu(self.late(seen * (1 + scale) + shift))
        return torch.cat([seen.mean((2, 3)), seen.amax((2, 3)), text], dim=1)


class ProxyNetwork(PairTrunk):
    """One logit per pair."""

    def __init__(self, width: int = 48) -> None:
        super().__init__(width)
        self.judge = nn.Sequential(nn.Linear(3 * width, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        return self.judge(super().forward(images, ids))[:, 0]


def to_pixel_latents(images: Tensor) -> Tensor:
    """Images in [0, 1] to latents in which the background is zero."""
    return (images - images.new_tensor(BACKGROUND)[:, None, None]) * PIXEL_SCALE


def from_pixel_latents(latents: Tensor) -> Tensor:
    return (latents / PIXEL_SCALE + latents.new_tensor(BACKGROUND)[:, None, None]).clamp(0, 1)
