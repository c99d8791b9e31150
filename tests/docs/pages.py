"""Documentation pages taken apart, so that tests can execute them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [block for named, block in fenced if named == language]


def commands(text: str) -> list[list[str]]:
    """The arguments of every `plaudit` call in the plain blocks."""
    lines = [line for block in blocks(text, "") for line in block.splitlines()]
    calls = [call.split("#")[0].strip() for line in lines for call in line.split("&&")]
    return [shlex.split(call)[1:] for call in calls if call.startswith("plaudit ")]


def write_files(text: str, folder: Path) -> None:
    """The files that a page has its reader write: blocks whose first line is `# name.py` or `# name.yaml`."""
    for block in blocks(text, "python") + blocks(text, "yaml"):
        first = block.splitlines()[0]
        if first.startswith("# ") and first.endswith((".py", ".yaml")):
            (folder / first.removeprefix("# ")).write_text(block, encoding="utf-8")
