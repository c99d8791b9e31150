"""The command line with fakes in place of what is heavy: arguments, exit codes, messages, displays."""

from __future__ import annotations

import io
import json
import resource
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

import plaudit
from plaudit.cli import app
from plaudit.cli.align import summary_line
from plaudit.cli.command import split_overrides
from plaudit.errors import Interrupted, RunError
from plaudit.recipe.load import dump, load
from plaudit.recipe.text import parse
from plaudit.runs.display import Limits, LiveDisplay, PlainDisplay, duration

SUMMARY = {
    "reward": "scene_exact",
    "accuracy": True,
    "split": "heldout",
    **{"before": 0.25, "before_low": 0.21, "before_high": 0.29},
    **{"after": 0.5, "after_low": 0.46, "after_high": 0.54},
    **{"gain": 0.25, "gain_low": 0.2, "gain_high": 0.3},
    **{"steps": 40, "minutes": 5.04, "stopped": "train.minutes 5"},
}


def invoke(*args: str):
    return CliRunner().invoke(app, list(args), prog_name="plaudit")


@dataclass
class Fake:
    """Stands in a module for one function: keeps what it was called with, then returns or raises."""

    outcome: Any
    calls: list[tuple[tuple, dict]] = field(default_factory=list)

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        self.calls.append((args, keywords))
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


@pytest.fixture
def fake(monkeypatch):
    """Replace `module.function` by a fake before the command imports it."""

    def replace(module: str, function: str, outcome: Any) -> Fake:
        stand_in = Fake(outcome)
        replacement = ModuleType(module)
        setattr(replacement, function, stand_in)
        monkeypatch.setitem(sys.modules, module, replacement)
        return stand_in

    return replace


# --- help and start-up ---------------------------------------------------------------------------------------------


def test_help_names_every_verb_and_answers_at_once():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "plaudit", "--help"], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    for verb in ("align", "sample", "doctor", "report", "compare", "systems", "recipe", "lab"):
        assert f"\n  {verb} " in done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.4


@pytest.mark.parametrize("verb", ["align", "sample", "doctor", "compare", "recipe"])
def test_help_of_recipe_verbs_explains_overrides(verb):
    assert "--SECTION.KEY VALUE" in invoke(verb, "--help").output


def test_version():
    assert invoke("--version").output == f"plaudit {plaudit.__version__}\n"


def test_no_verb_shows_the_help():
    result = invoke()
    assert result.exit_code == 2
    assert "Commands:" in result.output


# --- overrides among arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "rest", "overrides"),
    [
        ("a.yaml --train.steps 5 b.yaml", "a.yaml b.yaml", "--train.steps 5"),
        ("--train.steps=5 a.yaml --resume", "a.yaml --resume", "--train.steps=5"),
        ("--train.lr -1 --resume", "--resume", "--train.lr -1"),
        ("--train.lr --resume", "--resume", "--train.lr"),
        ("--model lab/pixels a.yaml", "a.yaml", "--model lab/pixels"),
        ("--lr 3", "", "--lr 3"),
        ("--resum", "--resum", ""),
        ("--help", "--help", ""),
        ("-- --train.steps 5", "-- --train.steps 5", ""),
    ],
)
def test_overrides_are_told_from_options(args, rest, overrides):
    own = {"--resume", "--overwrite", "--plain", "--help"}
    assert split_overrides(args.split(), own) == (rest.split(), overrides.split())


def test_a_key_of_the_recipe_wins_over_a_similar_option():
    assert split_overrides(["--prompts", "{}"], {"--prompt"}) == ([], ["--prompts", "{}"])


# --- recipe --------------------------------------------------------------------------------------------------------


def test_recipe_prints_what_loads_back():
    result = invoke("recipe", "slots-grpo", "--train.steps", "50", "--model.lora.rank=4")
    assert result.exit_code == 0
    expected = load("slots-grpo", ["--train.steps", "50", "--model.lora.rank", "4"])
    assert load([parse(result.stdout, "output")]) == expected
    assert result.stdout == dump(expected)


def test_a_wrong_recipe_is_a_failed_check():
    result = invoke("recipe", "slots-nft", "--train.step", "50")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: unknown key `train.step`; did you mean `train.steps`?")


def test_a_misspelt_option_is_a_usage_error():
    result = invoke("align", "--resum")
    assert result.exit_code == 2
    assert "--resume" in result.stderr


# --- align ---------------------------------------------------------------------------------------------------------


def test_align_passes_everything_on_and_says_where_the_report_is(fake):
    align = fake("plaudit.verbs", "align", SimpleNamespace(summary=SUMMARY, report=Path("runs/x/report.html")))
    result = invoke("align", "slots-nft", "--resume", "--plain", "--train.steps", "7")
    assert result.exit_code == 0, result.output
    ((recipe,), keywords) = align.calls[0]
    assert recipe == load("slots-nft", ["--train.steps", "7"])
    assert isinstance(keywords.pop("display"), PlainDisplay)
    assert keywords == {"resume": True, "overwrite": False}
    assert result.stdout.splitlines() == [
        "held-out accuracy 25.0 % -> 50.0 % (gain +25.0, 95 % interval +20.0 to +30.0), 5.0 minutes; 40 steps, "
        "stopped by train.minutes 5",
        "report: runs/x/report.html",
    ]


def test_align_without_arguments_takes_the_default_recipe(fake):
    align = fake("plaudit.verbs", "align", SimpleNamespace(summary=SUMMARY, report=Path("r.html")))
    assert invoke("align").exit_code == 0
    assert align.calls[0][0] == (load(),)


def test_a_missing_measurement_is_not_a_number():
    assert summary_line(SUMMARY | {"before": None}).startswith("held-out accuracy n/a -> 50.0 %")


def test_a_score_that_is_no_accuracy_is_named_and_not_in_percent():
    line = summary_line(SUMMARY | {"accuracy": False, "reward": "brightness"})
    assert line.startswith("held-out brightness 0.250 -> 0.500 (gain +0.250")


@pytest.mark.parametrize(
    ("outcome", "code", "message"),
    [
        (RunError("runs/x exists; go on with --resume"), 2, "error: runs/x exists; go on with --resume\n"),
        (Interrupted("stopped after step 3, saved in runs/x"), 130, "stopped after step 3, saved in runs/x\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_errors_are_one_message_and_an_exit_code(fake, outcome, code, message):
    fake("plaudit.verbs", "align", outcome)
    result = invoke("align", "slots-nft")
    assert result.exit_code == code
    assert (result.stdout, result.stderr) == ("", message)


def test_a_traceback_can_be_asked_for(fake, monkeypatch):
    fake("plaudit.verbs", "align", RunError("boom"))
    monkeypatch.setenv("PLAUDIT_TRACEBACK", "1")
    assert isinstance(invoke("align", "slots-nft").exception, RunError)


def test_resume_and_overwrite_exclude_each_other(fake):
    align = fake("plaudit.verbs", "align", None)
    result = invoke("align", "--resume", "--overwrite")
    assert result.exit_code == 2
    assert result.stderr == "error: --resume keeps a run and --overwrite replaces it; give one of the two\n"
    assert align.calls == []


def test_exit_codes_reach_the_shell():
    done = subprocess.run(
        [sys.executable, "-m", "plaudit", "align", "nowhere.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: recipe 'nowhere.yaml': no such file (")
    assert "Traceback" not in done.stderr


# --- the other verbs -----------------------------------------------------------------------------------------------


def test_sample_of_a_run_takes_the_recipe_of_the_run(fake, tmp_path):
    sample = fake("plaudit.train.preview", "sample", None)
    run = tmp_path / "run"
    checkpoint = run / "checkpoints" / "step_3"
    checkpoint.mkdir(parents=True)
    (run / "recipe.yaml").write_text(dump(load("slots-grpo")), encoding="utf-8")
    result = invoke(
        "sample", "--run", str(run), "--prompt", "a red circle", "--prompt", "b", "--count", "2", "--seed", "5"
    )
    assert result.exit_code == 0, result.output
    assert sample.calls[0] == (
        (load("slots-grpo"),),
        {
            "prompt": ["a red circle", "b"],
            "count": 2,
            "run": run,
            "checkpoint": None,
            "out": Path("grid.png"),
            "seed": 5,
        },
    )
    assert invoke("sample", "--checkpoint", str(checkpoint)).exit_code == 0
    (recipes, keywords) = sample.calls[1]
    assert recipes == (load("slots-grpo"),)
    assert (keywords["run"], keywords["checkpoint"], keywords["prompt"]) == (None, checkpoint, None)


def check(name: str, passed: bool | None) -> SimpleNamespace:
    return SimpleNamespace(
        name=name, passed=passed, value="2e-3", limit="1e-6", remedy="store in float32", seconds=0.25
    )


def test_doctor_prints_a_table_and_fails_with_one(fake):
    fake(
        "plaudit.train.doctor.doctor", "examine", [check("ratio is one", False), check("kl", True), check("lora", None)]
    )
    result = invoke("doctor")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "check         verdict  value  limit  time",
        "ratio is one  FAILED   2e-3   1e-6   0.2 s",
        "    -> store in float32",
        "kl            ok       2e-3   1e-6   0.2 s",
        "lora          n/a      2e-3   1e-6   0.2 s",
    ]
    assert result.stderr == "1 of 3 checks failed\n"


def test_doctor_is_content_when_nothing_failed(fake):
    examine = fake("plaudit.train.doctor.doctor", "examine", [check("kl", True), check("lora", None)])
    assert invoke("doctor", "slots-grpo", "--sampler.level", "0.5").exit_code == 0
    assert examine.calls[0][0] == (load("slots-grpo", ["--sampler.level", "0.5"]),)


def test_report(fake):
    write_report = fake("plaudit.audit.report", "write_report", Path("runs/x/report.html"))
    assert invoke("report", "runs/x").stdout == "report: runs/x/report.html\n"
    assert write_report.calls == [((Path("runs/x"),), {})]


def test_compare_takes_each_recipe_as_a_contestant(fake, tmp_path):
    compare = fake("plaudit.audit.compare_runs", "compare", Path("out/index.html"))
    overlay = tmp_path / "fast.yaml"
    overlay.write_text("train: {lr: 1e-3}\n", encoding="utf-8")
    args = ["slots-nft", f"slots-nft+{overlay}", "--seeds", "0,4", "--minutes", "2", "--train.ema", "0.9"]
    result = invoke("compare", *args)
    assert result.exit_code == 0, result.output
    ((recipes,), keywords) = compare.calls[0]
    assert list(recipes) == ["slots-nft", "slots-nft+fast"]
    assert [recipe.train.lr for recipe in recipes.values()] == [3e-4, 1e-3]
    assert [recipe.train.ema for recipe in recipes.values()] == [0.9, 0.9]
    assert keywords.pop("display") is not None
    assert keywords == {"seeds": [0, 4], "minutes": 2.0, "network_calls": None, "out": Path("runs/compare")}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("a --seeds 0,x", "--seeds is '0,x'; write different whole numbers with commas, for example 0,1,2"),
        ("a --seeds 1,1", "--seeds is '1,1'; write different whole numbers with commas, for example 0,1,2"),
        ("slots-nft slots-nft", "compare: two contestants are called 'slots-nft'; give their files different names"),
        (
            "a --minutes 1 --network-calls 5",
            "--minutes and --network-calls are two measures of equal cost; give one of the two",
        ),
    ],
)
def test_compare_refuses_what_it_cannot_compare(args, message):
    result = invoke("compare", *args.replace("a ", "slots-nft ", 1).split())
    assert (result.exit_code, result.stderr) == (2, f"error: {message}\n")


def test_systems_as_table_and_as_json():
    table = invoke("systems").stdout.splitlines()
    assert table[0].split() == ["id", "level", "effect", "cost", "command", "name"]
    assert table[1].split() == ["S001", "planned", "-", "-", "-", "Euphonium"]
    assert table[-1] == "129 systems"
    listed = json.loads(invoke("systems", "--json").stdout)
    assert [entry["id"] for entry in listed[:2]] == ["S001", "S002"]
    assert set(listed[0]) == {"id", "name", "home", "what", "level", "levels"}
    parts = invoke("systems", "--level", "planned", "--parts").stdout
    assert "P(yes) comparative reward" in parts and "tests/search/test_renoise.py" in parts
    result = invoke("systems", "--level", "done")
    said = "error: --level is 'done'; allowed: planned, runs, stale, inconclusive, negative, mixed, shown\n"
    assert (result.exit_code, result.stderr) == (2, said)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "reproduce: name experiments or give --all, one of the two; there are "),
        (["S101", "--all"], "reproduce: name experiments or give --all, one of the two; there are "),
        (["S1010"], "experiment 'S1010': did you mean S101? shipped: "),
    ],
)
def test_reproduce_says_what_there_is(args, message):
    result = invoke("reproduce", *args)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {message}")


def test_lab_build(fake):
    build = fake("plaudit.builds.generators", "build", Path("out/slots.safetensors"))
    set_num_threads = fake("torch", "set_num_threads", None)
    result = invoke("lab", "build", "slots", "--out", "out", "--steps", "3", "--threads", "1")
    assert result.stdout == "wrote out/slots.safetensors\n", result.output
    assert build.calls == [(("slots", Path("out")), {"steps": 3, "seed": 0, "install": False})]
    assert set_num_threads.calls == [((1,), {})]
    assert invoke("lab", "build", "clouds", "--out", "out").exit_code == 2


# --- displays ------------------------------------------------------------------------------------------------------


def test_the_limit_that_comes_first_decides_the_time_left():
    both = Limits(total_steps=100, minutes=10)
    assert both.fraction(50, 60) == 0.5
    assert both.seconds_left(50, 60) == 60
    assert both.fraction(10, 480) == 0.8
    assert both.seconds_left(10, 480) == pytest.approx(120)
    assert Limits(None, None).seconds_left(3, 9) is None
    assert Limits(10, None).seconds_left(0, 0) is None
    assert (duration(59.6), duration(3.2), duration(None)) == ("1 min 00 s", "3.2 s", "unknown")


METRICS = {"reward": 0.5, "ratio/first_step_max_dev": 2.5e-8}


def test_plain_lines(capsys):
    display = PlainDisplay()
    display.evaluation(0, "heldout before", 0.25, 0.2, 0.3)
    display.begin(10, None)
    display.step(5, METRICS, 30.0)
    display.step(6, {"reward": None}, 36.0)
    display.end()
    assert capsys.readouterr().out.splitlines() == [
        "step 0  heldout before 0.250 [0.200, 0.300]",
        "step 5/10  reward 0.500  ratio check 2.5e-08  30 s trained, 30 s left",
        "step 6/10  reward n/a  ratio check n/a  36 s trained, 24 s left",
    ]


def test_live_display_shows_the_latest_of_everything():
    screen = io.StringIO()
    display = LiveDisplay(Console(file=screen, force_terminal=True, width=160))
    display.evaluation(0, "heldout before", 0.25, 0.2, 0.3)
    display.evaluation(0, "compositional before", 0.125, 0.1, 0.15)
    display.begin(None, 2.0)
    display.step(3, METRICS, 30.0)
    display.say("[resumed] after step 3")
    display.end()
    display.end()
    shown = screen.getvalue()
    assert "compositional before 0.125 [0.100, 0.150]" in shown
    assert "[resumed] after step 3" in shown
    assert "step 3  reward 0.500  ratio check 2.5e-08  held-out 0.250  1 min 30 s left" in shown


def test_errors_of_recipes_are_user_errors_everywhere():
    for verb in ("align", "sample", "doctor"):
        result = invoke(verb, "--train.steps", "abc")
        assert result.exit_code == 2
        assert result.stderr.startswith('error: `train.steps` is "abc" (from the command line)')


# --- run folders where a recipe is named ---------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "k"
    (folder / "samples").mkdir(parents=True)
    recipe = load("slots-grpo", ["--run.folder", "elsewhere", "--run.seed", "7"])
    (folder / "recipe.yaml").write_text(dump(recipe), encoding="utf-8")
    return folder


def test_align_and_doctor_take_a_run_folder(fake, run):
    there = load("slots-grpo", ["--run.folder", str(run.parent), "--run.name", "k", "--run.seed", "7"])
    examine = fake("plaudit.train.doctor.doctor", "examine", [check("kl", True)])
    assert invoke("doctor", str(run)).exit_code == 0
    align = fake("plaudit.verbs", "align", ZeroDivisionError("seen"))
    invoke("align", "--resume", str(run), "--plain")
    invoke("align", str(run), "--run.name", "again")
    assert examine.calls[0][0] == (there,)
    assert [(recipe.run.folder, recipe.run.name) for (recipe,), _ in align.calls] == [
        (str(run.parent), n) for n in ("k", "again")
    ]
    assert [keywords["resume"] for _, keywords in align.calls] == [True, False]


def test_a_misspelt_recipe_is_met_with_the_nearest_before_the_list():
    result = invoke("align", "sums-gpro")
    assert result.exit_code == 2 and "; did you mean sums-grpo? shipped: default, " in result.stderr


def test_what_the_users_code_raises_is_one_line_and_ours_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.reference import toys

    def broken(*_: object) -> None:
        raise ZeroDivisionError("of my\nown")

    asked = ("doctor", "slots-nft", "--model.type", "custom", "--model.factory", "tests.reference.toys:build")
    with monkeypatch.context() as patch:
        patch.setattr(toys.ToyFlowModel, "velocity", broken)
        done = invoke(*asked)
        assert done.exit_code == 2 and "\n" not in done.stderr.strip()
        assert "test_cli.py:" in done.stderr and "ZeroDivisionError: of my\\nown; PLAUDIT_TRACEBACK=1" in done.stderr
        patch.setenv("PLAUDIT_TRACEBACK", "1")
        assert isinstance(invoke(*asked).exception, ZeroDivisionError)
    monkeypatch.setattr("plaudit.train.setup.prepare", eval("lambda recipe: {}['ours']", {}))
    assert isinstance(invoke("doctor", "slots-nft").exception, KeyError)
