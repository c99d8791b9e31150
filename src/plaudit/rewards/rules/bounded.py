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
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

SECONDS = 5.0
MEMORY_BYTES = 4 << 30


class HelperError(RuntimeError):
    """The work raised, or the helper died."""


class Helper:
    """A process that does one kind of work, one request at a time; started at the first request."""

    def __init__(self, kind: str, seconds: float = SECONDS) -> None:
        self.kind, self.seconds = kind, seconds
        self.lock = threading.Lock()
        self.process: subprocess.Popen[str] | None = None

    def __call__(self, name: str, *arguments: Any) -> Any:
        """What `name` of the helper's kind returns; `TimeoutError` where it takes longer than `seconds`."""
        with self.lock:
            process = self._running()
            line, late = self._exchange(process, json.dumps([name, *arguments]))
            if not line:
                self.stop()
        if late:
            raise TimeoutError(f"no answer within {self.seconds:g} s")
        if not line:
            raise HelperError("the helper process ended; the work took too much memory")
        answer = json.loads(line)
        if "error" in answer:
            raise HelperError(answer["error"])
        return answer["value"]

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def _running(self) -> subprocess.Popen[str]:
        if self.process is None or self.process.poll() is not None:
            command = [sys.executable, "-P", "-m", __spec__.name, self.kind, str(self.seconds)]
            pipe = subprocess.PIPE
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
            self.process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=environment, encoding="utf-8"
            )
            assert self.process.stdout is not None
            if self.process.stdout.readline() != "ready\n":  # imports are not charged to the first request
                self.stop()
                raise HelperError(f"the helper for {self.kind!r} did not start; run `{' '.join(command)}` to see why")
        return self.process

    def _exchange(self, process: subprocess.Popen[str], request: str) -> tuple[str, bool]:
        """The answer's line, empty where the process ended, and whether that was for lateness."""
        assert process.stdin is not None and process.stdout is not None
        late = threading.Event()

        def kill() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(self.seconds, kill)
        timer.start()
        try:
            process.stdin.write(request + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        return (line, False) if line.endswith("\n") else ("", late.is_set())


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
