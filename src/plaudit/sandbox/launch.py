"""The trusted side of one run: what the launcher is told, and what its answer means."""

from __future__ import annotations

import marshal
import math
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any

from plaudit.errors import SandboxError
from plaudit.sandbox.child import protocol
from plaudit.sandbox.paths import BOX, hidden, inside, interpreter, libraries, links, places
from plaudit.sandbox.records import Level, Limits, Outcome, RunStatus
from plaudit.sandbox.seccomp import SIGNAL_SCOPES, landlock_version, seccomp_filter
from plaudit.sandbox.talk import CHILD, Heard, converse

# For programs that fork others of less trust: a file for their working directory, `linux.py`.
SYSTEM_CALLS = (CHILD / "linux.py").read_bytes()
STOPPED = {
    protocol.TIMED_OUT: RunStatus.TIMED_OUT,
    protocol.MEMORY: RunStatus.MEMORY,
    protocol.PROCESSES: RunStatus.PROCESSES,
    protocol.DISK: RunStatus.DISK,
    None: RunStatus.TIMED_OUT,  # only a launcher that overstayed is killed
}


def launch(
    argv: Sequence[str],
    *,
    at: Level,
    files: Mapping[str, bytes],
    stdin: bytes,
    limits: Limits,
    collect: Sequence[str],
    env: Mapping[str, str],
) -> Outcome:
    """One run at this level, which the caller has found to be safe enough."""
    for name in (*files, *collect):
        check_name(name)
    started = time.monotonic()
    with _box(at) as box:
        spec = {
            "argv": [os.fspath(part) for part in argv],
            "files": [(name, bytes(content)) for name, content in files.items()],
            "stdin": bytes(stdin),
            "collect": list(collect),
            "limits": asdict(limits) | {"cpu_s": math.ceil(limits.cpu_s)},
            "env": environment(box) | dict(env),
            **walls(at, box),
        }
        heard = converse(marshal.dumps(spec), limits)
    return _outcome(heard, collect, time.monotonic() - started)


def walls(at: Level, box: str) -> dict[str, Any]:
    """What the launcher needs in order to build them."""
    shared, landlock = at < Level.NAMESPACES, landlock_version()
    return {
        "level": int(at),
        "box": box,
        "user": None,
        "needed": [interpreter(), *(path for path in libraries() if os.path.exists(path))],
        "interpreter": interpreter() if shared else inside(interpreter()),
        "readable": [(path, path if shared else place) for path, place in places()],
        "hidden": [path if shared else inside(path) for path in hidden()],
        "links": list(links()),
        "bubblewrap": shutil.which("bwrap"),
        "seccomp": seccomp_filter(guard_attributes=shared, guard_signals=shared and landlock < SIGNAL_SCOPES),
        "landlock": landlock,
    }


def check_name(name: str) -> None:
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\0" in name or str(path) != name or name == ".":
        raise SandboxError(f"file name {name!r}: give a plain path below the working directory, such as 'data/a.txt'")


@contextmanager
def _box(at: Level) -> Iterator[str]:
    """The folder that holds the program's working directory: made inside where the file system is private."""
    if at >= Level.NAMESPACES:
        yield BOX
        return
    box = tempfile.mkdtemp(prefix="plaudit-box-")
    os.chmod(box, 0o711)  # another user may run in it
    try:
        yield box
    finally:
        try:
            shutil.rmtree(box)
        except (OSError, RecursionError):  # a program may have nested folders too deep for Python
            subprocess.run(["rm", "-rf", "--", box], check=False, stderr=subprocess.DEVNULL)


def environment(box: str) -> dict[str, str]:
    """Nothing of ours. One thread per library, as threads count; hashes the same in every run."""
    temporary = f"{box}/tmp"
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": f"{box}/work",
        "TMPDIR": temporary,
        "XDG_CACHE_HOME": temporary,
        "MPLCONFIGDIR": temporary,
        "LANG": "C.UTF-8",
        "USER": "user",
        "LOGNAME": "user",
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }


def _outcome(heard: Heard, collect: Sequence[str], seconds: float) -> Outcome:
    report = bytes(heard.report.content)
    stopped = STOPPED.get(heard.code)
    status, returncode, files = stopped, None, {}
    if heard.stdout.too_much or heard.stderr.too_much:
        status = RunStatus.OUTPUT_LIMIT
    elif stopped is None:
        if heard.code != protocol.ENDED or report[:1] != protocol.REPORT_ENDED:
            why = report[1:].decode(errors="replace") if report[:1] == protocol.REPORT_BROKEN else "no word from inside"
            raise SandboxError(f"the program was not run: {why}")
        returncode = int.from_bytes(report[1:5], "little", signed=True)
        status = RunStatus.OK if returncode == 0 else RunStatus.FAILED
        files = dict(_files(report[5:], collect))
    assert status is not None
    return Outcome(
        status=status,
        returncode=returncode,
        stdout=bytes(heard.stdout.content),
        stderr=bytes(heard.stderr.content),
        files=files,
        seconds=seconds,
    )


def _files(content: bytes, collect: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    at = 0
    while at < len(content):
        place, size = (
            int.from_bytes(content[at : at + 4], "little"),
            int.from_bytes(content[at + 4 : at + 12], "little"),
        )
        yield collect[place], content[at + 12 : at + 12 + size]
        at += 12 + size
