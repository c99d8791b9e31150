from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.audit.fabricated import Fabricate, fabricate_run

import plaudit.train.loop
from plaudit.audit import plots
from plaudit.audit.compare_runs import compare
from plaudit.audit.standings import Outcome, curve_of, ranking, standing_of
from plaudit.errors import Interrupted, RecipeError, RunError
from plaudit.pages.numbers import Style
from plaudit.recipe.load import dump
from plaudit.recipe.schema import Recipe
from plaudit.runs.record import read_run
from plaudit.storage import write_snapshot

STYLE = Style(accuracy=True, noun="accuracy", where="held-out")
END = {"fast": 0.70, "slow": 0.50}


@dataclass
class FakeAlign:
    """Stands in for training: writes the run folder that `END` and the seed decide, and remembers how it was called."""

    calls: list[SimpleNamespace] = field(default_factory=list)
    failures: dict[str, Exception] = field(default_factory=dict)

    def __call__(self, recipe: Recipe, *, resume: bool = False, overwrite: bool = False, display: Any = None) -> Any:
        self.calls.append(SimpleNamespace(recipe=recipe, resume=resume, overwrite=overwrite, display=display))
        name = recipe.run.name or ""
        if name in self.failures:
            raise self.failures[name]
        folder = Path(recipe.run.folder) / name
        if resume or overwrite:
            folder.rename(folder.with_name(name + "-old"))
        after = END[name.partition("-")[0]] + 0.02 * recipe.run.seed
        fabricate_run(folder, recipe=recipe, after=after, minutes=recipe.train.minutes or 3.0, pictures=False)
        return SimpleNamespace(folder=folder, summary={})

    @property
    def names(self) -> list[str | None]:
        return [call.recipe.run.name for call in self.calls]


@pytest.fixture
def align(monkeypatch: pytest.MonkeyPatch) -> FakeAlign:
    fake = FakeAlign()
    monkeypatch.setattr(plaudit.train.loop, "train", fake)
    return fake


@pytest.fixture
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "comparison_png", lambda curves, style, theme: b"a chart")


def recipes() -> dict[str, Recipe]:
    slow = Recipe.model_validate(
        {"objective": {"type": "grpo"}, "sampler": {"type": "flow", "kernel": "flow_sde"}, "train": {"steps": 9}}
    )
    return {"fast": Recipe(name="fast"), "slow": slow}


# --- what is run ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_charts")
def test_every_contestant_runs_every_seed_with_the_budget_as_its_only_limit(align: FakeAlign, tmp_path: Path) -> None:
    compare(recipes(), [3, 5], 2.0, None, tmp_path / "out")
    assert align.names == ["fast-seed3", "slow-seed3", "fast-seed5", "slow-seed5"]
    for call in align.calls:
        train, run = call.recipe.train, call.recipe.run
        assert (train.minutes, train.steps, train.network_calls) == (2.0, None, None)
        assert run.folder == str(tmp_path / "out")
        assert run.name == f"{run.name.split('-')[0]}-seed{run.seed}"
        assert (call.resume, call.overwrite) == (False, False)
    assert [call.recipe.objective.type for call in align.calls] == ["nft", "grpo", "nft", "grpo"]
    assert align.calls[1].recipe.sampler == recipes()["slow"].sampler


@pytest.mark.usefixtures("no_charts")
def test_network_calls_are_a_budget_too(align: FakeAlign, tmp_path: Path) -> None:
    compare(recipes(), [0], None, 50_000, tmp_path)
    trained = [call.recipe.train for call in align.calls]
    assert [(t.minutes, t.steps, t.network_calls) for t in trained] == [(None, None, 50_000)] * 2
    assert json.loads((tmp_path / "comparison.json").read_text())["budget"] == "50\u202f000 network calls"


@pytest.mark.usefixtures("no_charts")
def test_an_interrupted_comparison_goes_on_where_it_stopped(align: FakeAlign, tmp_path: Path) -> None:
    align.failures["fast-seed1"] = Interrupted("stopped")
    with pytest.raises(Interrupted):
        compare(recipes(), [0, 1], 2.0, None, tmp_path)
    assert not (tmp_path / "comparison.html").exists()
    # The run that was stopped left a checkpoint, the one after it was killed before its first.
    stopped, killed = align.calls[-1].recipe, align.calls[1].recipe
    _leave(tmp_path / "fast-seed1", stopped, checkpoint=True)
    beginning = Recipe.model_validate(killed.model_dump() | {"run": killed.run.model_dump() | _place("slow-seed1", 1)})
    _leave(tmp_path / "slow-seed1", beginning, checkpoint=False)
    align.failures.clear()
    align.calls.clear()
    compare(recipes(), [0, 1], 2.0, None, tmp_path)
    assert align.names == ["fast-seed1", "slow-seed1"]
    assert [(call.resume, call.overwrite) for call in align.calls] == [(True, False), (False, True)]
    assert [c["after"]["count"] for c in json.loads((tmp_path / "comparison.json").read_text())["contestants"]] == [
        2,
        2,
    ]


def _place(name: str, seed: int) -> dict[str, Any]:
    return {"name": name, "seed": seed}


def _leave(folder: Path, recipe: Recipe, *, checkpoint: bool) -> None:
    folder.mkdir()
    (folder / "recipe.yaml").write_text(dump(recipe))
    if checkpoint:
        write_snapshot(folder / "checkpoints/step_4", {"weight": torch.zeros(1)}, {"step": 4})


@pytest.mark.usefixtures("no_charts")
def test_finished_runs_are_reused_even_after_the_folder_was_moved(align: FakeAlign, tmp_path: Path) -> None:
    compare(recipes(), [0], 2.0, None, tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    align.calls.clear()
    compare(recipes(), [0], 2.0, None, tmp_path / "there")
    assert align.names == []


@pytest.mark.usefixtures("no_charts")
def test_runs_of_another_recipe_are_never_touched(align: FakeAlign, tmp_path: Path) -> None:
    compare(recipes(), [0], 2.0, None, tmp_path)
    before = (tmp_path / "slow-seed0/summary.json").read_bytes()
    align.calls.clear()
    with pytest.raises(RunError, match=r"fast-seed0 is a run of another recipe \(train\.minutes differ\)"):
        compare(recipes(), [0], 4.0, None, tmp_path)
    changed = recipes() | {"slow": Recipe.model_validate(recipes()["slow"].model_dump() | {"summary": "other"})}
    with pytest.raises(RunError, match=r"slow-seed0 is a run of another recipe \(summary differ\)"):
        compare(changed, [0, 1], 2.0, None, tmp_path)
    assert align.names == []
    assert (tmp_path / "slow-seed0/summary.json").read_bytes() == before


def test_a_folder_that_is_no_run_is_not_overwritten(align: FakeAlign, tmp_path: Path) -> None:
    (tmp_path / "fast-seed0").mkdir()
    (tmp_path / "fast-seed0/thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=r"holds files but no recipe\.yaml"):
        compare(recipes(), [0], 2.0, None, tmp_path)
    assert align.names == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"minutes": None}, "neither was given"),
        ({"network_calls": 100}, "both were given"),
        ({"seeds": [1, 1]}, "name one twice"),
        ({"seeds": []}, "2 contestants and 0 seeds"),
        ({"recipes": {"../up": Recipe()}}, "cannot name a folder"),
        (
            {"recipes": {"a": Recipe(), "b": Recipe(evaluate={"final_prompts": 7})}},
            r"evaluate\.final_prompts is 7 for b",
        ),
        (
            {"recipes": {"a": Recipe(), "b": Recipe(evaluate={"reward": {"type": "x"}})}},
            r"evaluate\.reward is .* for b",
        ),
        (
            {"recipes": {"a": Recipe(), "b": Recipe(prompts={"type": "scenes", "categories": ["two"]})}},
            "prompts is .* for b",
        ),
        ({"recipes": {"a": Recipe(), "b": Recipe(rewards={"mine": {"type": "no_such:reward"}})}}, "no_such"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(
    align: FakeAlign, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    request = {"recipes": recipes(), "seeds": [0], "minutes": 2.0, "network_calls": None, "out": tmp_path} | change
    with pytest.raises(RecipeError, match=message):
        compare(**request)
    assert align.names == []


@pytest.mark.usefixtures("no_charts")
def test_the_display_is_passed_on_and_told_where_things_are(align: FakeAlign, tmp_path: Path) -> None:
    said: list[str] = []
    display = SimpleNamespace(say=said.append)
    compare(recipes(), [0], 2.0, None, tmp_path, display=display)  # type: ignore[arg-type]
    assert said == ["run 1 of 2: fast-seed0 (start)", "run 2 of 2: slow-seed0 (start)"]
    assert all(call.display is display for call in align.calls)


# --- what is found -------------------------------------------------------------------------------------------------


def test_the_comparison_states_means_and_spreads_over_seeds(align: FakeAlign, tmp_path: Path) -> None:
    path = compare(recipes(), [0, 1, 2], 2.0, None, tmp_path)
    assert path == tmp_path / "comparison.html"
    fast, slow = json.loads((tmp_path / "comparison.json").read_text())["contestants"]
    assert (fast["name"], slow["name"]) == ("fast", "slow")
    assert fast["after"] == pytest.approx(
        {"mean": 0.72, "std": 0.02, "low": 0.70, "high": 0.74, "count": 3, "missing": 0}, abs=1e-9
    )
    assert slow["gain"]["mean"] == pytest.approx(0.12)
    assert (fast["minutes"]["mean"], fast["steps"]["mean"], fast["network_calls"]["mean"]) == (2.0, 60, 115_200)
    assert [run["after"] for run in slow["runs"]] == pytest.approx([0.50, 0.52, 0.54])
    row = next(line for line in (tmp_path / "comparison.md").read_text().splitlines() if line.startswith("| fast"))
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "fast",
        "3 of 3",
        "40.0 % ± 0.0 [40.0 to 40.0]",
        "72.0 % ± 2.0 [70.0 to 74.0]",
        "+32.0 points ± 2.0 [+30.0 to +34.0]",
        "2",
        "60",
        "115\u202f200",
        "11\u202f520",
        "train.minutes 2",
    ]
    html = path.read_text()
    assert "fast ended highest: held-out accuracy 72.0 %, the mean of 3 seeds." in html
    assert 'href="slow-seed2/report.html"' in html
    assert not re.search(r'(?:src|srcset)="(?!data:image/png;base64,)', html)
    picture = Image.open(tmp_path / "comparison.png")
    picture.load()
    assert picture.width > picture.height > 400


@pytest.mark.usefixtures("no_charts")
def test_a_failed_run_is_a_result_and_the_others_go_on(align: FakeAlign, tmp_path: Path) -> None:
    align.failures["slow-seed0"] = RunError("loss is not finite at step 3; lower | train.lr <b>")
    path = compare(recipes(), [0, 1], 2.0, None, tmp_path)
    fast, slow = json.loads((tmp_path / "comparison.json").read_text())["contestants"]
    assert (fast["after"]["count"], slow["after"]["count"], slow["after"]["missing"]) == (2, 1, 1)
    assert slow["after"]["mean"] == pytest.approx(0.52)
    assert slow["after"]["std"] is None
    assert slow["runs"][0]["error"].startswith("loss is not finite")
    assert slow["stopped"] == ["train.minutes 2", "1 failed"]
    markdown = (tmp_path / "comparison.md").read_text()
    assert "| slow | 1 of 2 |" in markdown
    assert "- slow-seed0: loss is not finite at step 3; lower | train.lr &lt;b&gt;" in markdown
    assert "lower | train.lr &lt;b&gt;" in path.read_text()


def test_when_every_run_fails_there_is_no_comparison(align: FakeAlign, tmp_path: Path) -> None:
    align.failures |= {f"{name}-seed0": RunError("no weights") for name in END}
    with pytest.raises(RunError, match="all 2 runs failed; fast-seed0: no weights"):
        compare(recipes(), [0], 2.0, None, tmp_path)


def _standing(fabricate: Fabricate, name: str, ends: list[float]) -> Any:
    outcomes = []
    for seed, after in enumerate(ends):
        run = read_run(fabricate(f"{name}{seed}", after=after, pictures=False))
        outcomes.append(Outcome(contestant=name, seed=seed, folder=run.folder, run=run))
    return standing_of(name, outcomes)


def test_ranking_says_how_sure_it_is(fabricate: Fabricate) -> None:
    high, middle, low = (
        _standing(fabricate, name, ends)
        for name, ends in (("high", [0.60, 0.70]), ("middle", [0.50, 0.65]), ("low", [0.50, 0.55]))
    )
    assert ranking([low, middle, high], STYLE) == (
        "high ended highest: held-out accuracy 65.0 %, the mean of 2 seeds. Its worst seed is above every seed of low. "
        "Its seeds overlap with those of middle: that may be chance."
    )
    one = [_standing(fabricate, "one", [0.70]), _standing(fabricate, "other", [0.50])]
    assert "With one seed there is no telling" in ranking(one, STYLE)
    assert "No other contestant" in ranking([high], STYLE)
    assert "no ranking" in ranking([standing_of("none", [])], STYLE)


@pytest.mark.parametrize(("key", "at_20"), [("seconds", 100.0), ("network_calls", 38_400.0)])
def test_curves_place_a_measurement_at_what_was_spent_before_it(fabricate: Fabricate, key: str, at_20: float) -> None:
    run = read_run(fabricate(after=0.65, minutes=5.0, pictures=False))
    outcome = Outcome(contestant="a", seed=0, folder=run.folder, run=run)
    curve = curve_of(outcome, key)
    assert curve is not None
    assert curve.cost.tolist() == pytest.approx([0.0, at_20, 2 * at_20, 3 * at_20])
    # At step 60 there are two measurements; the one after training is the one that counts.
    assert (curve.score[0], curve.score[-1]) == pytest.approx((0.40, 0.65))
    assert curve_of(replace(outcome, run=None), key) is None
    assert curve_of(replace(outcome, run=replace(run, timing=(), metrics=())), key) is None


def _drawn(monkeypatch: pytest.MonkeyPatch, curves: list[plots.Curve]) -> Any:
    figures: list[Any] = []
    keep: Callable[[Any], bytes] = lambda figure: figures.append(figure) or b""  # noqa: E731
    monkeypatch.setattr(plots, "png_of", keep)
    plots.comparison_png({"training time (s)": {"a": curves}}, STYLE)
    return figures[0].axes[0]


def test_the_band_ends_where_the_first_seed_does(monkeypatch: pytest.MonkeyPatch) -> None:
    short = plots.Curve(cost=np.array([0.0, 10.0]), score=np.array([0.2, 0.4]))
    long = plots.Curve(cost=np.array([0.0, 20.0]), score=np.array([0.4, 0.8]))
    axes = _drawn(monkeypatch, [short, long])
    mean = axes.lines[-1]
    assert list(mean.get_xdata()) == [0.0, 10.0]
    assert list(mean.get_ydata()) == pytest.approx([0.3, 0.5])
    (band,) = axes.collections
    heights = {tuple(point) for point in np.round(band.get_paths()[0].vertices, 6).tolist()}
    assert {(0.0, 0.2), (0.0, 0.4), (10.0, 0.4), (10.0, 0.6)} <= heights
    assert axes.get_title(loc="left") == "Held-out accuracy against training time"
    assert axes.get_ylim()[0] < 0 and axes.get_ylim()[1] > 1  # a marker at 100 % is whole


def test_ticks_are_read_as_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    curve = plots.Curve(cost=np.array([0.0, 0.4]), score=np.array([0.2, 1.0]))
    tick = _drawn(monkeypatch, [curve]).xaxis.get_major_formatter()
    assert [tick(value, 0) for value in (0, 0.2, 0.05, 900, 20_000, 1.5e6)] == [
        "0",
        "0.2",
        "0.05",
        "900",
        "20k",
        "1.5M",
    ]
