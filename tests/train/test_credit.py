"""Credit of steps and of tokens in a run: against slow references, and as a run that resumes, splits and learns."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.reference.advantages import group_advantage as by_loops
from tests.reference.token_toys import sums_recipe
from tests.reference.toys import GRPO, ToyFlowModel, gradients, perturb, rollout_batch, toy_recipe
from torch import Tensor

from plaudit import storage
from plaudit.errors import RecipeError, RewardError
from plaudit.models.flow import decoded
from plaudit.objectives.batch import Batch
from plaudit.objectives.grpo import Grpo
from plaudit.objectives.nft import Nft
from plaudit.recipe.objectives import GrpoConfig, NftConfig
from plaudit.recipe.sampling import Sampler
from plaudit.rewards.base import Score
from plaudit.shaping.credit import Credit
from plaudit.shaping.dense import per_step_credit, step_gains
from plaudit.train import loop
from plaudit.train.collect import Rollout, collect
from plaudit.train.credit import worth_of_states
from plaudit.train.learn import accumulate
from plaudit.train.setup import Setup, prepare
from plaudit.train.trainable import Policy

STEPS = {**GRPO, "credit": {"type": "steps"}, "objective": {"type": "grpo"}}
WINDOW = {"sampler": {"window": {"size": 2, "start": [0, 1]}}}


def per_token(prompts: Sequence[str], outputs: Sequence[str], completion_ids: Sequence[Sequence[int]]) -> list[Score]:
    """Each token is worth how often it has been said before."""
    rows = [[float(ids[:i].count(token)) for i, token in enumerate(ids)] for ids in map(list, completion_ids)]
    return [Score(value=sum(row), dense=torch.tensor(row), components={"needed_share": 1 / len(row)}) for row in rows]


TOKENS = {
    "rewards": {"said": {"type": f"{__name__}:per_token", "weight": 0.0}, "format": None, "brief": None},
    "credit": {"type": "positions", "reward": "said", "correct": "correct"},
}
EASY = {"credit": {"easy_gain": 0.2}}


# --- one shape is as good as another ---------------------------------------------------------------------------------


def shaped(batch: Batch, where: str) -> Batch:
    value, D = batch.credit.value, batch.flow.trace.limit
    wide = {
        "sample": value,
        "decision": value[:, None].expand(-1, D),
        "place": value[:, None, None, None, None].expand(-1, 1, *batch.flow.latents.shape[1:]),
    }[where]
    return dataclasses.replace(batch, credit=Credit(value=wide.contiguous(), valid=batch.valid))


@pytest.mark.parametrize(
    ("objective", "where"),
    [(Grpo(GrpoConfig(type="grpo")), "decision"), (Nft(NftConfig(times_per_sample=3)), "place")],
    ids=("grpo", "nft"),
)
def test_one_number_in_every_shape_is_one_gradient(objective, where: str) -> None:
    found = []
    for each in ("sample", where):
        model = ToyFlowModel()
        policy = Policy(model)
        policy.take("old"), policy.take("reference")
        batch = shaped(rollout_batch(model, Sampler(kernel="flow_sde", steps=4, level=0.7)), each)
        assert batch.credit.where == each
        perturb(model, 0.02)
        accumulate(policy, objective, batch, 5)
        found.append(gradients(model))
    assert found[0].abs().max() > 1e-4
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-9)


def test_credit_is_narrowed_with_its_samples_and_never_shaped_to_less() -> None:
    credit = Credit(value=torch.arange(12.0).reshape(3, 4), valid=torch.tensor([True, False, True]))
    part = credit.select(torch.tensor([2, 0]), 2)
    assert part.value.tolist() == [[8, 9], [0, 1]] and part.valid.tolist() == [True, True]
    assert credit.expand((3, 4, 2))[..., 1].tolist() == credit.value.tolist()
    with pytest.raises(AssertionError, match="credit of each decision"):
        credit.expand((3,))


# --- steps -----------------------------------------------------------------------------------------------------------


def by_hand(setup, batch: Batch, completion: str) -> Tensor:
    """Every state completed by itself, with plain Euler steps."""
    model, trace = setup.policy.model, batch.flow.trace
    sampler_times = model.schedule(setup.recipe.sampler.steps, setup.recipe.sampler.shift)
    worth = torch.zeros(len(batch), trace.limit + 1, dtype=torch.float64)
    for i in range(len(batch)):
        condition = batch.flow.conditioning.condition.select(torch.tensor([i]))
        for k in range(trace.limit + 1):
            x, t = trace.states[i : i + 1, k], float(trace.times[i, k])
            left = (
                [float(s) for s in sampler_times if s < t - 1e-6] if completion == "full" or k == trace.limit else [0.0]
            )
            for t_next in left:
                with torch.no_grad():
                    x = x + (t_next - t) * model.velocity(x, torch.tensor([t]), condition)
                t = t_next
            picture = decoded(model, x)
            worth[i, k] = setup.rewards([batch.prompts[i]], picture).total[0]
    return worth


def worth_of(setup: Setup, rollout: Rollout, completion: str = "full") -> tuple[Tensor, int, int]:
    batch = rollout.batch
    return worth_of_states(setup, completion, batch.flow, batch.prompts, batch.group, rollout.scored.total)


@pytest.mark.parametrize("completion", ("full", "one_step"))
@pytest.mark.parametrize("window", ({}, WINDOW), ids=("whole", "window"))
def test_states_are_worth_what_becomes_of_them(completion: str, window: dict, tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path, STEPS, window, {"credit": {"completion": completion}, "sampler": {"tile": 3}})
    setup = prepare(recipe)
    rollout = collect(setup, step=0, version=0)
    worth, calls, asked = worth_of(setup, rollout, completion)
    expected = by_hand(setup, rollout.batch, completion)
    torch.testing.assert_close(worth, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(step_gains(worth).sum(1), worth[:, -1] - worth[:, 0])
    each = len(rollout.batch)
    lengths = (rollout.batch.flow.trace.times[:, :-1, None] > setup.drawer.times[None, None] + 1e-6).sum()
    assert calls == (int(lengths) if completion == "full" else each * rollout.batch.flow.trace.limit)
    assert asked == each * rollout.batch.flow.trace.limit


def test_a_step_is_compared_with_the_same_step_of_its_group(tmp_path: Path) -> None:
    setup = prepare(toy_recipe(tmp_path, STEPS))
    rollout = collect(setup, step=0, version=0)
    gains = step_gains(worth_of(setup, rollout)[0])
    for k in range(gains.shape[1]):
        expected = by_loops(gains[:, k].tolist(), rollout.batch.group.tolist(), std="group", floor=1e-3, clip=None)
        assert rollout.batch.credit.value[:, k].tolist() == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_a_sample_with_a_missing_gain_is_left_out() -> None:
    gains = torch.tensor([[1.0, 2.0], [3.0, float("nan")], [2.0, 5.0], [4.0, 4.0]]).double()
    found = per_step_credit(gains, torch.tensor([0, 0, 0, 0]))
    rest = per_step_credit(gains[[0, 2, 3]], torch.tensor([0, 0, 0]))
    assert found.valid.tolist() == [True, False, True, True] and not found.value[1].any()
    torch.testing.assert_close(found.value[[0, 2, 3]], rest.value)


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_tokens_are_credited_at_their_positions(tmp_path: Path) -> None:
    setup = prepare(sums_recipe(tmp_path, TOKENS))
    rollout = collect(setup, step=0, version=0)
    batch, scores = rollout.batch, rollout.scored.scores["said"]
    for g in batch.group.unique().tolist():
        members = [i for i, own in enumerate(batch.group.tolist()) if own == g]
        for t in range(batch.completions.mask.shape[1]):
            column = [float(scores[i].dense[min(t, len(scores[i].dense) - 1)]) for i in members]
            centred, spread = np.array(column) - np.mean(column), max(np.std(column, ddof=1), 1e-6)
            for i, value in zip(members, centred / spread, strict=True):
                expected = value if batch.completions.mask[i, t] else 0.0
                assert batch.credit.value[i, t].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_easy_prompts_follow_the_needed_share(tmp_path: Path) -> None:
    """Of groups that are all right, those that kappa allows for; never of those that are all wrong."""
    setup = prepare(sums_recipe(tmp_path, TOKENS, EASY, {"train": {"prompts_per_step": 8}}))
    shares, kappa = [], 0.0
    for step in range(3):
        rollout = collect(setup, step=step, version=0)
        right = rollout.scored.parts["correct"].reshape(8, 4)
        rates = [Fraction(int(row.sum()), 4) for row in right]
        learned = rollout.batch.valid.reshape(8, 4).any(1)
        for rate, kept in zip(rates, learned.tolist(), strict=True):
            assert kept or not 0 < rate < 1
            assert not kept or rate > 0
        mixed = sum(0 < rate < 1 for rate in rates)
        easy = sum(kept and rate == 1 for rate, kept in zip(rates, learned.tolist(), strict=True))
        assert easy <= max(kappa, 0) * mixed / (1 - kappa) + 1e-9
        shares.append(rollout.metrics["credit/needed_share"])
        kappa += 0.2 * (shares[-1] - shares[-2]) if step else 0.0
        assert setup.curriculum.kappa == pytest.approx(kappa)


def test_a_reward_without_values_per_token_is_named(tmp_path: Path) -> None:
    setup = prepare(sums_recipe(tmp_path, TOKENS, {"credit": {"reward": "correct"}}))
    with pytest.raises(RewardError, match=r"credit\.reward: correct scored an output without a value per token"):
        collect(setup, step=0, version=0)


# --- runs ------------------------------------------------------------------------------------------------------------

RUNS = {"steps": (toy_recipe, [STEPS]), "positions": (sums_recipe, [TOKENS, EASY])}


@pytest.mark.parametrize("name", RUNS)
def test_prolonged_is_uninterrupted(name: str, tmp_path: Path) -> None:
    base, layers = RUNS[name]
    whole = loop.train(base(tmp_path / "whole", *layers)).folder
    loop.train(base(tmp_path / "pieces", *layers, {"train": {"steps": 1}}))
    pieces = loop.train(base(tmp_path / "pieces", *layers), resume=True).folder
    assert (pieces / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    tensors = [storage.latest_snapshot(root / "checkpoints") / storage.TENSORS for root in (whole, pieces)]
    assert tensors[0].read_bytes() == tensors[1].read_bytes()
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert max(row["grad_norm"] for row in rows) > 1e-4


def test_credit_of_steps_is_learned_from(tmp_path: Path) -> None:
    sizes = {"train": {"steps": 60, "prompts_per_step": 4, "samples_per_prompt": 8, "micro_batch": 64, "lr": 1e-2}}
    root = loop.train(
        toy_recipe(tmp_path, STEPS, sizes, {"evaluate": {"every": 1000}, "run": {"save_every": 1000}})
    ).folder
    rewards = [json.loads(line)["reward"] for line in (root / "metrics.jsonl").read_text().splitlines()]
    assert np.mean(rewards[-8:]) > np.mean(rewards[:8]) + 0.05


@pytest.mark.parametrize(
    ("base", "layers", "message"),
    [
        (
            toy_recipe,
            [{"credit": {"type": "steps"}}],
            r"credit.type: steps credits each decision .* use objective grpo",
        ),
        (sums_recipe, [{"credit": {"type": "steps"}}], r"credit.type: steps .* of family flow"),
        (toy_recipe, [GRPO, TOKENS, {"rewards": {"correct": "x:y"}}], r"credit.type: positions .* of family tokens"),
        (
            sums_recipe,
            [TOKENS, {"credit": {"reward": "nobody"}}],
            r"credit.reward: 'nobody' is no reward of this recipe",
        ),
        (toy_recipe, [STEPS, {"shaping": {"normalise": "each"}}], r"use normalise total and place loss"),
    ],
)
def test_credit_that_fits_nothing_is_refused(base, layers: list[dict], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        base(tmp_path, *layers)
