"""One step's samples, the prompts behind them, and the held-out measurement."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.reference import toys
from tests.reference.advantages import group_advantage as by_loops
from tests.reference.toys import EMA, GRPO, ToyFlowModel, asking, perturb, prompts, toy_recipe

import plaudit.train.loop as loop
from plaudit.data.prompt import Prompt
from plaudit.data.sources import FileSource, load_prompts, read_prompts
from plaudit.errors import DataError, RewardError
from plaudit.lab.scenes.grammar import split_of
from plaudit.lab.scenes.world import ScenesSource
from plaudit.models.conditioning import PromptEncoder
from plaudit.models.flow import Condition
from plaudit.recipe.objectives import Shaping
from plaudit.recipe.prompts import FilePrompts, ScenesPrompts
from plaudit.recipe.schema import Recipe
from plaudit.rewards.suite import ScoredBatch
from plaudit.sampling.noise import gaussian
from plaudit.train.collect import Rollout, collect, has_contrast
from plaudit.train.setup import Setup, prepare


def collected(setup: Setup, asked: list[Prompt] | None = None, step: int = 0) -> Rollout:
    return collect(asking(setup, asked) if asked else setup, step=step, version=3)


# --- collecting ------------------------------------------------------------------------------------------------------


def test_samples_scores_and_conditions_stay_together(tmp_path) -> None:
    """Pitfall 12: identity of each sample's condition after expansion."""
    setup = prepare(toy_recipe(tmp_path, GRPO))
    rollout = collected(setup, prompts(3))
    assert [p.id for p in rollout.prompts] == ["p0"] * 4 + ["p1"] * 4 + ["p2"] * 4
    assert rollout.group.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    wanted = setup.policy.model.encode(rollout.prompts).tensors["caption"]
    assert (
        torch.equal(rollout.batch.flow.conditioning.condition.tensors["caption"], wanted)
        and len(set(wanted.tolist())) == 3
    )
    assert torch.equal(rollout.outputs, setup.policy.model.decode(rollout.batch.flow.latents))
    scores = toys.redness([p.text for p in rollout.prompts], rollout.outputs)
    assert rollout.scored.total.tolist() == pytest.approx(scores)
    expected = by_loops(scores, rollout.group.tolist(), std="group", floor=1e-3, clip=5.0)
    assert rollout.batch.credit.value.tolist() == pytest.approx(expected, rel=1e-5)
    assert rollout.batch.valid.all() and rollout.batch.informative.all() and rollout.version == 3
    assert torch.equal(rollout.batch.flow.trace.states[:, 0], gaussian(rollout.batch.keys, "initial", (3, 2, 2)))


def test_the_sampling_policy_draws(tmp_path) -> None:
    """NFT's rollouts come from the old policy, GRPO's from the current one."""
    for layers, name in (([{}], "old"), ([GRPO], "current")):
        setup = prepare(toy_recipe(tmp_path, *layers))
        before = collected(setup).batch.flow.latents
        perturb(setup.policy.model)
        after = collected(setup).batch.flow.latents
        assert torch.equal(before, after) == (name == "old")


def test_the_recorded_density_is_the_objectives(tmp_path) -> None:
    cps = {"objective": {"density": "cps"}, "sampler": {"kernel": "cps"}}
    assert collected(prepare(toy_recipe(tmp_path, GRPO, cps))).batch.flow.trace.density == "cps"


def test_same_noise_is_one_initial_noise_a_group(tmp_path) -> None:
    rollout = collected(prepare(toy_recipe(tmp_path, GRPO, {"sampler": {"same_noise": True}})))
    start = rollout.batch.flow.trace.states[:, 0].reshape(2, 4, -1)
    assert (start == start[:, :1]).all() and not torch.equal(start[0], start[1])
    assert torch.unique(rollout.batch.flow.latents.flatten(1), dim=0).shape[0] == 8


def test_missing_scores_are_dropped_from_the_batch(tmp_path, monkeypatch) -> None:
    real = toys.redness

    def gaps(prompts, outputs):
        return [None if i in (1, 4, 5, 6) else v for i, v in enumerate(real(prompts, outputs))]

    monkeypatch.setattr(toys, "redness", gaps)
    setup = prepare(toy_recipe(tmp_path, {"missing": {"max_missing_fraction": 0.5}}))
    rollout = collected(setup)
    assert rollout.batch.valid.tolist() == [True, False, True, True] + [False] * 4
    assert rollout.batch.informative.tolist() == rollout.batch.valid.tolist()
    assert (rollout.batch.credit.value == 0).tolist() == (~rollout.batch.valid).tolist()
    with pytest.raises(RewardError, match="4 of 8 scores are missing"):
        collected(prepare(toy_recipe(tmp_path)))


def test_groups_without_contrast_are_not_informative(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(
        toys, "redness", lambda prompts, outputs: [0.1] * 4 + [float(i) for i in range(len(prompts) - 4)]
    )
    rollout = collected(prepare(toy_recipe(tmp_path)))
    assert rollout.batch.informative.tolist() == [False] * 4 + [True] * 4
    assert rollout.credit.constant_groups == 1 and rollout.batch.valid.all()


@pytest.mark.parametrize(
    "layers", ([{}], [GRPO], [GRPO, {"objective": {"kl": {"weight": 0.0}}}]), ids=("nft", "grpo with kl", "grpo")
)
def test_a_constant_reward_trains_nothing_and_does_not_fail(layers: list[dict], tmp_path, monkeypatch) -> None:
    """Pitfall 23: it must be visible in the metrics."""
    monkeypatch.setattr(toys, "redness", lambda prompts, outputs: [0.1] * len(prompts))
    result = loop.train(toy_recipe(tmp_path, *layers))
    rows = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        assert row["frac_reward_zero_std"] == 1 and row["advantage/abs_mean"] == 0
        assert row["loss"] == pytest.approx(0, abs=1e-12) and row["grad_norm"] == pytest.approx(0, abs=1e-7)
    assert result.summary["gain"] == 0


def test_a_reward_that_draws_random_numbers_changes_no_sample(tmp_path, monkeypatch) -> None:
    """Pitfall 17, over a whole run."""
    loop.train(toy_recipe(tmp_path / "quiet", GRPO))
    real = toys.redness

    def noisy(prompts, outputs):
        torch.manual_seed(len(prompts)), np.random.seed(3), torch.rand(5)
        result = real(prompts, outputs.clone())
        outputs.fill_(0.5)
        return result

    monkeypatch.setattr(toys, "redness", noisy)
    torch.manual_seed(99)
    loop.train(toy_recipe(tmp_path / "noisy", GRPO))
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert (tmp_path / "quiet/runs/toy" / name).read_bytes() == (tmp_path / "noisy/runs/toy" / name).read_bytes()


def test_tiles_and_micro_batches_do_not_change_a_run_but_for_rounding(tmp_path) -> None:
    finals = []
    for name, tile, micro_batch in (("a", 64, 64), ("b", 5, 3)):
        sizes = {"sampler": {"tile": tile}, "train": {"micro_batch": micro_batch, "lr": 1e-3}}
        loop.train(toy_recipe(tmp_path / name, sizes))
        lines = (tmp_path / name / "runs/toy/metrics.jsonl").read_text().splitlines()
        finals.append([json.loads(line)["loss"] for line in lines])
    assert finals[0] == pytest.approx(finals[1], rel=1e-3)


@pytest.mark.parametrize("normalise", ("total", "each"))
def test_kl_in_the_reward_is_taken_from_the_score_before_it_is_shaped(normalise: str, tmp_path) -> None:
    kl = {"kl": {"weight": 0.2, "scaling": "k1", "place": "reward"}}
    setup = prepare(toy_recipe(tmp_path, GRPO, {"objective": kl, "shaping": {"normalise": normalise}}))
    perturb(setup.policy.model, 0.1)
    rollout = collected(setup)
    terms = setup.objective.terms(setup.policy, rollout.batch)
    with torch.no_grad():
        penalty = (0.2 * (terms.log_prob - terms.reference.log_prob)).sum(1)
    shaped = {"std": "group", "floor": 1e-3, "clip": 5.0}
    group, score = rollout.group.tolist(), rollout.scored.total
    if normalise == "total":
        expected = by_loops((score - penalty).tolist(), group, **shaped)
    else:
        parts = (by_loops(values.tolist(), group, **shaped | {"clip": None}) for values in (score, -penalty / 0.2))
        expected = [a + 0.2 * b for a, b in zip(*parts, strict=True)]
    unpunished = by_loops(score.tolist(), group, **shaped)
    assert rollout.batch.credit.value.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert max(abs(a - b) for a, b in zip(expected, unpunished, strict=True)) > 0.1
    assert rollout.scored.total.tolist() == pytest.approx(
        toys.redness([p.text for p in rollout.prompts], rollout.outputs)
    ), "what is reported is the reward itself"


# --- refilling -------------------------------------------------------------------------------------------------------

REFILL = {"train": {"refill": 3, "prompts_per_step": 3}}
REAL = toys.redness


def easy_ones(*easy: int):
    """A reward that is the same for every picture of some captions."""

    def reward(prompts: list[str], outputs: torch.Tensor) -> list[float]:
        own = zip(prompts, REAL(prompts, outputs), strict=True)
        return [0.5 if int(text.split()[-1]) in easy else value for text, value in own]

    return reward


def numbers(rollout: Rollout) -> list[int]:
    """The captions of the groups."""
    return [
        int(p.text.split()[-1]) for p in rollout.prompts[:: len(rollout.prompts) // len(set(rollout.group.tolist()))]
    ]


def test_groups_without_contrast_are_replaced(tmp_path, monkeypatch) -> None:
    easy = {0, 1, 2, 3}
    monkeypatch.setattr(toys, "redness", easy_ones(*easy))
    replaced = 0
    for step in range(6):
        setup = prepare(toy_recipe(tmp_path, GRPO, REFILL))
        source = [[int(p.text.split()[-1]) for p in setup.prompts.batch(4 * step + turn, 3, 0)] for turn in range(4)]
        expected, asked, rounds = [], 0, 0
        for turn in source:
            turn = turn[: 3 - len(expected)]
            rounds += bool(turn)
            asked += len(turn)
            expected += [n for n in turn if n not in easy]
        model = setup.policy.model
        model.rows.clear()
        rollout = collected(setup, step=step)
        assert numbers(rollout)[: len(expected)] == expected and len(numbers(rollout)) == 3
        assert rollout.group.tolist() == [0] * 4 + [1] * 4 + [2] * 4 == rollout.batch.group.tolist()
        assert rollout.batch.informative.tolist() == [n not in easy for n in numbers(rollout) for _ in range(4)]
        assert rollout.dropped == asked - 3 and rollout.batch.valid.all() and len(set(rollout.batch.keys)) == 12
        assert rollout.network_calls == asked * 4 * 4 == sum(model.rows), "what was dropped was drawn too"
        assert rollout.reward_calls == asked * 4
        torch.testing.assert_close(rollout.outputs, model.decode(rollout.batch.flow.latents))
        scores = REAL([p.text for p in rollout.prompts], rollout.outputs)
        kept = rollout.batch.informative.tolist()
        assert [s for s, k in zip(rollout.scored.total.tolist(), kept, strict=True) if k] == pytest.approx(
            [s for s, k in zip(scores, kept, strict=True) if k]
        )
        replaced += rounds > 1
    assert replaced >= 3


def test_contrast_in_any_reward_that_counts_keeps_a_group_where_each_is_normalised() -> None:
    def drawn(weight: float, *scores: float) -> tuple[ScoredBatch, Recipe]:
        """Two rewards whose sum is always 1."""
        a = torch.tensor(scores).double()
        rewards = {"a": {"type": "scene_exact", "weight": weight}, "b": {"type": "scene_exact", "weight": weight}}
        recipe = Recipe.model_validate({"rewards": rewards, "shaping": {"normalise": "each"}})
        return ScoredBatch(total=torch.ones(len(a)).double(), parts={"a": a, "b": 1 - a}, scores={}), recipe

    assert has_contrast(*drawn(1.0, 0.2, 0.4)) and not has_contrast(*drawn(1.0, 0.2, 0.2))
    assert not has_contrast(*drawn(0.0, 0.2, 0.4)), "what is only watched teaches nothing"
    scored, recipe = drawn(1.0, 0.2, 0.4)
    total = recipe.model_copy(update={"shaping": Shaping(normalise="total")})
    assert not has_contrast(scored, total)


def test_a_refilled_step_is_a_function_of_its_number(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(toys, "redness", easy_ones(0, 1, 2, 3))
    first, second, other = (collected(prepare(toy_recipe(tmp_path, REFILL)), step=step) for step in (2, 2, 3))
    assert first.batch.keys == second.batch.keys != other.batch.keys and first.dropped > 0
    assert torch.equal(first.batch.flow.latents, second.batch.flow.latents)
    assert torch.equal(first.batch.credit.value, second.batch.credit.value)


def test_a_prompt_that_comes_again_in_a_later_round_has_other_noise(tmp_path, monkeypatch) -> None:
    calls: list[int] = []

    def equal_at_first(prompts, outputs):
        calls.append(len(prompts))
        return [0.5] * len(prompts) if len(calls) == 1 else REAL(prompts, outputs)

    monkeypatch.setattr(toys, "redness", equal_at_first)
    rollout = collected(prepare(toy_recipe(tmp_path, {"train": {"refill": 1}})), prompts(2))
    assert [key.index for key in rollout.batch.keys] == [4, 5, 6, 7] * 2 and rollout.dropped == 2
    assert rollout.batch.informative.all() and calls == [8, 8]


def test_what_cannot_be_replaced_is_filled_up_and_teaches_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(toys, "redness", lambda prompts, outputs: [0.5] * len(prompts))
    setup = prepare(toy_recipe(tmp_path, {"train": {"refill": 2, "prompts_per_step": 2}}))
    rollout = collected(setup)
    assert rollout.dropped == 4 and len(rollout.prompts) == 8 and rollout.batch.valid.all()
    assert not rollout.batch.informative.any() and not rollout.batch.credit.value.any()
    assert [p.id for p in rollout.prompts[::4]] == [p.id for p in setup.prompts.batch(0, 2, 0)]


def test_with_contrast_everywhere_nothing_more_is_drawn(tmp_path) -> None:
    plain = collected(prepare(toy_recipe(tmp_path)))
    refilled = collected(prepare(toy_recipe(tmp_path, {"train": {"refill": 5}})))
    assert refilled.batch.keys == plain.batch.keys and refilled.network_calls == plain.network_calls
    assert torch.equal(refilled.batch.credit.value, plain.batch.credit.value) and refilled.dropped == 0


def test_missing_scores_are_limited_over_all_rounds_together(tmp_path, monkeypatch) -> None:
    """A round of one group would break any limit with its first missing score."""
    calls: list[int] = []

    def one_missing_in_the_last_round(prompts, outputs):
        calls.append(len(prompts))
        if len(calls) == 1:
            return [0.5] * 4 + REAL(prompts, outputs)[4:]
        return [None, *REAL(prompts, outputs)[1:]]

    monkeypatch.setattr(toys, "redness", one_missing_in_the_last_round)
    layers = {"train": {"refill": 1, "prompts_per_step": 5}, "missing": {"max_missing_fraction": 0.05}}
    rollout = collected(prepare(toy_recipe(tmp_path, layers)))
    assert calls == [20, 4] and rollout.batch.valid.sum() == 19
    calls.clear()
    layers["missing"]["max_missing_fraction"] = 0.04
    with pytest.raises(RewardError, match="1 of 24 scores are missing"):
        collected(prepare(toy_recipe(tmp_path, layers)))


# --- the encoder -----------------------------------------------------------------------------------------------------


class CountingEncoder(ToyFlowModel):
    def encode(self, asked):
        self.asked = [*getattr(self, "asked", []), *[p.text for p in asked]]
        return super().encode(asked)


def test_prompts_are_encoded_once_and_in_their_places() -> None:
    model = CountingEncoder()
    encoder, asked = PromptEncoder(model), prompts(3)
    order = [asked[i] for i in (2, 0, 0, 1, 2)]
    found = encoder(order, 1.0).condition.tensors["caption"]
    assert torch.equal(found, ToyFlowModel().encode(order).tensors["caption"])
    encoder(order[::-1], 1.0)
    assert sorted(model.asked) == sorted(p.text for p in asked)
    assert encoder(order, 1.0).unconditional is None
    assert encoder(order, 2.0).unconditional.tensors["caption"].tolist() == [0] and model.asked.count("") == 1


def test_prompts_that_share_an_id_keep_their_own_text() -> None:
    """Ids of a training and a held-out file may both start at 0."""
    encoder = PromptEncoder(ToyFlowModel())
    train, heldout = Prompt(id="0", text="caption number 1"), Prompt(id="0", text="caption number 2")
    first, second = (encoder([p], 1.0).condition.tensors["caption"].item() for p in (train, heldout))
    assert [first, second] == ToyFlowModel().encode([train, heldout]).tensors["caption"].tolist() and first != second


class Looking(ToyFlowModel):
    """Reads the picture instead of the text."""

    def encode(self, asked):
        return Condition(
            tensors={"caption": torch.tensor([int(p.inputs["source"].sum()) if p.inputs else 0 for p in asked])}
        )


def test_two_pictures_under_one_text_are_two_conditions() -> None:
    encoder = PromptEncoder(Looking())
    asked = [
        Prompt(id="0", text="make it red", inputs={"source": torch.full((3, 1, 1), value)}) for value in (1.0, 2.0)
    ]
    again = Prompt(id="0", text="make it red", inputs={"source": torch.full((3, 1, 1), 1.0)})
    assert encoder([*asked, again], 1.0).condition.tensors["caption"].tolist() == [3, 6, 3]
    assert asked[0].key == again.key != asked[1].key and len(encoder.cache) == 2


def test_a_full_encoder_still_answers_right() -> None:
    encoder = PromptEncoder(ToyFlowModel(), capacity=4)
    for start in range(0, 12, 3):
        asked = prompts(14)[start : start + 5]
        assert torch.equal(
            encoder(asked, 1.0).condition.tensors["caption"], ToyFlowModel().encode(asked).tensors["caption"]
        )
        assert len(encoder.cache) <= 8


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_scenes_are_a_function_of_seed_and_step_and_stay_in_their_split() -> None:
    source = load_prompts(ScenesPrompts())
    assert isinstance(source, ScenesSource)
    assert source.batch(3, 20, 0) == source.batch(3, 20, 0)
    assert source.batch(3, 20, 0) != source.batch(4, 20, 0) and source.batch(3, 20, 0) != source.batch(3, 20, 1)
    assert {split_of(p) for p in source.batch(0, 200, 0)} == {"train"}
    measured = source.evaluation(30)
    assert {split: len(found) for split, found in measured.items()} == {"heldout": 30, "compositional": 15}
    assert all(split_of(p) == split for split, found in measured.items() for p in found)
    assert source.evaluation(30) == measured
    only = load_prompts(ScenesPrompts(categories=("single", "count")))
    assert {p.facts["category"] for p in only.batch(0, 50, 0)} == {"single", "count"}


def test_a_file_is_passed_through_without_repeats_and_in_a_new_order_each_time() -> None:
    """Pitfall 18: what a step gets depends on nothing but the step."""
    source = FileSource(train=prompts(7), heldout=[])
    stream = [p.id for step in range(7) for p in source.batch(step, 4, seed=1)]
    passes = [stream[i : i + 7] for i in range(0, 28, 7)]
    assert all(sorted(turn) == sorted(p.id for p in prompts(7)) for turn in passes)
    assert len({tuple(turn) for turn in passes}) > 2
    assert [p.id for p in source.batch(5, 4, seed=1)] == stream[20:24]
    assert len(source.batch(0, 20, seed=1)) == 20


def test_evaluation_of_a_file_is_its_heldout_part_or_else_the_training_one() -> None:
    assert [p.id for p in FileSource(train=prompts(5), heldout=prompts(9)[5:]).evaluation(3)["heldout"]] == [
        "p5",
        "p6",
        "p7",
    ]
    assert list(FileSource(train=prompts(5), heldout=()).evaluation(3)) == ["train"]


def test_files_are_read_and_their_mistakes_are_named(tmp_path: Path) -> None:
    text, rows = tmp_path / "a.txt", tmp_path / "b.jsonl"
    text.write_text("a red circle\n\n  two dogs  \n")
    rows.write_text('{"text": "x", "facts": {"n": 2}}\n{"id": 7, "text": "y", "inputs": {"image": "f.png"}}\n')
    assert [p.text for p in read_prompts(str(text), "k")] == ["a red circle", "two dogs"]
    first, second = read_prompts(str(rows), "k")
    assert first.facts == {"n": 2} and second.id == "7" and second.inputs == {"image": "f.png"}
    assert first.id == read_prompts(str(rows), "k")[0].id != second.id
    for name, content, message in (
        ("c.jsonl", '{"text": "x"}\nnot json\n', "line 2 is not JSON"),
        ("d.jsonl", '{"question": "x"}\n', "line 1: expected an object with `text`"),
        ("e.jsonl", '{"text": "x", "fact": 1}\n', "line 1: expected an object"),
        ("f.txt", "\n\n", "is empty"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=message):
            read_prompts(str(tmp_path / name), "prompts.train")
    with pytest.raises(DataError, match=r"prompts.train: .*absent.txt does not exist"):
        load_prompts(FilePrompts(type="file", train=str(tmp_path / "absent.txt")))


# --- the measurement -------------------------------------------------------------------------------------------------


def evaluations(root: Path) -> list[dict]:
    return [json.loads(line) for line in (root / "evaluations.jsonl").read_text().splitlines()]


def test_before_and_after_differ_in_the_weights_alone(tmp_path) -> None:
    """With a learning rate of nearly nothing, every measurement is the first one."""
    loop.train(toy_recipe(tmp_path, {"train": {"lr": 1e-30}}))
    found = evaluations(tmp_path / "runs/toy")
    assert [e["label"] for e in found] == ["before", "step", "after"]
    assert found[0]["mean"] == found[2]["mean"]
    read = [json.loads((tmp_path / "runs/toy" / e["items"]).read_text()) for e in found]
    assert read[0] == read[2] and read[1]["score"] == read[0]["score"][:3]
    assert (tmp_path / "runs/toy/samples/before.png").read_bytes() == (
        tmp_path / "runs/toy/samples/after.png"
    ).read_bytes()


@pytest.mark.parametrize("average", ({}, EMA), ids=("current", "average"))
def test_every_held_out_prompt_is_counted_once(average: dict, tmp_path) -> None:
    """Pitfall 36; the mean is that of the items, made again by hand from the final weights."""
    from safetensors.torch import load_file

    recipe = toy_recipe(tmp_path, average, {"evaluate": {"sampler": {"tile": 3}}})
    result = loop.train(recipe)
    last = evaluations(result.folder)[-1]
    items = json.loads((result.folder / last["items"]).read_text())
    asked = read_prompts(recipe.prompts.heldout, "k")
    assert items["id"] == [f"{p.id}/{i}" for i, p in enumerate(asked)] and last["count"] == 4
    assert last["mean"] == pytest.approx(np.mean(items["score"])) == result.summary["after"]
    model = ToyFlowModel()
    model.network.load_state_dict(load_file(result.folder / "final" / "toy.safetensors"))
    keys = [toys.SampleKey(seed=20_000_003, step=-1, prompt=p.id, index=0) for p in asked]
    x, times = gaussian(keys, "initial", (3, 2, 2)), model.schedule(2, None)
    with torch.no_grad():
        for t, s in itertools.pairwise(times):
            x = x + (s - t) * model.velocity(x, t.expand(4), model.encode(asked))
    assert items["score"] == pytest.approx(toys.redness([p.text for p in asked], model.decode(x)), abs=1e-5)


def test_with_an_average_the_average_is_measured_and_saved(tmp_path) -> None:
    from safetensors.torch import load_file

    from plaudit import storage

    result = loop.train(toy_recipe(tmp_path, EMA))
    tensors, meta = storage.read_snapshot(result.folder / "checkpoints" / "step_3")
    final = load_file(result.folder / "final" / "toy.safetensors")
    assert meta["result"] == "ema"
    for name, tensor in final.items():
        assert torch.equal(tensor, tensors[f"ema.{name}"]) and not torch.equal(tensor, tensors[f"current.{name}"])


def test_a_missing_truth_is_counted_as_missing(tmp_path, monkeypatch) -> None:
    real = toys.redness
    monkeypatch.setattr(
        toys,
        "redness",
        lambda prompts, outputs: [
            None if i == 1 and len(prompts) == 4 else v for i, v in enumerate(real(prompts, outputs))
        ],
    )
    result = loop.train(toy_recipe(tmp_path, {"rewards": {"red": "brightness"}}))
    before, last = (evaluations(result.folder)[i] for i in (0, -1))
    assert before["missing"] == last["missing"] == 1 and last["count"] == 3
    assert math.isfinite(last["mean"]) and math.isfinite(result.summary["gain"])


def test_metrics_of_a_run_are_complete_and_counted(tmp_path) -> None:
    result = loop.train(toy_recipe(tmp_path, GRPO, {"sampler": {"guidance": 2.0}}))
    rows = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [1, 2, 3]
    for row in rows:
        assert row["loss"] == pytest.approx(row["loss/policy"] + row["loss/kl"], abs=1e-12)
        assert row["ratio/first_step_max_dev"] <= 1e-6
        assert {
            "reward",
            "rewards/red/mean",
            "rewards/red/std",
            "rewards/red/missing_frac",
            "frac_reward_zero_std",
            "grad_norm",
            "diversity",
            "lr",
        } <= set(row)
    assert rows[-1]["network_calls"] == 3 * 8 * 4 * 2 and rows[-1]["reward_calls"] == 3 * 8
    assert result.summary["steps"] == 3 and result.summary["stopped"] == "train.steps 3"


@pytest.mark.parametrize(
    ("limit", "steps", "reason"),
    [({"network_calls": 25}, 2, "train.network_calls 25"), ({"minutes": 1e-9}, 1, "train.minutes 1e-09")],
)
def test_other_limits_stop_a_run(limit: dict, steps: int, reason: str, tmp_path) -> None:
    result = loop.train(toy_recipe(tmp_path, {"train": {"steps": None, **limit}}))
    assert (result.summary["steps"], result.summary["stopped"]) == (steps, reason)
