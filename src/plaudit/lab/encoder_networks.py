"""The lab's small judges of pictures: a dual encoder and a captioner, which share the shape of their picture tower.

Shape legend: B batch, L caption tokens, N = 64 patches, D width, E embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plaudit.lab.networks import grid_features
from plaudit.lab.scenes.grammar import MAX_TOKENS, VOCABULARY

UNKNOWN = len(VOCABULARY) + 1  # a word that the lab does not know
BEGIN = END = len(VOCABULARY) + 2  # begins a caption when read, ends it when predicted


def layer(kind: type[nn.Module], width: int, heads: int = 4) -> nn.Module:
    return kind(width, heads, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)


class PictureTower(nn.Module):
    """`[B, 3, 32, 32]` to patches `[B, 64, D]` that have seen each other.

    Sines of the position do not suffice: without plain coordinates `x, y` which of two objects is left of the other is
    still not learnt when everything else is.
    """

    def __init__(self, width: int = 96, depth: int = 3, base: int = 48) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, base, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(base, base, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(base, width, 3, stride=2, padding=1),
        )
        self.register_buffer("grid", grid_features(8, width), persistent=False)
        axis = torch.linspace(-1, 1, 8)
        self.register_buffer("places", torch.cartesian_prod(axis, axis).flip(1), persistent=False)
        self.place_in, self.place_out = nn.Linear(2, width, bias=False), nn.Linear(2, width, bias=False)
        for place in (self.place_in, self.place_out):
            nn.init.normal_(place.weight)
        self.layers = nn.Sequential(*(layer(nn.TransformerEncoderLayer, width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.stem(2 * images - 1).flatten(2).transpose(1, 2)
        seen = self.layers(patches + self.grid + self.place_in(self.places))
        return self.norm(seen) + self.place_out(self.places)


class TextTower(nn.Module):
    """Token ids `[B, L]`, 0 where there is none, to tokens `[B, L, D]`."""

    def __init__(self, width: int = 96, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(END + 1, width)
        self.position = nn.Parameter(0.02 * torch.randn(MAX_TOKENS, width))
        self.layers = nn.ModuleList(layer(nn.TransformerEncoderLayer, width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, ids_BL: Tensor) -> Tensor:
        hidden = ids_BL == 0
        hidden[:, 0] = False  # the empty caption attends to its first padding
        x = self.embed(ids_BL) + self.position[: ids_BL.shape[1]]
        for block in self.layers:
            x = block(x, src_key_padding_mask=hidden)
        return self.norm(x)


class DualEncoder(nn.Module):
    """Patches and tokens in one space; a picture is the mean of its patches, a caption the mean of its tokens."""

    def __init__(self, width: int = 96, embedding: int = 128) -> None:
        super().__init__()
        self.picture, self.text = PictureTower(width), TextTower(width)
        self.picture_out = nn.Sequential(
            nn.Linear(width, 2 * embedding), nn.GELU(), nn.Linear(2 * embedding, embedding)
        )
        self.text_out = nn.Sequential(nn.Linear(width, 2 * embedding), nn.GELU(), nn.Linear(2 * embedding, embedding))
        self.log_scale = nn.Parameter(torch.tensor(2.5))

    def patches(self, images: Tensor) -> Tensor:
        return self.picture_out(self.picture(images))

    def tokens(self, ids_BL: Tensor) -> Tensor:
        return self.text_out(self.text(ids_BL))

    def embed_images(self, images: Tensor) -> Tensor:
        return F.normalize(self.patches(images).mean(1), dim=-1)

    def embed_texts(self, ids_BL: Tensor) -> Tensor:
        valid = (ids_BL > 0).float()
        valid[:, 0] = 1.0
        return F.normalize((self.tokens(ids_BL) * valid[..., None]).sum(1) / valid.sum(1, keepdim=True), dim=-1)


class Captioner(nn.Module):
    """Log-probabilities of a caption's words, one after another, given the picture."""

    def __init__(self, width: int = 96, depth: int = 2) -> None:
        super().__init__()
        self.picture = PictureTower(width)
        self.embed = nn.Embedding(END + 1, width)
        self.position = nn.Parameter(0.02 * torch.randn(MAX_TOKENS + 1, width))
        self.layers = nn.ModuleList(layer(nn.TransformerDecoderLayer, width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, END + 1)

    def log_probs(self, images: Tensor, ids_BL: Tensor) -> Tensor:
        """`[B, L + 1]`: of each word and then of the end; 0 in the padding after it."""
        B, L = ids_BL.shape
        read = torch.cat([ids_BL.new_full((B, 1), BEGIN), ids_BL], dim=1)
        target = torch.cat([ids_BL, ids_BL.new_zeros(B, 1)], dim=1)
        target[torch.arange(B), (ids_BL > 0).sum(1)] = END
        seen = self.picture(images)
        x = self.embed(read) + self.position[: L + 1]
        later = torch.ones(L + 1, L + 1, dtype=torch.bool, device=images.device).triu(1)
        for block in self.layers:
            x = block(x, seen, tgt_mask=later, tgt_is_causal=True)
        log_probs = self.leave(self.norm(x)).log_softmax(-1).gather(-1, target[..., None])[..., 0]
        return log_probs * (target > 0)
