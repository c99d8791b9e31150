"""How results show themselves: a line and a small table in a terminal, the same in a notebook."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass

from plaudit.recipe.text import visible


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table as lines: as wide as it needs to be, so that it can be searched and cut."""
    header, rows = [visible(cell) for cell in header], [[visible(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in (header, *rows)]


@dataclass(frozen=True, kw_only=True)
class Showing:
    title: str
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


class Shown:
    """A result that says what it is in a few lines instead of printing its tensors."""

    def showing(self) -> Showing:
        raise NotImplementedError

    def picture(self) -> bytes | None:
        """A PNG that notebooks show below."""
        return None

    def __repr__(self) -> str:
        it = self.showing()
        return "\n".join([it.title, *(aligned(it.header, it.rows) if it.rows else ())])

    def _repr_html_(self) -> str:
        it = self.showing()
        table = _row("th", it.header) + "".join(_row("td", row) for row in it.rows)
        encoded = base64.b64encode(self.picture() or b"").decode("ascii")
        return (
            f"<p>{html.escape(it.title)}</p>"
            + (f"<table>{table}</table>" if it.rows else "")
            + (f'<img src="data:image/png;base64,{encoded}" alt="" style="max-width: 100%">' if encoded else "")
        )


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f'<{tag} style="text-align: left">{html.escape(cell)}</{tag}>' for cell in cells) + "</tr>"
