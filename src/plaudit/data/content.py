"""A digest of what a value holds: texts, numbers, tensors, pictures, and lists and mappings of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

ORIENTATION = 0x0112  # in EXIF


def media_hash(output: Any) -> bytes:
    """A digest of one output that is equal exactly when type, shape and every bit are."""
    digest = hashlib.sha256()
    _feed(digest, output)
    return digest.digest()


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(f"tensor {value.dtype} {tuple(value.shape)};".encode())
        digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    elif isinstance(value, np.ndarray) and value.dtype != object:
        digest.update(f"array {value.dtype} {value.shape};".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Image.Image):
        shown = (
            value.getexif().get(ORIENTATION),
            value.info.get("transparency"),
            value.palette and value.getpalette("RGBA"),
        )
        digest.update(f"picture {value.mode} {value.size} {shown};".encode())
        digest.update(value.tobytes())
    elif isinstance(value, str | bytes):
        data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        digest.update(f"{type(value).__name__} {len(data)};".encode())
        digest.update(data)
    elif isinstance(value, Mapping):
        digest.update(f"mapping {len(value)};".encode())
        for key in sorted(value, key=lambda key: (str(type(key)), str(key))):
            _feed(digest, key)
            _feed(digest, value[key])
    elif isinstance(value, Sequence):
        digest.update(f"list {len(value)};".encode())
        for item in value:
            _feed(digest, item)
    elif value is None or isinstance(value, bool | int | float | np.generic):
        digest.update(f"{type(value).__name__} {value!r};".encode())
    else:
        raise TypeError(f"a {type(value).__name__} has no content that is known here")
