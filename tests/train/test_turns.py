"""Rewards that learn: their losses by hand, whose turn it is, and runs of two networks that resume and split alike."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.reference.toys import GRPO, toy_recipe
from torch import Tensor, nn

from plaudit.data.prompt import Prompt
from plaudit.errors import RecipeError
from plaudit.lab.scenes.grammar import sample_prompts
from plaudit.recipe.load import load
from plaudit.recipe.turns import Turn, Turns
from plaudit.rewards.learned.adversarial import AdversarialProxy, Discriminator, References, hinge
from plaudit.train import loop
from plaudit.train.doctor import doctor
from plaudit.train.doctor.checks import admit
from plaudit.train.setup import prepare


class Grey:
    """References of one shade."""

    def of(self, prompts: Sequence[Prompt], step: int) -> Tensor:
        return torch.full((len(prompts), 3, 1, 1), 0.5 + 0.01 * (step % 3))


class Shade:
    """A toy that learns: a weight on the mean of a picture."""

    references = Grey()

    def __init__(self, start: float = 1.0) -> None:
        self.network = nn.Linear(1, 1)
        nn.init.constant_(self.network.weight, start)
        nn.init.zeros_(self.network.bias)

    def score(self, images: Tensor) -> Tensor:
        return self.network(images.flatten(1).mean(1, keepdim=True))[:, 0]

    def __call__(self, prompts: Sequence[str], outputs: Tensor) -> Tensor:
        return self.score(outputs).detach().double()

    def losses(self, prompts: Sequence[Prompt], references: Tensor, outputs: Tensor, step: int) -> Tensor:
        return hinge(self.score(references), self.score(outputs))

    def lead(self, prompts: Sequence[Prompt], references: Tensor, outputs: Tensor) -> Tensor:
        return (self.score(references) - self.score(outputs)).detach()


LEARNS = {
    **GRPO,
    "rewards": {"red": None, "shade": {"type": f"{__name__}:Shade", "learn": {"lr": 0.05, "updates": 2}}},
    "turns": {"order": [{"train": "shade", "steps": 2}, {"train": "policy"}]},
    "train": {"steps": 6},
}


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# --- losses ----------------------------------------------------------------------------------------------------------


def test_the_hinge_is_half_of_what_both_sides_lack() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, -0.25, 1.0])
    assert hinge(real, fake).tolist() == [0.0, 0.5 * (0.5 + 0.75), 0.5 * (2.0 + 2.0)]


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    return sample_prompts("train", 3, np.random.default_rng(0))


def test_the_discriminators_score_and_loss_weigh_picture_and_patches(prompts: list[Prompt]) -> None:
    reward, step = Discriminator(seed=4), 7
    real, fake = References("scenes").of(prompts, step), torch.rand(3, 3, 32, 32, generator=torch.manual_seed(0))

    def head(features: Tensor) -> Tensor:
        return reward.network(features)[..., 0]

    whole = [reward.encoder.embed_images(images) for images in (real, fake)]
    patches = [reward.encoder.embed_patches(images) for images in (real, fake)]
    expected = 0.7 * head(whole[1]) + 0.3 * head(patches[1]).mean(1)
    texts = [prompt.text for prompt in prompts]
    torch.testing.assert_close(reward(texts, fake), expected.double())
    one = hinge(head(whole[0]), head(whole[1]))
    many = hinge(head(patches[0]), head(patches[1])).mean(1)  # the lab's encoder has 64 patches: all of them take part
    torch.testing.assert_close(reward.losses(prompts, real, fake, step), one + 0.3 * many)
    torch.testing.assert_close(reward.lead(prompts, real, fake), reward(texts, real) - reward(texts, fake))


def test_only_the_proxys_last_layers_learn_and_by_the_odds_of_two_pictures(prompts: list[Prompt]) -> None:
    reward = AdversarialProxy()
    assert {name.partition(".")[0] for name, p in reward.network.named_parameters() if p.requires_grad} == {
        "late",
        "judge",
    }
    real = References("scenes").of(prompts, 0)
    fake = (1.3 * real).clamp(0, 1)
    loss = reward.losses(prompts, real, fake, 0)
    scores = [torch.special.logit(reward([prompt.text for prompt in prompts], images)) for images in (real, fake)]
    expected = -((scores[0] - scores[1]).sigmoid().log())
    torch.testing.assert_close(loss.double(), expected, rtol=1e-3, atol=1e-4)
    loss.sum().backward()
    assert reward.network.judge[0].weight.grad.abs().max() > 0 and reward.network.embed.weight.grad is None


@pytest.mark.parametrize("kind", (Discriminator, AdversarialProxy))
def test_gradients_of_the_losses_equal_finite_differences(kind: type, prompts: list[Prompt]) -> None:
    reward = kind()
    reward.network.double()
    real = References("scenes").of(prompts, 0).double()
    fake = (real * 0.7 + 0.1 * torch.rand(real.shape, generator=torch.manual_seed(1))).double()
    if kind is Discriminator:
        reward._seen = lambda images, seen=reward._seen: seen(images.float()).double()
    weight = next(p for p in reward.network.parameters() if p.requires_grad and p.ndim > 1)

    def loss() -> Tensor:
        return reward.losses(prompts, real, fake, 0).sum()

    loss().backward()
    place = divmod(int(weight.grad.flatten(1).abs().argmax()), weight.flatten(1).shape[1])
    with torch.no_grad():
        flat, eps = weight.view(weight.shape[0], -1), 1e-6
        flat[place] += eps
        above = loss().item()
        flat[place] -= 2 * eps
        below = loss().item()
    assert weight.grad.flatten(1)[place].item() == pytest.approx((above - below) / (2 * eps), rel=1e-4)


# --- references ------------------------------------------------------------------------------------------------------


def test_references_are_another_true_picture_at_every_step(prompts: list[Prompt]) -> None:
    from plaudit.lab.scenes.check import check

    found = References("scenes", seed=1)
    first, again, later = found.of(prompts, 0), References("scenes", seed=1).of(prompts, 0), found.of(prompts, 1)
    assert torch.equal(first, again) and not torch.equal(first, later)
    assert all(verdict.correct for verdict in check(later, prompts))


def test_references_from_a_file_belong_to_their_prompt(tmp_path: Path, prompts: list[Prompt]) -> None:
    from tests.reference.toys import png

    for name, colour in (("a", (255, 0, 0)), ("b", (0, 255, 0))):
        (tmp_path / f"{name}.png").write_bytes(png(colour))
    lines = [{"prompt": prompts[0].text, "pictures": ["a.png"]}, {"prompt": prompts[1].text, "pictures": ["b.png"]}]
    (tmp_path / "good.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = References(str(tmp_path / "good.jsonl")).of([prompts[1], prompts[0]], 3)
    assert found[:, :2].flatten(2).mean(2).tolist() == [[0.0, 1.0], [1.0, 0.0]]
    with pytest.raises(RecipeError, match="references: no row for the prompt"):
        References(str(tmp_path / "good.jsonl")).of([prompts[2]], 3)
    (tmp_path / "bad.jsonl").write_text(json.dumps({"prompt": "x", "pictures": "a.png"}))
    with pytest.raises(RecipeError, match=r"bad.jsonl line 1: give `prompt`, a text, and `pictures`, a list"):
        References(str(tmp_path / "bad.jsonl"))


# --- turns -----------------------------------------------------------------------------------------------------------


def test_a_cycle_is_gone_round() -> None:
    turns = Turns(order=(Turn(train="real", steps=2), Turn(train="policy")))
    assert [turns.at(step) for step in range(7)] == ["real", "real", "policy"] * 2 + ["real"]
    assert Turns().at(5) == "policy"


def test_in_its_turn_a_reward_learns_and_the_generator_does_not(tmp_path: Path) -> None:
    setup = prepare(toy_recipe(tmp_path, LEARNS))
    training, progress = loop.Alignment(setup), loop.Progress()

    def weights() -> list[Tensor]:
        return [p.detach().clone() for one in (setup.policy, setup.learners["shade"]) for p in one.trainable.values()]

    generator = len(setup.policy.trainable)
    for who in ("shade", "shade", "policy"):
        before, stepped = weights(), training.step(progress)
        moved = [not torch.equal(a, b) for a, b in zip(before, weights(), strict=True)]
        assert any(moved[:generator]) == (who == "policy") and any(moved[generator:]) == (who == "shade")
        assert stepped.metrics["turns/shade"] == float(who == "shade")
        assert ("loss" in stepped.metrics) == (who == "policy") and ("turns/shade_loss" in stepped.metrics) == (
            who == "shade"
        )
    assert progress.step == 3 and progress.updates == 1


@pytest.mark.parametrize(("start", "who"), ((1.0, "policy"), (-1.0, "shade")))
def test_behind_a_gate_a_reward_learns_where_it_is_fooled(tmp_path: Path, start: float, who: str) -> None:
    """The toy draws pictures darker than its references: who is paid for darkness is fooled."""
    changes = {"rewards": {"shade": {"arguments": {"start": start}}}, "turns": {"order": [], "gate": "shade"}}
    setup = prepare(toy_recipe(tmp_path, LEARNS, changes))
    with torch.no_grad():
        for parameter in setup.policy.model.network.parameters():
            parameter.zero_()
    setup.rewards.rewards[0].caller.function.references = type(
        "Bright", (), {"of": lambda self, p, s: torch.ones(len(p), 3, 1, 1)}
    )()
    metrics = loop.Alignment(setup).step(loop.Progress()).metrics
    assert metrics["turns/shade"] == float(who == "shade")
    assert (metrics["turns/shade_lead"] > 0) == (who == "policy")


def test_what_a_reward_learned_is_in_its_next_scores(tmp_path: Path) -> None:
    folder = loop.train(toy_recipe(tmp_path, LEARNS)).folder
    kept = load_file(folder / "rewards" / "shade.safetensors")
    assert kept["weight"].item() != 1.0
    measured = [
        json.loads(line)["rewards"]["shade"] for line in (folder / "evaluations.jsonl").read_text().splitlines()
    ]
    assert len(set(measured)) > 2  # before, on the way and after, of nearly the same pictures


def test_two_networks_resume_to_the_bit(tmp_path: Path) -> None:
    whole = loop.train(toy_recipe(tmp_path / "whole", LEARNS)).folder
    for steps in (1, 2, 4):
        part = loop.train(toy_recipe(tmp_path / "part", LEARNS, {"train": {"steps": steps}}), resume=steps > 1).folder
    part = loop.train(toy_recipe(tmp_path / "part", LEARNS), resume=True).folder
    assert rows(whole) == rows(part)
    for name in ("final/toy.safetensors", "rewards/shade.safetensors"):
        assert (whole / name).read_bytes() == (part / name).read_bytes()


def test_how_a_rollout_is_split_changes_no_update(tmp_path: Path) -> None:
    found = [
        loop.train(toy_recipe(tmp_path / str(size), LEARNS, {"train": {"steps": 2, "micro_batch": size}})).folder
        for size in (1, 3, 8)
    ]
    weights = [load_file(folder / "rewards" / "shade.safetensors")["weight"].item() for folder in found]
    assert weights == pytest.approx([weights[0]] * 3, rel=1e-5) and weights[0] != 1.0


def test_a_reward_that_learns_nothing_fails_the_check_of_what_is_trainable(tmp_path: Path) -> None:
    setup = prepare(toy_recipe(tmp_path, LEARNS))
    patient = admit(setup)
    assert doctor.frozen(patient).passed and "shade 2 of 2" in doctor.frozen(patient).value
    setup.learners["shade"].network.requires_grad_(False)
    assert doctor.frozen(patient).passed is False and "shade 0 of 2" in doctor.frozen(patient).value


# --- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"turns": {"order": [{"train": "red"}, {"train": "policy"}]}},
            "turns: 'red' does not learn; name policy or .*shade",
        ),
        ({"turns": {"order": [{"train": "shade"}]}}, "turns: policy is never trained"),
        ({"turns": {"order": []}}, "turns: shade is never trained"),
        ({"turns": {"gate": "shade"}}, "`order` is a cycle and `gate` decides"),
        ({"rewards": {"shade": {"cache": True}}}, "`cache` of a reward that learns"),
    ],
)
def test_turns_that_cannot_be_are_refused(tmp_path: Path, change: dict, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        toy_recipe(tmp_path, LEARNS, change)


def test_a_reward_that_cannot_learn_and_an_objective_that_draws_nothing_are_refused(tmp_path: Path) -> None:
    stiff = {"rewards": {"shade": None, "red": {"type": "tests.reference.toys:redness", "learn": {}}}}
    with pytest.raises(RecipeError, match=r"rewards.red.learn: tests.reference.toys:redness has no `network`"):
        prepare(toy_recipe(tmp_path, LEARNS, stiff, {"turns": {"order": [{"train": "red"}, {"train": "policy"}]}}))
    with pytest.raises(RecipeError, match="turns: rewards learn from what is drawn in a step"):
        load(
            [
                "slots-alignprop",
                {"rewards": {"proxy": {"type": "adversarial_proxy", "learn": {}}}, "turns": {"gate": "proxy"}},
            ]
        )
