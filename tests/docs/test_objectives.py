"""The objective that the documentation has its reader write: trained, resumed, examined, and refused where it does not fit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.docs.pages import page, write_files

from plaudit.errors import RecipeError
from plaudit.recipe.load import load
from plaudit.train.setup import prepare
from plaudit.verbs import align

RECIPE = "reward-weighted.yaml"
SHORT = (
    "--train.steps 4 --train.prompts_per_step 4 --train.samples_per_prompt 4 --run.save_every 1 --evaluate.prompts 6 "
    "--evaluate.final_prompts 6 --evaluate.every 2"
).split()


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the files that the page has its reader write."""
    write_files(page("docs/objectives.md"), tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for module in ("my_objective", "my_kernel"):
        sys.modules.pop(module, None)


def test_it_trains_and_a_resumed_run_equals_an_uninterrupted_one(workplace: Path) -> None:
    whole = align(load(RECIPE, [*SHORT, "--run.name", "whole"])).folder
    part = align(load(RECIPE, [*SHORT, "--run.name", "part", "--train.steps", "2"])).folder
    align(load(RECIPE, [*SHORT, "--run.name", "part"]), resume=True)
    metrics = [(folder / "metrics.jsonl").read_text() for folder in (whole, part)]
    assert metrics[0] == metrics[1] and len(metrics[0].splitlines()) == 4
    rows = [json.loads(line) for line in metrics[0].splitlines()]
    assert all(row["loss/policy"] > 0 and row["grad_norm"] > 0 for row in rows)
    saved = [next((folder / "final").glob("*.safetensors")).read_bytes() for folder in (whole, part)]
    assert saved[0] == saved[1]


@pytest.mark.parametrize(
    ("recipe", "check"),
    [(RECIPE, "gradients do not depend on the split"), ("even-grpo.yaml", "draws have the density's mean and std")],
)
def test_the_doctor_passes_it(workplace: Path, recipe: str, check: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "plaudit", "doctor", recipe], capture_output=True, text=True, cwd=workplace, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert check in done.stdout


def test_a_kernel_of_ones_own_trains(workplace: Path) -> None:
    folder = align(load("even-grpo.yaml", SHORT)).folder
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and all(row["ratio/first_step_max_dev"] < 1e-5 and row["grad_norm"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--sampler.kernel", "cpss"], "ddim_eta or your own, `package.module:thing`; did you mean cps"),
        (["--sampler.kernel", "my_kernel:odd"], "sampler.kernel: cannot import 'my_kernel:odd'"),
        (["--objective.density", "flow_grpo"], "published for flow_sde"),
    ],
)
def test_a_kernel_that_cannot_work_is_one_line(workplace: Path, changes: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        prepare(load("even-grpo.yaml", changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--objective.options.temprature", "1"], "unexpected keyword argument 'temprature'.*temperature: float"),
        (
            ["--objective.options.temperature", "0"],
            r"objective.class: my_objective:RewardW.* ValueError: temperature is 0",
        ),
        (["--objective.class", "my_objective:Losses"], "objective.class: my_objective:Losses is no objective"),
        (["--objective.class", "my_objective:Missing"], "objective.class: cannot import"),
        (["--objective.class", "no_such_module:Mine"], "objective.class: cannot import"),
    ],
)
def test_what_cannot_work_is_one_line(workplace: Path, changes: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said) as refused:
        prepare(load(RECIPE, changes))
    assert "\n" not in str(refused.value)


def test_the_wrong_family_is_refused_with_one_line(workplace: Path) -> None:
    changes = ["--objective.type", "custom", "--objective.class", "my_objective:RewardWeighted"]
    with pytest.raises(
        RecipeError, match=r"objective\.class: my_objective:RewardWeighted does not train models of family tokens"
    ) as refused:
        prepare(load("sums-grpo", changes))
    assert "\n" not in str(refused.value) and "grpo" in str(refused.value)
