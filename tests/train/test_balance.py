"""The noise of the steps that is found before training: the rule by hand, its rounds, and a run that keeps what it found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.reference.toys import GRPO, toy_recipe
from torch import Tensor

from plaudit.errors import RecipeError
from plaudit.recipe.sampling import Balance
from plaudit.train import balance, loop
from plaudit.train.setup import prepare

BALANCED = {
    **GRPO,
    "sampler": {"kernel": "constant_eta", "level": 0.3, "steps": 4, "level_schedule": "balanced"}
    | {"balance": {"samples": 6, "rounds": 3, "move": 0.125}},
}


def column(*values: float) -> Tensor:
    return torch.tensor(values)


def test_a_step_that_gains_as_often_as_it_loses_gets_more_noise_and_any_other_less() -> None:
    config = Balance(move=0.1, tolerance=2)
    rose, fell = column(5, 5, 7, 3, 5, 5), column(5, 6, 5, 5, 5, 7)
    found = balance.moved(column(0.5, 0.5, 0.5, 0.5, 0.95, 0.15), rose, fell, config, largest=1.0)
    torch.testing.assert_close(found, column(0.6, 0.6, 0.4, 0.4, 1.0, 0.1))


def test_every_round_draws_anew_with_the_levels_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = prepare(toy_recipe(tmp_path, BALANCED))
    seen = []

    def worth(setup, completion, samples, prompts, group, total):
        seen.append((samples.trace.levels[0].tolist(), samples.trace.states.sum().item()))
        gains = torch.zeros(len(prompts), 3)
        gains[:, 0] = column(1, -1, 1, -1, 1, -1)  # even: more
        gains[:, 1] = column(1, 1, 1, 1, 1, -1)  # rising: less
        gains[:, 2] = column(1, -1, float("nan"), 0, 0, 0)  # what is missing, or does not move, is on neither side
        return torch.cat([torch.zeros(len(prompts), 1), gains.cumsum(1)], 1), 10, 20

    monkeypatch.setattr(balance, "worth_of_states", worth)
    found = balance.balance_noise(setup)
    torch.testing.assert_close(
        torch.tensor([levels for levels, _ in seen]),
        torch.tensor([[0.3, 0.3, 0.3], [0.425, 0.175, 0.425], [0.55, 0.125, 0.55]]),
    )
    torch.testing.assert_close(setup.drawer.levels, column(0.675, 0.125, 0.675, 0.3))
    assert len({total for _, total in seen}) == 3
    assert found.rose == [[3, 5, 1]] * 3 and found.fell == [[3, 1, 1]] * 3
    assert found.reward_calls == 3 * (6 + 20) and found.network_calls == 3 * (6 * 4 + 10)


def test_gains_are_counted_as_completion_finds_them(tmp_path: Path) -> None:
    """Both signs come up, and no more of them than there are rollouts."""
    setup = prepare(toy_recipe(tmp_path, BALANCED))
    found = balance.balance_noise(setup)
    counts = torch.tensor([found.rose, found.fell])
    assert (counts.sum(0) <= 6).all() and (counts.sum((1, 2)) > 0).all()


def test_what_was_found_is_kept_and_trained_with(tmp_path: Path) -> None:
    whole = loop.train(toy_recipe(tmp_path / "whole", BALANCED)).folder
    part = loop.train(toy_recipe(tmp_path / "part", BALANCED, {"train": {"steps": 1}})).folder
    assert loop.train(toy_recipe(tmp_path / "part", BALANCED), resume=True).folder == part
    noise = json.loads((whole / "noise.json").read_text())
    assert len(set(noise["levels"])) > 1 and noise == json.loads((part / "noise.json").read_text())
    assert (whole / "metrics.jsonl").read_text() == (part / "metrics.jsonl").read_text()
    first = json.loads((whole / "metrics.jsonl").read_text().splitlines()[0])
    assert first["network_calls"] == 3 * 6 * (4 + 4 + 3 + 2) + 8 * 4


def test_a_start_that_was_killed_after_it_found_the_noise_is_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: object, **rest: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            loop.train(toy_recipe(tmp_path, BALANCED))
    assert (loop.train(toy_recipe(tmp_path, BALANCED)).folder / "noise.json").is_file()


@pytest.mark.parametrize("change", ({"kernel": "ode"}, {"level": 0}, {"window": {"size": 2}}))
def test_where_there_is_no_noise_to_find_it_is_refused(tmp_path: Path, change: dict) -> None:
    with pytest.raises(RecipeError, match=r"sampler.level_schedule: balanced|needs stochastic steps"):
        toy_recipe(tmp_path, BALANCED, {"sampler": change})
