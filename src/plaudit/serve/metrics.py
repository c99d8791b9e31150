"""What the service has done, in the text format that Prometheus reads."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
Labels = tuple[tuple[str, str], ...]
HELP = {
    "plaudit_requests_total": "Requests answered, by path and HTTP status.",
    "plaudit_outputs_total": "Outputs scored.",
    "plaudit_missing_total": "Outputs without a score, by status.",
    "plaudit_batches_total": "Calls of the reward; requests are merged into them.",
    "plaudit_replayed_total": "Answers given again to a repeat with the same idempotency key.",
}


class Metrics:
    """Counters and latency histograms. Gauges are read when they are asked for."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.counters: dict[str, dict[Labels, float]] = {name: defaultdict(float) for name in HELP}
        self.latency: dict[str, list[int]] = {}
        self.latency_sum: dict[str, float] = defaultdict(float)

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        with self.lock:
            self.counters[name][tuple(labels.items())] += amount

    def observe(self, reward: str, seconds: float) -> None:
        """The time from a request's arrival to its scores."""
        with self.lock:
            self.latency.setdefault(reward, [0] * (len(BUCKETS_S) + 1))[bisect_left(BUCKETS_S, seconds)] += 1
            self.latency_sum[reward] += seconds

    def text(self, queued: Mapping[str, int], held: int) -> str:
        with self.lock:
            lines = list(self._lines(queued, held))
        return "\n".join(lines) + "\n"

    def _lines(self, queued: Mapping[str, int], held: int) -> Iterable[str]:
        for name, values in self.counters.items():
            yield from (f"# HELP {name} {HELP[name]}", f"# TYPE {name} counter")
            yield from (f"{name}{_braces(labels)} {value:g}" for labels, value in values.items())
        name = "plaudit_queue_outputs"
        yield from (f"# HELP {name} Outputs waiting to be scored.", f"# TYPE {name} gauge")
        yield from (f"{name}{_braces((('reward', reward),))} {depth}" for reward, depth in queued.items())
        name = "plaudit_requests_held"
        yield from (f"# HELP {name} Requests being scored.", f"# TYPE {name} gauge", f"{name} {held}")
        name = "plaudit_latency_seconds"
        yield from (f"# HELP {name} From a request's arrival to its scores.", f"# TYPE {name} histogram")
        for reward, counts in self.latency.items():
            below = 0
            for bound, count in zip((*BUCKETS_S, float("inf")), counts, strict=True):
                below += count
                edge = "+Inf" if bound == float("inf") else f"{bound:g}"
                yield f"{name}_bucket{_braces((('reward', reward), ('le', edge)))} {below}"
            yield f"{name}_sum{_braces((('reward', reward),))} {self.latency_sum[reward]:.6f}"
            yield f"{name}_count{_braces((('reward', reward),))} {below}"


def _braces(labels: Labels) -> str:
    return "{" + ",".join(f'{key}="{_escaped(value)}"' for key, value in labels) + "}" if labels else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
