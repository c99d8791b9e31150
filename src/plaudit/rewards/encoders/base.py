"""What an encoder is: texts, and often pictures too, as unit vectors of one space.

Shape legend: B texts or pictures, D embedding, N patches, L tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from plaudit.errors import RewardError


class TruncationWarning(UserWarning):
    """Part of a text was not read, so that what it asks for is not scored."""


class Encoder:
    """Base of the encoders. `max_tokens` counts special tokens; what a text has beyond it is not read, with a warning.

    Weights are frozen, but gradients flow from pictures to their embeddings.
    """

    name = "encoder"
    max_tokens: int
    sees_pictures = True

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors `[B, D]`."""
        raise NotImplementedError

    def embed_images(self, images: Tensor) -> Tensor:
        """Unit vectors `[B, D]` of pictures `[B, 3, H, W]` in 0..1."""
        raise RewardError(f"the encoder {self.name} sees no pictures; use one of lab, picture or clip:NAME")

    def embed_tokens(self, texts: Sequence[str]) -> list[Tensor]:
        """Unit vectors `[L, D]` of each text's own tokens, special ones left out."""
        raise RewardError(f"the encoder {self.name} gives no vectors of single tokens; use lab or minilm")

    def embed_patches(self, images: Tensor) -> Tensor:
        """Unit vectors `[B, N, D]` of a picture's patches, row by row."""
        raise RewardError(f"the encoder {self.name} gives no vectors of single patches; use lab or picture")


def warn_if_cut(who: str, lengths: Sequence[int], limit: int, *, lost: str = "ends", stacklevel: int = 3) -> None:
    """Say how many of the texts with these numbers of tokens are longer than what is read."""
    cut = [length for length in lengths if length > limit]
    if cut:
        warnings.warn(
            f"{who} reads {limit} tokens: {len(cut)} of {len(lengths)} texts are longer (up to {max(cut)} tokens) and "
            f"their {lost} are not read",
            TruncationWarning,
            stacklevel=stacklevel,
        )


def embed_once(encoder: Encoder, texts: Sequence[str]) -> Tensor:
    """`[B, D]`, embedding each distinct text once: the members of a group share their prompt."""
    distinct = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    return encoder.embed_texts(list(distinct))[[distinct[text] for text in texts]]


def resized(images: Tensor, height: int, width: int, mode: str = "bilinear") -> Tensor:
    """Pictures at another size, antialiased as PIL does it, differentiable."""
    if images.shape[-2:] == (height, width):
        return images
    return F.interpolate(images, size=(height, width), mode=mode, align_corners=False, antialias=True).clamp(0, 1)


def check_pictures(images: Tensor, who: str) -> Tensor:
    if not isinstance(images, torch.Tensor) or images.ndim != 4 or images.shape[1] != 3:
        shape = tuple(images.shape) if isinstance(images, torch.Tensor) else type(images).__name__
        raise RewardError(f"{who} looks at pictures [B, 3, H, W] in 0..1, not at {shape}")
    return images.float()
