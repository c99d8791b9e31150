"""`grid.png` of a search: under every prompt its plain sample, and the best that was found, with their scores."""

from __future__ import annotations

import textwrap

from torch import Tensor

from plaudit.pages.look import LIGHT, Theme, blank_figure, png_of
from plaudit.search.results import SearchResult
from plaudit.search.track import Kept

SHOWN = 12  # prompts
IN_A_ROW = 6
CELL = (1.7, 4.3)  # inches, of a prompt with its two pictures


def grid_png(result: SearchResult, theme: Theme = LIGHT) -> bytes | None:
    """None where there are no pictures."""
    both = [
        (prompt.text, plain, best)
        for prompt, plain, best in zip(result.prompts, result.plain, result.best, strict=True)
        if plain is not None and best is not None and isinstance(best.output, Tensor)
    ][:SHOWN]
    if not both:
        return None
    columns = min(IN_A_ROW, len(both))
    bands = -(-len(both) // columns)
    figure = blank_figure((CELL[0] * columns, CELL[1] * bands), theme)
    cells = figure.subplots(2 * bands, columns, squeeze=False)
    for axes in cells.ravel():
        axes.set_axis_off()
    for i, (text, *pair) in enumerate(both):
        band, column = divmod(i, columns)
        for row, (name, kept) in enumerate(zip(("plain", "best"), pair, strict=True)):
            axes = cells[2 * band + row, column]
            axes.imshow(kept.output.detach().clamp(0, 1).permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
            caption = textwrap.shorten(text, 80, placeholder="...") if row == 0 else ""
            lines = [*textwrap.wrap(caption, 26), f"{name} {_score(kept)}"]
            axes.set_title("\n".join(lines), fontsize=7, color=theme.text, parse_math=False)
    return png_of(figure)


def _score(kept: Kept) -> str:
    return "without a score" if kept.score != kept.score else f"{kept.score:.4g}"
