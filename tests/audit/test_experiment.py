"""Experiments are run, measured, judged, kept and known to be stale; a queue of them is stopped and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from plaudit.audit import record as recording
from plaudit.audit.experiment import Job, Measured, _found, jobs_of, record_of, run_job
from plaudit.audit.queue import Watch, run_queue
from plaudit.audit.record import Record, read_record, stale, standings_of, what_runs, write_record
from plaudit.audit.results import Title, page
from plaudit.errors import DataError, RunError
from plaudit.recipe import load as loading
from plaudit.recipe.experiment import Experiment

REWARDS = '''
"""A reward that waits, from its third call within training on, until the run is asked to stop; not where the file `open` lies."""
import signal, time
from pathlib import Path

calls = 0

def gate(prompts, completions, **rest):
    global calls
    patience = signal.getsignal(signal.SIGTERM)
    calls += hasattr(patience, "asked")
    until = time.monotonic() + 120
    while calls > 2 and not Path("open").exists() and not patience.asked and time.monotonic() < until:
        Path("waiting").touch()
        time.sleep(0.01)
    return [float(len(completion)) for completion in completions]

def measure(*, seed, quick, gain):
    return {"gain": gain + 0.01 * seed, "by_item": {"a": float(seed), "b": 1.0}}

def make(*, seed, quick, folder, size):
    (folder / "made").write_text(str(size + seed))

def grow(*, seed, quick, folder, path):
    (folder / "made").write_text("1" + Path(path).read_text())

def use(*, seed, quick, path):
    return {"gain": float(Path(path).read_text())}
'''
TOY: dict[str, Any] = {
    "claim": "three kinds of arms are run and measured",
    "paper": None,
    "budget": {"steps": 4},
    "overrides": {
        "train": {"prompts_per_step": 2, "samples_per_prompt": 4},
        "evaluate": {"every": 2, "prompts": 6, "final_prompts": 8},
        "run": {"save_every": 1},
    },
    "arms": {
        "long": {"recipe": "sums-grpo", "overrides": {"rewards": {"correct": None, "gate": "odd_rewards:gate"}}},
        "search": {"recipe": "sums-streaming", "verb": "search", "budget": {"per_prompt": "120nfe"}},
        "ten": {"function": "odd_rewards:measure", "arguments": {"gain": 10}},
        "two": {"function": "odd_rewards:measure", "arguments": {"gain": 2}},
    },
    "metrics": {
        "truth": {"of": "truth", "percent": True},
        "best": {"of": "best"},
        "length": {"of": "length", "better": "lower"},
        "gap": {"of": "gap/gate"},
        "entropy": {"of": "steps/entropy"},
        "calls": {"of": "network_calls"},
        "gain": {"of": "values/gain"},
        "by_item": {"of": "values/by_item"},
    },
    "expect": [
        {"metric": "gain", "better": "ten", "than": "two", "by": 3},
        {"metric": "by_item", "better": "ten", "than": "two"},
        {"metric": "truth", "better": "search", "than": "before"},
        {"metric": "length", "better": "long", "than": "before"},
    ],
    "findings": {"mixed": "The function is the only thing that is sure."},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the rewards, to which the tests go."""
    path = tmp_path_factory.mktemp("experiments")
    (path / "odd_rewards.py").write_text(REWARDS, encoding="utf-8")
    alone = {
        "arms": {"long": TOY["arms"]["long"]},
        "metrics": {"length": TOY["metrics"]["length"]},
        "expect": TOY["expect"][-1:],
    }
    (path / "toy.yaml").write_text(loading.text.render({**TOY, **alone}), encoding="utf-8")
    here = Path.cwd()
    os.chdir(path)
    sys.path.insert(0, str(path))
    yield path
    os.chdir(here)
    sys.path.remove(str(path))
    sys.modules.pop("odd_rewards", None)


@pytest.fixture(scope="module")
def toy(folder: Path) -> Experiment:
    (folder / "open").touch()
    return Experiment.model_validate(TOY)


@pytest.fixture(scope="module")
def jobs(folder: Path, toy: Experiment) -> list[Job]:
    """All of them have run."""
    jobs = jobs_of(toy, folder / "runs")
    for job in jobs:
        run_job(job, lambda text: None)
    return jobs


@pytest.fixture
def record(jobs: list[Job], toy: Experiment) -> Record:
    return record_of(toy, jobs, {})


# --- what arms start from --------------------------------------------------------------------------------------------

PREPARED = {
    "claim": "arms start from what was prepared for their seed",
    "paper": None,
    "prepare": {
        "small": {"function": "odd_rewards:make", "arguments": {"size": 3}},
        "large": {"function": "odd_rewards:grow", "arguments": {"path": "{small}/made"}},
    },
    "arms": {
        "of-small": {"function": "odd_rewards:use", "arguments": {"path": "{small}/made"}},
        "of-large": {"function": "odd_rewards:use", "arguments": {"path": "{large}/made"}},
    },
    "metrics": {"gain": {"of": "values/gain"}},
    "expect": [{"metric": "gain", "better": "of-large", "than": "of-small", "by": 5}],
}


def test_arms_start_from_what_was_prepared_for_their_seed(folder: Path) -> None:
    experiment = Experiment.model_validate(PREPARED)
    jobs = jobs_of(experiment, folder / "prepared")
    assert [(job.arm, job.stage, list(job.first)) for job in jobs[:4]] == [
        ("small", 0, []),
        ("large", 1, ["small"]),
        ("of-small", 2, ["small"]),
        ("of-large", 2, ["large"]),
    ]
    with pytest.raises(RunError, match="large, which it starts from, has not come to an end"):
        run_job(jobs[3], lambda text: None)
    for job in sorted(jobs, key=lambda job: job.stage):
        run_job(job, lambda text: None)
    found = record_of(experiment, jobs, {})
    assert list(found.arms) == ["of-small", "of-large"] and found.verdict == "shown"
    assert [found.arms["of-large"].runs[seed].values["gain"] for seed in (0, 1, 2)] == [13, 14, 15]
    assert found.seconds > 0 and str(folder) not in found.model_dump_json()


def test_what_was_prepared_otherwise_makes_a_record_stale(folder: Path) -> None:
    other = {
        **PREPARED,
        "prepare": {**PREPARED["prepare"], "small": {"function": "odd_rewards:make", "arguments": {"size": 4}}},
    }
    digests = [
        {arm: what_runs(Experiment.model_validate(document), arm).digest for arm in ("of-small", "of-large")}
        for document in (PREPARED, other)
    ]
    assert not set(digests[0].values()) & set(digests[1].values())


# --- measuring -------------------------------------------------------------------------------------------------------


def test_every_arm_runs_with_every_seed_in_a_folder_that_says_what_ran(jobs: list[Job]) -> None:
    assert [(job.seed, job.arm) for job in jobs[:5]] == [
        (0, "long"),
        (0, "search"),
        (0, "ten"),
        (0, "two"),
        (1, "long"),
    ]
    assert all(job.is_done for job in jobs)
    assert len({job.folder for job in jobs}) == 12
    assert [job.folder.name.rpartition("-")[0] for job in jobs[:3]] == [
        "sums-grpo-seed0",
        "sums-streaming-seed0",
        "odd_rewards-seed0",
    ]


def test_a_record_has_the_figures_of_the_run_folders(record: Record, jobs: list[Job]) -> None:
    summary = json.loads((jobs[4].folder / "summary.json").read_text())
    rows = [json.loads(line) for line in (jobs[4].folder / "evaluations.jsonl").read_text().splitlines()]
    steps = [json.loads(line) for line in (jobs[4].folder / "metrics.jsonl").read_text().splitlines()]
    found, after = record.arms["long"].runs[1], rows[-1]
    assert found.values["truth"] == summary["after"] == after["mean"]
    assert found.before["truth"] == summary["before"]
    assert found.values["length"] == pytest.approx(after["length"])
    assert found.values["best"] == max(row["mean"] for row in rows)
    assert found.values["gap"] == pytest.approx(after["rewards"]["gate"] - after["mean"])
    assert found.values["entropy"] == steps[-1]["entropy"]
    assert found.values["calls"] == found.network_calls == summary["network_calls"]
    assert found.values["gain"] is None and "gain" not in found.before
    searched = record.arms["search"].runs[0]
    assert searched.network_calls and searched.values["truth"] is not None and searched.before["truth"] is not None
    assert record.network_calls == sum(
        run.network_calls or 0 for side in record.arms.values() for run in side.runs.values()
    )
    assert record.versions["plaudit"] and record.shared == {}


def test_the_verdict_is_that_of_the_rule(record: Record) -> None:
    gain, by_item, truth, length = (found.effect for found in record.found)
    assert (gain.verdict, gain.mean, gain.low) == ("shown", pytest.approx(8), pytest.approx(8))
    assert (by_item.verdict, by_item.items, by_item.seeds) == ("inconclusive", 2, 3)
    assert (truth.items, length.items) == (8, 8)
    assert record.verdict == "mixed"


def test_before_is_the_other_arms_figure_before_training(toy: Experiment) -> None:
    class Fake(Measured):
        def point(self, of: str, before: bool = False) -> dict[str, float]:
            return {"": 1.0 if before else 3.0}

    found = _found(toy, toy.expect[3], {("long", seed): Fake() for seed in toy.seeds})
    assert found.effect.mean == -2  # lengths are better lower, and it grew by two


def test_a_failed_run_and_a_metric_that_no_run_has_are_said(toy: Experiment, jobs: list[Job]) -> None:
    lost = [
        job.__class__(**{**vars(job), "folder": job.folder / "none"}) if job.arm == "two" and job.seed == 1 else job
        for job in jobs
    ]
    record = record_of(toy, lost, {lost[7].folder: "it broke"})
    assert record.arms["two"].runs[1].error == "it broke"
    assert record.found[0].effect.why == "2 seeds have both figures; 3 are needed"
    odd = Experiment.model_validate(TOY | {"metrics": TOY["metrics"] | {"odd": {"of": "steps/none"}}})
    with pytest.raises(RunError, match="metrics: no run has steps/none"):
        record_of(odd, jobs, {})


def test_finished_runs_are_reused_by_any_experiment_that_asks_for_the_same(folder: Path, jobs: list[Job]) -> None:
    other = Experiment.model_validate(TOY | {"claim": "another claim of the same runs", "seeds": [2, 1, 7]})
    assert [job.is_done for job in jobs_of(other, folder / "runs")] == [True] * 8 + [False] * 4
    changed = Experiment.model_validate(TOY | {"budget": {"steps": 5}})
    assert [job.is_done for job in jobs_of(changed, folder / "runs")][:4] == [False, True, True, True]


# --- stale -----------------------------------------------------------------------------------------------------------


def test_a_record_that_is_read_back_is_the_record_and_is_not_stale(
    record: Record, toy: Experiment, tmp_path: Path
) -> None:
    write_record(tmp_path / "toy.json", record)
    found = standings_of({"toy": toy, "none": toy}, tmp_path)
    assert read_record(tmp_path / "toy.json") == found["toy"].record == record
    assert (found["toy"].level, found["toy"].why, found["none"].level) == ("mixed", None, "runs")
    (tmp_path / "toy.json").write_text('{"claim": 3}')
    with pytest.raises(DataError, match=r"toy\.json: claim: .*; delete it and run `plaudit reproduce toy`"):
        read_record(tmp_path / "toy.json")


def changed(*path: str, to: Any) -> dict[str, Any]:
    document = json.loads(json.dumps(TOY))
    at = document
    for key in path[:-1]:
        at = at.setdefault(key, {})
    at[path[-1]] = to
    return document


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (changed("budget", to={"steps": 5}), "long: train.steps has changed"),
        (changed("arms", "long", "overrides", "train", to={"lr": 1e-4}), "long: train.lr has changed"),
        (changed("arms", "search", "budget", to={"per_prompt": "130nfe"}), "search: search.budget has changed"),
        (changed("arms", "two", "arguments", "gain", to=3), "two: arguments.gain has changed"),
        (changed("arms", "more", to={"recipe": "sums-grpo"}), "arms are long, search, ten, two, more and were"),
        (changed("seeds", to=[0, 1, 2, 3]), "seeds are [0, 1, 2, 3] and were [0, 1, 2]"),
        (changed("metrics", "gain", "better", to="lower"), "what is expected has changed"),
    ],
)
def test_whatever_changes_a_number_makes_a_record_stale(record: Record, document: dict[str, Any], why: str) -> None:
    assert (stale(record, Experiment.model_validate(document)) or "").startswith(why)


@pytest.mark.parametrize(
    ("module", "what"),
    [
        ("objectives/grpo.py", "long: the code of objective grpo"),
        ("rewards/rules/sums.py", "long: the code of reward sum_correct"),
        ("search/text/streaming.py", "search: the code of search streaming"),
    ],
)
def test_a_record_is_stale_when_the_code_that_ran_changes_but_not_its_comments(
    record: Record, toy: Experiment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str, what: str
) -> None:
    file, read = recording.SOURCE / module, Path.read_text

    def with_a_line(line: str) -> str | None:
        edited = lambda path, *rest, **options: read(path, *rest, **options) + (line if path == file else "")  # noqa: E731
        monkeypatch.setattr(Path, "read_text", edited)
        return stale(record, toy)

    assert with_a_line("\n\n# a comment\nimport os\n") is None
    assert with_a_line("\n\nFACTOR = 2\n") == f"{what} has changed"


def test_a_key_that_recipes_have_only_since_then_counts_where_it_is_not_at_its_default(
    record: Record, toy: Experiment
) -> None:
    older = record.model_copy(deep=True)
    for key in ("train.refill", "train.prompts_per_step"):
        del older.arms["long"].recipe[key]
    assert stale(older, toy) == "long: train.prompts_per_step has changed"
    del older.arms["long"].recipe["train.lr"]
    older.arms["long"].recipe["train.prompts_per_step"] = 2
    assert stale(older, toy) is None  # lr 3e-4 is the default, and so is no refill


def test_names_and_places_decide_no_number(toy: Experiment) -> None:
    elsewhere = changed("arms", "long", "overrides", "run", to={"folder": "elsewhere", "save_every": 7})
    assert what_runs(Experiment.model_validate(elsewhere), "long") == what_runs(toy, "long")


def test_the_page_has_figures_of_the_record_and_words_of_the_experiment(
    record: Record, toy: Experiment, tmp_path: Path
) -> None:
    write_record(tmp_path / "toy.json", record)
    standings = standings_of({"toy": toy}, tmp_path)
    text = page({"S001": Title(name="One", home="search")}, standings, {"toy": toy})
    assert "| toy | mixed | ten over two, gain | +8.000 [+8.000 to +8.000] | 3 |" in text
    assert "## Other experiments" in text and "The function is the only thing that is sure." in text
    assert "ten over two by by_item" in text and "## Search" not in text


# --- the queue -------------------------------------------------------------------------------------------------------


def _work(task: str, say: Callable[[str], None]) -> None:
    say(f"at {task}")
    if task == "dies":
        os._exit(7)
    if task == "breaks":
        raise ZeroDivisionError("by nought")
    if task == "refuses":
        raise DataError("row 3 is odd")


def test_a_worker_that_dies_and_a_task_that_fails_take_no_other_with_them() -> None:
    ended: dict[str, str | None] = {}
    heard: list[str] = []
    watch = Watch(
        started=lambda task: None,
        said=lambda task, text: heard.append(text),
        ended=lambda task, error: ended.update({task: error}),
        announce=heard.append,
    )
    tasks = ["one", "dies", "breaks", "two", "refuses", "three"]
    assert run_queue(tasks, _work, 2, watch)
    assert list(sorted(ended)) == sorted(tasks)
    assert {task for task, error in ended.items() if error is None} == {"one", "two", "three"}
    assert ended["dies"] == "its process ended with exit code 7"
    assert ended["breaks"] is not None and ended["breaks"].startswith("ZeroDivisionError: by nought")
    assert ended["refuses"] == "row 3 is odd"
    assert heard.count("at two") == 1


def _reproduce(folder: Path, out: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "plaudit", "reproduce", "toy.yaml", "--out", out, "--records", "records"]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_queue_that_was_killed_goes_on_to_the_same_bits(folder: Path, jobs: list[Job]) -> None:
    (folder / "open").unlink()
    queue = _reproduce(folder, "again")
    try:
        until = time.monotonic() + 240
        while not (folder / "waiting").exists() and queue.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        assert queue.poll() is None, queue.communicate()[0]
        queue.send_signal(signal.SIGTERM)
        said = queue.communicate(timeout=240)[0]
    finally:
        queue.kill()
        (folder / "open").touch()
    assert queue.returncode == 130, said
    assert "stopped with 3 of 3 runs to go; the same command goes on where it was" in said
    assert not (folder / "records/toy.json").exists()
    stopped = folder / "again" / jobs[0].folder.name
    lines = (stopped / "metrics.jsonl").read_text().splitlines()
    assert 0 < len(lines) < 4 and not (stopped / "summary.json").exists()
    timed = (stopped / "timing.jsonl").read_text()
    queue = _reproduce(folder, "again")
    said = queue.communicate(timeout=240)[0]
    assert queue.returncode == 0, said
    assert "toy: " in said and "long over before by length" in said
    assert (stopped / "timing.jsonl").read_text().startswith(timed), "it went on, and did not start over"
    for job in jobs:
        if job.trains:
            again = folder / "again" / job.folder.name
            for name in ("metrics.jsonl", "evaluations.jsonl", "final/model.safetensors"):
                assert (again / name).read_bytes() == (job.folder / name).read_bytes(), name
    first, second = record_of(jobs[0].experiment, jobs, {}), read_record(folder / "records/toy.json")
    assert second is not None and second.found == first.found[-1:]
