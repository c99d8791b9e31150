"""A vision-language model draws, replays and trains as a language model does, and never shares what it read of a picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.models.tiny_causal import build as build_text
from tests.models.tiny_vision import build, picture

from plaudit import storage
from plaudit.data.prompt import Prompt
from plaudit.errors import DataError, RecipeError
from plaudit.models.vision import VisionTokenModel
from plaudit.recipe.load import load
from plaudit.recipe.models import VisionModel
from plaudit.recipe.sampling import TokenSampling
from plaudit.sampling.noise import SampleKey
from plaudit.sampling.tokens import draw_completions, packed_rows, replay_logits
from plaudit.train import loop
from plaudit.train.doctor.doctor import examine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def model(folder: Path) -> VisionTokenModel:
    torch.set_num_threads(1)
    return VisionTokenModel.from_config(VisionModel(type="vision", path=str(folder), lora=None))


def asked(*colours: int) -> list[Prompt]:
    return [Prompt(id="q", text="colour?", inputs={"picture": picture(colour)}) for colour in colours]


def keys(count: int) -> list[SampleKey]:
    return [SampleKey(seed=0, step=0, prompt="q", index=i) for i in range(count)]


SAMPLING = TokenSampling(type="tokens", max_new_tokens=6)


def test_greedy_equals_transformers_own(model: VisionTokenModel) -> None:
    prompts = asked(0, 1, 2)
    contexts = model.encode(prompts)
    drawn = draw_completions(model, contexts, SAMPLING.model_copy(update={"temperature": 0.0}), keys(3))
    for context, row in zip(contexts, drawn.rows(), strict=True):
        whole = model.network.generate(
            input_ids=torch.tensor([context]), **dict(context.media), max_new_tokens=6, do_sample=False
        )
        assert row == tuple(whole[0, len(context) :].tolist())[: len(row)]


def test_two_pictures_under_one_text_share_nothing(model: VisionTokenModel) -> None:
    """Neither in drawing nor in the replay, packed or not; the same picture shares all."""
    contexts = model.encode(asked(0, 1, 0))
    assert tuple(contexts[0]) == tuple(contexts[1]) and contexts[0] != contexts[1] and contexts[0] == contexts[2]
    reads = []
    real = model.network.forward

    def counted(*arguments, **rest):
        reads.append(len(rest["input_ids"]))
        return real(*arguments, **rest)

    model.network.forward = counted
    try:
        drawn = draw_completions(model, contexts, SAMPLING, keys(3))
    finally:
        del model.network.forward
    assert reads[0] == 2, "two pictures are read, not one and not three"
    assert sorted(map(len, packed_rows(drawn, 200))) == [1, 2]
    for pack in (0, 200):
        logits = replay_logits(model, drawn, pack)
        log_prob = torch.zeros_like(drawn.log_prob)
        log_prob[drawn.mask] = logits.double().log_softmax(1).gather(1, drawn.ids[drawn.mask][:, None])[:, 0]
        torch.testing.assert_close(log_prob, drawn.log_prob, rtol=0, atol=2e-5)
    alone = replay_logits(model, drawn.select(torch.tensor([0])), 0)
    swapped = drawn.select(torch.tensor([0]))
    other = type(swapped)(**{**vars(swapped), "prompt_ids": (contexts[1],)})
    moved = replay_logits(model, other, 0) - alone
    assert moved[moved.isfinite()].abs().max() > 1e-3, "the picture is looked at"


def test_prompts_without_a_picture_are_text(model: VisionTokenModel) -> None:
    context = model.encode([Prompt(id="t", text="colour?")])[0]
    assert type(context) is tuple and len(context) < len(model.encode(asked(0))[0])


def test_what_it_cannot_read_is_named(folder: Path, tmp_path: Path, model: VisionTokenModel) -> None:
    with pytest.raises(RecipeError, match="no vision-language model that loads"):
        VisionTokenModel.from_config(VisionModel(type="vision", path=str(build_text(tmp_path / "text"))))
    given = Prompt(id="q", text="", inputs={"picture": picture(0), "messages": [{"role": "user", "content": "x"}]})
    with pytest.raises(DataError, match="has pictures and `messages`"):
        model.encode([given])
    model.network.config.get_text_config().rope_parameters = {"mrope_section": [1, 1, 2]}
    try:
        with pytest.raises(RecipeError, match="positions of several axes"):
            VisionTokenModel(model.network, model.processor)
    finally:
        model.network.config.get_text_config().rope_parameters = {"rope_type": "default", "rope_theta": 1e4}


def recipe(folder: Path, out: Path, *layers: dict):
    sampler = {"type": "tokens", "max_new_tokens": 6}
    base = {
        "base": "vision-grpo",
        "model": {"path": str(folder)},
        "prompts": {"type": "custom", "class": "tests.models.tiny_vision:Colours"},
        "rewards": {"answered": None, "says": "tests.models.tiny_vision:says"},
        "sampler": sampler,
        "train": {
            "steps": 3,
            "minutes": None,
            "lr": 1e-2,
            "prompts_per_step": 3,
            "samples_per_prompt": 4,
            "micro_batch": 5,
        },
        "evaluate": {
            "reward": "tests.models.tiny_vision:says",
            "every": 2,
            "prompts": 3,
            "final_prompts": 3,
            "sampler": sampler,
        },
        "run": {"folder": str(out), "save_every": 1, "threads": 1, "name": "vision"},
    }
    return load([base, *layers])


def metrics(root: Path) -> list[dict]:
    return [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("lora", ({"rank": 2, "alpha": 4}, None), ids=("lora", "full"))
def test_it_trains_and_a_resumed_run_equals_an_uninterrupted_one(lora, folder: Path, tmp_path: Path) -> None:
    layer = {"model": {"lora": lora}}
    whole = loop.train(recipe(folder, tmp_path / "whole", layer)).folder
    loop.train(recipe(folder, tmp_path / "pieces", layer, {"train": {"steps": 1}}))
    pieces = loop.train(recipe(folder, tmp_path / "pieces", layer), resume=True).folder
    assert (pieces / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    tensors = [storage.latest_snapshot(root / "checkpoints") / storage.TENSORS for root in (whole, pieces)]
    assert tensors[0].read_bytes() == tensors[1].read_bytes()
    rows = metrics(whole)
    assert all(row["ratio/first_step_max_dev"] < 1e-3 for row in rows) and max(row["grad_norm"] for row in rows) > 1e-3


def test_the_doctor_finds_nothing_wrong_and_it_learns(folder: Path, tmp_path: Path) -> None:
    asked = recipe(
        folder,
        tmp_path,
        {"model": {"lora": None}, "train": {"steps": 25, "samples_per_prompt": 12, "micro_batch": 36, "lr": 3e-3}},
        {"evaluate": {"every": 1000}, "run": {"save_every": 1000}},
    )
    assert {check.name: check.value for check in examine(asked) if check.passed is False} == {}
    rewards = [row["reward"] for row in metrics(loop.train(asked).folder)]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.03, rewards


def test_sources_of_ones_own_are_checked() -> None:
    for path, message in (
        ("tests.models.tiny_vision:picture", "raised TypeError"),
        ("builtins:dict", "made a dict without batch, evaluation"),
    ):
        with pytest.raises(RecipeError, match=message):
            loop.prepare(load([{"base": "slots-grpo", "prompts": {"type": "custom", "class": path}}]))


def test_a_context_survives_the_way_to_other_processes() -> None:
    import pickle

    from plaudit.models.tokens import Context

    made = Context([1, 2], {"pixel_values": torch.ones(1, 2)}, "key")
    again = pickle.loads(pickle.dumps(made))
    assert again == made and torch.equal(again.media["pixel_values"], made.media["pixel_values"])
