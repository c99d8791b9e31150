"""What calling a reward has cost, and what it has reported."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

COUNTS = ("calls", "outputs", "repeats", "cache_hits")


@dataclass
class Meter:
    """What calling a reward has cost so far. `latencies_s` and the reward's own `metrics` are those since last taken."""

    calls: int = 0
    outputs: int = 0
    repeats: int = 0
    cache_hits: int = 0
    latencies_s: list[float] = field(default_factory=list)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    extra: dict[str, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lock = threading.Lock()

    def counts(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in COUNTS}

    def load_counts(self, counts: Mapping[str, int]) -> None:
        for name in COUNTS:
            setattr(self, name, counts[name])

    def take_latencies(self) -> list[float]:
        taken, self.latencies_s = self.latencies_s, []
        return taken

    def take_metrics(self) -> dict[str, float]:
        taken, self.metrics = self.metrics, {}
        return {name: sum(values) / len(values) for name, values in taken.items()}

    def log_metric(self, name: str, value: float) -> None:
        """TRL's way for a reward to report numbers: their mean over a step becomes a metric."""
        with self.lock:
            self.metrics.setdefault(name, []).append(float(value))

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        """TRL's way for a reward to add a column to the table of samples."""
        with self.lock:
            self.extra[column] = list(values)
