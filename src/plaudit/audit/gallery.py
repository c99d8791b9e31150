"""Pictures before and after at equal prompts and equal noise, one card a prompt."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from plaudit.audit.measures import style_of
from plaudit.pages.grid import CAPTION_HEIGHT, LINE
from plaudit.pages.html import Html, element, folded, image, join, section
from plaudit.pages.numbers import Style
from plaudit.runs.record import AFTER, BEFORE, RunRecord

PIXELATED_UP_TO = 128  # pixels; smaller pictures are enlarged without blurring
STEPS_SHOWN = 8
VERDICTS = {1.0: ("yes", "✓ correct"), 0.0: ("no", "✗ wrong")}


@dataclass(frozen=True, kw_only=True)
class Side:
    """One column of a card: its label, a picture for each prompt and what the truth said of it (None: not judged)."""

    label: str
    cells: tuple[bytes, ...]
    truth: tuple[float | None, ...]
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
    """The first `count` pictures of a grid, row by row, whose cells are separated by lines or touch; None when it does not
    divide into equal cells."""
    grid = Image.open(io.BytesIO(png))
    pixels, stated = np.asarray(grid.convert("RGB")), str(grid.info.get(CAPTION_HEIGHT, ""))
    caption = int(stated) if stated.isdecimal() and len(stated) < 6 else 0
    rows = math.ceil(count / columns) if columns > 0 else 0
    if not rows:
        return None
    for gap in (LINE,) if stated else (LINE, 0):  # a grid of ours has lines
        (height, ragged_rows), (width, ragged_columns) = (
            divmod(size + gap, number) for size, number in zip(pixels.shape[:2], (rows, columns), strict=True)
        )
        if (
            not ragged_rows
            and not ragged_columns
            and caption + gap < height
            and _only_lines(pixels, height, width, gap)
        ):
            places = [divmod(index, columns) for index in range(count)]
            bottom = height - gap - caption
            return [pixels[r * height :][:bottom, c * width : (c + 1) * width - gap] for r, c in places]
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
        truth=(*known, *[None] * count)[:count],
        pixelated=max(cells[0].shape[:2]) <= PIXELATED_UP_TO,
    )


def _encode(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _cards(run: RunRecord, sides: Sequence[Side]) -> Html:
    assert run.samples is not None
    style = style_of(run)
    return element("div", *(_card(i, text, sides, style) for i, text in enumerate(run.samples.prompts)), cls="pairs")


def _card(index: int, prompt: str, sides: Sequence[Side], style: Style) -> Html:
    earlier = (None, *(side.truth[index] for side in sides))
    pictures = (_picture(side, index, prompt, before, style) for side, before in zip(sides, earlier, strict=False))
    return element("figure", element("div", *pictures, cls="sides"), element("figcaption", prompt), cls="pair")


def _picture(side: Side, index: int, prompt: str, before: float | None, style: Style) -> Html:
    """With a verdict's colour and words or, of any other truth, the number and how far it moved."""
    score, word, moved = side.truth[index], "", None
    if style.accuracy and score in VERDICTS:
        word, mark = VERDICTS[score]
    else:
        mark = "unjudged" if score is None else style.score(score)
        moved = None if score is None or before is None else style.signed(score - before)
    said = f"{side.label}: {prompt} ({mark}{f', {moved}' if moved else ''})"
    picture = image(side.cells[index], said, cls="pixelated" if side.pixelated else None)
    change = element("span", moved, cls="moved") if moved else None
    caption = element("div", element("span", side.label), element("span", mark, cls="mark"), change)
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
    all_of_them = f"{len(names)} grid{'s' if len(names) > 1 else ''}"
    number = f"{len(chosen)} of {all_of_them}" if len(chosen) < len(names) else all_of_them
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
    style, said = style_of(run), []
    for name, scores in ((BEFORE, run.samples.before), (AFTER, run.samples.after)):
        known = [score for score in scores if score is not None]
        if name in shown and known:
            mean = style.score(sum(known) / len(known))
            right = f"{known.count(1.0)} of {len(known)} correct" if style.accuracy else mean
            said.append(f"{right} {name}")
    about = "" if style.accuracy else f"Mean {style.noun} of these pictures: "
    return f"{lead} {about}{', '.join(said)}." if said else f"{lead} The truth about them was not judged."
