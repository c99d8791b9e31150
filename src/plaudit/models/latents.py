"""Pictures to latents, each encoded once: kept in memory and, across runs, in a folder by content."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from plaudit import storage
from plaudit.data.pictures import read_picture
from plaudit.errors import DataError, RecipeError
from plaudit.models.flow import FlowModel


def encoded(model: FlowModel, pictures: Tensor) -> Tensor:
    """Clean latents of pictures `[B, 3, H, W]`; a model that cannot encode is refused."""
    name = type(model).__name__
    if not hasattr(model, "latents"):
        raise RecipeError(f"model: {name} has no method `latents`, so it cannot learn from given pictures; add one")
    with torch.no_grad():
        latents = model.latents(pictures)
    if not isinstance(latents, Tensor) or latents.shape != (len(pictures), *model.latent_shape):
        shown = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
        raise RecipeError(
            f"model: {name}.latents gave {shown} for {len(pictures)} pictures; expected {model.latent_shape} each"
        )
    return latents


class LatentCache:
    """`folder` holds a safetensors file per picture and encoder. The encoder is known by what it makes of a probe, so that
    latents of other weights are never taken for its own."""

    def __init__(self, model: FlowModel, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.kept: dict[str, Tensor] = {}
        self._encoder: str | None = None

    def __call__(self, paths: Sequence[Path]) -> Tensor:
        return torch.stack([self._one(path) for path in paths])

    def _one(self, path: Path) -> Tensor:
        picture = read_picture(path)
        if self._encoder is None:
            probe = torch.linspace(0, 1, picture.numel()).reshape(1, *picture.shape)
            self._encoder = hashlib.sha256(self._encode(probe, path).contiguous().numpy().tobytes()).hexdigest()[:16]
        key = hashlib.sha256(picture.numpy().tobytes() + self._encoder.encode()).hexdigest()[:32]
        if key not in self.kept:
            file = self.folder / f"{key}.safetensors"
            if not file.is_file():
                with storage.explain_write_errors(file):
                    self.folder.mkdir(parents=True, exist_ok=True)
                    begun = file.with_suffix(f".{uuid.uuid4().hex}")  # other processes may encode the same picture
                    save_file({"latent": self._encode(picture[None], path)[0].contiguous()}, begun)
                    begun.replace(file)
            self.kept[key] = load_file(file)["latent"]
        return self.kept[key]

    def _encode(self, pictures: Tensor, path: Path) -> Tensor:
        try:
            return encoded(self.model, pictures)
        except (RuntimeError, ValueError) as error:
            raise DataError(
                f"{path}: the model cannot encode a picture of {list(pictures.shape[2:])}: {error}"
            ) from error
