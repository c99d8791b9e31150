"""Reference answers: the untrained model's own, drawn once with their own noise, the same after a resume; PAR on top."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.reference.token_toys import TinyLanguage, slow_completion, sums_recipe

from plaudit.data.prompt import Prompt
from plaudit.errors import RecipeError, RewardError
from plaudit.recipe.sampling import Sampler, TokenSampling
from plaudit.rewards.base import Status
from plaudit.rewards.before_training import SEED, ReferenceScore, key_of
from plaudit.rewards.calling.call import Caller
from plaudit.rewards.calling.request import make_request
from plaudit.rewards.load import find_reward
from plaudit.rewards.rules.sums import sum_proxy
from plaudit.sampling.noise import SampleKey
from plaudit.train import loop
from plaudit.train.collect import collect
from plaudit.train.setup import prepare
from plaudit.train.trainable import Policy

PROMPTS = [Prompt(id=str(i), text=text) for i, text in enumerate(("37+85=", "12+7-3=", "9+9+1+2-3=", "40-13="))]


def length_of(prompts: list[str], outputs: list[str]) -> list[float]:
    return [float(len(text)) for text in outputs]


def refusing(prompts: list[str], outputs: list[str]) -> list[float | None]:
    return [None if len(text) > 3 else float(len(text)) for text in outputs]


LENGTH = {"type": f"{__name__}:length_of"}


def made(policy: Policy | None = None, **arguments) -> ReferenceScore:
    tile = arguments.pop("tile", 64)
    reward = ReferenceScore(**{"reward": LENGTH, **arguments})
    if policy is not None:
        reward.bind(policy, TokenSampling(type="tokens", max_new_tokens=12, tile=tile))
    return reward


def scores(reward: ReferenceScore, prompts: list[Prompt]) -> list[float]:
    outputs = ["x" * (i + 20) for i in range(len(prompts))]
    return [score.value for score in Caller("r", reward)(make_request(prompts, outputs))]


def moved(policy: Policy) -> None:
    with torch.no_grad():
        for i, parameter in enumerate(policy.model.network.parameters()):
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))


def test_it_scores_the_untrained_models_answer_whatever_was_answered() -> None:
    policy = Policy(TinyLanguage())
    untrained, sampling = TinyLanguage(), TokenSampling(type="tokens", max_new_tokens=12)
    reward, second = made(policy), made(policy, index=1)
    moved(policy)
    for one, index in ((reward, 0), (second, 1)):
        expected = [
            untrained.decode(
                slow_completion(
                    untrained,
                    untrained.encode([p])[0],
                    sampling,
                    SampleKey(seed=SEED, step=0, prompt=p.id, index=index),
                )
            )
            for p in PROMPTS
        ]
        assert one.answers(PROMPTS) == expected
        assert scores(one, PROMPTS) == [len(text) for text in expected]
    assert reward.answers(PROMPTS) != second.answers(PROMPTS) and policy.active == "current"
    assert set(scores(reward, PROMPTS)) != {20.0, 21.0, 22.0, 23.0}


def test_an_answer_is_drawn_once_and_is_the_same_in_any_company() -> None:
    policy = Policy(TinyLanguage())
    reward = made(policy)
    together = scores(reward, [*PROMPTS, PROMPTS[0], PROMPTS[2]])
    assert together[:2] + together[2:4] == scores(reward, PROMPTS)
    assert together[4:] == [together[0], together[2]]
    policy.model.rows.clear()
    assert scores(reward, PROMPTS[::-1]) == together[3::-1] and policy.model.rows == [], "nothing is drawn again"
    assert [scores(made(policy, tile=1), [p])[0] for p in PROMPTS] == together[:4]
    piecewise = made(policy)
    assert scores(piecewise, PROMPTS[2:]) + scores(piecewise, PROMPTS[:2]) == together[2:4] + together[:2]
    assert len(set(together)) > 1


def test_a_kept_reference_is_not_replaced() -> None:
    policy = Policy(TinyLanguage())
    policy.take("reference")
    kept = policy.snapshots["reference"]
    moved(policy)
    made(policy)
    assert policy.snapshots["reference"] is kept


def test_what_is_known_travels_and_a_measurement_may_leave_it() -> None:
    policy = Policy(TinyLanguage())
    reward = made(policy)
    found = scores(reward, PROMPTS[:2])
    state = json.loads(json.dumps(reward.state()))
    policy.model.rows.clear()
    other = made(policy)
    other.load_state(state)
    assert scores(other, PROMPTS[:2]) == found and policy.model.rows == []
    before = reward.state()
    scores(reward, PROMPTS)
    reward.load_state(before)
    assert set(reward.state()) == {key_of(p) for p in PROMPTS}


def test_prompts_of_one_id_are_told_apart_by_their_texts() -> None:
    reward = made(Policy(TinyLanguage()))
    twins = [Prompt(id="0", text=prompt.text) for prompt in PROMPTS]
    assert scores(reward, twins) == [len(text) for text in reward.answers(twins)] and len(reward.state()) == 4


def test_a_reference_that_has_no_score_is_missing_and_not_remembered() -> None:
    policy = Policy(TinyLanguage())
    reward = made(policy, reward={"type": f"{__name__}:refusing"})
    lengths = scores(made(policy), PROMPTS)
    found = Caller("r", reward)(make_request(PROMPTS, [""] * 4))
    assert [s.status is Status.OK for s in found] == [n <= 3 for n in lengths]
    assert {key_of(p) for p, n in zip(PROMPTS, lengths, strict=True) if n <= 3} == set(reward.state())
    assert any(s.status is not Status.OK for s in found)


def test_its_range_is_that_of_the_reward() -> None:
    card = made(reward={"type": "sum_proxy"}).card
    assert (card.low, card.high, card.unit) == (0, float("inf"), None) and card.batch_invariant
    assert made(reward={"type": "sum_correct"}).card.unit == (0, 1)


def test_mistakes_are_named() -> None:
    with pytest.raises(RecipeError, match=r"reward reference_score.reward: .*give a `type`"):
        made(reward={"name": "x"})
    with pytest.raises(RewardError, match="asks the model before training; use it in a recipe that trains"):
        Caller("r", made())(make_request(PROMPTS[:1], ["1"]))
    with pytest.raises(RecipeError, match=r"rewards.ref.arguments: .*'reward'"):
        find_reward("ref", "reference_score", {})

    with pytest.raises(RecipeError, match="reference_score draws texts; model is of another family"):
        made().bind(object(), Sampler())


# --- in a run --------------------------------------------------------------------------------------------------------

REFERENCE = {"type": "reference_score", "arguments": {"reward": {"type": "sum_proxy"}}}
PAR = {
    "rewards": dict.fromkeys(sums_recipe(Path()).rewards)
    | {"proxy": "sum_proxy", "ref0": REFERENCE}
    | {"ref1": {**REFERENCE, "arguments": {**REFERENCE["arguments"], "index": 1}}},
    "combine": "par(proxy, ref0, ref1)",
    "shaping": {"std": "none", "clip": None},
    "train": {"lr": 1e-3},
}


def test_the_total_is_the_chance_of_beating_the_references(tmp_path: Path) -> None:
    setup = prepare(sums_recipe(tmp_path, PAR))
    rollout = collect(setup, step=0, version=0)
    parts = rollout.scored.parts
    facts = [p.facts for p in rollout.prompts]
    own = torch.tensor([s.value for s in sum_proxy([p.text for p in rollout.prompts], rollout.outputs, facts)]).double()
    torch.testing.assert_close(parts["proxy"], own)
    expected = ((own - parts["ref0"]).sigmoid() + (own - parts["ref1"]).sigmoid()) / 2
    torch.testing.assert_close(rollout.scored.total, expected)
    per_prompt = parts["ref0"].view(-1, 4)
    assert (per_prompt == per_prompt[:, :1]).all() and parts["ref0"].unique().numel() > 1
    assert not torch.equal(parts["ref0"], parts["ref1"])


def test_interrupted_and_resumed_is_uninterrupted(tmp_path: Path) -> None:
    """The references of later steps are the untrained model's, though the resumed run never was that model."""
    torch.set_num_threads(1)
    whole = sums_recipe(tmp_path / "whole", PAR)
    expected = loop.train(whole).folder
    short = sums_recipe(tmp_path / "pieces", PAR, {"train": {"steps": 1}})
    pieces = loop.train(short).folder
    assert len((pieces / "metrics.jsonl").read_text().splitlines()) == 1
    loop.train(sums_recipe(tmp_path / "pieces", PAR), resume=True)
    assert (pieces / "metrics.jsonl").read_bytes() == (expected / "metrics.jsonl").read_bytes()
    rows = [json.loads(line) for line in (expected / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and all(row["grad_norm"] > 0 for row in rows)
