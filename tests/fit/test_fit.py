"""A fitted reward: it learns, resumes, is split as one likes, comes from files, and is then a reward like any other."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.reference.toys import png

from plaudit.errors import DataError, RecipeError
from plaudit.fit.data import pairs_of, rendered
from plaudit.fit.fit import fit_reward, prepare
from plaudit.lab.scenes.check import check
from plaudit.lab.scenes.grammar import evaluation_prompts, sample_prompts
from plaudit.lab.scenes.render import rasterise, sample_scenes
from plaudit.recipe.experiment import load_experiment, shipped
from plaudit.recipe.fit import Fit, Head
from plaudit.recipe.load import load
from plaudit.recipe.rewards import RewardConfig
from plaudit.recipe.schema import Recipe
from plaudit.rewards.learned.fitted import RewardNetwork, head_of
from plaudit.rewards.load import load_reward
from plaudit.train.checkpoint import Progress
from plaudit.verbs import fit

SMALL = {
    "fit": {"data": {"type": "scenes", "pairs": 200}},
    "train": {"steps": 6, "prompts_per_step": 16},
    "evaluate": {"every": 3, "final_prompts": 40},
    "run": {"save_every": 2, "threads": 1},
}

LONGER = {
    "fit": {"data": {"pairs": 1500}, "trunk": "lab"},
    "train": {"steps": 150, "prompts_per_step": 32, "lr": 1e-2},
    "evaluate": {"every": 75, "final_prompts": 120},
}


def recipe(folder: Path, *layers: dict) -> Recipe:
    return load(["scenes-reward", SMALL, {"run": {"folder": str(folder)}}, *layers])


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(recipe(tmp_path_factory.mktemp("fit"), LONGER), quiet=True).folder


def test_it_learns_the_order_of_pairs_that_it_never_saw(fitted: Path) -> None:
    summary = json.loads((fitted / "summary.json").read_text())
    assert summary["before"] < 0.65 < summary["after"] and summary["gain_low"] > 0
    rows = [json.loads(line) for line in (fitted / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 150 and rows[-1]["loss"] < rows[0]["loss"] and all(row["grad_norm"] > 0 for row in rows)
    page = (fitted / "report.html").read_text()
    assert f"plaudit fit {fitted}" in page and "Missing" not in page and "Cannot be judged" not in page


def test_it_is_a_reward_by_its_path(fitted: Path) -> None:
    prompts = evaluation_prompts("heldout", 60)
    pictures = rasterise(sample_scenes(prompts, np.random.default_rng(9)))
    mine = load_reward("mine", RewardConfig(type="fitted", arguments={"path": str(fitted)}))
    right, wrong = (
        np.array([score.value for score in mine(prompts, shown)]) for shown in (pictures, pictures.roll(7, 0))
    )
    assert (right > wrong).mean() > 0.65
    assert mine.card is not None and mine.card.differentiable
    pictures.requires_grad_(True)
    mine.caller.function([prompt.text for prompt in prompts], pictures).sum().backward()
    assert pictures.grad.abs().sum() > 0


def test_a_killed_fit_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = fit_reward(recipe(tmp_path / "whole")).folder
    fit_reward(recipe(tmp_path / "part", {"train": {"steps": 3}}))
    part = fit_reward(recipe(tmp_path / "part"), resume=True).folder
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert (whole / name).read_text() == (part / name).read_text()
    assert (whole / "final" / "reward.safetensors").read_bytes() == (part / "final" / "reward.safetensors").read_bytes()
    assert load_file(whole / "final" / "reward.safetensors").keys() >= {"head.0.weight", "trunk.enter.weight"}


def test_how_pairs_are_split_changes_no_update(tmp_path: Path) -> None:
    found = []
    for size in (1, 5, 16):
        plan = recipe(tmp_path, {"train": {"micro_batch": size}})
        found.append(prepare(plan, plan.fit).step(Progress()).metrics)
    for other in found[1:]:
        assert other["loss"] == pytest.approx(found[0]["loss"], rel=1e-5)
        assert other["grad_norm"] == pytest.approx(found[0]["grad_norm"], rel=1e-4)


def test_a_frozen_encoder_stays_as_it_is_and_only_the_head_learns(fitted: Path) -> None:
    assert all(name.startswith("head.") for name in load_file(fitted / "final" / "reward.safetensors"))


@pytest.mark.parametrize(("layers", "shapes"), ((1, [(1, 5)]), (2, [(7, 5), (1, 7)]), (3, [(7, 5), (7, 7), (1, 7)])))
def test_heads_are_linear_layers_with_silu_between(layers: int, shapes: list[tuple[int, int]]) -> None:
    head = head_of(5, Head(layers=layers, width=7))
    linear = [layer for layer in head if isinstance(layer, torch.nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in linear] == shapes
    x = torch.randn(3, 5)
    by_hand = x
    for number, layer in enumerate(linear):
        by_hand = layer(torch.nn.functional.silu(by_hand) if number else by_hand)
    torch.testing.assert_close(head(x), by_hand)


# --- data ------------------------------------------------------------------------------------------------------------


def test_of_a_rendered_pair_one_is_true_and_the_noise_swaps_its_share() -> None:
    prompts = sample_prompts("train", 400, np.random.default_rng(0))
    pairs = rendered(prompts, np.random.default_rng(1), 0.25)
    better, worse = (np.array([v.correct for v in check(side, prompts)]) for side in (pairs.better, pairs.worse))
    assert (better != worse).mean() > 0.98
    assert 0.18 < worse.mean() < 0.32


def rows(folder: Path, count: int) -> Path:
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        (folder / f"{name}.png").write_bytes(png(colour))
    lines = [{"prompt": f"caption {i}", "chosen": "red.png", "rejected": "blue.png"} for i in range(count)]
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_preferences_of_a_file_are_split_by_prompt(tmp_path: Path) -> None:
    data = {"type": "file", "path": str(rows(tmp_path, 40))}
    split = pairs_of(Fit.model_validate({"data": data}), heldout=100, seed=0)
    sides = [{prompt.text for prompt in side.prompts} for side in (split.train, split.heldout)]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 40 and 2 <= len(sides[1]) <= 16
    assert (split.train.better[:, 0] == 1).all() and (split.train.worse[:, 2] == 1).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fit": {"heldout": 0.0}}, "of which 0 are held out; both sides need some"),
        ({"fit": {"data": {"path": "texts.jsonl"}}}, "is of texts; rewards are fitted to pictures"),
    ],
)
def test_data_that_cannot_be_fitted_to_is_refused(tmp_path: Path, change: dict, said: str, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = rows(tmp_path, 12)
    (tmp_path / "texts.jsonl").write_text(
        "".join(json.dumps({"prompt": f"p {i}", "chosen": "yes", "rejected": "no"}) + "\n" for i in range(12))
    )
    plan = recipe(tmp_path, {"fit": {"data": {"type": "file", "path": str(path)}}}, change)
    with pytest.raises(DataError, match=said):
        prepare(plan, plan.fit)


def test_a_recipe_that_fits_nothing_and_a_folder_without_a_reward_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"fit: the recipe says nothing of it.*scenes-reward"):
        fit_reward(load("slots-nft"))
    with pytest.raises(RecipeError, match=r"fitted: .* holds no fitted reward"):
        load_reward("mine", RewardConfig(type="fitted", arguments={"path": str(tmp_path)}))


def test_the_network_of_a_seed_is_always_the_same(tmp_path: Path) -> None:
    plans = [recipe(tmp_path, {"run": {"seed": seed}}) for seed in (0, 0, 1)]
    first, again, other = (prepare(plan, plan.fit).network.head[0].weight for plan in plans)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert isinstance(prepare(plans[0], plans[0].fit).network, RewardNetwork)


def test_an_ensemble_orders_by_mean_scores_and_its_members_are_right_one_by_one(monkeypatch) -> None:
    load_experiment(shipped()["S116-ensemble"])
    ensemble = importlib.import_module("fitted_ensemble")
    gaps = [torch.tensor(gap, dtype=torch.float64) for gap in ([2.0, -1.0, 0.0, 1.0], [-1.0, -1.0, 3.0, -1.0])]
    monkeypatch.setattr(ensemble, "_gaps", lambda paths, quick: gaps)
    assert ensemble.ensemble([], 0, False) == {"truth": {"0": 1.0, "1": 0.0, "2": 1.0, "3": 0.5}}
    assert ensemble.members([], 0, False) == {"truth": {"0": 0.5, "1": 0.0, "2": 0.75, "3": 0.5}}
