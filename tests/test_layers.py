"""Packages import what lies below or beside them, never what lies above."""

from __future__ import annotations

import ast
from pathlib import Path

import plaudit

SOURCE = Path(plaudit.__file__).parent
LAYERS = (
    ("recipe", "sandbox", "shaping"),
    ("data", "lab"),
    ("models",),
    ("sampling",),
    ("rewards",),
    ("objectives", "serve"),
    ("train", "search", "audit"),
    ("builds",),
    ("cli",),
)
HEIGHT = {package: height for height, layer in enumerate(LAYERS) for package in layer}


def imported(file: Path) -> set[str]:
    """Packages of ours that a file imports, at its head or later."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {name.split(".")[1] for name in names if name.startswith("plaudit.")}
    return found


def test_every_package_has_a_layer() -> None:
    assert {folder.name for folder in SOURCE.iterdir() if (folder / "__init__.py").is_file()} == set(HEIGHT)


def test_nothing_imports_what_lies_above_it() -> None:
    upwards = [
        f"{file.relative_to(SOURCE)} imports {other}"
        for package, height in HEIGHT.items()
        for file in sorted((SOURCE / package).rglob("*.py"))
        for other in sorted(imported(file))
        if HEIGHT.get(other, -1) > height
    ]
    assert upwards == []
