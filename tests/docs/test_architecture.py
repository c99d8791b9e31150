"""The page on the architecture names files that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PATHS = sorted(set(re.findall(r"`([a-z_0-9]+/[a-z_0-9./]*)`", PAGE)))


def test_it_names_paths():
    assert len(PATHS) > 15


@pytest.mark.parametrize("path", PATHS)
def test_every_path_exists(path):
    assert (ROOT / "src" / "plaudit" / path).exists()


def test_its_picture_exists():
    for picture in re.findall(r"\]\((images/[^)]+)\)", PAGE):
        assert (ROOT / "docs" / picture).is_file()
