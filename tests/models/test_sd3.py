"""Stable Diffusion 3 through diffusers: a tiny random pipeline must give what the stock pipeline gives."""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from tests.models.tiny_sd3 import CLIP_TOKENS, build

import plaudit
from plaudit.data.prompt import Prompt
from plaudit.errors import RecipeError
from plaudit.models.conditioning import PromptEncoder
from plaudit.models.flow import Conditioning
from plaudit.models.lora import add_lora
from plaudit.models.origin import load_result
from plaudit.models.sd3 import Sd3FlowModel
from plaudit.recipe.load import load
from plaudit.recipe.models import LoraConfig, Sd3Model
from plaudit.recipe.sampling import EvaluationSampler, Sampler, Window
from plaudit.recipe.schema import Recipe
from plaudit.sampling.drawers import EVALUATION_STEP, generate, make_drawer
from plaudit.sampling.noise import SampleKey, gaussian
from plaudit.sampling.plan import stochastic_plan
from plaudit.sampling.rollout import Trace, draw, replay, replay_log_prob
from plaudit.train import loop
from plaudit.train.doctor.doctor import examine
from plaudit.train.setup import Setup, prepare
from plaudit.verbs import align

SIZE = 32
TOKENS = 24
TEXTS = ("a red circle", "two blue squares", "a green triangle", "a cat", "one yellow circle", "a dog on a mat")
PROMPTS = [Prompt(id=text, text=text) for text in TEXTS[:3]]
KEYS = [SampleKey(seed=7, step=EVALUATION_STEP, prompt=prompt.id, index=0) for prompt in PROMPTS]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("sd3"))


def make_config(folder: Path, **changes: Any) -> Sd3Model:
    return Sd3Model(
        **{"type": "sd3", "path": str(folder), "height": SIZE, "width": SIZE, "max_sequence_length": TOKENS, **changes}
    )


@pytest.fixture
def model(folder: Path) -> Sd3FlowModel:
    return Sd3FlowModel.from_config(make_config(folder))


@pytest.fixture
def stock(folder: Path) -> StableDiffusion3Pipeline:
    pipe = StableDiffusion3Pipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stock_pictures(pipe: StableDiffusion3Pipeline, steps: int, guidance: float) -> Tensor:
    return pipe(
        prompt=[prompt.text for prompt in PROMPTS],
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=gaussian(KEYS, "initial", (16, SIZE // 2, SIZE // 2)),
        height=SIZE,
        width=SIZE,
        max_sequence_length=TOKENS,
        output_type="pt",
    ).images


def our_pictures(model: Sd3FlowModel, steps: int, guidance: float) -> Tensor:
    sampler = EvaluationSampler(steps=steps, guidance=guidance)
    return generate(make_drawer(model, Sampler(), sampler), PROMPTS, KEYS[0].seed).outputs


def record_times(network: SD3Transformer2DModel) -> list[Tensor]:
    """Fills up with the timesteps that each call of the network is given."""
    times: list[Tensor] = []
    network.register_forward_pre_hook(lambda _, __, named: times.append(named["timestep"].clone()), with_kwargs=True)
    return times


# --- sampling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [4, 7])
@pytest.mark.parametrize("guidance", [1.0, 4.5])
def test_pictures_and_timesteps_are_those_of_the_pipeline(model, stock, steps: int, guidance: float):
    our_times, their_times = record_times(model.network), record_times(stock.transformer)
    ours, theirs = our_pictures(model, steps, guidance), stock_pictures(stock, steps, guidance)
    assert ours.shape == (len(PROMPTS), 3, SIZE, SIZE)
    assert (ours - theirs).abs().max() <= 1e-5
    assert theirs.std() > 0.05
    assert len(our_times) == len(their_times) == steps
    for our, their in zip(our_times, their_times, strict=True):
        assert torch.equal(our, their)
    assert any(time % 1 != 0 for time in our_times[1])


@pytest.mark.parametrize("kernel", ["flow_sde", "constant_eta", "cps", "ddim_eta"])
def test_level_zero_of_every_kernel_is_the_pipeline(model, stock, kernel: str):
    sampler = Sampler(steps=4, kernel=kernel, level=0.0, guidance=4.5)
    plan = stochastic_plan(sampler, model.schedule(4, None), KEYS, KEYS)
    latents = draw(model, PromptEncoder(model)(PROMPTS, 4.5), plan, KEYS, tile=2).latents
    assert (model.decode(latents) - stock_pictures(stock, 4, 4.5)).abs().max() <= 1e-5


@pytest.mark.parametrize("method", ["best_of_n", "prune", "beam", "renoise"])
def test_search_works_on_it(model, method: str):
    """Candidate 0 is the plain picture, and nothing found is worse."""
    found = plaudit.search(
        model, "brightness", budget="60nfe", method=method, prompts=PROMPTS, steps=4, guidance=4.5, seed=KEYS[0].seed
    )
    plain = torch.stack([kept.output for kept in found.plain if kept is not None])
    assert (plain - our_pictures(model, 4, 4.5)).abs().max() <= 1e-6
    assert (found.scores > found.plain_scores).any() and (found.scores >= found.plain_scores).all()
    assert 0 < found.ledger.total.network_calls <= 60 * len(PROMPTS)


def test_latents_are_those_that_the_pipelines_decoder_takes(model, stock):
    """As in diffusers' own image-to-image: the encoder's latents less the shift, times the scale."""
    height, width = (side * stock.vae_scale_factor for side in model.latent_shape[1:])
    pictures = torch.rand(5, 3, height, width)
    with torch.no_grad():
        found = model.latents(pictures)
        mode = stock.vae.encode(stock.image_processor.preprocess(pictures)).latent_dist.mode()
        decoded = stock.image_processor.postprocess(stock.vae.decode(mode, return_dict=False)[0], output_type="pt")
        again = model.decode(found)
    config = stock.vae.config
    assert found.shape == (5, *model.latent_shape) and config.shift_factor != 0 and config.scaling_factor != 1
    torch.testing.assert_close(found, (mode - config.shift_factor) * config.scaling_factor, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(again, decoded, rtol=1e-4, atol=1e-5)


def test_text_changes_the_picture(model):
    swapped = [dataclasses.replace(prompt, text="a fish") for prompt in PROMPTS]
    sampler = EvaluationSampler(steps=4, guidance=4.5)
    other = generate(make_drawer(model, Sampler(), sampler), swapped, KEYS[0].seed).outputs
    assert (our_pictures(model, 4, 4.5) - other).abs().max() > 1e-2


def test_schedule_follows_a_dynamic_shift(model, stock):
    dynamic = {"use_dynamic_shifting": True, "base_image_seq_len": 16, "max_image_seq_len": 256, "max_shift": 3.0}
    for pipe in (model.pipe, stock):
        pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config, **dynamic)
    stock_pictures(stock, 5, 1.0)
    assert torch.equal(model.schedule(5, None), stock.scheduler.sigmas)
    assert not torch.allclose(model.schedule(5, None), model.schedule(5, 3.0))


def test_given_shift_is_that_of_a_scheduler_made_with_it(model):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(6)
    assert torch.equal(model.schedule(6, 5.0), scheduler.sigmas)


def test_schedules_share_no_state(model):
    before = copy.deepcopy(vars(model.pipe.scheduler))
    first, _, again = (model.schedule(steps, shift) for steps, shift in ((4, None), (9, 5.0), (4, None)))
    assert torch.equal(first, again)
    after = vars(model.pipe.scheduler)
    assert torch.equal(before.pop("sigmas"), after["sigmas"])
    assert torch.equal(before.pop("timesteps"), after["timesteps"])
    assert before == {key: after[key] for key in before}


def test_low_precision_keeps_latents_and_times_in_float32(folder: Path):
    model = Sd3FlowModel.from_config(make_config(folder, dtype="bfloat16"))
    times = record_times(model.network)
    pictures = our_pictures(model, 4, 4.5)
    assert pictures.dtype == torch.float32
    assert {parameter.dtype for parameter in model.network.parameters()} == {torch.bfloat16}
    assert torch.equal(torch.stack([time[0] for time in times]), model.schedule(4, None)[:-1] * 1000)


# --- prompts -------------------------------------------------------------------------------------------------------


def test_embeddings_do_not_depend_on_the_other_prompts(model):
    together, alone = model.encode(PROMPTS), model.encode(PROMPTS[1:2])
    for name, tensor in alone.tensors.items():
        assert torch.equal(tensor, together.tensors[name][1:2])
        assert not tensor.requires_grad


def test_truncated_prompts_are_counted(model):
    texts = ["short", "x" * 27, "y" * 60]
    with pytest.warns(UserWarning) as caught:
        model.encode([Prompt(id=text, text=text) for text in texts])
    messages = [str(warning.message) for warning in caught]
    assert [message.split(";")[0] for message in messages] == [
        f"1 of 3 prompts are cut by tokenizer at {CLIP_TOKENS} tokens (longest 62)",
        f"1 of 3 prompts are cut by tokenizer_2 at {CLIP_TOKENS} tokens (longest 62)",
        f"2 of 3 prompts are cut by tokenizer_3 at {TOKENS} tokens (longest 61)",
    ]
    assert all("model.max_sequence_length" in message for message in messages)


def test_prompts_of_just_the_limit_do_not_warn(model, recwarn):
    model.encode([Prompt(id="edge", text="x" * (TOKENS - 1))])
    assert not recwarn.list


# --- ratios --------------------------------------------------------------------------------------------------------


def record(model: Sd3FlowModel, conditioning: Conditioning, window: Window) -> Trace:
    sampler = Sampler(steps=5, kernel="flow_sde", level=0.7, window=window)
    plan = stochastic_plan(sampler, model.schedule(5, None), KEYS, KEYS)
    trace = draw(model, conditioning, plan, KEYS, tile=len(KEYS)).trace
    assert trace.mask.all()
    return trace


def largest_deviation(model: Sd3FlowModel, conditioning: Conditioning, trace: Trace) -> float:
    with torch.no_grad():
        log_prob = replay_log_prob(trace, replay(model, conditioning, trace), "exact")
    return (log_prob - trace.log_prob).exp().sub(1).abs().max().item()


@pytest.mark.parametrize("decision", [0, 1, 2, 3])
@pytest.mark.parametrize("guidance", [1.0, 4.5])
def test_ratio_is_one_before_an_update(model, guidance: float, decision: int):
    conditioning = PromptEncoder(model)(PROMPTS, guidance)
    trace = record(model, conditioning, Window(size=1, start=(decision, decision)))
    assert largest_deviation(model, conditioning, trace) <= 1e-6


@pytest.mark.parametrize(("guidance", "other"), [(1.0, 1.5), (4.5, 4.6)])
def test_ratio_is_not_one_with_another_guidance(model, guidance: float, other: float):
    """All decisions at once, in a batch of another shape than the rollout's: matrix products may round differently
    there, and the sum over 4096 dimensions makes up to 1e-4 of it."""
    conditioning = PromptEncoder(model)(PROMPTS, guidance)
    trace = record(model, conditioning, Window())
    assert largest_deviation(model, conditioning, trace) <= 1e-3
    assert largest_deviation(model, PromptEncoder(model)(PROMPTS, other), trace) > 0.1


# --- training ------------------------------------------------------------------------------------------------------

OBJECTIVES: dict[str, dict[str, Any]] = {
    "grpo": {  # one decision a sample and one micro-batch: the replay has the rollout's shape and rounds like it
        "sampler": {"steps": 4, "kernel": "flow_sde", "guidance": 4.5, "window": {"size": 1, "start": [0, 2]}},
        "objective": {"type": "grpo", "kl": {"weight": 1e-3}},
    },
    "nft": {"sampler": {"steps": 4, "kernel": "ode", "guidance": 4.5}, "objective": {"type": "nft"}},
}


def make_recipe(folder: Path, home: Path, objective: str) -> Recipe:
    """Two steps of 3 prompts x 2 samples; alpha is not the rank, so a lost strength shows."""
    prompts = home / "prompts.txt"
    prompts.write_text("\n".join(TEXTS))
    lora = {"rank": 4, "alpha": 12.0}
    return load(
        {
            "model": make_config(folder, lora=lora).model_dump(mode="json"),
            "prompts": {"type": "file", "train": str(prompts)},
            "rewards": {"brightness": "brightness"},
            "train": {"steps": 2, "prompts_per_step": 3, "samples_per_prompt": 2, "micro_batch": 6, "lr": 1e-2},
            "evaluate": {
                "reward": "brightness",
                "every": 1,
                "prompts": 3,
                "final_prompts": 6,
                "sampler": {"steps": 4, "guidance": 4.5},
            },
            "run": {"folder": str(home), "name": objective},
            **OBJECTIVES[objective],
        }
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished run, with the objects it used and the texts it encoded."""

    recipe: Recipe
    setup: Setup
    result: loop.RunResult
    encoded: Counter[str]


@pytest.fixture(scope="module", params=sorted(OBJECTIVES))
def trained(request, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    recipe = make_recipe(folder, tmp_path_factory.mktemp(request.param), request.param)
    setup, encoded, encode = prepare(recipe), Counter(), Sd3FlowModel._encode

    def counted(model: Sd3FlowModel, text: str) -> tuple[Tensor, Tensor]:
        encoded[text] += 1
        return encode(model, text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "prepare", lambda *_: setup)
        patch.setattr(Sd3FlowModel, "_encode", counted)
        result = align(recipe, quiet=True)
    yield Trained(recipe=recipe, setup=setup, result=result, encoded=encoded)


def test_only_the_adapters_have_changed(trained: Trained, stock):
    pipe = trained.setup.policy.model.pipe
    for name in ("vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
        before, after = getattr(stock, name).state_dict(), getattr(pipe, name).state_dict()
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert not any(parameter.requires_grad for parameter in getattr(pipe, name).parameters())
    base = {
        key.replace(".base_layer", ""): value
        for key, value in pipe.transformer.state_dict().items()
        if ".lora_" not in key
    }
    assert base.keys() == stock.transformer.state_dict().keys()
    assert all(torch.equal(base[key], value) for key, value in stock.transformer.state_dict().items())
    grown = [p for name, p in trained.setup.policy.trainable.items() if "lora_B" in name and p.detach().any()]
    assert len(grown) > 10
    assert all("lora_" in name for name in trained.setup.policy.trainable)


def test_attention_of_pictures_and_text_is_adapted(trained: Trained):
    adapted = {name.split(".lora_")[0] for name in trained.setup.policy.trainable}
    block = "transformer_blocks.0.attn"
    pictures = {f"{block}.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")}
    text = {f"{block}.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")}
    assert {name for name in adapted if name.startswith(block)} == pictures | text


def test_prompts_are_encoded_once(trained: Trained):
    assert trained.encoded == Counter([*TEXTS, ""])


def test_result_loads_in_plain_diffusers(trained: Trained, stock):
    base = stock_pictures(stock, 4, 4.5)
    stock.load_lora_weights(trained.result.folder / "final")
    theirs = stock_pictures(stock, 4, 4.5)
    ours = our_pictures(trained.setup.policy.model, 4, 4.5)
    assert (ours - theirs).abs().max() <= 1e-5
    assert (base - theirs).abs().max() > 1e-3


def test_result_loads_from_the_run(trained: Trained):
    model = prepare(trained.recipe).policy.model
    load_result(model, trained.result.folder)
    assert torch.equal(our_pictures(model, 4, 4.5), our_pictures(trained.setup.policy.model, 4, 4.5))


def test_summary_reports_the_reward(trained: Trained):
    assert trained.result.summary["steps"] == 2
    assert 0 < trained.result.summary["before"] < 1
    assert trained.result.report.is_file()


def test_adapters_change_nothing_at_the_start(model):
    before = our_pictures(model, 4, 4.5)
    add_lora(model, LoraConfig(rank=4), seed=0)
    assert torch.equal(before, our_pictures(model, 4, 4.5))


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_doctor_finds_it_healthy(folder: Path, tmp_path: Path, objective: str):
    checks = examine(make_recipe(folder, tmp_path, objective))
    assert not [check for check in checks if check.passed is False]
    assert sum(check.passed is True for check in checks) >= 8


def test_shipped_recipe_is_healthy_on_another_pipeline(folder: Path, tmp_path: Path):
    own = make_recipe(folder, tmp_path, "grpo").model_dump(mode="json", include={"model", "prompts"})
    checks = examine(load(["sd3-grpo-lora", own]))
    assert not [check for check in checks if check.passed is False]


def test_full_tuning_saves_a_transformer(model, tmp_path: Path):
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(0.01)
    model.save(tmp_path / "final")
    loaded = SD3Transformer2DModel.from_pretrained(tmp_path / "final").state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in model.network.state_dict().items())


# --- mistakes ------------------------------------------------------------------------------------------------------


def test_mistakes_name_their_key_and_the_next_step(folder: Path, tmp_path: Path, monkeypatch):
    with pytest.raises(RecipeError, match=r"model\.height: 30 is not a multiple of 4; take 32"):
        Sd3FlowModel.from_config(make_config(folder, height=30))
    with pytest.raises(
        RecipeError, match=r"model\.path: '.*nowhere' does not exist; give a folder that does, or a hub name"
    ):
        Sd3FlowModel.from_config(make_config(tmp_path / "nowhere"))
    with pytest.raises(RecipeError, match=r"model\.path: 'nobody/nothing'"):
        Sd3FlowModel.from_config(make_config(folder, path="nobody/nothing"))
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(RecipeError, match=r"pip install 'plaudit\[diffusers\]'"):
        Sd3FlowModel.from_config(make_config(folder))
