"""Work on a generator's text that may never end, in a process that can be killed.

A tower of powers keeps computer algebra busy for ever inside one C call: no thread can be stopped there, and the alarms
that these libraries use exist in the main thread alone. So one helper process per kind of work answers JSON lines, and
is killed and replaced when an answer takes too long or too much memory.

`python -m plaudit.rewards.rules.bounded KIND SECONDS` is the helper; it imports no torch.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from plaudit.rewards.calling.child import Child, Late

SECONDS = 5.0
MEMORY_BYTES = 4 << 30


class HelperError(RuntimeError):
    """The work raised, or the helper died."""


class Helper:
    """A process that does one kind of work, one request at a time; started at the first request."""

    def __init__(self, kind: str, seconds: float = SECONDS) -> None:
        self.kind, self.seconds = kind, seconds
        self.lock = threading.Lock()
        self.child: Child | None = None

    def __call__(self, name: str, *arguments: Any) -> Any:
        """What `name` of the helper's kind returns; `TimeoutError` where it takes longer than `seconds`."""
        with self.lock:
            try:
                line = self._running().ask(json.dumps([name, *arguments]).encode(), self.seconds)
            except Late:
                self.stop()
                raise TimeoutError(f"no answer within {self.seconds:g} s") from None
            if not line:
                self.stop()
                raise HelperError("the helper process ended; the work took too much memory")
        answer = json.loads(line)
        if "error" in answer:
            raise HelperError(answer["error"])
        return answer["value"]

    def stop(self) -> None:
        if self.child is not None:
            self.child.stop()
            self.child = None

    def _running(self) -> Child:
        if self.child is None or not self.child.alive:
            self.stop()
            command = [sys.executable, "-P", "-m", __spec__.name, self.kind, str(self.seconds)]
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
            self.child = Child(command, environment, quiet=True)
            if self.child.hear.readline() != b"ready\n":  # imports are not charged to the first request
                self.stop()
                raise HelperError(f"the helper for {self.kind!r} did not start; run `{' '.join(command)}` to see why")
        return self.child


def helper(kind: str) -> Helper:
    """This process's helper of a kind; a fork gets one of its own."""
    return _helper(kind, os.getpid())


@functools.cache
def _helper(kind: str, pid: int) -> Helper:
    return Helper(kind)


# --- the helper process ----------------------------------------------------------------------------------------------


def algebra() -> dict[str, Callable[..., Any]]:
    from math_verify import LatexExtractionConfig, parse, verify

    def parsed(text: str) -> list[Any]:
        bare = text.replace("$", "").strip()
        return parse(f"${bare}$", extraction_config=[LatexExtractionConfig()], parsing_timeout=None)

    def parses(text: str) -> bool:
        return any(not isinstance(one, str) for one in parsed(text))

    def equal(reference: str, answer: str) -> bool | None:
        """None where the reference is no mathematics."""
        gold = parsed(reference)
        return verify(gold, parsed(answer), timeout_seconds=None) if gold else None

    return {"equal": equal, "parses": parses}


def puzzles() -> dict[str, Callable[..., Any]]:
    from reasoning_gym import create_dataset

    from plaudit.data.tasks import decode

    @functools.lru_cache(maxsize=32)
    def dataset(task: str, config: str) -> Any:
        return create_dataset(task, **json.loads(config))

    def score(task: str, config: dict[str, Any], entry: Any, answer: str) -> float:
        scorer, truth = dataset(task, json.dumps(config)), decode(entry)
        try:
            return float(scorer.score_answer(answer, truth))
        except Exception:
            scorer.score_answer(truth["answer"], truth)  # raises where the entry, not the answer, is at fault
            return 0.0

    return {"score": score}


KINDS = {"algebra": algebra, "puzzles": puzzles}


def serve(kind: str, seconds: float) -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")  # what libraries print must not be taken for an answer
    os.dup2(2, 1)
    _limit_memory()
    work = KINDS[kind]()
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        _end_after(2 * seconds)  # the caller may be gone before it could kill
        name, *arguments = json.loads(line)
        try:
            answer = {"value": work[name](*arguments)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        _end_after(0)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # no such limits outside POSIX
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def _end_after(seconds: float) -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)  # unhandled, the alarm ends the process even inside a C call


if __name__ == "__main__":
    serve(sys.argv[1], float(sys.argv[2]))
