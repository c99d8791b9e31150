"""Experiment files: those that ship are valid, the documented one is read, and mistakes are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.docs.pages import page, write_files

from plaudit.errors import RecipeError
from plaudit.recipe import load as loading
from plaudit.recipe.experiment import Experiment, find, load_experiment, shipped

SMALL: dict[str, Any] = {
    "claim": "one arm is better than the other one",
    "paper": None,
    "budget": {"steps": 3},
    "arms": {"a": {"recipe": "sums-grpo"}, "b": {"recipe": "sums-grpo", "overrides": {"train": {"lr": 1e-5}}}},
    "metrics": {"truth": {"of": "truth"}},
    "expect": [{"metric": "truth", "better": "a", "than": "b"}],
}


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_experiment_is_valid_and_measures_its_arms_alike(name: str) -> None:
    experiment = load_experiment(shipped()[name])
    trained = [arm for arm in experiment.arms if experiment.arms[arm].recipe is not None]
    measures = [
        (recipe.evaluate.reward, recipe.evaluate.final_prompts)
        for arm in trained
        for recipe in [experiment.recipe_of(arm, experiment.seeds[0])]
    ]
    if not name.startswith("S073"):  # its long answers are other prompts
        assert all(measure == measures[0] for measure in measures)
    assert {arm for one in experiment.expect for arm in (one.better, one.than)} - {"before"} <= set(experiment.arms)
    for arm in trained:
        assert experiment.recipe_of(arm, 1, quick=True).train.steps == 1


def test_the_documented_file_is_an_experiment(tmp_path: Path) -> None:
    write_files(page("docs/experiments.md"), tmp_path)
    experiment = load_experiment(tmp_path / "S999.yaml")
    recipe = experiment.recipe_of("short", 2)
    assert recipe.combine == "correct * (1 + brief)"
    assert (recipe.train.steps, recipe.train.minutes, recipe.run.seed, recipe.run.threads) == (40, None, 2, 1)
    assert str(experiment.expect[0]) == "short over plain by length"


def test_seconds_and_a_budget_per_prompt_become_the_recipes_limits() -> None:
    arms = {
        "a": {"recipe": "slots-nft", "budget": {"seconds": 30}},
        "b": {"recipe": "slots-prune", "verb": "search", "budget": {"per_prompt": "40nfe"}},
    }
    experiment = Experiment.model_validate(SMALL | {"arms": arms, "budget": None})
    assert experiment.recipe_of("a", 0).train.minutes == 0.5
    assert experiment.recipe_of("b", 0).search.budget == "40nfe"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sedes": [0, 1, 2]}, "sedes: unknown key; did you mean seeds?"),
        ({"seeds": [0, 1]}, "seeds is [0, 1]: list should have at least 3 items"),
        ({"seeds": [0, 1, 1]}, "seeds: every seed once"),
        ({"budget": {"steps": 3, "seconds": 4}}, "budget: give exactly one of steps, network_calls, seconds and per_prompt"),
        ({"budget": None}, "arms.a: no budget; give the experiment one, or the arm"),
        ({"budget": {"per_prompt": "9nfe"}}, "arms.a: a search has a budget `per_prompt`, training one of the others"),
        ({"metrics": {"truth": {"of": "accuracy"}}}, "metrics.truth.of: 'accuracy'; allowed: truth, best"),
        ({"expect": [{"metric": "truth", "better": "a", "than": "c"}]}, "expect[0]: 'c' is no arm; arms: a, b, or before"),
        ({"expect": [{"metric": "length", "better": "a", "than": "b"}]}, "expect[0].metric: 'length'; metrics: truth"),
        ({"expect": [{"metric": "truth", "better": "a", "than": "a"}]}, "expect[0]: a cannot be better than itself"),
        ({"arms": {"a/b": {"recipe": "sums-grpo"}}, "expect": [{"metric": "truth", "better": "a/b", "than": "before"}]},
         "arms: 'a/b' names a folder"),
        ({"arms": SMALL["arms"] | {"b": {"recipe": "sums-grpoo"}}}, "arms.b: recipe 'sums-grpoo': no such file"),
        ({"arms": SMALL["arms"] | {"b": {"recipe": "sums-sft", "overrides": {"train": {"lrr": 1}}}}}, "did you mean `train.lr`?"),
        ({"arms": SMALL["arms"] | {"b": {}}}, "arms.b: give either `recipe` or `function`"),
        ({"findings": {"shown": "it is 12 % better"}}, "findings: shown: '12 %' is a figure typed by hand"),
        ({"findings": {"proven": "it is better"}}, "findings.proven"),
        ({"system": "S102"}, "system: S102; its file is called S102.yaml"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_their_key(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(loading.text.render(SMALL | change), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_experiment(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_experiments_are_found_by_their_name_by_their_system_and_by_path(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(loading.text.render(SMALL), encoding="utf-8")
    assert list(find(["S101", str(mine)])) == ["S101", "mine"]
    with pytest.raises(RecipeError, match=r"experiment 'S1010': did you mean S101\?"):
        find(["S1010"])
