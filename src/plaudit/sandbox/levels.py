"""Which isolation this machine gives, found by trying, and runs at that level."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from plaudit.errors import SandboxError
from plaudit.sandbox.launch import launch
from plaudit.sandbox.paths import inside, interpreter, libraries
from plaudit.sandbox.records import Level, Limits, Outcome, RunStatus
from plaudit.sandbox.seccomp import LANDLOCK_NEEDED, SIGNAL_SCOPES, landlock_version, seccomp_filter

DEMAND, ALLOW = "PLAUDIT_SANDBOX", "PLAUDIT_ALLOW_UNISOLATED"
MAIN = "main.py"
# Without `site`, which takes longer than the rest of the start; programs still call exit().
PYTHON_START = """
import sys
sys.path[:0] = [""]
sys.path += {libraries!r}
sys.argv = [{main!r}]
import builtins, _sitebuiltins
builtins.exit = builtins.quit = _sitebuiltins.Quitter("exit", "Ctrl-D (i.e. EOF)")
with open({main!r}, "rb") as file:
    source = file.read()
del sys, builtins, _sitebuiltins, file
exec(compile(source, {main!r}, "exec"))
"""


def run(
    argv: Sequence[str],
    *,
    files: Mapping[str, bytes] = {},
    stdin: bytes = b"",
    limits: Limits = Limits(),  # noqa: B008 - frozen
    collect: Sequence[str] = (),
    env: Mapping[str, str] = {},
    at: Level | None = None,
) -> Outcome:
    """Run a program with `files` in its working directory and bring back those of `collect` that it left there.

    `env` adds to a small environment that holds nothing of ours. `at` asks for one level instead of this machine's best;
    asking for NONE allows running without isolation.
    """
    at = safe_level() if at is None else at
    return launch(argv, at=at, files=files, stdin=stdin, limits=limits, collect=collect, env=env)


def run_python(
    code: str,
    *,
    files: Mapping[str, bytes] = {},
    stdin: bytes = b"",
    limits: Limits = Limits(),  # noqa: B008 - frozen
    collect: Sequence[str] = (),
    env: Mapping[str, str] = {},
    at: Level | None = None,
) -> Outcome:
    """Run Python code as `main.py`. It may import `files` and what is installed here, except from editable sources."""
    if MAIN in files:
        raise SandboxError(f"file name {MAIN!r} is the code's own; choose another")
    source = code.encode(errors="surrogatepass")
    at = safe_level() if at is None else at
    place = inside if at >= Level.NAMESPACES else str
    start = PYTHON_START.format(libraries=list(map(place, libraries())), main=MAIN)
    return run(
        [place(interpreter()), "-s", "-P", "-S", "-B", "-c", start],
        files={**files, MAIN: source},
        stdin=stdin,
        limits=limits,
        collect=collect,
        env=env,
        at=at,
    )


def level() -> Level:
    """The isolation that runs have here: the best, or what PLAUDIT_SANDBOX=namespaces (or another level) demands; an error
    where that is not to be had."""
    demanded = _demanded()
    found = _found(demanded)
    if demanded is not None and found.level is not demanded:
        raise SandboxError(
            f"{DEMAND}={demanded.name.lower()}: this machine does not give that ({'; '.join(found.refused)}); {MEND}, or demand "
            "less"
        )
    return found.level


def lacking() -> tuple[str, ...]:
    """What this machine's isolation does not give, and why it is not a higher one."""
    at = level()
    return (*WITHOUT[at], *_kernel_lacks(at), *_found(_demanded()).refused)


MEND = "install bubblewrap or allow user namespaces"
WITHOUT = {
    Level.BUBBLEWRAP: (),
    Level.NAMESPACES: (),
    Level.LANDLOCK: (
        "names, sizes and dates of files outside can be asked for, but not their contents",
        "the disk limit is checked every 20 ms, not enforced by the file system",
        "programs cannot change permissions or dates, even of their own files, and have no /dev/shm",
        "where only root can reach this Python, programs stay root without rights; their number is checked, not enforced",
    ),
    Level.NONE: ("isolation of any kind",),
}


def safe_level() -> Level:
    """The level that untrusted programs run at; an error where they cannot be isolated and the user has not allowed it."""
    at = level()
    if at is Level.NONE and os.environ.get(ALLOW) != "1":
        refused = "; ".join(_found(_demanded()).refused) or "by request"
        raise SandboxError(
            f"untrusted programs cannot be isolated on this machine ({refused}): {MEND}; {ALLOW}=1 runs them with your rights, "
            "which only you can judge"
        )
    return at


def demand(name: str) -> None:
    """From now on programs run at this level here and in processes that are started, or not at all."""
    os.environ[DEMAND] = name
    safe_level()


def signal_guard() -> bytes | None:
    """A system call filter that a program inside a run can put on those it starts, so that they can signal nobody, it
    included. None where there is none, or no isolation."""
    return seccomp_filter(guard_signals=True) if safe_level() > Level.NONE else None


def _demanded() -> Level | None:
    asked = os.environ.get(DEMAND)
    if asked is None:
        return None
    try:
        return Level[asked.upper()]
    except KeyError:
        names = ", ".join(each.name.lower() for each in Level)
        raise SandboxError(f"{DEMAND}={asked!r}: expected one of {names}") from None


@dataclass(frozen=True, kw_only=True)
class Found:
    level: Level
    refused: tuple[str, ...]


@cache
def _found(demanded: Level | None) -> Found:
    """The first level at which Python starts, of all or of the one that is demanded."""
    refused: list[str] = []
    if sys.platform != "linux":
        return Found(level=Level.NONE, refused=("the sandbox needs Linux",))
    for candidate in sorted(Level, reverse=True) if demanded is None else [demanded]:
        if candidate is not Level.NONE:
            problem = problem_of(candidate)
            if problem is None:
                return Found(level=candidate, refused=tuple(refused))
            refused.append(f"{candidate.name.lower()}: {problem}")
    return Found(level=Level.NONE, refused=tuple(refused))


def problem_of(candidate: Level) -> str | None:
    """Why this machine does not have that level; None where a program ran at it."""
    if candidate is Level.BUBBLEWRAP and shutil.which("bwrap") is None:
        return "bwrap is not installed"
    if candidate is Level.LANDLOCK and landlock_version() < LANDLOCK_NEEDED:
        return "the kernel's Landlock is too old (it needs Linux 6.2)"
    if candidate is Level.LANDLOCK and seccomp_filter() is None:
        return "no system call filter for this architecture"
    try:
        outcome = run_python("print(6 * 7)", at=candidate)
    except SandboxError as error:
        return str(error)
    return None if outcome.status is RunStatus.OK else f"{outcome.status}: {outcome.stderr.decode(errors='replace')}"


def _kernel_lacks(found: Level) -> list[str]:
    lacks = []
    if found is not Level.NONE and landlock_version() == 0:
        lacks.append("Landlock as a second wall (it needs Linux 5.13)")
    if found is not Level.NONE and seccomp_filter() is None:
        lacks.append("a system call filter for this architecture")
    if found is Level.LANDLOCK and landlock_version() < SIGNAL_SCOPES:
        lacks.append(
            "an ordinary user's programs that fork faster than they are found may outlive the run (not on Linux 6.12)"
        )
    return lacks
