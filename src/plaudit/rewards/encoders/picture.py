"""Real pictures and English: frozen MobileNetV2 and MiniLM, joined by two trained projections.

The projections are linear maps (biases included) of the pooled features, trained on emoji and their names
(`plaudit lab build picture-encoder`). Pooling is a mean, so a patch's vector is the projection of its own features.

Shape legend: B pictures or texts, D = 256 embedding, N patches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plaudit.rewards.encoders.base import Encoder, check_pictures, resized
from plaudit.rewards.encoders.lab import lab_weights
from plaudit.rewards.encoders.minilm import MiniLm
from plaudit.rewards.encoders.mobilenet import FEATURES, load_mobilenet

SIZE = 112
TEXT_WIDTH = 384


class Projections(nn.Module):
    """From picture features `[..., 1280]` and text vectors `[..., 384]` to one space."""

    def __init__(self, embedding: int = 256) -> None:
        super().__init__()
        self.picture, self.text = nn.Linear(FEATURES, embedding), nn.Linear(TEXT_WIDTH, embedding)
        self.log_scale = nn.Parameter(torch.tensor(2.5))


class PictureEncoder(Encoder):
    """Pictures are looked at at 112 x 112, stretched if they are not square."""

    name = "picture"

    def __init__(self, folder: str | None = None) -> None:
        self.language = MiniLm()
        self.max_tokens = self.language.max_tokens
        self.vision = load_mobilenet()
        self.projections = Projections().eval().requires_grad_(False)
        self.projections.load_state_dict(lab_weights("picture-encoder", folder))

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        return F.normalize(self.projections.text(self.language.embed_texts(texts)), dim=-1)

    def embed_images(self, images: Tensor) -> Tensor:
        return F.normalize(self.projections.picture(self.features(images).mean(1)), dim=-1)

    def embed_patches(self, images: Tensor) -> Tensor:
        return F.normalize(self.projections.picture(self.features(images)), dim=-1)

    def features(self, images: Tensor) -> Tensor:
        """`[B, N, 1280]`."""
        shown = resized(check_pictures(images, "the encoder picture"), SIZE, SIZE)
        return self.vision(shown).flatten(2).transpose(1, 2)
