"""Every recipe with a search of its own runs."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from plaudit.cli import app
from plaudit.recipe.load import load, shipped

SEARCHES = [name for name in shipped() if load(name).search.method != "best_of_n"]


def test_there_are_such_recipes():
    assert len(SEARCHES) >= 8


@pytest.mark.parametrize("name", SEARCHES)
def test_it_finds_something_better(name, tmp_path):
    result = CliRunner().invoke(app, ["search", name, "--count", "3", "--plain", "--out", str(tmp_path / "found")])
    assert result.exit_code == 0, result.output
    row = next(line for line in result.output.splitlines() if line.startswith(("proxy", "steps")))
    plain, best = map(float, row.split()[-2:])
    assert best > plain
