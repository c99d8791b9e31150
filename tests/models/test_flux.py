"""The page about models of one's own is executed: its FLUX is the stock pipeline's, and trains."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import FluxPipeline
from tests.docs.pages import page, write_files
from tests.models.tiny_flux import build

from plaudit.data.prompt import Prompt
from plaudit.models.build import build_model
from plaudit.models.flow import FlowModel
from plaudit.recipe.load import load
from plaudit.recipe.models import DottedModel
from plaudit.recipe.sampling import EvaluationSampler, Sampler
from plaudit.sampling.drawers import EVALUATION_STEP, generate, make_drawer
from plaudit.sampling.noise import SampleKey, gaussian
from plaudit.train import loop

SIZE, TOKENS, STEPS = 32, 24, 4
PAGE = page("docs/models.md")
PROMPTS = [Prompt(id=text, text=text) for text in ("a red circle", "two blue squares", "a cat")]
KEYS = [SampleKey(seed=7, step=EVALUATION_STEP, prompt=prompt.id, index=0) for prompt in PROMPTS]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_files(PAGE, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_flux", raising=False)
    return tmp_path


def arguments(folder: Path) -> dict[str, Any]:
    return {"path": str(folder), "size": SIZE, "guidance": 4.0, "tokens": TOKENS}


@pytest.mark.parametrize("guidance", [True, False])
def test_pictures_are_those_of_the_pipeline(workplace: Path, guidance: bool) -> None:
    folder = build(workplace / "flux", guidance=guidance)
    model: Any = build_model(DottedModel(type="custom", factory="my_flux:FluxModel", arguments=arguments(folder)))
    assert (model.network.config.guidance_embeds, model.latent_shape) == (guidance, (64, 64))
    ours = generate(make_drawer(model, Sampler(), EvaluationSampler(steps=STEPS, guidance=1.0)), PROMPTS, 7).outputs
    stock = FluxPipeline.from_pretrained(folder)
    stock.set_progress_bar_config(disable=True)
    theirs = stock(
        prompt=[prompt.text for prompt in PROMPTS],
        num_inference_steps=STEPS,
        guidance_scale=4.0,
        latents=gaussian(KEYS, "initial", model.latent_shape),
        height=SIZE,
        width=SIZE,
        max_sequence_length=TOKENS,
        output_type="pt",
    ).images
    assert ours.shape == (3, 3, SIZE, SIZE) and theirs.std() > 0.05
    assert (ours - theirs).abs().max() <= 1e-5


def test_its_recipe_trains_and_the_pipeline_loads_what_it_saves(workplace: Path) -> None:
    folder = build(workplace / "flux", guidance=True)
    (workplace / "prompts.txt").write_text("\n".join(prompt.text for prompt in PROMPTS))
    changes = {
        "model": {"arguments": arguments(folder)},
        "sampler": {"steps": 3},
        "train": {"steps": 1, "prompts_per_step": 2, "samples_per_prompt": 2},
        "evaluate": {"prompts": 2, "final_prompts": 2, "sampler": {"steps": 2}},
    }
    recipe = load(["flux.yaml", changes])
    result = loop.train(recipe)
    stock = FluxPipeline.from_pretrained(folder)
    stock.load_lora_weights(result.folder / "final")
    trained = [p for name, p in stock.transformer.named_parameters() if ".lora_B" in name]
    assert trained and any(torch.count_nonzero(p) for p in trained)


def test_the_page_names_every_member() -> None:
    members = {
        name for name in {*FlowModel.__annotations__, *vars(FlowModel)} - {"latents"} if not name.startswith("_")
    }
    assert len(members) == 8 and all(f"| `{name}" in PAGE for name in members)


def test_the_recipe_of_the_page_is_one(workplace: Path) -> None:
    assert load("flux.yaml").model.family == "flow"
