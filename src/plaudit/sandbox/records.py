"""What a sandboxed run is given and what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum


class Level(IntEnum):
    """How far an untrusted program is kept from the machine; a higher one keeps it further."""

    NONE = 0
    LANDLOCK = 1
    NAMESPACES = 2
    BUBBLEWRAP = 3


class RunStatus(StrEnum):
    """How a run ended. `failed` is a non-zero exit or a fatal signal; the others below it were stopped by us."""

    OK = "ok"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    MEMORY = "memory"
    PROCESSES = "processes"
    DISK = "disk"
    OUTPUT_LIMIT = "output_limit"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """`memory_mb` and `processes` (threads included) are the whole tree's, `cpu_s` is each process's. `file_mb` is the
    largest file, `disk_mb` all files together, `output_kb` each of stdout and stderr."""

    wall_s: float = 10.0
    cpu_s: float = 10.0
    memory_mb: int = 512
    processes: int = 64
    file_mb: int = 16
    disk_mb: int = 64
    output_kb: int = 256
    open_files: int = 256


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """`returncode` is the exit status, or minus the signal; None where we stopped the run. `files` holds those of
    `collect` that were regular files within the limits; none where we stopped the run."""

    status: RunStatus
    returncode: int | None
    stdout: bytes
    stderr: bytes
    files: Mapping[str, bytes] = field(default_factory=dict)
    seconds: float
