"""A run of a token model: its numbers, its interruption, its checks, and the gate that stops a replay that disagrees."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.reference.token_toys import KL, PACKED, sums_recipe

import plaudit.sampling.tokens as tokens
from plaudit import storage
from plaudit.errors import Interrupted, RunError
from plaudit.lab.language import KeyValues
from plaudit.lab.sums.check import read
from plaudit.lab.sums.grammar import evaluation_prompts
from plaudit.models.lab_text import LabTokenModel
from plaudit.recipe.load import dump
from plaudit.recipe.schema import Recipe
from plaudit.runs.display import Silent
from plaudit.train import loop
from plaudit.train.collect import collect
from plaudit.train.doctor.doctor import cheap_checks, examine
from plaudit.train.setup import prepare

VARIANTS = {
    "plain": [{}],
    "everything": [
        KL,
        PACKED,
        {
            "objective": {"importance_sampling_level": "sequence", "loss_type": "luspo"},
            "train": {"updates_per_step": 2, "refill": 1, "ema": 0.9},
            "model": {"lora": {"rank": 2, "alpha": 4}},
            "sampler": {"temperature": 0.9, "tile": 5, "stop": ["#1"]},
        },
    ],
    "kl in the reward": [{"objective": {"kl": {"weight": 0.05, "scaling": "k1", "place": "reward"}}}],
}


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    yield
    signal.signal(signal.SIGINT, before)


class Interrupting(Silent):
    def step(self, step, metrics, seconds) -> None:
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)


def rows(root: Path, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (root / name).read_text().splitlines()]


def contents(root: Path) -> dict[str, bytes]:
    """What a run leaves that is a function of its recipe."""
    logs = [root / "metrics.jsonl", root / "evaluations.jsonl"]
    files = [*logs, *(root / "evaluations").iterdir(), *(root / "samples").iterdir(), *(root / "final").iterdir()]
    tensors = storage.latest_snapshot(root / "checkpoints") / storage.TENSORS
    return {str(path.relative_to(root)): path.read_bytes() for path in [*files, tensors]}


@pytest.mark.parametrize("variant", VARIANTS)
def test_interrupted_and_resumed_is_uninterrupted(variant: str, tmp_path: Path) -> None:
    """Bit for bit: weights, optimiser, logs, tables of texts."""
    whole, recipe = (sums_recipe(tmp_path / name, *VARIANTS[variant]) for name in ("whole", "pieces"))
    expected = contents(loop.train(whole).folder)
    with pytest.raises(Interrupted, match="stopped after step 1; everything is saved"):
        loop.train(recipe, display=Interrupting())
    found = contents(loop.train(recipe, resume=True).folder)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    metrics = rows(Path(recipe.run.folder) / "sums-toy")
    assert [row["step"] for row in metrics] == [1, 2, 3] and max(row["grad_norm"] for row in metrics) > 1e-4


def test_the_numbers_of_a_run_are_complete_and_counted(tmp_path: Path) -> None:
    recipe = sums_recipe(tmp_path, KL, {"train": {"updates_per_step": 3}})
    root = loop.train(recipe).folder
    metrics = rows(root)
    for row in metrics:
        assert row["loss"] == pytest.approx(row["loss/policy"] + row["loss/kl"], abs=1e-12)
        assert 1 <= row["completions/mean_length"] <= 24 and 0 <= row["completions/clipped_ratio"] <= 1
        assert 0 < row["diversity"] <= 1 and 0 < row["entropy"] < 3 and 0 <= row["mismatch_kl"] < 1e-8
        assert row["ratio/first_step_max_dev"] <= row["ratio/limit"] == pytest.approx(1e-3)
        assert row["ratio/deviation"] > row["ratio/first_step_max_dev"], "later updates have moved"
    setup = prepare(recipe)
    first = collect(setup, step=0, version=0)
    lengths = first.batch.completions.length
    assert metrics[0]["network_calls"] == 3 + int((lengths - 1).sum()) and metrics[-1]["reward_calls"] == 3 * 12 * 3
    assert metrics[0]["completions/mean_length"] == pytest.approx(lengths.double().mean().item())
    groups = [first.outputs[i : i + 4] for i in range(0, 12, 4)]
    unlike = [sum(a != b for i, a in enumerate(g) for j, b in enumerate(g) if i != j) / 12 for g in groups]
    assert metrics[0]["diversity"] == pytest.approx(sum(unlike) / 3)
    assert metrics[0]["reward"] == pytest.approx(first.scored.total.mean().item())


def test_the_measurement_is_the_final_models_own(tmp_path: Path) -> None:
    """Drawn and judged again from the weights that were saved for users."""
    recipe = sums_recipe(tmp_path, {"evaluate": {"sampler": {"temperature": 0}}})
    root = loop.train(recipe).folder
    setup = prepare(sums_recipe(tmp_path, {"model": {"weights": str(root / "final" / "model.safetensors")}}))
    asked = evaluation_prompts("heldout", 6, ("pair",))
    drawer = prepare(recipe).drawer
    drawer = type(drawer)(
        model=setup.policy.model, sampler=drawer.sampler, evaluation_sampler=drawer.evaluation_sampler
    )
    keys = [tokens.SampleKey(seed=1, step=0, prompt=p.id, index=0) for p in asked]
    texts = drawer.evaluation(asked, keys).outputs
    table = json.loads((root / "samples" / "after.json").read_text())
    assert [row["output"] for row in table] == texts and [row["prompt"] for row in table] == [p.text for p in asked]
    judged = [float(read(text, p.facts["operands"]).correct) for text, p in zip(texts, asked, strict=True)]
    last = rows(root, "evaluations.jsonl")[-1]
    assert last["label"] == "after" and last["mean"] == pytest.approx(sum(judged) / 6)
    assert json.loads((root / last["items"]).read_text())["score"] == judged == [row["truth"] for row in table]


# --- the doctor ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_check_passes(variant: str, tmp_path: Path) -> None:
    found = {check.name: check for check in examine(sums_recipe(tmp_path, *VARIANTS[variant]))}
    assert [check for check in found.values() if check.passed is False] == []
    everywhere = {
        "something is trainable",
        "padding changes nothing",
        "completions end where they should",
        "ratio is 1 before the first update",
        "drawing and replay are one distribution",
        "a constant group gets advantage 0",
        "permuting the batch permutes the rewards",
        "scoring twice gives the same scores",
        "draws have the density's frequencies",
        "gradients do not depend on the split",
        "samples do not depend on the batch",
    }
    everything = {"LoRA starts at zero", "packed rows equal single ones", "the KL term has a gradient"}
    expected = everywhere | (everything if variant == "everything" else set())
    assert {name for name, check in found.items() if check.passed} - {"mismatched prompts score lower"} == expected


def test_plaudit_doctor_exits_with_zero(tmp_path: Path) -> None:
    path = tmp_path / "sums.yaml"
    path.write_text(dump(sums_recipe(tmp_path, PACKED)), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "plaudit", "doctor", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "padding changes nothing" in done.stdout and "ratio is 1" in done.stdout


# --- what the gate stops ---------------------------------------------------------------------------------------------


def refused(recipe: Recipe) -> None:
    """Neither the check before the run nor, were it skipped, the first update lets it pass."""
    failed = {check.name for check in cheap_checks(prepare(recipe)) if check.passed is False}
    assert "ratio is 1 before the first update" in failed
    with pytest.raises(RunError, match="the run was not started because a check failed"):
        loop.train(recipe)


def refused_in_training(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "cheap_checks", lambda setup: [])
    with pytest.raises(RunError, match="step 0: the importance ratio deviates from 1 by"):
        loop.train(recipe, overwrite=True)


def test_another_temperature_in_replay_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tokens.replay_logits
    for place in ("plaudit.objectives.token_terms", "plaudit.sampling.tokens"):
        monkeypatch.setattr(f"{place}.replay_logits", lambda *args: real(*args) * 1.01)
    recipe = sums_recipe(tmp_path)
    refused(recipe)
    refused_in_training(recipe, monkeypatch)


def test_a_cache_that_mixes_its_rows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = KeyValues.select
    monkeypatch.setattr(KeyValues, "select", lambda self, chosen: real(self, chosen.flip(0)))
    recipe = sums_recipe(tmp_path)
    refused(recipe)
    refused_in_training(recipe, monkeypatch)


def test_a_cache_whose_positions_are_off_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = LabTokenModel.logits

    def off(self, ids, positions, visible, *, cache=None, keep=None):
        later = cache is not None and cache.length > 0
        return real(self, ids, positions + later, visible, cache=cache, keep=keep)

    monkeypatch.setattr(LabTokenModel, "logits", off)
    refused(sums_recipe(tmp_path))


def test_dropout_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = LabTokenModel.logits
    monkeypatch.setattr(
        LabTokenModel, "logits", lambda *args, **named: torch.nn.functional.dropout(real(*args, **named), 0.01)
    )
    refused(sums_recipe(tmp_path))
