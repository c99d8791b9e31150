"""The files of a run: `runs/<name>/`.

Metrics hold only what is a function of the recipe, so an interrupted and resumed run writes the very same lines; times go
to a file of their own.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plaudit import storage
from plaudit.errors import RunError

FORMAT = 2  # of checkpoints; the first had no number, and neither names of its tensors nor checksums of the logs
LOGS = ("metrics.jsonl", "timing.jsonl", "evaluations.jsonl")


class RunFolder:
    """Paths and append-only logs of one run."""

    def __init__(self, root: Path) -> None:
        self.root = root

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
        path = self.root / log
        _is_there(path)
        with storage.explain_write_errors(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_without_nan(entry)) + "\n")

    def checksums(self, step: int) -> dict[str, str]:
        """Of what each log says up to a checkpoint, on disk before the checkpoint is."""
        for log in LOGS:
            if _is_there(self.root / log):
                storage.flush(self.root / log)
        return {log: _checksum(_up_to(self.root / log, step)) for log in LOGS}

    def rewind(self, step: int, checksums: Mapping[str, str]) -> None:
        """Forget what was logged after a checkpoint; the resumed run writes it again. What was logged before it must be what
        the checkpoint's `checksums` were taken of."""
        kept = {log: _up_to(self.root / log, step) for log in LOGS}
        for log, text in kept.items():
            if log in checksums and checksums[log] != _checksum(text):
                raise RunError(
                    f"{self.root / log} is not what the run wrote up to step {step}: the file is damaged or was edited. "
                    "Restore it, or start a new --run.name"
                )
        for log, text in kept.items():
            if _is_there(self.root / log):
                storage.write_text(self.root / log, text)


class OthersFolder(RunFolder):
    """The folder of a run that another process writes."""

    def write_json(self, name: str, value: Any) -> None: ...

    def append(self, log: str, entry: Mapping[str, Any]) -> None: ...

    def rewind(self, step: int, checksums: Mapping[str, str]) -> None: ...


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _is_there(log: Path) -> bool:
    if log.exists() and not log.is_file():  # reading a pipe would wait for ever
        raise RunError(f"{log} is no file; a run's log must be one: move it away, or start a new --run.name")
    return log.exists()


def _up_to(path: Path, step: int) -> str:
    """The lines of a log up to a step, without the measurement after training."""
    lines = path.read_bytes().split(b"\n") if _is_there(path) else []
    kept = ""
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line.decode()) if line else None
            if entry is not None and entry["step"] <= step and entry.get("label") != "after":
                kept += line.decode() + "\n"
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            if number < len(lines):  # the last one was being written when the process was killed
                raise RunError(
                    f"{path}, line {number}: {line[:60]!r} is no entry of a log; the file is damaged or was edited. Restore it, "
                    "or start a new --run.name"
                ) from error
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
