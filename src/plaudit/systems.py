"""The published systems that Plaudit composes from its parts, and how far each is.

Levels are nobody's to type: they follow from the tests and from the records of the experiments that a part names, and fall by
themselves when what ran has changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, ValidationError, field_validator

from plaudit.audit.record import Standing
from plaudit.errors import DataError
from plaudit.recipe import text
from plaudit.recipe.base import Strict

LEVELS = ("planned", "runs", "stale", "inconclusive", "negative", "mixed", "shown")  # from the weakest to the strongest
FILE = Path(__file__).with_name("systems.yaml")


class Part(Strict):
    """What of a system must exist, and what shows that it does; nothing, where it is planned."""

    part: str = Field(min_length=2)
    recipe: str | None = None
    """A shipped recipe that runs it."""
    by: list[str] = []
    """Tests (`tests/search/test_beam.py`) and experiments (`S043`)."""

    @property
    def experiments(self) -> list[str]:
        return [name for name in self.by if not name.startswith("tests/")]


class System(Strict):
    id: str = Field(pattern=r"^S\d{3}$")
    name: str
    home: str
    """The part of the toolkit that it belongs to."""
    what: list[Part] = Field(min_length=1)

    @field_validator("what", mode="before")
    @classmethod
    def _planned(cls, what: object) -> object:
        """A text alone is a part that is planned."""
        return [{"part": one} if isinstance(one, str) else one for one in what] if isinstance(what, list) else what

    @property
    def recipe(self) -> str | None:
        return next((part.recipe for part in self.what if part.recipe), None)

    @property
    def experiments(self) -> list[str]:
        return list(dict.fromkeys(name for part in self.what for name in part.experiments))


def load_systems(path: Path = FILE) -> tuple[System, ...]:
    entries = text.parse(path.read_text(encoding="utf-8"), str(path))
    systems = []
    for entry in entries:
        try:
            systems.append(System.model_validate(entry))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            identity = entry.get("id", entry) if isinstance(entry, dict) else entry
            raise DataError(
                f"{path}, system {identity}: {key}: {first['msg'].lower()}; found {first['input']!r}"
            ) from None
    return tuple(systems)


def level_of(part: Part, standings: Mapping[str, Standing]) -> str:
    """Of a part: what its experiments say, the weakest of them; with tests alone it runs."""
    if not part.by:
        return "planned"
    return weakest([standings[name].level for name in part.experiments] or ["runs"])


def weakest(levels: list[str]) -> str:
    return min(levels, key=LEVELS.index)
