"""D2-Align (S068): similarity with a prompt whose embedding is corrected along one learnt direction.

Shape legend: B outputs, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from plaudit.errors import RecipeError, RewardError
from plaudit.lab.networks import WEIGHTS
from plaudit.rewards.base import Card
from plaudit.rewards.encoders.base import embed_once
from plaudit.rewards.encoders.load import load_encoder
from plaudit.rewards.encoders.similarity import needs_pictures


def corrected_text(text: Tensor, direction: Tensor, weight: float) -> Tensor:
    """e~ = e- + w (e+ - e-) with e+- = norm(e +- b), made a unit vector again (our choice; the paper does not say)."""
    plus, minus = F.normalize(text + direction, dim=-1), F.normalize(text - direction, dim=-1)
    return F.normalize(minus + weight * (plus - minus), dim=-1)


def fit_direction(
    texts: Tensor,
    images: Tensor,
    *,
    weight: float = 1.5,
    steps: int = 2_000,
    batch: int = 64,
    rate: float = 1e-2,
    seed: int = 0,
) -> Tensor:
    """Stage 1: the b `[D]` that raises the mean similarity of corrected prompts `[B, D]` with the original generator's
    pictures `[B, D]`, which stay as they are. b starts near 0, so that the correction does."""
    generator = torch.Generator().manual_seed(seed)
    direction = (1e-3 * torch.randn(texts.shape[-1], generator=generator)).requires_grad_(True)
    optimizer = torch.optim.Adam([direction], lr=rate)
    for _ in range(steps):
        rows = torch.randint(len(texts), (min(batch, len(texts)),), generator=generator)
        loss = -(corrected_text(texts[rows], direction, weight) * images[rows]).sum(-1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return direction.detach()


class DirectionalSimilarity:
    """D2-Align: pictures against their prompt after a fixed correction of the text space, learnt by `fit_direction`.

    The direction raises the similarity of every prompt with the original generator's pictures, so that the corrected
    text already holds what all of those have in common. `direction` is a safetensors file with the tensor
    `direction [D]`; left out, the lab's.
    """

    card = Card(
        summary="cosine with the prompt after removing a learnt bias of the text space",
        low=-1,
        high=1,
        differentiable=True,
        cost_ms=1.5,
        systems=("S068",),
    )

    def __init__(self, encoder: str = "lab", direction: str | None = None, weight: float = 1.5) -> None:
        self.encoder, self.weight = load_encoder(encoder), weight
        needs_pictures(self.encoder, "directional_similarity")
        if direction is None and encoder != "lab":
            raise RecipeError(f"directional_similarity: give the `direction` fitted for the encoder {encoder!r}")
        self.direction = read_direction(direction)
        self.card = replace(type(self).card, max_prompt_tokens=self.encoder.max_tokens)

    def __call__(self, prompts: Sequence[str], outputs: Tensor) -> Tensor:
        texts = corrected_text(embed_once(self.encoder, prompts), self.direction, self.weight)
        return (self.encoder.embed_images(outputs) * texts).sum(-1)


def read_direction(path: str | None) -> Tensor:
    file = Path(path) if path else WEIGHTS / "direction.safetensors"
    if not file.is_file():
        raise RewardError(
            f"directional_similarity: {file} does not exist; `plaudit lab build direction` fits the lab's"
        )
    return load_file(file)["direction"].float()
