"""Attack programs are run twice: loose, where they must succeed, and boxed, where their effect must be absent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from plaudit.sandbox import Level, Limits, Outcome, run_python
from plaudit.sandbox.levels import problem_of

PATIENT_S = 60  # a limit that ends nothing: a busy machine is slow
QUICK = Limits(wall_s=PATIENT_S, cpu_s=5, memory_mb=256, processes=32)
TRY = """
def attempt(what):
    try:
        print("RESULT", what())
    except BaseException as error:
        print("refused", type(error).__name__)
"""
ISOLATING = [level for level in Level if level is not Level.NONE]


@cache
def levels() -> pytest.MarkDecorator:
    """Every level that this machine has."""
    problems = {level: problem_of(level) for level in ISOLATING}
    marks = [
        pytest.param(level, id=level.name.lower(), marks=[pytest.mark.skip(reason=problem)] if problem else [])
        for level, problem in problems.items()
    ]
    return pytest.mark.parametrize("at", marks)


def boxed(code: str, at: Level, limits: Limits = QUICK, **arguments: object) -> Outcome:
    return run_python(code, at=at, limits=limits, **arguments)  # type: ignore[arg-type]


def loose(code: str, folder: Path) -> bytes:
    """The same program without a sandbox."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, timeout=20, check=False)
    return done.stdout


def still_answers(at: Level) -> None:
    outcome = run_python("print(sum(range(10)))", at=at, limits=QUICK)
    assert (outcome.status, outcome.stdout) == ("ok", b"45\n"), outcome


def running(mark: str) -> int:
    return len(_pids(mark))


def end(mark: str) -> None:
    for pid in _pids(mark):
        os.kill(pid, signal.SIGKILL)


def _pids(mark: str) -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path(f"/proc/{name}/cmdline").read_bytes()
        except OSError:
            continue
        if mark.encode() in command and int(name) != os.getpid():
            found.append(int(name))
    return found
