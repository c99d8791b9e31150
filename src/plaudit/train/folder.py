"""The files of a run: `runs/<name>/`.

Metrics hold only what is a function of the recipe, so an interrupted and resumed run writes the very same lines; times go
to a file of their own.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from plaudit import storage
from plaudit.errors import RunError
from plaudit.recipe.explain import shown
from plaudit.recipe.load import dump
from plaudit.recipe.schema import Recipe

LOGS = ("metrics.jsonl", "timing.jsonl", "evaluations.jsonl")
EARLY = ("recipe.yaml", "checks.json", "calibration.json", "evaluations.jsonl")  # written before the first checkpoint
SHOWN = 4  # differences between two recipes that a message names
ABSENT = object()


class RunFolder:
    """Paths and append-only logs of one run; `going_on` when it is taken up from a checkpoint."""

    def __init__(self, root: Path, *, going_on: bool = False) -> None:
        self.root, self.going_on = root, going_on

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.root / "samples"

    def write_json(self, name: str, value: Any) -> None:
        path = self.root / name
        with storage.explain_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        storage.write_text(path, json.dumps(_without_nan(value), indent=1))

    def append(self, log: str, entry: Mapping[str, Any]) -> None:
        with storage.explain_write_errors(self.root / log), (self.root / log).open("a", encoding="utf-8") as file:
            file.write(json.dumps(_without_nan(entry)) + "\n")

    def rewind(self, step: int) -> None:
        """Forget what was logged after a checkpoint; the resumed run writes it again."""
        for log in LOGS:
            path = self.root / log
            if path.exists():
                storage.write_text(path, "".join(line + "\n" for line in _up_to(path, step)))


def _up_to(path: Path, step: int) -> list[str]:
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue  # the line that was being written when the process was killed
        if entry["step"] <= step and entry.get("label") != "after":
            kept.append(line)
    return kept


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: what is missing is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_without_nan(item) for item in value]
    return value


def find_run(recipe: Recipe, *, resume: bool, overwrite: bool) -> RunFolder:
    """Where a run will live, or why it cannot; touches nothing. A name is never reused by accident."""
    root = Path(recipe.run.folder) / (recipe.run.name or recipe.name)
    folder = RunFolder(root)
    if resume:
        storage.finish_renames(folder.checkpoints)
        folder.going_on = storage.latest_snapshot(folder.checkpoints) is not None
        if not folder.going_on and not _before_the_first_checkpoint(root):
            raise RunError(
                f"--resume: {root} has no complete checkpoint; start it without --resume (and with --overwrite if it exists)"
            )
        if (root / "recipe.yaml").exists():
            _same_recipe(recipe, root)
    elif root.is_file():
        raise RunError(f"{root} is a file; move it away or choose another --run.name")
    elif root.exists() and any(root.iterdir()) and not (overwrite or _never_started(root)):
        raise RunError(f"{root} exists; go on with --resume, replace it with --overwrite, or choose another --run.name")
    return folder


def open_run(recipe: Recipe, *, resume: bool, overwrite: bool) -> RunFolder:
    """Create the run's folder in place of what may be replaced, or take up an existing one. One that was killed before its first
    checkpoint is begun again."""
    folder = find_run(recipe, resume=resume, overwrite=overwrite)
    root = folder.root
    if folder.going_on:
        storage.write_text(root / "recipe.yaml", dump(recipe))
        return folder
    if root.exists():
        shutil.rmtree(root)  # as --overwrite says, or no more than a run leaves before its first checkpoint
    with storage.explain_write_errors(root):
        folder.samples.mkdir(parents=True)
        if not os.access(root, os.W_OK):
            raise PermissionError(13, "the folder is read-only")
    storage.write_text(root / "recipe.yaml", dump(recipe))
    return folder


def _never_started(root: Path) -> bool:
    """Whether a folder holds no more than a run leaves that was refused before its first measurement."""
    files = {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}
    return "recipe.yaml" in files and files <= {"recipe.yaml", "checks.json", "calibration.json"}


def _before_the_first_checkpoint(root: Path) -> bool:
    """Whether a folder holds only what a run writes up to its first checkpoint, whole or half-written; other files are
    somebody's."""
    if not root.is_dir():
        return False
    files = [path.relative_to(root) for path in root.rglob("*") if not path.is_dir()]
    return all(_is_early(file) for file in files)


def _is_early(file: Path) -> bool:
    name, folder = file.name.removesuffix(".partial"), file.parts[0]
    if len(file.parts) == 1:
        return name in EARLY
    if folder == "checkpoints":
        return file.parts[1] == ".step_0.partial"
    return folder in ("samples", "evaluations") and name.removeprefix(".").startswith(("before", "prompts.json"))


def _same_recipe(recipe: Recipe, root: Path) -> None:
    """A run may be prolonged, but nothing that changes its numbers may differ."""
    from plaudit.recipe.load import load

    before = load([root / "recipe.yaml"])
    free = {
        "train": {"steps", "minutes", "network_calls"},
        "run": {"folder", "name", "save_every", "keep_checkpoints", "threads"},
    }
    old, new = (r.model_dump(exclude=free) for r in (before, recipe))
    changed = [f"{key} is {now} and was {was}" for key, was, now in _differences(old, new)]
    if changed:
        listed = "; ".join(changed[:SHOWN]) + (f"; and {len(changed) - SHOWN} more" if len(changed) > SHOWN else "")
        raise RunError(
            f"--resume: {listed} in {root / 'recipe.yaml'}. Only train.steps, train.minutes, train.network_calls and run.* "
            "but run.seed may change; start a new --run.name instead"
        )


def _differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, str, str]]:
    """Dotted keys whose values differ, with what they were and are."""
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        if old != new:
            was, now = ("absent" if value is ABSENT else shown(value) for value in (old, new))
            yield key, was, now
        return
    for name in dict.fromkeys([*old, *new]):
        below = f"{key}.{name}" if key else name
        yield from _differences(old.get(name, ABSENT), new.get(name, ABSENT), below)
