"""What every world of the lab must be: one test over all rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from plaudit.audit.compare_search import compare_search, defaults_of
from plaudit.data.prompt import Prompt
from plaudit.data.sources import PromptSource, load_prompts
from plaudit.dotted import import_dotted
from plaudit.errors import RecipeError
from plaudit.lab.edits.grammar import sample_edits
from plaudit.lab.scenes.render import rasterise, sample_scenes
from plaudit.lab.sums.check import read_facts
from plaudit.lab.sums.traces import sample_trace
from plaudit.models.build import build_model
from plaudit.models.flow import decoded
from plaudit.recipe.load import load
from plaudit.recipe.models import LabModel
from plaudit.recipe.rewards import RewardConfig
from plaudit.rewards.load import Reward, load_reward
from plaudit.sampling.drawers import generate, make_drawer
from plaudit.worlds import NETWORKS, WORLDS, World

ROWS = list(WORLDS.values())
NAMES = [world.name for world in ROWS]
WORLD = pytest.mark.parametrize("world", ROWS, ids=NAMES)


def right_answers(world: World, prompts: list[Prompt]) -> Tensor | list[str]:
    """True by construction."""
    rng = np.random.default_rng(5)
    if world.name == "scenes":
        return rasterise(sample_scenes(prompts, rng))
    if world.name == "edits":
        return rasterise(torch.stack([edit.target for edit in edits()]))
    traces = [[sample_trace(prompt, rng).text for _ in range(40)] for prompt in prompts]
    return [
        next(text for text in row if read_facts(text, p.facts).correct) for row, p in zip(traces, prompts, strict=True)
    ]


def edits() -> list:
    return sample_edits("train", 10, np.random.default_rng([0, 3, 1]))


def source(world: World) -> PromptSource:
    return load_prompts(load(world.recipe).prompts)


def reward(name: str) -> Reward:
    return load_reward("judge", RewardConfig(type=name))


def scores(name: str, prompts: list[Prompt], outputs: Tensor | list[str]) -> list[float]:
    return [score.value for score in reward(name)(prompts, outputs)]


@WORLD
def test_prompts_are_a_function_of_step_and_seed_and_splits_share_none(world: World) -> None:
    one = source(world)
    first, again, later = one.batch(3, 10, 0), source(world).batch(3, 10, 0), one.batch(4, 10, 0)
    assert [p.key for p in first] == [p.key for p in again] != [p.key for p in later]
    assert all(prompt.facts["category"] for prompt in first)
    assert [p.key for p in first] != [p.key for p in one.batch(3, 10, 1)]
    held = one.evaluation(40)
    assert all(len({p.id for p in prompts}) == len({p.key for p in prompts}) for prompts in held.values())
    shown = [{p.id for p in prompts} for prompts in held.values()] + [
        {p.id for s in range(40) for p in one.batch(s, 32, 0)}
    ]
    assert all(not a & b for i, a in enumerate(shown) for b in shown[:i])
    assert [p.id for p in one.evaluation(12)["heldout"]] == [p.id for p in held["heldout"][:12]]


@WORLD
def test_the_truth_knows_right_from_wrong(world: World) -> None:
    prompts = source(world).batch(3, 10, 0)
    right = right_answers(world, prompts)
    assert scores(world.truth, prompts, right) == [1.0] * 10
    wrong = right.roll(1, 0) if isinstance(right, Tensor) else [*right[-1:], *right[:-1]]
    assert np.mean(scores(world.truth, prompts, wrong)) <= 0.2
    card = reward(world.truth).card
    assert card is not None and card.verdict


@WORLD
def test_the_flawed_judge_can_be_fooled(world: World) -> None:
    """It scores something false above something true, and its card says that it is flawed."""
    card = reward(world.judges[0]).card
    assert card is not None and "law" in card.summary, card
    prompts = source(world).batch(3, 10, 0)
    right = right_answers(world, prompts)
    if world.name == "scenes":
        fooled, duller = right, (0.8 * right).clamp(0, 1)
        assert np.mean(scores(world.judges[0], prompts, fooled)) > np.mean(scores(world.judges[0], prompts, duller))
    elif world.name == "edits":
        untouched = torch.stack([prompt.inputs["source"] for prompt in prompts])
        assert min(scores(world.judges[0], prompts, untouched)) >= 0.6
        assert scores(world.truth, prompts, untouched) == [0.0] * 10
    else:
        padded = [text.replace("#", "1+1=2;" * 8 + "#", 1) for text in right]
        assert np.mean(scores(world.judges[0], prompts, padded)) > np.mean(scores(world.judges[0], prompts, right))


@pytest.mark.parametrize("network", NETWORKS)
def test_its_networks_load_and_draw_what_its_truth_can_judge(network: str) -> None:
    world = NETWORKS[network]
    recipe = load([world.recipe, {"model": {"type": "lab", "name": network}}])
    assert LabModel(name=network).family == world.family == recipe.model.family
    prompts = source(world).evaluation(8)["heldout"]
    drawer = make_drawer(build_model(recipe.model), recipe.sampler, recipe.evaluate.sampler)
    found = scores(world.truth, prompts, generate(drawer, prompts, 0).outputs)
    assert len(found) == 8 and all(value in (0.0, 1.0) for value in found)


@pytest.mark.parametrize("network", [name for name, world in NETWORKS.items() if world.family == "flow"])
def test_what_its_networks_of_pictures_are_pretrained_on_is_true(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plaudit.lab.edits.network.POOL", 100)
    made = import_dotted(NETWORKS[network].networks[network], network)
    latents, prompts = made.examples(24, np.random.default_rng(2))
    assert scores(NETWORKS[network].truth, prompts, made.decode(latents).clamp(0, 1)) == [1.0] * 24
    again, _ = made.examples(24, np.random.default_rng(2))
    assert torch.equal(latents, again)


@WORLD
def test_it_is_searched_and_compared(world: World, tmp_path: Path) -> None:
    """By its row alone: prompts, sampler and rewards are those of the world."""
    network, known = next(iter(world.networks)), defaults_of(f"lab/{next(iter(world.networks))}", needed=True)
    assert (known.verifiers, known.truth, known.budgets) == (world.judges, world.truth, world.budgets)
    short = {"steps": 4} if world.family == "flow" else {"max_new_tokens": 24}
    page = compare_search(
        model=f"lab/{network}",
        verifiers=world.judges[:1],
        truth=world.truth,
        contestants=[],
        budgets=["8nfe" if world.family == "flow" else "60nfe"],
        seeds=[0],
        count=3,
        out=tmp_path,
        sampler=short,
    )
    assert page.is_file()


@WORLD
def test_its_recipe_trains_in_it(world: World) -> None:
    recipe = load(world.recipe)
    assert recipe.prompts.type == world.name and recipe.evaluate.reward.type == world.truth
    assert recipe.model.name in world.networks and recipe.rewards


def test_a_model_and_prompts_of_two_worlds_are_refused() -> None:
    with pytest.raises(
        RecipeError, match=r"prompts.type: scenes with model lab/edits, which answers prompts of edits; set"
    ):
        load(["slots-grpo", {"model": "lab/edits"}])


def test_two_sources_under_one_text_become_two_pictures() -> None:
    """Pitfall: conditions kept by text alone."""
    prompts = sample_edits("train", 2, np.random.default_rng(0), ("remove",))
    two = [edit.prompt for edit in prompts]
    two = [two[0], replace(two[0], inputs={"source": two[1].inputs["source"]})]
    model = build_model(LabModel(name="edits"))
    condition = model.encode(two)
    x = torch.randn(1, *model.latent_shape, generator=torch.manual_seed(0)).expand(2, -1, -1)
    with torch.no_grad():
        velocity = model.velocity(x, torch.full((2,), 0.7), condition)
    assert (velocity[0] - velocity[1]).abs().max() > 0.05
    assert decoded(model, x).shape == (2, 3, 32, 32)
