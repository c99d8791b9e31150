"""What every objective owes, whatever it computes: one row here, and it is held to all of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from tests.reference.token_toys import sums_recipe
from tests.reference.toys import GRPO, paired_recipe, toy_recipe
from torch import Tensor

from plaudit import storage
from plaudit.recipe.objectives import Objective
from plaudit.recipe.schema import Recipe
from plaudit.train import loop
from plaudit.train.doctor.doctor import examine

Layers = list[dict[str, Any]]
SOFT = {"rewards": {"red": "tests.reference.toys:soft_redness"}}
OFFLINE = {"train": {"samples_per_prompt": 1, "prompts_per_step": 6, "micro_batch": 4}}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A short run of an objective, what makes it learn, and which of its numbers then moves which way."""

    base: Callable[..., Recipe]
    layers: Layers
    learning: Mapping[str, Any]
    rises: str = "reward"
    without_contrast: Layers | None = None  # what takes all credit away; None where there is none to take


def constant(prompts: list[str], outputs: Any) -> list[float]:
    return [0.3] * len(prompts)


def flat(prompts: list[str], outputs: Tensor) -> Tensor:
    """A constant with a gradient, which is zero."""
    return 0.3 + 0 * outputs.flatten(1).sum(1)


NO_COLOUR = [{"rewards": {"red": f"{__name__}:constant"}}]
NO_ANSWER = [{"rewards": {"correct": f"{__name__}:constant", "format": None, "brief": None}}]
FLOW = {"steps": 60, "prompts_per_step": 4, "samples_per_prompt": 8, "micro_batch": 64, "lr": 1e-2}
TEXT = {"steps": 6, "lr": 1e-3}
ROWS = {
    "nft": Row(base=toy_recipe, layers=[], learning=FLOW, without_contrast=NO_COLOUR),
    "grpo": Row(
        base=toy_recipe,
        layers=[GRPO, {"objective": {"kl": {"weight": 0.0}}}],
        learning=FLOW,
        without_contrast=NO_COLOUR,
    ),
    "grpo of texts": Row(base=sums_recipe, layers=[], learning=TEXT, without_contrast=NO_ANSWER),
    "gradient": Row(
        base=toy_recipe,
        layers=[{"objective": {"type": "gradient"}}, SOFT],
        learning=FLOW,
        without_contrast=[{"rewards": {"red": f"{__name__}:flat"}}],
    ),
    "drpo": Row(
        base=sums_recipe,
        layers=[
            {"objective": {"type": "drpo", "correct": "correct", "prefer": "brief", "barrier": 0.0}},
            {"rewards": {"format": None, "brief": {"weight": 0.0}}},
        ],
        learning=TEXT,
    ),
    "likelihood": Row(
        base=sums_recipe,
        layers=[
            {
                "objective": {"type": "likelihood", "reward": "likelihood"},
                "shaping": {"std": "loo"},
                "rewards": {"likelihood": {"type": "policy_likelihood", "arguments": {"delimiter": "#"}}}
                | {"correct": None, "format": None, "brief": None},
            }
        ],
        learning=TEXT,
    ),
    "dpo": Row(
        base=sums_recipe,
        layers=[{"prompts": {"problems": 12, "answers": "pairs"}, "objective": {"type": "dpo"}}, OFFLINE],
        learning=TEXT,
        rises="rewards/margins",
    ),
    "flow_dpo": Row(
        base=paired_recipe,
        layers=[{"objective": {"type": "flow_dpo", "beta": 20.0}}],
        learning={"steps": 60, "lr": 1e-2},
        rises="rewards/margins",
    ),
    "rwr": Row(
        base=paired_recipe,
        layers=[{"objective": {"type": "rwr", "temperature": 0.2}}],
        learning={"steps": 60, "lr": 1e-2},
        rises="-error/chosen",
    ),
    "sft": Row(
        base=sums_recipe,
        layers=[{"prompts": {"problems": 12, "answers": "demonstrations"}, "objective": {"type": "sft"}}, OFFLINE],
        learning=TEXT | {"lr": 3e-3},
        rises="-loss",
    ),
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def recipe(name: str, folder: Path, *layers: dict[str, Any]) -> Recipe:
    return ROWS[name].base(folder, *ROWS[name].layers, *layers)


def metrics(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]


def weights(root: Path) -> dict[str, Tensor]:
    tensors, _ = storage.read_snapshot(storage.latest_snapshot(root / "checkpoints"))
    return {name: tensor for name, tensor in tensors.items() if name.startswith("current.")}


def test_every_objective_has_a_row() -> None:
    kinds = {get_args(kind.model_fields["type"].annotation)[0] for kind in get_args(get_args(Objective)[0])}
    assert {name.split(" of ")[0] for name in ROWS} == kinds - {"custom"}  # which has docs/objectives.md


@pytest.mark.parametrize("name", ROWS)
def test_prolonged_is_uninterrupted(name: str, tmp_path: Path) -> None:
    """Bit for bit, and every step has learned something."""
    whole = loop.train(recipe(name, tmp_path / "whole")).folder
    loop.train(recipe(name, tmp_path / "pieces", {"train": {"steps": 1}}))
    pieces = loop.train(recipe(name, tmp_path / "pieces"), resume=True).folder
    assert (pieces / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    tensors = [storage.latest_snapshot(root / "checkpoints") / storage.TENSORS for root in (whole, pieces)]
    assert tensors[0].read_bytes() == tensors[1].read_bytes()
    rows = metrics(whole)
    assert [row["step"] for row in rows] == [1, 2, 3] and max(row["grad_norm"] for row in rows) > 1e-4
    for row in rows:
        parts = [value for key, value in row.items() if key.startswith("loss/")]
        assert row["loss"] == pytest.approx(sum(parts), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", ROWS)
def test_micro_batches_change_rounding_alone(name: str, tmp_path: Path) -> None:
    """Of the gradient: weights after an optimiser's step would show its sign only."""
    norms = {
        size: metrics(
            loop.train(recipe(name, tmp_path / str(size), {"train": {"steps": 1, "micro_batch": size}})).folder
        )[0]
        for size in (2, 5, 64)
    }
    assert norms[64]["grad_norm"] > 1e-5
    for size in (2, 5):
        assert norms[size]["grad_norm"] == pytest.approx(norms[64]["grad_norm"], rel=2e-4)
        assert norms[size]["loss"] == pytest.approx(norms[64]["loss"], rel=2e-4, abs=1e-6)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.without_contrast])
def test_without_credit_nothing_moves(name: str, tmp_path: Path) -> None:
    row = ROWS[name]
    root = loop.train(recipe(name, tmp_path, *row.without_contrast or [])).folder
    assert all(line["grad_norm"] == pytest.approx(0, abs=1e-7) for line in metrics(root))


@pytest.mark.parametrize("name", ROWS)
def test_a_toy_is_learned(name: str, tmp_path: Path) -> None:
    row = ROWS[name]
    rare = {"train": dict(row.learning), "evaluate": {"every": 1000}, "run": {"save_every": 1000}}
    rows = metrics(loop.train(recipe(name, tmp_path, rare)).folder)
    key, sign = row.rises.lstrip("-"), -1 if row.rises.startswith("-") else 1
    few = max(len(rows) // 8, 1)
    first, last = (sign * np.mean([line[key] for line in part]) for part in (rows[:few], rows[-few:]))
    assert last > first + 0.01, (first, last)


@pytest.mark.parametrize("name", ROWS)
def test_the_doctor_finds_nothing_wrong(name: str, tmp_path: Path) -> None:
    wrong = {check.name: check.value for check in examine(recipe(name, tmp_path)) if check.passed is False}
    assert wrong == {}
