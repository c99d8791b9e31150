"""The published systems that Plaudit composes from its parts, and how far each is."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from plaudit.errors import DataError
from plaudit.recipe.text import parse

STATUSES = ("planned", "runs", "shown", "negative")
FILE = Path(__file__).with_name("systems.yaml")


@dataclass(frozen=True, kw_only=True)
class System:
    """`status`: planned, runs (its recipe runs), shown (its claimed effect appeared), negative (it did not)."""

    id: str
    name: str
    home: str  # the part of the toolkit that it belongs to
    what: str  # what of it must exist
    recipe: str | None = None  # a shipped recipe
    status: str = "planned"


def load_systems(path: Path = FILE) -> tuple[System, ...]:
    entries = parse(path.read_text(encoding="utf-8"), str(path))
    return tuple(_system(entry, path) for entry in entries)


def _system(entry: dict[str, Any], path: Path) -> System:
    known = [field.name for field in fields(System)]
    where = f"{path}, system {entry.get('id', entry)}"
    if unknown := sorted(set(entry) - set(known)):
        raise DataError(f"{where}: unknown key {unknown[0]!r}; allowed: {', '.join(known)}")
    for key in ("id", "name", "home", "what"):
        if not isinstance(entry.get(key), str):
            raise DataError(f"{where}: `{key}` is {entry.get(key)!r}; it must be text")
    system = System(**entry)
    if system.status not in STATUSES:
        raise DataError(f"{where}: `status` is {system.status!r}; allowed: {', '.join(STATUSES)}")
    return system
