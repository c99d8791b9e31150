"""Every package and every module at the top stands on a floor of its own and imports only what lies below it."""

from __future__ import annotations

import ast
from pathlib import Path

import plaudit

SOURCE = Path(plaudit.__file__).parent
FLOORS = (
    *("errors", "version", "dotted", "optional", "storage", "statistics", "http", "ranks", "worlds"),
    *("recipe", "shaping"),
    *("data", "lab", "sandbox"),
    *("models", "sampling"),
    *("pages", "runs"),
    "rewards",
    *("objectives", "search", "serve"),
    *("train", "fit", "builds", "audit"),
    *("systems", "verbs", "cli", "__main__"),
)
HEIGHT = {name: height for height, name in enumerate(FLOORS)}
FACE = {"__init__"}  # the package's own face names the verbs, and loads them when they are used


def floors() -> dict[str, list[Path]]:
    """The files of every package and top module."""
    packages = {
        folder.name: sorted(folder.rglob("*.py")) for folder in SOURCE.iterdir() if (folder / "__init__.py").is_file()
    }
    return packages | {file.stem: [file] for file in SOURCE.glob("*.py") if file.stem not in FACE}


def imported(file: Path) -> set[str]:
    """What a file imports of ours, at its head, later, or for its types only."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "plaudit":
            found |= {alias.name for alias in node.names}
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {name.split(".")[1] for name in names if name.startswith("plaudit.")}
    return found


def test_everything_has_a_floor() -> None:
    assert set(floors()) <= set(HEIGHT)


def test_nothing_imports_what_lies_above_it() -> None:
    upwards = [
        f"{file.relative_to(SOURCE)} imports {other}"
        for name, files in floors().items()
        for file in files
        for other in sorted(imported(file))
        if HEIGHT.get(other, len(FLOORS)) > HEIGHT[name]
    ]
    assert not upwards
