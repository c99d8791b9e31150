"""CLIP and SigLIP families through transformers, by name or folder, differentiable in the pictures.

The image processor's own settings are applied here in torch, since the processors work on 8-bit pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from plaudit.errors import RecipeError
from plaudit.models.loading import pretrained
from plaudit.optional import require
from plaudit.rewards.encoders.base import Encoder, check_pictures, resized, warn_if_cut

RESAMPLE = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}  # PIL's numbers


class ClipEncoder(Encoder):
    """`max_tokens` includes the begin and end marks (77 for CLIP, 64 for SigLIP)."""

    def __init__(self, name: str) -> None:
        transformers = require("transformers", extra="transformers", who=f"encoder clip:{name}")
        self.name = f"clip:{name}"
        self.model = pretrained(transformers.AutoModel, name, key=self.name, dtype=torch.float32)
        self.model.eval().requires_grad_(False)
        if not hasattr(self.model, "get_image_features") or not hasattr(self.model, "get_text_features"):
            raise RecipeError(f"encoder clip:{name}: a {type(self.model).__name__} does not embed pictures and texts")
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        self.settings, _ = transformers.image_processing_base.ImageProcessingMixin.get_image_processor_dict(name)
        self.max_tokens = self.model.config.text_config.max_position_embeddings
        # SigLIP was trained on texts padded to full length, and attends to the padding.
        self.pads_fully = self.model.config.model_type.startswith("siglip")

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        lengths = [len(ids) for ids in self.tokenizer(list(texts), verbose=False)["input_ids"]]
        warn_if_cut(f"the encoder {self.name}", lengths, self.max_tokens)
        batch = self.tokenizer(
            list(texts),
            padding="max_length" if self.pads_fully else True,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        )
        keys = ("input_ids",) if self.pads_fully else ("input_ids", "attention_mask")
        return _unit(self.model.get_text_features(**{key: batch[key] for key in keys}))

    def embed_images(self, images: Tensor) -> Tensor:
        return _unit(self.model.get_image_features(pixel_values=self.pixel_values(images)))

    def pixel_values(self, images: Tensor) -> Tensor:
        """What the model's image processor makes of pictures `[B, 3, H, W]` in 0..1, without its rounding to 8 bits."""
        return preprocessed(check_pictures(images, f"the encoder {self.name}"), self.settings)


def preprocessed(images: Tensor, settings: Mapping[str, Any]) -> Tensor:
    if settings.get("do_resize", True):
        height, width = _target(settings["size"], images.shape[-2:])
        images = resized(images, height, width, RESAMPLE[settings.get("resample", 3)])
    if settings.get("do_center_crop", False):
        images = _centre(images, *_target(settings["crop_size"], images.shape[-2:]))
    if settings.get("do_normalize", True):
        mean, std = (images.new_tensor(settings[key])[:, None, None] for key in ("image_mean", "image_std"))
        images = (images - mean) / std
    return images


def _target(size: Any, shape: Sequence[int]) -> tuple[int, int]:
    """Height and width: given, or so that the shorter side has the given length."""
    if isinstance(size, int):
        return size, size
    if "shortest_edge" not in size:
        return size["height"], size["width"]
    short = size["shortest_edge"]
    longer = int(short * max(shape) / min(shape))
    return (short, longer) if shape[0] <= shape[1] else (longer, short)


def _centre(images: Tensor, height: int, width: int) -> Tensor:
    top, left = (images.shape[-2] - height) // 2, (images.shape[-1] - width) // 2
    return images[..., top : top + height, left : left + width]


def _unit(features: Any) -> Tensor:
    return F.normalize(features if isinstance(features, Tensor) else features.pooler_output, dim=-1)
