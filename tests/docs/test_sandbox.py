"""docs/sandbox.md: its levels, limits and names are the code's."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import pytest
from tests.docs.pages import page

from plaudit.rewards.rules.code import UnitTests
from plaudit.sandbox import Level, Limits, RunStatus, levels, seccomp, talk

PAGE = page("docs/sandbox.md")
UNITS = {"s": "s", "mb": "MB", "kb": "KB"}


@pytest.fixture
def inside() -> Iterator[dict[str, ModuleType]]:
    """The launcher's modules, which import each other by name."""
    names = ("protocol", "linux", "tree", "walls", "launcher")
    sys.path.insert(0, str(talk.CHILD))
    yield {name: importlib.import_module(name) for name in names}
    sys.path.remove(str(talk.CHILD))
    for name in names:
        sys.modules.pop(name)


def rows(first: str) -> list[list[str]]:
    """A table by what its head begins with, in cells."""
    lines = PAGE[PAGE.index(f"| {first} |") :].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_levels_are_the_codes() -> None:
    head = [cell.split("`")[1] for cell in rows("what")[0][1:]]
    assert head == [level.name.lower() for level in Level if level is not Level.NONE]
    assert "At level `none`" in PAGE and levels.ALLOW + "=1" in PAGE and levels.DEMAND + "=namespaces" in PAGE
    assert "three levels" in PAGE and len(head) == 3


def test_the_limits_are_the_codes() -> None:
    """Every one, with its default and unit."""
    told = {name.strip("`"): value for name, value, _ in rows("limit")[2:]}
    assert told == {
        name: f"{value:g} {UNITS.get(name.rpartition('_')[2], '')}".strip() for name, value in asdict(Limits()).items()
    }


def test_its_numbers_are_the_codes(inside: dict[str, ModuleType]) -> None:
    walls, launcher, linux = inside["walls"], inside["launcher"], inside["linux"]
    assert set(re.findall(r"checked every (\d+) ms", PAGE)) == {f"{1000 * launcher.SLOW_S:g}"}
    assert set(re.findall(r"more than (\d+) MB above", PAGE)) == {str(walls.ROOM >> 20)}
    assert talk.PATIENCE_S + talk.FAREWELL_S <= 1 and "within a second more" in PAGE
    linux_of = {3: "6.2", 4: "6.7", 5: "6.10", 6: "6.12"}  # Landlock's versions by kernel
    assert set(re.findall(r"Linux ([\d.]+\d)", PAGE)) == {linux_of[seccomp.LANDLOCK_NEEDED], linux_of[linux.SCOPES]}
    assert linux.SCOPES == seccomp.SIGNAL_SCOPES


def test_what_is_refused_is_refused(inside: dict[str, ModuleType]) -> None:
    refused = {
        "memfd_create",
        "shmget",
        "sendmsg",
        "setsockopt",
        "io_setup",
        "io_uring_setup",
        "inotify_init1",
        "flock",
    }
    assert refused <= set(seccomp.REFUSED) and seccomp.F_SETLEASE in seccomp.COMMANDS["fcntl"]
    assert "`/dev/zero`" in PAGE and "/dev/zero" not in inside["walls"].DEVICES


def test_the_words_are_the_codes() -> None:
    assert "ends as `processes`" in PAGE and "processes" in set(RunStatus)
    assert "`judge: together`" in PAGE and not UnitTests(judge="together").apart
    assert "docs/sandbox.md" in page("README.md") and "sandbox.md" in page("docs/rewards.md")
    assert len(PAGE.splitlines()) < 100, "one page"
    assert Path(talk.CHILD, "launcher.py").is_file()
