"""The recipes of the length systems on tokens: what a step is made of, and what a resumed run remembers."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import pytest
import torch
from tests.reference.advantages import group_advantage as by_loops

from plaudit import storage
from plaudit.builds.sums_report import attempts
from plaudit.lab.sums.check import read
from plaudit.lab.sums.grammar import evaluation_prompts
from plaudit.models.lab_text import LabTokenModel
from plaudit.recipe.load import load
from plaudit.recipe.schema import Recipe
from plaudit.rewards.rules.length_history import ShorterThanBefore
from plaudit.sampling.noise import SampleKey
from plaudit.train import loop
from plaudit.train.collect import Rollout, collect, step_prompts
from plaudit.train.setup import Setup, prepare

SIZE = 6


def small(folder: Path, name: str, *layers: dict) -> Recipe:
    """The shipped recipe, with few samples and little to measure."""
    short = {
        "train": {"steps": 3, "minutes": None, "prompts_per_step": 4, "samples_per_prompt": SIZE},
        "evaluate": {"every": 100, "prompts": 2, "final_prompts": 2},
        "run": {"folder": str(folder), "name": "toy", "save_every": 1, "threads": 1},
    }
    return load([name, short, *layers])


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "cheap_checks", lambda setup: [])
    torch.set_num_threads(1)


def right(rollout: Rollout) -> list[bool]:
    """Judged by reading, not by the reward."""
    texts = zip(rollout.outputs, rollout.prompts, strict=True)
    return [read(text, prompt.facts["operands"]).correct for text, prompt in texts]


def lengths(rollout: Rollout) -> list[int]:
    """Characters, and the end where there is one."""
    return rollout.batch.completions.length.tolist()


def groups(values: list) -> list[list]:
    return [values[i : i + SIZE] for i in range(0, len(values), SIZE)]


# --- DLER ------------------------------------------------------------------------------------------------------------


def test_the_limit_is_two_fifths_of_the_base_models_length() -> None:
    limit = load("sums-dler").rewards["correct"].arguments["limit"]
    found = attempts(LabTokenModel(), evaluation_prompts("heldout", 192), temperature=1.0)
    drawn = [len(attempt.text) + 1 for attempt in found]
    error = statistics.stdev(drawn) / math.sqrt(len(drawn))
    assert limit == pytest.approx(0.4 * statistics.fmean(drawn), abs=0.4 * 3 * error) and error < 2


def expected_groups(setup: Setup, step: int, rounds: int, wanted: int, limit: int) -> tuple[list, list]:
    """Refilling written down: (prompt, texts, scores) of every group with contrast, and of those without, in the order
    in which they come up. Every group is drawn by itself."""
    kept, equal, seen = [], [], {}
    for turn in range(1 + rounds):
        for prompt in step_prompts(setup, step, turn)[: wanted - len(kept)]:
            start = seen.get(prompt.id, 0)
            seen[prompt.id] = start + SIZE
            keys = [SampleKey(seed=0, step=step, prompt=prompt.id, index=start + i) for i in range(SIZE)]
            pieces = list(setup.drawer.training([prompt] * SIZE, keys, [keys[0]] * SIZE))
            piece = setup.drawer.join(pieces)
            scores = [
                float(read(text, prompt.facts["operands"]).correct and len(ids) <= limit)
                for text, ids in zip(piece.outputs, piece.ids, strict=True)
            ]
            (kept if len(set(scores)) > 1 else equal).append((prompt.id, list(piece.outputs), scores))
        if len(kept) == wanted:
            break
    return kept, equal


@pytest.mark.parametrize(("limit", "rounds"), ((14, 3), (40, 2)))
def test_refilled_groups_and_their_batch_deviation_are_the_loops(limit: int, rounds: int, tmp_path: Path) -> None:
    """Filtered is the score after truncation; the deviation is that of the batch as it was refilled."""
    layers = {"rewards": {"correct": {"arguments": {"limit": limit}}}, "train": {"refill": rounds}}
    setup = prepare(small(tmp_path, "sums-dler", layers))
    rollout = collect(setup, step=1, version=0)
    with torch.no_grad():
        kept, equal = expected_groups(setup, 1, rounds, 4, limit)
    chosen = (kept + equal)[:4]
    assert equal and kept, "something is replaced"
    assert [prompt.id for prompt in rollout.prompts[::SIZE]] == [prompt for prompt, _, _ in chosen]
    assert groups(list(rollout.outputs)) == [texts for _, texts, _ in chosen]
    scores = [score for _, _, own in chosen for score in own]
    assert rollout.scored.total.tolist() == scores
    assert rollout.dropped == len(kept) + len(equal) - 4
    ids = [i for i in range(4) for _ in range(SIZE)]
    expected = by_loops(scores, ids, std="pooled", floor=1e-3, clip=None)
    assert rollout.batch.credit.value.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    by_group = by_loops(scores, ids, std="group", floor=1e-3, clip=None)
    assert max(abs(a - b) for a, b in zip(expected, by_group, strict=True)) > 0.1
    truncated = [r != bool(s) for r, s in zip(right(rollout), scores, strict=True)]
    assert any(truncated), "some right answers were too long"


def test_difficulty_aware_limits_on_tokens(tmp_path: Path) -> None:
    """DA-DLER: the short limit where half of a group is right within the long one."""
    arguments = {"short": 30, "long": 60, "rate": 0.5, "correct": {"type": "sum_correct"}}
    tiers = {"rewards": {"correct": None, "tiers": {"type": "correct_within_tiers", "arguments": arguments}}}
    rollout = collect(prepare(small(tmp_path, "sums-dler", tiers, {"train": {"refill": 0}})), step=0, version=0)
    used = []
    rows = zip(groups(right(rollout)), groups(lengths(rollout)), groups(rollout.scored.total.tolist()), strict=True)
    for own, long, scores in rows:
        rate = sum(r and n <= 60 for r, n in zip(own, long, strict=True)) / SIZE
        used.append(30 if rate >= 0.5 else 60)
        assert scores == [float(r and n <= used[-1]) for r, n in zip(own, long, strict=True)]
    assert set(used) == {30, 60} and rollout.scored.total.sum() > 0


# --- GRPO-lambda -----------------------------------------------------------------------------------------------------


def test_only_the_best_solved_groups_are_pressed(tmp_path: Path) -> None:
    recipe = small(tmp_path, "sums-grpo-lambda", {"train": {"prompts_per_step": 8}})
    rollout = collect(prepare(recipe), step=3, version=0)
    scores = rollout.scored.scores["short"]
    pressed = [bool(score.components["pressed"]) for score in scores[::SIZE]]
    rates = [sum(own) / SIZE for own in groups(right(rollout))]
    assert sum(pressed) == 2 and all(
        a == b for own in groups([s.components["pressed"] for s in scores]) for a, b in [own[:2]]
    )
    on, off = ([rate for rate, p in zip(rates, pressed, strict=True) if p is which] for which in (True, False))
    assert min(on) >= max(off) and min(on) > 0
    rows = zip(
        groups(right(rollout)), groups(lengths(rollout)), groups(rollout.scored.total.tolist()), pressed, strict=True
    )
    for own, long, values, hard in rows:
        mine = [n for r, n in zip(own, long, strict=True) if r]
        for r, n, value in zip(own, long, values, strict=True):
            z = (n - statistics.fmean(mine)) / max(statistics.pstdev(mine), 1e-4) if r else 0.0
            price = 0.6 / (1 + math.exp(-z)) if hard and len(mine) > 1 else 0.0
            assert value == pytest.approx(1 - price if r else 0.0)


def test_which_of_equally_solved_groups_are_pressed_is_a_function_of_the_step(tmp_path: Path) -> None:
    """The draw among ties comes from the step and the prompts, so that neither a kill nor what was drawn before matters."""
    recipe = small(tmp_path, "sums-grpo-lambda", {"train": {"prompts_per_step": 8, "samples_per_prompt": 2}})

    def pressed(setup: Setup, step: int) -> list[bool]:
        scores = collect(setup, step=step, version=0).scored.scores["short"]
        return [bool(score.components["pressed"]) for score in scores]

    going_on = prepare(recipe)
    seen = [pressed(going_on, step) for step in range(3)]
    assert seen[2] == pressed(prepare(recipe), 2) and any(seen[2])
    assert len({tuple(row) for row in seen}) == 3


# --- memory and resuming ---------------------------------------------------------------------------------------------


def state(root: Path) -> dict:
    return json.loads((storage.latest_snapshot(root / "checkpoints") / storage.META).read_text())["rewards"]["memory"]


def left(root: Path) -> dict[str, bytes]:
    tensors = storage.latest_snapshot(root / "checkpoints") / storage.TENSORS
    return {path.name: path.read_bytes() for path in (root / "metrics.jsonl", tensors)}


def in_two(folder: Path, name: str, *layers: dict) -> Path:
    for steps, resume in ((1, False), (3, True)):
        recipe = small(folder, name, *layers, {"train": {"steps": steps}})
        root = loop.train(recipe, resume=resume).folder
    return root


FEW = {"train": {"prompts_per_step": 3, "samples_per_prompt": 4}}
LAYERS = {
    "sums-hapo": [FEW, {"prompts": {"problems": 3}}],  # every problem comes up at every step
    "sums-grpo-lambda": [FEW],
    "sums-dler": [FEW, {"train": {"refill": 1}, "rewards": {"correct": {"arguments": {"limit": 40}}}}],
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_run_in_two_pieces_is_the_run_in_one(name: str, tmp_path: Path) -> None:
    """Bit for bit: metrics, weights, optimiser and what the rewards remember."""
    whole = loop.train(small(tmp_path / "whole", name, *LAYERS[name])).folder
    pieces = in_two(tmp_path / "pieces", name, *LAYERS[name])
    assert left(whole) == left(pieces) and state(whole) == state(pieces)
    metrics = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == [1, 2, 3] and any(row["grad_norm"] > 1e-4 for row in metrics)


def test_a_history_that_is_lost_at_a_resume_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pitfall 45, so that the test above can fail: without its memory HAPO's second piece begins with first visits."""
    layers = LAYERS["sums-hapo"]
    whole = loop.train(small(tmp_path / "whole", "sums-hapo", *layers)).folder
    remembered = {key: n for key, n in state(whole)["rewards"]["concise"]["shortest"]}
    assert 1 <= len(remembered) <= 3 and all(n > 1 for n in remembered.values()), "measuring is not remembered"
    monkeypatch.setattr(ShorterThanBefore, "load_state", lambda self, state: None)
    assert left(whole) != left(in_two(tmp_path / "pieces", "sums-hapo", *layers))


@pytest.mark.parametrize("name", ("sums-drpo", "sums-luspo"))
def test_the_later_updates_of_a_step_have_moved(name: str, tmp_path: Path) -> None:
    """Otherwise neither a clip range nor a barrier would ever act."""
    root = loop.train(small(tmp_path, name, {"train": {"steps": 2}})).folder
    for row in (json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()):
        assert row["ratio/deviation"] > 10 * row["ratio/first_step_max_dev"] and row["grad_norm"] > 1e-4
        parts = sum(value for key, value in row.items() if key.startswith("loss/"))
        assert row["loss"] == pytest.approx(parts, abs=1e-9)
