"""What `import plaudit` offers: the verbs of the command line with their arguments, their progress and what they return."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from tests.reference.toys import GRPO, toy_recipe

import plaudit
from plaudit.cli import align, compare, doctor, sample
from plaudit.errors import RecipeError
from plaudit.recipe.load import dump
from plaudit.runs.display import NotebookDisplay, PlainDisplay, Silent, make_display


@pytest.fixture(autouse=True)
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing a report's charts takes far longer than these runs."""
    monkeypatch.setattr("plaudit.audit.plots.png_of", lambda figure: b"")


RECIPES = {"recipes": "recipe", "contestants": "recipes"}
OF_A_COMMAND = ("context", "processes")  # others run the same command


@pytest.mark.parametrize("verb", [align, doctor, sample])
def test_functions_have_the_arguments_of_their_commands(verb: Any) -> None:
    name = verb.__name__.rpartition(".")[2]
    taken = inspect.signature(getattr(plaudit, name)).parameters
    asked = [RECIPES.get(key, key) for key in inspect.signature(verb.run).parameters if key not in OF_A_COMMAND]
    assert [key for key in asked if key not in taken] == []


def test_compare_has_the_arguments_of_its_command_but_those_for_methods_of_search() -> None:
    taken = inspect.signature(plaudit.compare).parameters
    asked = [RECIPES.get(key, key) for key in inspect.signature(compare.run).parameters if key != "context"]
    assert [key for key in asked if key not in taken] == ["suite", "model", "reward", "truth", "budgets", "count"]


# --- progress ------------------------------------------------------------------------------------------------------


def test_aligning_from_python_shows_its_progress_unless_it_is_to_be_quiet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plaudit.align(toy_recipe(tmp_path / "a"))
    shown = capsys.readouterr().out
    assert "step 3/3  reward " in shown and "heldout after" in shown
    plaudit.align(toy_recipe(tmp_path / "b"), quiet=True)
    assert capsys.readouterr() == ("", "")


def test_searching_from_python_shows_its_progress_unless_it_is_to_be_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    plaudit.search("lab/slots", "brightness", budget="20nfe", count=2)
    assert "% of the budget" in capsys.readouterr().out
    plaudit.search("lab/slots", "brightness", budget="20nfe", count=2, quiet=True)
    assert capsys.readouterr() == ("", "")


def test_a_notebook_rewrites_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[str] = []

    def update(content: dict[str, str], raw: bool) -> None:
        assert raw
        told.append(content["text/plain"])

    def display(content: dict[str, str], raw: bool, display_id: bool) -> SimpleNamespace:
        assert display_id
        update(content, raw)
        return SimpleNamespace(update=update)

    shell = SimpleNamespace(kernel=None)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))  # type: ignore[arg-type]
    assert type(make_display()) is PlainDisplay  # IPython in a terminal
    shell.kernel = object()
    assert type(make_display(plain=True)) is PlainDisplay and type(make_display(quiet=True)) is Silent
    shown = make_display()
    assert type(shown) is NotebookDisplay
    shown.begin(4, None)
    shown.step(1, {"reward": 0.5}, 2.0)
    shown.evaluation(1, "heldout", 0.25, 0.2, 0.3)
    shown.step(2, {"reward": 0.75}, 4.0)
    assert [line.split("  ")[:2] for line in told[1:]] == [["step 1/4", "reward 0.500"], ["step 2/4", "reward 0.750"]]
    assert capsys.readouterr().out == "step 1  heldout 0.250 [0.200, 0.300]\n"


# --- what comes back -----------------------------------------------------------------------------------------------


def test_a_run_says_what_it_found_and_a_truth_without_a_verdict_is_a_number(tmp_path: Path) -> None:
    result = plaudit.align(toy_recipe(tmp_path), quiet=True)
    assert repr(result).startswith("held-out tests.reference.toys:redness 0.") and "; report: " in repr(result)
    assert "\n" not in repr(result) and str(result.report) in result._repr_html_()
    assert result.summary["accuracy"] is False
    scores = json.loads(next((result.folder / "evaluations").glob("before*")).read_text(encoding="utf-8"))["score"]
    samples = json.loads((result.folder / "samples" / "prompts.json").read_text(encoding="utf-8"))
    assert samples["before"] == scores and not {0.0, 1.0} & set(scores)
    page = result.report.read_text(encoding="utf-8")
    assert "✗ wrong" not in page and f"{scores[0]:.3f}" in page


def test_scores_print_as_a_table() -> None:
    def mine(prompts: list[str], outputs: list[str]) -> list[float | None]:
        return [1.0, 3.0, None]

    batch = plaudit.score(["<i>"] * 3, ["a", "b", "c"], {"<b>": mine, "nothing": lambda prompts, outputs: [None] * 3})
    assert repr(batch).splitlines() == [
        "scores of 3 outputs",
        "reward   mean  std    low  high  missing",
        "<b>      2     1.414  1    3     1",
        "nothing  -     -      -    -     3",
    ]
    assert "&lt;b&gt;</td>" in batch._repr_html_() and "<b>" not in batch._repr_html_()
    one = plaudit.score(["x"], ["y"], {"one": lambda prompts, outputs: [2.0]})
    assert repr(one).splitlines()[2].split() == ["one", "2", "-", "2", "2", "0"]


def test_a_search_says_what_it_gained_and_shows_its_pictures() -> None:
    result = plaudit.search("lab/slots", "brightness", budget="20nfe", count=2, truth="scene_exact", quiet=True)
    title, header, *rows = repr(result).splitlines()
    assert title.startswith(f"best_of_n: {len(result.candidates)} candidates for 2 prompts, budget 20nfe per prompt")
    assert header.split() == ["mean", "plain", "best"]
    assert rows[0].split()[-1] == f"{result.scores.mean():.4f}" and rows[1].startswith("truth scene_exact")
    assert "tensor" not in repr(result) and "data:image/png;base64," in result._repr_html_()


def test_the_doctor_reports_as_a_table(tmp_path: Path) -> None:
    found = plaudit.doctor(toy_recipe(tmp_path, GRPO))
    assert found and repr(found).splitlines()[0] == f"0 of {len(found)} checks failed"
    assert len(repr(found).splitlines()) == len(found) + 2


def test_sample_returns_the_grid_and_takes_a_run(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path)
    run = plaudit.align(recipe, quiet=True).folder
    base = plaudit.sample(recipe, prompt="caption number 1", count=2)
    trained = plaudit.sample(run=run, prompt="caption number 1", count=2, out=tmp_path / "grid.png")
    assert isinstance(base, Image.Image) and base.size == trained.size and base.tobytes() != trained.tobytes()
    assert Image.open(tmp_path / "grid.png").convert("RGB").tobytes() == trained.tobytes()
    with pytest.raises(RecipeError, match="give one of the two"):
        plaudit.sample(run=run, checkpoint=run)


def test_compare_takes_names_files_and_recipes(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path)
    (tmp_path / "toy.yaml").write_text(dump(recipe), encoding="utf-8")
    (tmp_path / "fast.yaml").write_text("train: {lr: 0.1}\n", encoding="utf-8")
    toy = str(tmp_path / "toy.yaml")
    page = plaudit.compare(
        [toy, f"{toy}+{tmp_path / 'fast.yaml'}"], seeds=[0], network_calls=40, out=tmp_path, quiet=True
    )
    assert page.is_file() and {"toy-seed0", "toy+fast-seed0"} <= {path.name for path in tmp_path.iterdir()}
    again = plaudit.compare({"toy": recipe}, seeds=[0], network_calls=40, out=str(tmp_path / "other"), quiet=True)
    assert again.is_file()


def test_what_a_terminal_would_obey_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Names and notes come from files and models of others."""
    from plaudit.pages.showing import aligned
    from plaudit.runs.display import PlainDisplay

    PlainDisplay().say("one \x1b[31mred\x1b[0m\ntwo\r\a")
    assert capsys.readouterr().out == "one \\x1b[31mred\\x1b[0m\ntwo\\r\\x07\n"
    assert aligned(["a\x1b]0;x\a"], [["\u202eb"]]) == ["a\\x1b]0;x\\x07", "\\u202eb"]
