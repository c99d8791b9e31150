"""Fit the correction of the lab encoder's text space: `plaudit lab build direction`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.lab.networks import WEIGHTS
from plaudit.lab.scenes.grammar import sample_prompts
from plaudit.models.flow import Conditioning
from plaudit.models.lab import LabFlowModel
from plaudit.rewards.encoders.direction import corrected_text, fit_direction
from plaudit.rewards.encoders.load import load_encoder
from plaudit.sampling.noise import SampleKey
from plaudit.sampling.plan import deterministic_plan
from plaudit.sampling.rollout import draw

PICTURES = 384
WEIGHT = 1.5


def generated(prompts: Sequence[Prompt], *, name: str = "pixels", steps: int = 16, seed: int = 0) -> Tensor:
    """Pictures of a lab generator as it ships."""
    model = LabFlowModel(name)
    keys = [SampleKey(seed=seed, step=0, prompt=prompt.id, index=i) for i, prompt in enumerate(prompts)]
    plan = deterministic_plan(model.schedule(steps, None), len(prompts))
    drawn = draw(model, Conditioning(condition=model.encode(prompts)), plan, keys, tile=64)
    with torch.no_grad():
        return model.decode(drawn.latents)


def build_direction(out: Path, *, steps: int | None = None, seed: int = 0, install: bool = False) -> Path:
    """Fit it on pictures of the `pixels` generator for training captions, and say what it changes."""
    prompts = sample_prompts("train", PICTURES, np.random.default_rng([seed, 83]))
    encoder = load_encoder("lab")
    with torch.no_grad():
        texts = encoder.embed_texts([prompt.text for prompt in prompts])
        pictures = encoder.embed_images(generated(prompts, seed=seed))
    direction = fit_direction(texts, pictures, weight=WEIGHT, steps=steps or 2_000, seed=seed)
    measured = {
        "mean_similarity": (texts * pictures).sum(-1).mean().item(),
        "mean_corrected_similarity": (corrected_text(texts, direction, WEIGHT) * pictures).sum(-1).mean().item(),
        "norm": direction.norm().item(),
    }
    print(json.dumps(measured))
    out.mkdir(parents=True, exist_ok=True)
    (out / "direction.json").write_text(json.dumps(measured), encoding="utf-8")
    path = (WEIGHTS if install else out) / "direction.safetensors"
    save_file({"direction": direction}, path)
    return path
