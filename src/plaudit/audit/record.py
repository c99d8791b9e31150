"""What an experiment found, kept as JSON under docs/results/, and whether that is still about today's code. Imports no torch.

A record holds the resolved recipes that ran and digests of the code of their rewards, objectives and search methods. It is stale
as soon as one of them differs: nobody has to remember it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

import plaudit
from plaudit.errors import DataError
from plaudit.recipe.base import Strict
from plaudit.recipe.experiment import Expectation, Experiment, Metric
from plaudit.recipe.schema import Recipe
from plaudit.rewards.table import BUILT_IN
from plaudit.search.table import METHODS

SOURCE = Path(plaudit.__file__).parent
IN_THE_WHEEL, IN_THE_REPOSITORY = SOURCE / "results", SOURCE.parents[1] / "docs" / "results"
Verdict = Literal["shown", "mixed", "negative", "inconclusive"]
CREDIT = ("train/credit.py", "shaping/dense.py", "shaping/credit.py")
FITS = ("fit/data.py", "fit/fit.py", "fit/losses.py", "rewards/learned/fitted.py")
OF_NO_NUMBER = {"name", "system", "summary", "run"}  # keys of a recipe that change none


class Effect(Strict):
    """A difference in the metric's direction; what cannot be said is null."""

    verdict: Verdict
    why: str | None = None
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: int
    items: int = 0
    missing: int = 0


class Figures(Strict):
    """One run: means by metric at the end and before training, and what it cost."""

    values: dict[str, float | None] = {}
    before: dict[str, float | None] = {}
    seconds: float | None = None
    network_calls: int | None = None
    reward_calls: int | None = None
    error: str | None = None


class Found(Strict):
    """An expectation and what came of it."""

    expected: Expectation
    effect: Effect


class Side(Strict):
    """One arm: what ran, and its figures by seed."""

    recipe: dict[str, Any] = {}
    """Dotted keys of the resolved recipe; those that all arms share stand in the record."""
    code: dict[str, str] = {}
    digest: str
    runs: dict[int, Figures]


class Record(Strict):
    """An experiment that has run."""

    claim: str
    verdict: Verdict
    found: list[Found]
    metrics: dict[str, Metric]
    shared: dict[str, Any]
    arms: dict[str, Side]
    seconds: float
    network_calls: int
    reward_calls: int
    commit: str | None
    versions: dict[str, str]

    @property
    def main(self) -> Found:
        return self.found[0]


def folder() -> Path:
    """Where records are read; of a repository that is also where they are written."""
    return IN_THE_REPOSITORY if IN_THE_REPOSITORY.parent.is_dir() else IN_THE_WHEEL


def read_record(path: Path) -> Record | None:
    if not path.is_file():
        return None
    try:
        return Record.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise DataError(f"{path}: {key}: {first['msg']}; delete it and run `plaudit reproduce {path.stem}`") from None


def write_record(path: Path, record: Record) -> None:
    from plaudit import storage

    path.parent.mkdir(parents=True, exist_ok=True)
    storage.write_text(path, json.dumps(record.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n")


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where an experiment stands: `why` its record is stale, if it is."""

    record: Record | None
    why: str | None = None

    @property
    def level(self) -> str:
        if self.record is None:
            return "runs"
        return self.record.verdict if self.why is None else "stale"


def standings_of(experiments: Mapping[str, Experiment], records: Path | None = None) -> dict[str, Standing]:
    found = {}
    for name, experiment in experiments.items():
        record = read_record((records or folder()) / f"{name}.json")
        found[name] = Standing(record=record, why=stale(record, experiment) if record else None)
    return found


# --- what ran --------------------------------------------------------------------------------------------------------


class Ran(Strict):
    """What decides an arm's numbers besides its seed; `usual` are keys of the recipe at their defaults."""

    recipe: dict[str, Any]
    code: dict[str, str]
    usual: frozenset[str] = frozenset()

    @property
    def digest(self) -> str:
        return _digest(json.dumps({"recipe": self.recipe, "code": self.code}, sort_keys=True))


def what_runs(experiment: Experiment, arm: str) -> Ran:
    config = experiment.sides[arm]
    first = {f"prepare {name}": what_runs(experiment, name).digest for name in experiment.needed(arm)}
    if config.function is not None:
        content = {"function": config.function, "arguments": config.arguments}
        return Ran(recipe=_flat(content), code={**first, config.function: _of_module(config.function)})
    recipe = experiment.recipe_of(arm, experiment.seeds[0])
    flat = _flat(recipe.model_dump(mode="json", exclude=OF_NO_NUMBER))
    given = _flat(recipe.model_dump(mode="json", exclude_defaults=True))
    return Ran(
        recipe={**flat, "verb": config.verb},
        code=first | _code_of(recipe, config.verb),
        usual=frozenset(flat) - set(given),
    )


def stale(record: Record, experiment: Experiment) -> str | None:
    """Why a record is no longer about what would run today; nothing where it is."""
    if list(record.arms) != list(experiment.arms):
        return f"arms are {', '.join(experiment.arms)} and were {', '.join(record.arms)}"
    if [one.expected for one in record.found] != experiment.expect or record.metrics != experiment.metrics:
        return "what is expected has changed"
    for name, side in record.arms.items():
        if sorted(side.runs) != sorted(experiment.seeds):
            return f"seeds are {experiment.seeds} and were {sorted(side.runs)}"
        now = what_runs(experiment, name)
        if (key := _differs({**record.shared, **side.recipe}, now)) is not None:
            return f"{name}: {key} has changed"
        if touched := [key for key in {**side.code, **now.code} if side.code.get(key) != now.code.get(key)]:
            return f"{name}: the code of {touched[0]} has changed"
    return None


def _differs(before: Mapping[str, Any], now: Ran) -> str | None:
    """A key whose value is another one. One that recipes did not have then counts where it is not at its default."""
    keys = [*before, *(key for key in now.recipe if key not in before and key not in now.usual)]
    return next((key for key in keys if before.get(key, ...) != now.recipe.get(key, ...)), None)


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in document.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {prefix + key: value}
    return flat


def _code_of(recipe: Recipe, verb: str) -> dict[str, str]:
    """Digests of the rewards that are read, of the objective, or of the search method; of a fit, of what fits."""
    if verb == "fit":
        return {"fit": _digest("".join(_of_file(SOURCE / name) for name in FITS))}
    rewards = [recipe.evaluate.reward.model_dump(), *(reward.model_dump() for reward in recipe.rewards.values())]
    code = {f"reward {name}": _of_module(BUILT_IN.get(name, name)) for name in sorted(set(_types(rewards)))}
    if verb == "search":
        method = recipe.search.method
        path = METHODS[method].path if method in METHODS else method
        return {**code, f"search {method}": _of_module(path)}
    if recipe.credit.where != "sample":
        code[f"credit {recipe.credit.type}"] = _digest("".join(_of_file(SOURCE / name) for name in CREDIT))
    own = recipe.objective.model_dump(by_alias=True).get("class")
    if own is not None:
        return {**code, f"objective {own}": _of_module(own)}
    config = type(recipe.objective).__name__
    read_by = [
        path
        for path in sorted((SOURCE / "objectives").glob("*.py"))
        if path.stem != "table" and config in path.read_text()
    ]
    return {**code, f"objective {recipe.objective.type}": _digest("".join(map(_of_file, read_by)))}


def _types(value: Any) -> Iterator[str]:
    """Rewards named anywhere in the arguments of rewards."""
    if isinstance(value, Mapping):
        found = value.get("type")
        if isinstance(found, str) and (found in BUILT_IN or ":" in found):
            yield found
        value = list(value.values())
    if isinstance(value, list | tuple):
        for one in value:
            yield from _types(one)


def _of_module(path: str) -> str:
    spec = importlib.util.find_spec(path.partition(":")[0])
    if spec is None or spec.origin is None:
        raise DataError(f"{path}: there is no such module, so its code cannot be compared")
    return _of_file(Path(spec.origin))


def _of_file(path: Path) -> str:
    """Of what a module does: not of its imports, docstrings, comments and spaces."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom) or (isinstance(node, ast.Expr) and _is_text(node.value)):
            for number in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[number] = ""
    return _digest("".join("".join(line.split()) for line in lines if not line.lstrip().startswith("#")))


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
