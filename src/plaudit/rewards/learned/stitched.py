"""A stitched value model (StitchVM, S056): the reward's last layers read the generator's first ones.

V(z_t, t) = r_{>= j}(s(u_{<= i}(z_t, t))), where u are the generator's frozen blocks, run without a caption, r the layers of a
reward's picture tower, and s a stitch. Which i and j go together, and where s begins, is found in closed form: of all pairs
that one where a linear map W takes the features of noisy latents closest to the tower's features of the clean pictures.
s(h) = Up(F h) + MLP(Up(F h)) with F = W and the MLP's last convolution 0 begins as that map.

The lab's tower is the dual encoder's, j = 0 its convolutions (before positions are added) and j >= 1 its transformer layers.

Departures. F reads h in units of its size on the probes, which changes nothing about s but how fast it learns: the lab's trunk
grows from 200 to 4000 along its blocks, and Adam's steps are as long for either. Residuals are compared as shares of the tower
features' variance, since their scales differ from layer to layer. The lab's tower has no class token; its embedding is the
mean of its tokens.

Shape legend: B batch, h w grid, N = h w tokens, C channels of the trunk, D of the tower, E embedding.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from plaudit.errors import RecipeError, RunError
from plaudit.lab.encoder_networks import DualEncoder
from plaudit.lab.scenes.grammar import MAX_TOKENS
from plaudit.rewards.encoders.lab import read_words

BOTTLENECK = 8

# --- closed form -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LinearFit:
    """`weight [D, C]` that takes features to targets, and the share of the targets' variance that it leaves."""

    weight: Tensor
    residual: float


def fit_linear(features: Tensor, targets: Tensor) -> LinearFit:
    """W = G F^+ by least squares in float64, over rows `features [n, C]` and `targets [n, D]`."""
    f, g = features.double(), targets.double()
    weight = torch.linalg.lstsq(f, g, driver="gelsd").solution.T
    left = (f @ weight.T - g).square().sum()
    return LinearFit(weight=weight, residual=(left / (g - g.mean(0)).square().sum()).item())


@dataclass(frozen=True, kw_only=True)
class Seam:
    """Trunk block `block` is stitched to tower layer `layer`; `residuals[i][j]` are those of all pairs."""

    block: int
    layer: int
    fit: LinearFit
    size: float  # root mean square of the block's features
    residuals: Sequence[Sequence[float]]


def find_seam(trunk: Sequence[Tensor], tower: Sequence[Tensor], slack: float = 0.0) -> Seam:
    """The pair of least residual among features `[B, C, h, w]` of noisy latents and of the clean pictures of the same rows.
    With `slack`, the earliest block that comes within this share of it, since every block costs (ours)."""
    fits = [[fit_linear(*_paired(features, targets)) for targets in tower] for features in trunk]
    residuals = [[fit.residual for fit in row] for row in fits]
    most = min(map(min, residuals)) * (1 + slack)
    i = (
        next(i for i, row in enumerate(residuals) if min(row) <= most)
        if slack
        else _least([min(row) for row in residuals])
    )
    j = _least(residuals[i])
    return Seam(block=i, layer=j, fit=fits[i][j], size=trunk[i].square().mean().sqrt().item(), residuals=residuals)


def _least(values: Sequence[float]) -> int:
    return min(range(len(values)), key=values.__getitem__)


def _paired(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens as rows, the trunk's at the tower's grid."""
    resized = _up(features, targets.shape[-2:])
    return resized.movedim(1, -1).flatten(0, 2), targets.movedim(1, -1).flatten(0, 2)


def _up(features: Tensor, size: Sequence[int]) -> Tensor:
    if features.shape[-2:] == tuple(size):
        return features
    return F.interpolate(features, size=tuple(size), mode="bilinear", align_corners=False)


# --- the parts -------------------------------------------------------------------------------------------------------


class Stitch(nn.Module):
    """s(h) = Up(F h) + MLP(Up(F h)), all of 1x1 convolutions; begins as the linear map `weight [D, C]`. `unit` is the size of
    h."""

    unit: Tensor

    def __init__(self, weight: Tensor, size: Sequence[int], unit: float = 1.0) -> None:
        super().__init__()
        D, C = weight.shape
        narrow = max(D // BOTTLENECK, 1)
        self.size = tuple(size)
        self.register_buffer("unit", torch.tensor(unit))
        self.linear = nn.Conv2d(C, D, 1)
        self.down, self.up = nn.Conv2d(D, narrow, 1), nn.Conv2d(narrow, D, 1)
        with torch.no_grad():
            self.linear.weight.copy_(unit * weight[:, :, None, None])
            for zero in (self.linear.bias, self.up.weight, self.up.bias):
                assert zero is not None
                zero.zero_()

    def forward(self, h: Tensor) -> Tensor:
        h = _up(self.linear(h / self.unit), self.size)
        more: Tensor = self.up(F.silu(self.down(F.silu(h))))
        return h + more


class _Reached(Exception):
    """The last block that is wanted has run."""


def trunk_features(network: Any, z: Tensor, t: Tensor, last: int | None = None) -> list[Tensor]:
    """Picture tokens `[B, C, h, w]` after blocks 0 to `last` of a lab generator without caption; later blocks do not run."""
    blocks, seen = network.trunk.blocks, []
    last, side = len(blocks) - 1 if last is None else last, blocks[0].side

    def keep(module: nn.Module, given: object, states: Tensor) -> None:
        seen.append(states[:, -(side**2) :].transpose(1, 2).unflatten(2, (side, side)))
        if len(seen) > last:
            raise _Reached

    hooks = [block.register_forward_hook(keep) for block in blocks]
    try:
        network(z, t, torch.zeros(len(z), MAX_TOKENS, dtype=torch.long))
    except _Reached:
        return seen
    finally:
        for hook in hooks:
            hook.remove()
    raise RunError(f"the trunk has {len(blocks)} blocks and block {last} never ran")


def tower_features(tower: Any, images: Tensor) -> list[Tensor]:
    """Features `[B, D, h, w]` of the layers 0, 1, ... but the last one."""
    grid = tower.stem(2 * images - 1)
    found, states = [grid], _placed(tower, grid)
    for layer in tower.layers[:-1]:
        states = layer(states)
        found.append(states.transpose(1, 2).unflatten(2, grid.shape[-2:]))
    return found


def _placed(tower: Any, grid: Tensor) -> Tensor:
    states: Tensor = grid.flatten(2).transpose(1, 2) + tower.grid + tower.place_in(tower.places)
    return states


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Tokens `[B, N, E]` and their unit mean `[B, E]`."""

    embedding: Tensor
    tokens: Tensor


def tower_tail(encoder: DualEncoder, features: Tensor, layer: int) -> Seen:
    """What the encoder makes of features `[B, D, h, w]` from layer `layer` on."""
    tower: Any = encoder.picture
    states = _placed(tower, features) if layer == 0 else features.flatten(2).transpose(1, 2)
    states = tower.norm(tower.layers[layer:](states)) + tower.place_out(tower.places)
    tokens = encoder.picture_out(states)
    return Seen(embedding=F.normalize(tokens.mean(1), dim=-1), tokens=tokens)


# --- the whole -------------------------------------------------------------------------------------------------------


class StitchedValue(nn.Module):
    """What the encoder would make of the picture that a noisy latent becomes. Holds the stitch and the tail, which learn, and
    the encoder's text side, which does not; the trunk is the generator's and handed in."""

    def __init__(self, encoder: DualEncoder, block: int, layer: int, weight: Tensor, unit: float = 1.0) -> None:
        super().__init__()
        self.block, self.layer = block, layer
        grid: Any = encoder.picture.grid
        side = int(len(grid) ** 0.5)
        self.stitch = Stitch(weight, (side, side), unit)
        self.encoder = copy.deepcopy(encoder).requires_grad_(False)
        for part in self.tail():
            part.requires_grad_()

    def tail(self) -> list[nn.Module]:
        """The layers behind the seam, which are trained."""
        picture = self.encoder.picture
        behind: list[nn.Module] = [picture.layers[self.layer :], picture.norm, picture.place_out]
        return [*behind, self.encoder.picture_out, *([picture.place_in] if self.layer == 0 else [])]

    def forward(self, network: nn.Module, z: Tensor, t: Tensor) -> Seen:
        """Of noisy latents `[B, *]` at times `t [B]`."""
        h = trunk_features(network, z, t, self.block)[self.block]
        return tower_tail(self.encoder, self.stitch(h), self.layer)

    def score(self, network: nn.Module, z: Tensor, t: Tensor, texts: Sequence[str]) -> Tensor:
        """Cosines `[B]` with the captions."""
        said = self.encoder.embed_texts(read_words(texts, "the stitched value model"))
        seen: Seen = self(network, z, t)
        return (seen.embedding * said).sum(-1)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {key: value.contiguous() for key, value in self.state_dict().items()}
        save_file(state, path, metadata={"block": str(self.block), "layer": str(self.layer)})

    @staticmethod
    def load(path: Path) -> StitchedValue:
        if not path.is_file():
            raise RecipeError(
                f"value: {path} does not exist; build one with `python benchmarks/stitched_value.py build`"
            )
        with safe_open(path, framework="pt") as file:
            about = file.metadata()
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        weight = state["stitch.linear.weight"][:, :, 0, 0]
        value = StitchedValue(DualEncoder(), int(about["block"]), int(about["layer"]), weight)
        value.load_state_dict(state)
        return value.eval().requires_grad_(False)
