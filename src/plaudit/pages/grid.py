"""Pictures in a grid, each above its caption."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import matplotlib
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from plaudit import storage

COLUMNS = 6
LINE = 2  # pixels between the cells of a grid
CAPTION_HEIGHT = "caption height"  # in what a PNG says of itself: pixels below every picture of a grid
SMALLEST, CAPTION_LINES = 192, 3  # pixels of a picture's height
BLACK, GREY, WHITE = "#1b2430", "#808080", "#ffffff"


def grid_image(images: Tensor, columns: int, captions: Sequence[str] = (), scale: int | None = None) -> Image.Image:
    """Pictures in rows, separated by thin lines, small ones enlarged without smoothing, each above its caption. How high
    captions are is kept in the file, so that a report finds the pictures again."""
    count, _, height, width = images.shape
    scale = scale or max(1, SMALLEST // height)
    height, width = height * scale, width * scale
    strips = [_caption(text, width) for text in captions]
    strip = max((picture.height for picture in strips), default=0)
    rows = -(-count // columns)
    size = (columns * (width + LINE) - LINE, rows * (height + strip + LINE) - LINE)
    canvas = Image.new("RGB", size, GREY)
    pixels = (images.expand(-1, 3, -1, -1).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    for i, picture in enumerate(pixels):
        row, column = divmod(i, columns)
        left, top = column * (width + LINE), row * (height + strip + LINE)
        canvas.paste(Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST), (left, top))
        if strips:
            canvas.paste(WHITE, (left, top + height, left + width, top + height + strip))
            canvas.paste(strips[i], (left, top + height))
    canvas.info[CAPTION_HEIGHT] = str(strip)
    return canvas


def _caption(text: str, width: int) -> Image.Image:
    """A text as a picture of this width, of three lines at most."""
    size = max(12, width // 20)
    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
    letters = max(int(width / font.getlength("n")) - 1, 8)
    lines = textwrap.wrap(text, letters, max_lines=CAPTION_LINES, placeholder=" ...")
    high = size + 4
    picture = Image.new("RGB", (width, high * len(lines) + 6), WHITE)
    for i, line in enumerate(lines):
        ImageDraw.Draw(picture).text((size // 3, 3 + i * high), line, BLACK, font)
    return picture


def write_grid(grid: Image.Image, file: Path | IO[bytes]) -> None:
    about = PngInfo()
    about.add_text(CAPTION_HEIGHT, grid.info[CAPTION_HEIGHT])
    grid.save(file, format="PNG", pnginfo=about)


def save_grid(images: Tensor, path: Path, captions: Sequence[str], columns: int = COLUMNS) -> Image.Image:
    partial, grid = path.with_name("." + path.name), grid_image(images, columns, captions)
    with storage.explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_grid(grid, partial)
        partial.replace(path)
    return grid
