"""Scenes as numbers, and the one differentiable rasteriser that draws them.

A scene is `[K, 10]` numbers per slot: presence, x, y, size, red, green, blue, circle, square, triangle, each roughly in
[-1, 1]. Data sets, the slot generator and the checker's templates all draw through `coverage`.

Shape legend: B scenes, K slots, S shapes, H = W = 32 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.lab.scenes.grammar import COLORS, MAX_OBJECTS, SHAPES

SIZE = 32
SLOT_DIM = 10
RADIUS_RANGE = (3.5, 5.0)
BACKGROUND = (0.08, 0.09, 0.12)
PALETTE = {
    "red": (0.90, 0.18, 0.16),
    "green": (0.16, 0.74, 0.28),
    "blue": (0.20, 0.42, 0.96),
    "yellow": (0.97, 0.84, 0.18),
    "purple": (0.68, 0.22, 0.86),
    "white": (0.96, 0.96, 0.96),
}
# Extent of each shape in units of its radius: the square's half side, the triangle's circumradius.
SQUARE_HALF_SIDE = 0.88
TRIANGLE_CIRCUMRADIUS = 1.40
OUTER_RADIUS = {"circle": 1.0, "square": SQUARE_HALF_SIDE * math.sqrt(2), "triangle": TRIANGLE_CIRCUMRADIUS}
EDGE_SHARPNESS = 4.0  # sigmoid slope at the outline: one pixel from 12 % to 88 % coverage


def coverage(dx: Tensor, dy: Tensor, radius: Tensor) -> Tensor:
    """Soft coverage of the three shapes at offsets from their centre; a trailing S axis is added.

    Image coordinates: y grows downwards, triangles point up.
    """
    circle = torch.sqrt(dx.square() + dy.square() + 1e-6) - radius
    square = torch.maximum(dx.abs(), dy.abs()) - SQUARE_HALF_SIDE * radius
    slanted = dx.abs() * math.cos(math.pi / 6) - dy * math.sin(math.pi / 6)
    triangle = torch.maximum(dy, slanted) - 0.5 * TRIANGLE_CIRCUMRADIUS * radius
    return torch.sigmoid(-EDGE_SHARPNESS * torch.stack([circle, square, triangle], dim=-1))


def rasterise(slots_BKD: Tensor) -> Tensor:
    """Draw scenes: `[B, K, 10]` numbers to `[B, 3, 32, 32]` images in [0, 1]; differentiable, slot order is irrelevant."""
    assert slots_BKD.ndim == 3 and slots_BKD.shape[-1] == SLOT_DIM, slots_BKD.shape
    presence = torch.sigmoid(6.0 * slots_BKD[..., 0])
    x, y = ((slots_BKD[..., i] + 1) * (SIZE / 2) for i in (1, 2))
    low, high = RADIUS_RANGE
    radius = low + (slots_BKD[..., 3].clamp(-1.5, 1.5) + 1) * (high - low) / 2
    color = ((slots_BKD[..., 4:7] + 1) / 2).clamp(0, 1)
    shape = torch.softmax(4.0 * slots_BKD[..., 7:10], dim=-1)
    pixel = torch.arange(SIZE, dtype=slots_BKD.dtype, device=slots_BKD.device) + 0.5
    dx = (pixel[None, None, None, :] - x[..., None, None]).expand(-1, -1, SIZE, SIZE)
    dy = (pixel[None, None, :, None] - y[..., None, None]).expand(-1, -1, SIZE, SIZE)
    alpha_BKHWS = coverage(dx, dy, radius[..., None, None])
    alpha = (alpha_BKHWS * shape[:, :, None, None, :]).sum(-1) * presence[..., None, None]
    through = (1 - alpha).prod(dim=1)
    ink = torch.einsum("bkhw,bkc->bchw", alpha, color) / (alpha.sum(1, keepdim=True) + 1e-6)
    ground = torch.tensor(BACKGROUND, dtype=slots_BKD.dtype, device=slots_BKD.device)[None, :, None, None]
    return ground * through[:, None] + ink * (1 - through[:, None])


def _place(objects: list[tuple[str, str]], relation: str | None, rng: np.random.Generator) -> np.ndarray:
    """Centres and radii `[n, 3]` of objects that neither touch nor leave the picture and obey the relation."""
    n, tries = len(objects), 32
    reach = np.array([OUTER_RADIUS[shape] for _, shape in objects])
    first, second = np.triu_indices(n, 1)
    largest = RADIUS_RANGE[1] - (0.5 if n == MAX_OBJECTS else 0.0)
    while True:
        radius = rng.uniform(RADIUS_RANGE[0], largest, size=(tries, n))
        outer = radius * reach
        margin = outer[..., None] + 0.5
        centre = margin + rng.random((tries, n, 2)) * (SIZE - 2 * margin)
        offset = centre[:, first] - centre[:, second]
        fits = (np.hypot(offset[..., 0], offset[..., 1]) >= outer[:, first] + outer[:, second] + 1.0).all(axis=1)
        if relation is not None:
            fits &= _clearly(relation, offset[:, 0])
        if fits.any():
            chosen = int(fits.argmax())
            return np.column_stack([centre[chosen], radius[chosen]])


def _clearly(relation: str, offset: np.ndarray) -> np.ndarray:
    """Whether offsets `[..., 2]` from the second object to the first show the relation beyond doubt."""
    along, across = (0, 1) if relation in ("left", "right") else (1, 0)
    sign = -1 if relation in ("left", "above") else 1
    return (sign * offset[..., along] >= 6.0) & (np.abs(offset[..., along]) >= np.abs(offset[..., across]))


def sample_scene(prompt: Prompt, rng: np.random.Generator) -> np.ndarray:
    """A random scene `[K, 10]` for which the caption is true; absent slots are zero except for their presence."""
    pairs = [(o["color"], o["shape"]) for o in prompt.facts["objects"] for _ in range(o["count"])]
    slots = np.zeros((MAX_OBJECTS, SLOT_DIM), dtype=np.float32)
    slots[:, 0] = -1
    placed = _place(pairs, prompt.facts["relation"], rng)
    for row, (color, shape), (x, y, radius) in zip(rng.permutation(MAX_OBJECTS), pairs, placed, strict=False):
        _fill(slots[row], color, shape, x, y, radius)
    return slots


def slots_of(things: Sequence[Mapping[str, Any]]) -> Tensor:
    """The scene `[K, 10]` of objects with `color`, `shape`, `x`, `y` and `radius`, in pixels."""
    slots = np.zeros((MAX_OBJECTS, SLOT_DIM), dtype=np.float32)
    slots[:, 0] = -1
    for row, thing in zip(slots, things, strict=False):
        _fill(row, thing["color"], thing["shape"], thing["x"], thing["y"], thing["radius"])
    return torch.from_numpy(slots)


def _fill(slot: np.ndarray, color: str, shape: str, x: float, y: float, radius: float) -> None:
    low, high = RADIUS_RANGE
    slot[:4] = 1, x * 2 / SIZE - 1, y * 2 / SIZE - 1, (radius - low) / (high - low) * 2 - 1
    slot[4:7] = np.array(PALETTE[color]) * 2 - 1
    slot[7:] = -1
    slot[7 + SHAPES.index(shape)] = 1


def sample_scenes(prompts: list[Prompt], rng: np.random.Generator) -> Tensor:
    """Random true scenes `[B, K, 10]` for a list of prompts."""
    return torch.from_numpy(np.stack([sample_scene(prompt, rng) for prompt in prompts]))


assert tuple(PALETTE) == COLORS
