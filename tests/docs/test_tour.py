"""The documentation is executed: Python blocks run in order, commands resolve or run, recipes parse."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.docs.pages import blocks, commands, page, write_files
from typer.testing import CliRunner

from plaudit.cli import app
from plaudit.recipe.experiment import find as find_experiments
from plaudit.recipe.load import load
from plaudit.search.table import METHODS

TOUR, README, FIT = page("docs/tour.md"), page("README.md"), page("docs/fit.md")
VERBS = {
    "align",
    "fit",
    "sample",
    "score",
    "serve",
    "rewards",
    "doctor",
    "report",
    "compare",
    "search",
    "systems",
    "recipe",
    "reproduce",
    "lab",
}


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the tour has its reader write."""
    write_files(TOUR, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_the_python_of_the_tour_runs_in_order(workplace: Path) -> None:
    script = "\n".join(block for block in blocks(TOUR, "python") if not block.startswith("# my_rewards.py"))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=workplace, check=False)
    assert done.returncode == 0, done.stderr
    assert "tensor(0., dtype=torch.float64" in done.stdout, "the ratio is 1 before training"


@pytest.mark.parametrize("arguments", commands(TOUR) + commands(README) + commands(FIT), ids=" ".join)
def test_commands_name_existing_verbs_and_valid_recipes(arguments: list[str], workplace: Path) -> None:
    verb, *rest = arguments
    assert verb in VERBS
    if verb == "reproduce":
        assert find_experiments(rest)
    if verb == "recipe":
        assert CliRunner().invoke(app, arguments, prog_name="plaudit").exit_code == 0
    if verb in {"align", "fit", "doctor", "compare"}:
        names = [word for word in rest if not word.startswith("--")]
        sources = [name for name in names if rest.index(name) == 0 or not rest[rest.index(name) - 1].startswith("--")]
        dotted = [i for i, word in enumerate(rest) if word.startswith("--") and "." in word]
        overrides = [word for i in dotted for word in rest[i : i + 2]]
        for source in sources if verb == "compare" else [sources]:
            if "--suite" in rest:
                assert source in METHODS
            else:
                load(source, overrides)


@pytest.mark.parametrize("arguments", [c for c in commands(TOUR) + commands(README) if c[0] == "search"], ids=" ".join)
def test_searches_run(arguments: list[str], workplace: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "plaudit", *arguments, "--count", "2"],
        capture_output=True,
        text=True,
        cwd=workplace,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "network calls" in done.stdout and list((workplace / "runs").glob("search*/search.json"))


def test_the_reward_of_the_tour_trains_and_scores(workplace: Path) -> None:
    short = ["--train.steps", "2", "--evaluate.final_prompts", "6", "--evaluate.prompts", "6"]
    for arguments in [c for c in commands(TOUR) if "my_rewards:warm" in c]:
        command = [sys.executable, "-m", "plaudit", *arguments, *(short if arguments[0] == "align" else [])]
        done = subprocess.run(command, capture_output=True, text=True, cwd=workplace, check=False)
        assert done.returncode == 0, done.stderr
    assert (workplace / "runs" / "warm" / "report.html").is_file()
    rows = [json.loads(line) for line in (workplace / "scores.jsonl").read_text().splitlines()]
    statuses = {row["scores"]["warm"]["status"] for row in rows if "blue" not in row["prompt"]}
    assert len(rows) == 24 and statuses == {"ok"}
