"""Rewards that are arithmetic on pixels.

Most are a poor goal and a good probe: a policy that games its reward betrays itself by one of them.

Shape legend: B pictures, H rows, W columns; pictures are `[B, 3, H, W]` in 0..1.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch import Tensor

from plaudit.errors import RewardError
from plaudit.rewards.base import LAB_SCENES, Card, Reference, card

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's and OpenCV's grey
GREY_LEVELS = 256
SMALLEST = 1e-12  # keeps the slope of a root or a quotient finite


def luminance(pictures_B3HW: Tensor) -> Tensor:
    """Grey pictures `[B, H, W]`."""
    return torch.einsum("bchw,c->bhw", pictures_B3HW, pictures_B3HW.new_tensor(LUMA))


def as_bytes(pictures_B3HW: Tensor) -> NDArray[np.uint8]:
    """Rounded to 0..255 and turned to `[B, H, W, 3]`, as picture libraries want them."""
    if not pictures_B3HW.isfinite().all():
        raise ValueError("a picture has pixels that are not finite")
    return (pictures_B3HW.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


@card(low=0, high=1, differentiable=True, cost_ms=0.002, reference=Reference(mean=0.1547, std=0.02648, on=LAB_SCENES))
def brightness(prompts: Sequence[str], outputs: Tensor) -> Tensor:
    """Mean of all pixels and channels."""
    return outputs.mean(dim=(1, 2, 3))


@card(low=0, high=1, differentiable=True, cost_ms=0.01, reference=Reference(mean=0.3718, std=0.04002, on=LAB_SCENES))
def saturation(prompts: Sequence[str], outputs: Tensor) -> Tensor:
    """Mean HSV saturation of the pixels, (max - min) / max over channels; black has none."""
    high, low = outputs.amax(dim=1), outputs.amin(dim=1)
    return ((high - low) / high.clamp_min(SMALLEST)).mean(dim=(1, 2))


@card(low=0, high=0.5, differentiable=True, cost_ms=0.01, reference=Reference(mean=0.1493, std=0.05487, on=LAB_SCENES))
def contrast(prompts: Sequence[str], outputs: Tensor) -> Tensor:
    """Standard deviation of the luminance: 0.5 when half the picture is black and half white."""
    return luminance(outputs).var(dim=(1, 2), correction=0).clamp_min(SMALLEST).sqrt()


@card(low=0, high=8, cost_ms=0.02, reference=Reference(mean=1.909, std=0.5077, on=LAB_SCENES))
def grey_entropy(prompts: Sequence[str], outputs: Tensor) -> Tensor:
    """Entropy in bits of the histogram of 256 grey levels."""
    grey_BN = (luminance(outputs).clamp(0, 1) * (GREY_LEVELS - 1)).round().long().flatten(1)
    counts = grey_BN.new_zeros(len(grey_BN), GREY_LEVELS).scatter_add_(1, grey_BN, torch.ones_like(grey_BN))
    return torch.special.entr(counts.double() / grey_BN.shape[1]).sum(dim=1) / math.log(2)


@card(low=0, high=16, differentiable=True, cost_ms=0.01, reference=Reference(mean=0.01844, std=0.01324, on=LAB_SCENES))
def sharpness(prompts: Sequence[str], outputs: Tensor) -> Tensor:
    """Variance of the Laplacian of the luminance, inside the border; noise counts as sharp."""
    grey = luminance(_at_least(outputs, 3, "sharpness"))
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    return (around - 4 * grey[:, 1:-1, 1:-1]).var(dim=(1, 2), correction=0)


def sobel_magnitude(grey_BHW: Tensor) -> Tensor:
    """Length of the luminance gradient per pixel inside the border, `[B, H - 2, W - 2]`."""
    smooth, slope = grey_BHW.new_tensor([0.25, 0.5, 0.25]), grey_BHW.new_tensor([-0.5, 0.0, 0.5])
    kernels = torch.stack([torch.outer(smooth, slope), torch.outer(slope, smooth)])[:, None]
    return F.conv2d(grey_BHW[:, None], kernels).square().sum(dim=1).sqrt()


class EdgeDensity:
    """Share of pixels inside the border whose luminance gradient (Sobel) is steeper than `threshold` per pixel."""

    card = Card(
        summary="share of pixels that lie on an edge",
        low=0,
        high=1,
        cost_ms=0.02,
        reference=Reference(mean=0.1387, std=0.05309, on=LAB_SCENES),
    )

    def __init__(self, threshold: Annotated[float, Field(gt=0, lt=1)] = 0.1) -> None:
        self.threshold = threshold

    def __call__(self, prompts: Sequence[str], outputs: Tensor) -> Tensor:
        magnitude = sobel_magnitude(luminance(_at_least(outputs, 3, "edge_density"))).double()
        steep = (magnitude > self.threshold) + 0 * magnitude  # what is not finite stays so
        return steep.mean(dim=(1, 2))


def hann(size: int) -> Tensor:
    """The same from both ends, and of frequencies 0 and 1 / size only, so that a checkerboard stays at the highest one."""
    return 0.5 - 0.5 * torch.cos(2 * torch.pi * (torch.arange(size, dtype=torch.float64) + 0.5) / size)


class GridEnergy:
    """Share of the luminance's variation that repeats every `period` pixels along a row or a column.

    Period 2 is the checkerboard of a bad upsampler, 8 the patch grid of a decoder. The picture is tapered (Hann), so that
    its unlike borders do not count as high frequencies. Frequencies within `width` cycles per pixel of 1 / period belong to
    the band: white noise scores about a quarter at period 2, smooth pictures nearly 0.
    """

    card = Card(
        summary="share of the spectrum in a periodic grid",
        low=0,
        high=1,
        higher_is_better=False,
        differentiable=True,
        cost_ms=0.03,
        systems=("S002", "S066"),
        reference=Reference(mean=0.004837, std=0.001832, on=LAB_SCENES),
    )

    def __init__(
        self, period: Annotated[float, Field(ge=2)] = 2, width: Annotated[float, Field(gt=0, lt=0.5)] = 0.0625
    ) -> None:
        self.period, self.width = period, width

    def __call__(self, prompts: Sequence[str], outputs: Tensor) -> Tensor:
        grey = luminance(_at_least(outputs, 4, "grid_energy"))
        height, width = grey.shape[1:]
        taper = torch.outer(*(hann(size).to(grey) for size in (height, width)))
        centred = grey - (grey * taper).sum(dim=(1, 2), keepdim=True) / taper.sum()
        energy = torch.fft.fft2(centred * taper).abs().square()
        in_rows, in_columns = (
            ((torch.fft.fftfreq(size, dtype=torch.float64).abs() - 1 / self.period).abs() <= self.width + 1e-9)
            for size in (height, width)
        )
        band = (in_rows[:, None] | in_columns[None, :]).to(grey)
        # A constant picture has only rounding for a spectrum; the floor stands for variation of 1e-4 per pixel.
        floor = 1e-8 * height * width * taper.square().sum()
        return (energy * band).sum(dim=(1, 2)) / torch.maximum(energy.sum(dim=(1, 2)), floor)


class _CompressedSize:
    """Size of the picture as a file: kilobytes (1000 bytes), or bytes per pixel; negative when small is wanted."""

    def __init__(
        self, prefer: Literal["large", "small"] = "large", per: Literal["picture", "pixel"] = "picture"
    ) -> None:
        self.sign, self.per_pixel = (1 if prefer == "large" else -1), per == "pixel"
        if prefer == "small":
            self.card = replace(self.card, low=-self.card.high, high=0.0)

    card: Card

    def encode(self, image: Image.Image, file: io.BytesIO) -> None:
        raise NotImplementedError

    def __call__(self, prompts: Sequence[str], outputs: Tensor) -> list[float]:
        unit = outputs.shape[2] * outputs.shape[3] if self.per_pixel else 1000
        return [self.sign * self._num_bytes(picture) / unit for picture in as_bytes(outputs)]

    def _num_bytes(self, picture: NDArray[np.uint8]) -> int:
        file = io.BytesIO()
        self.encode(Image.fromarray(picture), file)
        return file.tell()


class JpegSize(_CompressedSize):
    """Size as a JPEG of `quality`: DDPO's incompressibility in kilobytes; `prefer: small` is its compressibility."""

    card = Card(
        summary="size of the picture as a JPEG",
        low=0,
        cost_ms=0.1,
        reference=Reference(mean=1.08, std=0.1446, on=LAB_SCENES),
    )

    def __init__(
        self,
        quality: Annotated[int, Field(ge=1, le=95)] = 95,
        prefer: Literal["large", "small"] = "large",
        per: Literal["picture", "pixel"] = "picture",
    ) -> None:
        super().__init__(prefer, per)
        self.quality = quality  # Pillow: above 95 the files grow and the pictures do not improve

    def encode(self, image: Image.Image, file: io.BytesIO) -> None:
        image.save(file, "JPEG", quality=self.quality)


class PngSize(_CompressedSize):
    """Size as a PNG, which loses nothing: how much there is to describe in the picture."""

    card = Card(
        summary="size of the picture as a PNG",
        low=0,
        cost_ms=0.1,
        reference=Reference(mean=0.5872, std=0.1876, on=LAB_SCENES),
    )

    def encode(self, image: Image.Image, file: io.BytesIO) -> None:
        image.save(file, "PNG", compress_level=9)


def _at_least(pictures_B3HW: Tensor, size: int, name: str) -> Tensor:
    if min(pictures_B3HW.shape[2:]) < size:
        raise RewardError(
            f"{name}: pictures are {tuple(pictures_B3HW.shape[2:])}; they need at least {size} pixels a side"
        )
    return pictures_B3HW
