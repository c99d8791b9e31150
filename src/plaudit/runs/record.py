"""Reading a run folder, finished or not. What is absent or half-written becomes a note; what is wrong is an error."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from plaudit.data.pictures import open_picture
from plaudit.errors import DataError, RecipeError, RunError
from plaudit.recipe.load import load
from plaudit.recipe.rewards import RewardConfig
from plaudit.recipe.schema import Recipe
from plaudit.statistics import Items

HELDOUT = "heldout"
BEFORE, AFTER = "before", "after"
PAIR_ORDER = "pair_order"  # what a fitted reward is measured by

Row = dict[str, Any]
Kind = TypeVar("Kind", bound="_Lenient")


class _Lenient(BaseModel):
    """Files of a run may say more than is read here."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class CategoryMean(_Lenient):
    mean: float | None
    count: int


class Evaluation(_Lenient):
    """One line of evaluations.jsonl: a reward measured on one split at one step."""

    step: int
    split: str
    label: str
    reward: str
    mean: float | None
    low: float | None = None
    high: float | None = None
    count: int
    missing: int = 0
    by_category: dict[str, CategoryMean] = {}
    rewards: dict[str, float | None] = {}
    items: str | None = None
    verdict: bool = False  # whether the reward tells right from wrong, so that its mean is an accuracy
    looks_at_outputs: bool = True  # whether the reward judged what the model drew
    of_the_data: tuple[str, ...] = ()  # rewards that did not


class Check(_Lenient):
    """One entry of checks.json; `passed` is null where the check does not apply."""

    name: str
    passed: bool | None
    value: float | str | None = None
    limit: float | str | None = None
    remedy: str | None = None
    seconds: float | None = None


class Summary(_Lenient):
    """summary.json, written when a run ends."""

    before: float | None = None
    before_low: float | None = None
    before_high: float | None = None
    after: float | None = None
    after_low: float | None = None
    after_high: float | None = None
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None
    minutes: float | None = None
    training_minutes: float | None = None
    steps: int | None = None
    network_calls: int | None = None
    reward_calls: int | None = None
    stopped: str | None = None
    plaudit: str | None = None
    torch: str | None = None
    threads: int | None = None
    seed: int | None = None


class SamplePrompts(_Lenient):
    """samples/prompts.json: the prompt of each cell of the grids, row by row, and the truth about each cell."""

    prompts: list[str]
    columns: int
    before: list[float | None] = []
    after: list[float | None] = []


class TextRow(_Lenient):
    """One row of samples/before.json and its like: a text and what was said of it."""

    prompt: str
    output: str
    truth: float | None = None
    rewards: dict[str, float | None] = {}
    notes: dict[str, str] = {}
    extra: dict[str, Any] = {}


class ScoredItems(_Lenient):
    """The scores behind one evaluation: lists of one length."""

    id: list[str]
    category: list[str | None]
    score: list[float | None]
    rewards: dict[str, list[float | None]] = {}
    length: list[float | None] = []

    @model_validator(mode="after")
    def _aligned(self) -> ScoredItems:
        if not len(self.id) == len(self.category) == len(self.score):
            raise ValueError(
                f"id, category and score have {len(self.id)}, {len(self.category)} and {len(self.score)} entries; "
                "they must be equally long"
            )
        return self

    def items(self, category: str | None = None) -> Items:
        """Every item, or those of one category; absent scores are NaN."""
        chosen = [i for i, found in enumerate(self.category) if category is None or found == category]
        scores = (self.score[i] for i in chosen)
        return Items(
            ids=tuple(self.id[i] for i in chosen),
            scores=tuple(math.nan if score is None else score for score in scores),
        )


@dataclass(frozen=True, kw_only=True)
class JsonLines:
    """The objects of a JSONL file; `truncated` is the number of a last line that a killed process left unfinished."""

    rows: tuple[Row, ...]
    truncated: int | None = None


@dataclass(frozen=True, kw_only=True)
class Series:
    """A metric over steps; rows without it are left out."""

    steps: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Everything a run folder says, and `notes` on what it does not."""

    folder: Path
    recipe: Recipe | None
    recipe_text: str | None
    metrics: tuple[Row, ...]
    timing: tuple[Row, ...]
    evaluations: tuple[Evaluation, ...]
    checks: tuple[Check, ...] | None
    summary: Summary | None
    samples: SamplePrompts | None
    items: dict[str, ScoredItems]
    pictures: dict[str, bytes]
    texts: dict[str, tuple[TextRow, ...]]
    notes: tuple[str, ...]

    def splits(self) -> list[str]:
        """Splits that were evaluated, the held-out one first."""
        found = dict.fromkeys(row.split for row in self.evaluations)
        return sorted(found, key=lambda split: split != HELDOUT)

    @property
    def fits(self) -> bool:
        """Whether a reward was fitted, which draws nothing."""
        return bool(self.evaluations) and self.evaluations[0].reward == PAIR_ORDER

    @property
    def main_split(self) -> str:
        """The split that the headline is about: `heldout`, or what a run without held-out prompts was measured on."""
        return next(iter(self.splits()), HELDOUT)

    def before(self, split: str | None = None) -> Evaluation | None:
        split = split or self.main_split
        return next((row for row in self.evaluations if row.split == split and row.label == BEFORE), None)

    def latest(self, split: str | None = None) -> Evaluation | None:
        """The evaluation after training or, in a run that has not ended, the last one during it."""
        split = split or self.main_split
        later = [row for row in self.evaluations if row.split == split and row.label != BEFORE]
        finished = [row for row in later if row.label == AFTER]
        return next(reversed(finished or later), None)

    def items_of(self, evaluation: Evaluation | None) -> ScoredItems | None:
        return self.items.get(evaluation.items) if evaluation and evaluation.items else None

    def series(self, key: str) -> Series:
        return series(self.metrics, key)

    def rewards(self) -> dict[str, RewardConfig]:
        """The rewards of the recipe; without a readable recipe those of the metrics file, all of weight 1."""
        if self.recipe is not None:
            return self.recipe.rewards
        names = (key.split("/")[1] for row in self.metrics for key in row if key.startswith("rewards/"))
        return {name: RewardConfig(type=name) for name in names}


def series(rows: Sequence[Row], key: str) -> Series:
    """One key over steps, sorted; of rows with the same step the last counts. What is missing or not finite is left out."""
    found = {row["step"]: row[key] for row in rows if _is_known(row.get("step")) and _is_known(row.get(key))}
    steps = sorted(found)
    return Series(steps=np.array(steps), values=np.array([found[step] for step in steps], dtype=np.float64))


def _is_known(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def read_jsonl(path: Path) -> JsonLines:
    """The objects of a JSONL file. A last line that does not parse was cut off and is skipped; others are errors."""
    lines = path.read_bytes().split(b"\n")
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    rows: list[Row] = []
    for position, (number, line) in enumerate(numbered, start=1):
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:  # bad JSON, JSON of any depth, or bad UTF-8
            if position == len(numbered):
                return JsonLines(rows=tuple(rows), truncated=number)
            raise DataError(
                f"{path}, line {number}: not a JSON object ({error}); found {line[:60]!r}. Only the last line may be "
                "cut off; restore this one or delete it"
            ) from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: {line[:60]!r} is not a JSON object; write one object a line")
        rows.append(row)
    return JsonLines(rows=tuple(rows))


def read_run(folder: Path) -> RunRecord:
    """Read what a run folder holds. Nothing in it is required, but the folder must exist."""
    if not folder.is_dir():
        raise RunError(f"no run folder at {folder}; give the folder that holds metrics.jsonl, for example runs/default")
    reader = _Reader(folder)
    recipe_text, recipe = reader.recipe()
    metrics, timing = reader.rows("metrics.jsonl"), reader.rows("timing.jsonl")
    evaluations = reader.evaluations()
    checks = reader.document("checks.json")
    texts = reader.texts()
    return RunRecord(
        folder=folder,
        recipe=recipe,
        recipe_text=recipe_text,
        metrics=metrics,
        timing=timing,
        evaluations=evaluations,
        checks=None if checks is None else tuple(_checks(checks, folder / "checks.json")),
        summary=reader.model("summary.json", Summary),
        samples=None if texts else reader.model("samples/prompts.json", SamplePrompts),
        items=reader.items(evaluations),
        pictures={} if texts else reader.pictures(),
        texts=texts,
        notes=tuple(reader.notes),
    )


class _Reader:
    """Reads the files of one folder and collects notes on those that are absent or incomplete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes: list[str] = []

    def text(self, name: str) -> str | None:
        content = self.content(name)
        return None if content is None else content.decode("utf-8", errors="replace")

    def content(self, name: str) -> bytes | None:
        path = self.folder / name
        try:
            if path.is_file():
                return path.read_bytes()
            self.notes.append(f"{name} is absent")
        except OSError as error:  # no right to read it, a name that is too long
            self.notes.append(f"{name} cannot be read ({error.strerror}) and was skipped")
        return None

    def rows(self, name: str) -> tuple[Row, ...]:
        if self.content(name) is None:
            return ()
        lines = read_jsonl(self.folder / name)
        if lines.truncated is not None:
            self.notes.append(f"{name}: line {lines.truncated}, the last one, is cut off and was skipped")
        elif not lines.rows:
            self.notes.append(f"{name} is empty")
        return lines.rows

    def document(self, name: str) -> Any | None:
        text = self.text(name)
        if text is None:
            return None
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            self.notes.append(f"{name} is not complete JSON ({error}) and was skipped")
            return None

    def model(self, name: str, kind: type[Kind]) -> Kind | None:
        document = self.document(name)
        return None if document is None else _parse(kind, document, str(self.folder / name))

    def recipe(self) -> tuple[str | None, Recipe | None]:
        text = self.text("recipe.yaml")
        if text is None:
            return None, None
        try:
            return text, load(self.folder / "recipe.yaml")
        except RecipeError as error:
            reason = str(error).splitlines()[0]
            self.notes.append(f"recipe.yaml cannot be read by this version of Plaudit ({reason}); it is shown as it is")
            return text, None

    def evaluations(self) -> tuple[Evaluation, ...]:
        path = self.folder / "evaluations.jsonl"
        rows = self.rows(path.name)
        return tuple(_parse(Evaluation, row, f"{path}, evaluation {n}") for n, row in enumerate(rows, start=1))

    def items(self, evaluations: Sequence[Evaluation]) -> dict[str, ScoredItems]:
        names = dict.fromkeys(row.items for row in evaluations if row.items)
        found = {name: self.model(name, ScoredItems) for name in names}
        return {name: items for name, items in found.items() if items is not None}

    def texts(self) -> dict[str, tuple[TextRow, ...]]:
        """The tables of texts by name: `before`, `after` and `step_000040`; none in a run that makes pictures."""
        folder = self.folder / "samples"
        paths = [folder / f"{BEFORE}.json", *sorted(folder.glob("step_*.json")), folder / f"{AFTER}.json"]
        if not any(path.is_file() for path in paths):
            return {}
        found = {path.stem: self.document(str(path.relative_to(self.folder))) for path in paths}
        return {
            name: tuple(_parse(TextRow, row, f"{folder / name}.json, row {n}") for n, row in enumerate(rows, start=1))
            for name, rows in found.items()
            if isinstance(rows, list)
        }

    def pictures(self) -> dict[str, bytes]:
        """The PNG grids by name: `before`, `after` and `step_000040`, as far as they can be decoded."""
        paths = [self.folder / "samples" / f"{name}.png" for name in (BEFORE, AFTER)]
        paths += sorted((self.folder / "samples").glob("step_*.png"))
        found = {path.stem: self._picture(path) for path in paths}
        return {name: png for name, png in found.items() if png is not None}

    def _picture(self, path: Path) -> bytes | None:
        name = str(path.relative_to(self.folder))
        if (png := self.content(name)) is None:
            return None
        try:
            with open_picture(io.BytesIO(png), name, formats=("PNG",)) as picture:
                picture.load()
        except DataError as error:
            self.notes.append(f"{name} cannot be decoded ({error}) and was skipped")
            return None
        return png


def _checks(document: Any, path: Path) -> list[Check]:
    if not isinstance(document, list):
        raise DataError(
            f"{path}: found {type(document).__name__}; expected a list of checks, each with name and passed"
        )
    return [_parse(Check, entry, f"{path}, check {number}") for number, entry in enumerate(document, start=1)]


def _parse(kind: type[Kind], document: Any, where: str) -> Kind:
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "(whole entry)"
        raise DataError(
            f"{where}: {key}: {first['msg']}; found {str(first['input'])[:80]!r}. Mend or delete it"
        ) from error
