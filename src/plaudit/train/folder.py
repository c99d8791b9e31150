"""The files of a run: `runs/<name>/`.

Metrics hold only what is a function of the recipe, so an interrupted and resumed run writes the very same lines; times go
to a file of their own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plaudit import storage

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
