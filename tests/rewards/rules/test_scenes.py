"""The lab's exact rewards: whole captions and their parts, against pictures whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.lab.scenes.grammar import evaluation_prompts, find_prompt
from plaudit.lab.scenes.render import rasterise, sample_scenes
from plaudit.rewards.base import Score, Status
from plaudit.rewards.calling.call import call_reward
from plaudit.rewards.pinned.media import make
from plaudit.rewards.rules.scenes import ScenePart, scene_exact, scene_graded, scene_match


def scored(reward, caption: str, shown: str, *, seed: int = 1, **change) -> Score:
    picture = make({"scene": shown, "seed": seed, **change})
    return call_reward("mine", reward, [find_prompt(caption)], picture[None])[0]


def part(name: str, caption: str, shown: str, **rest) -> float:
    return scored(ScenePart(name), caption, shown, **rest).value


def test_match_is_the_mean_of_exact_and_graded_on_many_captions() -> None:
    prompts = evaluation_prompts("train", 48)
    pictures = rasterise(sample_scenes(prompts[::-1], np.random.default_rng(0)))  # of other captions
    exact, graded, match = (
        np.array([score.value for score in call_reward("mine", reward, prompts, pictures)])
        for reward in (scene_exact, scene_graded, scene_match)
    )
    np.testing.assert_allclose(match, (exact + graded) / 2)
    assert len(set(graded)) > 5


@pytest.mark.parametrize("name", ("count", "color", "shape", "relation"))
def test_every_part_of_a_true_picture_holds(name: str) -> None:
    prompts = evaluation_prompts("train", 60)
    scores = call_reward("mine", ScenePart(name), prompts, rasterise(sample_scenes(prompts, np.random.default_rng(1))))
    applicable = {
        "count": lambda facts: any(kind["count"] > 1 for kind in facts["objects"]),
        "relation": lambda facts: facts["relation"] is not None,
    }.get(name, lambda facts: True)
    for prompt, score in zip(prompts, scores, strict=True):
        assert score.status == (Status.OK if applicable(prompt.facts) else Status.NOT_APPLICABLE), prompt.text
        assert score.status is not Status.OK or score.value == 1
    assert sum(score.status is Status.OK for score in scores) >= 8


def test_a_part_does_not_depend_on_the_others() -> None:
    """Three blue circles for three green squares: the number is right and nothing else."""
    assert part("count", "three green squares", "three blue circles") == 1
    assert part("color", "three green squares", "three blue circles") == 0
    assert part("shape", "three green squares", "three blue circles") == 0
    assert part("color", "three green squares", "three green circles") == 1
    assert part("shape", "three green squares", "three red squares") == 1


def test_parts_are_shares_of_the_larger() -> None:
    assert part("count", "three green squares", "two green squares") == pytest.approx(2 / 3)
    assert part("count", "two green squares", "three green squares") == pytest.approx(2 / 3)
    assert part("color", "a red circle", "a red circle and a blue square") == pytest.approx(1 / 2)
    assert part("shape", "a red circle and a blue square", "a blue square") == pytest.approx(1 / 2)
    assert part("color", "two red circles and a blue square", "three red circles") == pytest.approx(2 / 3)


def test_the_relation_is_that_of_the_first_to_the_second() -> None:
    caption = "a red circle left of a blue square"
    assert part("relation", caption, caption) == 1
    assert part("relation", caption, "a red circle right of a blue square") == 0
    assert part("relation", caption, "a blue square right of a red circle") == 1
    assert part("relation", caption, "a red circle") == 0, "an object that is not there stands nowhere"


def test_smears_count_as_there_and_agree_with_nothing() -> None:
    """Blobs beside the true object must not be free."""
    picture = make({"scene": "a red circle", "seed": 1})
    smeared = picture.clone()
    smeared[:, :, 28:] = torch.tensor([0.90, 0.18, 0.16])[:, None, None]  # a red stripe: no object
    score = call_reward("mine", ScenePart("color"), [find_prompt("a red circle")], smeared[None])[0]
    assert score.value == pytest.approx(1 / 2)


@pytest.mark.parametrize("reward", (scene_exact, scene_graded, scene_match, ScenePart("color")))
def test_other_prompts_in_the_batch_are_not_applicable(reward) -> None:
    pictures = torch.stack([make({"scene": "a red circle", "seed": 1})] * 3)
    prompts = [Prompt(id="a", text="a horse"), find_prompt("a red circle"), Prompt(id="b", text="a cow")]
    scores = call_reward("mine", reward, prompts, pictures)
    assert [score.status for score in scores] == [Status.NOT_APPLICABLE, Status.OK, Status.NOT_APPLICABLE]
    assert scores[1].value == 1


def test_an_empty_picture_has_no_part() -> None:
    empty: Tensor = make({"shade": [0.08, 0.09, 0.12]})[None]
    for name in ("count", "color", "shape"):
        assert call_reward("mine", ScenePart(name), [find_prompt("three green squares")], empty)[0].value == 0
