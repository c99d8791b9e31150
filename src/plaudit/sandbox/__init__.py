"""Untrusted programs, run where they cannot read, write, connect to or outlive anything of ours.

`run(argv)` runs a program, `run_python(code)` this environment's interpreter. Both give an `Outcome`, whatever the
program does, within `wall_s` + 1 s unless the machine is overloaded; `SandboxError` means that nothing was run. Programs
find `files` in their working directory, which they may write, and read only system libraries and this Python installation.
"""

from plaudit.sandbox.levels import demand, lacking, level, run, run_python, safe_level, signal_guard
from plaudit.sandbox.records import Level, Limits, Outcome, RunStatus

__all__ = [
    "Level",
    "Limits",
    "Outcome",
    "RunStatus",
    "demand",
    "lacking",
    "level",
    "run",
    "run_python",
    "safe_level",
    "signal_guard",
]
