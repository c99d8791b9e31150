"""What `grid.png` is for pictures: the plain texts beside the best ones."""

from __future__ import annotations

from collections.abc import Iterator

from plaudit.search.results import SearchResult

SHOWN = 12
WIDTH = 120  # characters of a text


def text_table(result: SearchResult) -> str | None:
    """A Markdown table, one prompt a row; None where nothing is a text."""
    rows = list(_rows(result))[:SHOWN]
    if not rows:
        return None
    head = ("prompt", "plain", "score", "best", "score")
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _rows(result: SearchResult) -> Iterator[tuple[str, ...]]:
    for prompt, plain, best in zip(result.prompts, result.plain, result.best, strict=True):
        if plain is not None and best is not None and isinstance(best.output, str):
            yield (
                shown(prompt.text),
                shown(plain.output),
                _number(plain.score),
                shown(best.output),
                _number(best.score),
            )


def shown(text: str) -> str:
    """On one line and no longer than a cell, with nothing that would end it."""
    flat = " ".join(text.split()).replace("|", "\\|")
    return flat if len(flat) <= WIDTH else flat[: WIDTH - 1] + "…"


def _number(score: float) -> str:
    return "-" if score != score else f"{score:.4g}"
