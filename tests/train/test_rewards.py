"""Rewards inside a run: measured scales, formulas, memory that survives a kill, and scoring while drawing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from tests.reference.toys import asking, prompts, toy_recipe

from plaudit.errors import RecipeError, RunError
from plaudit.recipe.load import load
from plaudit.rewards.base import Card, Score, Status
from plaudit.train.setup import prepare
from plaudit.verbs import align

HERE = __name__


def green(prompts, outputs):
    """A reward whose unit nobody knows."""
    return 1000 + 50 * outputs[:, 1].mean(dim=(1, 2))


class Seen:
    """The mean colour less a hundredth for every output of this prompt so far: earlier calls count."""

    card = Card(summary="", low=-9, high=1, batch_invariant=False)

    def __init__(self) -> None:
        self.count: dict[str, int] = {}

    def __call__(self, prompts, outputs, ids):
        for i in ids:
            self.count[i] = self.count.get(i, 0) + 1
        return [output.mean().item() - 0.01 * self.count[i] for i, output in zip(ids, outputs, strict=True)]

    def state(self):
        return dict(self.count)

    def load_state(self, state):
        self.count = dict(state)


async def patient(prompts, outputs):
    """Takes its time, elsewhere."""
    import asyncio

    await asyncio.sleep(0.05)
    return outputs[:, 0].mean(dim=(1, 2))


def half_missing(prompts, outputs):
    """No word on odd captions."""
    absent = Score(value=math.nan, status=Status.ERRORED, note="no answer")
    return [absent if int(text.split()[-1]) % 2 else 1.0 for text in prompts]


def lines(folder: Path, log: str) -> list[dict]:
    return [json.loads(line) for line in (folder / log).read_text().splitlines()]


MIXED = {
    "rewards": {
        "red": None,
        "green": {"type": f"{HERE}:green", "calibrate": {"type": "zscore"}},
        "seen": {"type": f"{HERE}:Seen"},
    },
    "combine": "0.5 * green + running_zscore(seen)",
    "calibration_outputs": 16,
}


def test_a_measured_scale_is_kept_with_the_run_and_used(tmp_path) -> None:
    recipe = toy_recipe(tmp_path, MIXED, {"run": {"name": "mixed"}})
    result = align(recipe)
    scale = json.loads((result.folder / "calibration.json").read_text())
    assert set(scale) == {"green"} and 1000 < scale["green"]["centre"] < 1050 and scale["green"]["scale"] > 0
    for entry in lines(result.folder, "metrics.jsonl"):
        expected = 0.5 * (entry["rewards/green/mean"] - scale["green"]["centre"]) / scale["green"]["scale"]
        assert entry["terms/0.5 * green"] == pytest.approx(expected)
        assert entry["reward"] == pytest.approx(entry["terms/0.5 * green"] + entry["terms/running_zscore(seen)"])
    costs = lines(result.folder, "timing.jsonl")[-1]
    assert costs["rewards/green/calls"] > 0 and costs["rewards/seen/cache_hits"] == 0
    assert 0 < costs["rewards/green/latency_p50_s"] <= costs["rewards/green/latency_p95_s"]


def test_memory_and_scale_come_back_with_a_checkpoint(tmp_path) -> None:
    """Pitfall 45: the run that was cut in two is the run that was not."""

    def run(folder: str, steps: int, resume: bool = False) -> Path:
        recipe = toy_recipe(
            tmp_path / folder, MIXED, {"train": {"steps": steps}, "run": {"name": "m", "save_every": 1}}
        )
        return align(recipe, resume=resume).folder

    whole, cut = run("whole", 4), run("cut", 2)
    cut = run("cut", 4, resume=True)
    assert lines(whole, "metrics.jsonl") == lines(cut, "metrics.jsonl")
    assert (whole / "calibration.json").read_text() == (cut / "calibration.json").read_text()


def test_what_was_called_before_a_kill_is_counted_and_the_truth_has_no_memory(tmp_path) -> None:

    def run(folder: str, steps: int, resume: bool = False) -> Path:
        layers = {
            "evaluate": {"reward": f"{HERE}:Seen"},
            "train": {"steps": steps},
            "run": {"name": "m", "save_every": 1},
        }
        return align(toy_recipe(tmp_path / folder, layers), resume=resume).folder

    whole, cut = run("whole", 4), run("cut", 2)
    cut = run("cut", 4, resume=True)
    means = [[entry["mean"] for entry in lines(folder, "evaluations.jsonl")] for folder in (whole, cut)]
    assert means[0] == means[1]
    calls = [[entry["rewards/red/calls"] for entry in lines(folder, "timing.jsonl")] for folder in (whole, cut)]
    assert all(late > early for late, early in zip(calls[1][1:], calls[1], strict=False)) and calls[1][-1] > calls[1][1]


def test_the_truth_is_reported_as_it_is(tmp_path) -> None:
    from plaudit.errors import RecipeError

    with pytest.raises(RecipeError, match=r"evaluate.reward: the truth is reported as it is"):
        toy_recipe(tmp_path, {"evaluate": {"reward": {"type": "scene_exact", "weight": 2.0}}})


def test_the_doctor_measures_the_scale_too(tmp_path) -> None:
    from plaudit.train.doctor.doctor import examine

    checks = examine(toy_recipe(tmp_path, MIXED))
    assert not [c for c in checks if c.passed is False and "permuting" not in c.name and "twice" not in c.name]


def test_scores_come_in_while_the_batch_is_being_drawn(tmp_path) -> None:
    from plaudit.train.collect import collect

    recipe = toy_recipe(
        tmp_path, {"rewards": {"red": None, "far": {"type": f"{HERE}:patient"}}, "sampler": {"tile": 3}}
    )
    setup = asking(prepare(recipe), prompts(3))
    assert setup.rewards.rewards[0].waits
    far = setup.rewards.rewards[0].caller.meter
    rollout = collect(setup, step=0, version=0)
    assert far.calls == 4 and far.outputs == 12
    assert rollout.scored.total.tolist() == pytest.approx(rollout.outputs[:, 0].mean(dim=(1, 2)).tolist())


def test_a_run_that_is_fed_too_little_stops_and_says_why(tmp_path) -> None:
    from plaudit.errors import RewardError

    recipe = toy_recipe(tmp_path, {"rewards": {"red": None, "bad": {"type": f"{HERE}:half_missing"}}})
    with pytest.raises((RewardError, RunError), match=r"rewards.bad: .* scores are missing"):
        align(recipe)


def test_a_function_of_a_notebook_trains_is_recorded_as_such_and_resumes_when_it_is_handed_over_again(tmp_path) -> None:
    mine = lambda prompts, outputs: outputs[:, 0].mean(dim=(1, 2))  # noqa: E731
    layer = {"rewards": {"red": None, "mine": {"type": mine, "weight": 2}}, "run": {"name": "mine"}}
    folder = align(toy_recipe(tmp_path, layer, {"train": {"steps": 1}})).folder
    assert "type: handed over from Python" in (folder / "recipe.yaml").read_text()
    longer = {"train": {"steps": 2}}
    with pytest.raises(RecipeError, match=r"^rewards.mine.type: the reward was handed over from Python .*<lambda>"):
        align(load([folder, longer]), resume=True)
    align(load([folder, {"rewards": {"mine": mine}}, longer]), resume=True)
    assert [line["step"] for line in lines(folder, "metrics.jsonl")] == [1, 2]
    assert lines(folder, "metrics.jsonl")[1]["rewards/mine/mean"] is not None
