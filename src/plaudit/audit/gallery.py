"""Pictures before and after at equal prompts and equal noise, one card a prompt."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from plaudit.audit.page import Html, element, folded, image, join, section
from plaudit.audit.runs import AFTER, BEFORE, RunRecord

LINE = 2  # pixels between the cells of a grid
PIXELATED_UP_TO = 128  # pixels; smaller pictures are enlarged without blurring
STEPS_SHOWN = 8
MARKS = {True: ("yes", "✓ correct"), False: ("no", "✗ wrong"), None: ("", "unjudged")}


@dataclass(frozen=True, kw_only=True)
class Side:
    """One column of a card: its label, a picture for each prompt and whether it was correct (None: not judged)."""

    label: str
    cells: tuple[bytes, ...]
    correct: tuple[bool | None, ...]
    pixelated: bool


def gallery(run: RunRecord) -> Html:
    shown = [name for name in (BEFORE, _after_name(run)) if name in run.pictures]
    if not shown:
        return section(
            "Before and after", element("p", "Missing: no picture grids were found in samples/.", cls="muted")
        )
    sides = [_side(run, name) for name in shown]
    complete = [side for side in sides if side is not None]
    cards = _cards(run, complete) if run.samples and len(complete) == len(sides) else _whole_grids(run, shown)
    return section("Before and after", cards, _during(run), lead=_lead(run, shown))


def cut(png: bytes, count: int, columns: int) -> list[np.ndarray] | None:
    """The first `count` cells of a grid, row by row, whose cells are separated by lines or touch; None when the picture
    does not divide into equal cells."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    rows = math.ceil(count / columns) if columns > 0 else 0
    if not rows:
        return None
    for gap in (LINE, 0):
        (height, ragged_rows), (width, ragged_columns) = (
            divmod(size + gap, number) for size, number in zip(pixels.shape[:2], (rows, columns), strict=True)
        )
        if not ragged_rows and not ragged_columns and _only_lines(pixels, height, width, gap):
            places = [divmod(index, columns) for index in range(count)]
            return [pixels[r * height : (r + 1) * height - gap, c * width : (c + 1) * width - gap] for r, c in places]
    return None


def _only_lines(pixels: np.ndarray, height: int, width: int, gap: int) -> bool:
    """Whether the last `gap` pixels of every cell but the outermost are of one colour."""
    between_rows = np.arange(pixels.shape[0]) % height >= height - gap
    between_columns = np.arange(pixels.shape[1]) % width >= width - gap
    lines = pixels[between_rows[:, None] | between_columns[None, :]]
    return bool((lines == lines[:1]).all())


def _after_name(run: RunRecord) -> str:
    """The grid after training or, in a run that has not ended, the last one during it."""
    return AFTER if AFTER in run.pictures else next(reversed(_step_names(run)), AFTER)


def _step_names(run: RunRecord) -> list[str]:
    return [name for name in run.pictures if name.startswith("step_")]


def _label(name: str) -> str:
    return f"step {int(name.removeprefix('step_'))}" if name.startswith("step_") else name


def _side(run: RunRecord, name: str) -> Side | None:
    if run.samples is None:
        return None
    count = len(run.samples.prompts)
    cells = cut(run.pictures[name], count, run.samples.columns)
    if cells is None:
        return None
    known = {BEFORE: run.samples.before, AFTER: run.samples.after}.get(name, [])
    return Side(
        label=_label(name),
        cells=tuple(map(_encode, cells)),
        correct=(*known, *[None] * count)[:count],
        pixelated=max(cells[0].shape[:2]) <= PIXELATED_UP_TO,
    )


def _encode(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _cards(run: RunRecord, sides: Sequence[Side]) -> Html:
    assert run.samples is not None
    return element("div", *(_card(i, prompt, sides) for i, prompt in enumerate(run.samples.prompts)), cls="pairs")


def _card(index: int, prompt: str, sides: Sequence[Side]) -> Html:
    pictures = element("div", *(_picture(side, index, prompt) for side in sides), cls="sides")
    return element("figure", pictures, element("figcaption", prompt), cls="pair")


def _picture(side: Side, index: int, prompt: str) -> Html:
    word, mark = MARKS[side.correct[index]]
    picture = image(side.cells[index], f"{side.label}: {prompt} ({mark})", cls="pixelated" if side.pixelated else None)
    caption = element("div", element("span", side.label), element("span", mark, cls="mark"))
    return element("div", picture, caption, cls=f"side {word}".strip())


def _whole_grids(run: RunRecord, names: Sequence[str]) -> Html:
    """The grids as they are, where the prompts are unknown or the cells cannot be told apart."""
    if run.samples is None:
        return _grids(run, names)
    prompts = element("ol", *(element("li", text) for text in run.samples.prompts))
    return join(_grids(run, names), folded("Prompts, row by row", prompts))


def _during(run: RunRecord) -> Html | None:
    names = _step_names(run)
    if not names:
        return None
    chosen = [names[i] for i in sorted({round(i) for i in np.linspace(0, len(names) - 1, STEPS_SHOWN)})]
    number = f"{len(chosen)} of {len(names)} grids" if len(chosen) < len(names) else f"{len(names)} grids"
    return folded(f"The same prompts during training ({number})", _grids(run, chosen))


def _grids(run: RunRecord, names: Sequence[str]) -> Html:
    figures = (
        element(
            "figure", image(run.pictures[name], f"grid of samples, {_label(name)}"), element("figcaption", _label(name))
        )
        for name in names
    )
    return element("div", *figures, cls="grids")


def _lead(run: RunRecord, shown: Sequence[str]) -> str:
    lead = "Each pair has the same prompt and the same noise; only the weights differ."
    if len(shown) == 1:
        lead = f"Only the grid {_label(shown[0])} is there."
    if run.samples is None:
        return f"{lead} Captions and marks are missing: samples/prompts.json was not found."
    counts = [
        f"{sum(mark is True for mark in marks)} of {sum(mark is not None for mark in marks)} correct {name}"
        for name, marks in ((BEFORE, run.samples.before), (AFTER, run.samples.after))
        if name in shown and any(mark is not None for mark in marks)
    ]
    return f"{lead} {', '.join(counts)}." if counts else f"{lead} Whether they are correct was not judged."
