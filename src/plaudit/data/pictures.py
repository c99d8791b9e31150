"""Pictures from files and bytes: one place that opens them, with a limit on what they unpack to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from plaudit.data.files import brief, is_no_file
from plaudit.errors import DataError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MOST_PIXELS = 2**25  # 400 MB as float32 of three colours


@contextmanager
def open_picture(source: Path | BinaryIO, said: str, formats: tuple[str, ...] | None = None) -> Iterator[Image.Image]:
    """A picture whose size is known to be bearable before a pixel is unpacked."""
    try:
        if isinstance(source, Path) and is_no_file(source):
            raise DataError("it is no file")
        with Image.open(source, formats=formats) as image:
            if image.width * image.height > MOST_PIXELS:
                raise DataError(
                    f"it has {image.width} x {image.height} pixels; at most {MOST_PIXELS:,} are read: shrink it"
                )
            yield image
    except DataError as error:
        raise DataError(f"{said} cannot be read as a picture: {error}") from error
    except Exception as error:  # Pillow raises what its decoders raise
        raise DataError(f"{said} cannot be read as a picture: {brief(error)}") from error


def read_picture(path: Path) -> Tensor:
    with open_picture(path, brief(path)) as image:
        return pixels_of(image)


def pixels_of(image: Image.Image) -> Tensor:
    """Red, green and blue `[3, H, W]` in 0..1, turned as its camera says; what is transparent is shown on white."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits of grey, which a conversion would cut off at 255
        return _grey(np.asarray(image), 65535)
    if image.mode == "F":
        return _grey(np.asarray(image), 1)
    return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1).float() / 255


def _grey(values: Any, white: int) -> Tensor:
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= white:
        raise DataError(f"its grey is {values.dtype} from {low:g} to {high:g}; expected 0 to {white}: scale it")
    return torch.from_numpy(values.astype(np.float32) / white).expand(3, -1, -1).clone()
