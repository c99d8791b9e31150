"""Rebuild the lab's pretrained generators: `plaudit lab build slots|pixels`.

Seeded by step, resumable from its checkpoints, logged one JSON line at a time. The shipped weights are the moving average
of the parameters, stored in half precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from plaudit.builds.training import Plan, pretrain
from plaudit.errors import RecipeError
from plaudit.lab.networks import NETWORKS, to_pixel_latents
from plaudit.lab.scenes.grammar import sample_prompts, tokenise
from plaudit.lab.scenes.render import rasterise, sample_scenes


@dataclass(frozen=True, kw_only=True)
class FlowPlan(Plan):
    """How a generator is pretrained. Times are logit-normal."""

    time_mean: float
    time_std: float
    drop_caption: float = 0.1


PLANS = {
    "slots": FlowPlan(steps=6_000, batch=64, adam_lr=1.5e-3, muon_lr=None, time_mean=0.3, time_std=1.0),
    "pixels": FlowPlan(steps=10_850, batch=24, adam_lr=2e-3, muon_lr=0.02, time_mean=0.9, time_std=1.2),
}


def training_batch(name: str, plan: FlowPlan, seed: int, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Clean latents, noise, times and caption ids of one step; a pure function of (seed, step)."""
    rng = np.random.default_rng([seed, step])
    prompts = sample_prompts("train", plan.batch, rng)
    scenes = sample_scenes(prompts, rng)
    x0 = scenes if name == "slots" else to_pixel_latents(rasterise(scenes))
    ids = torch.from_numpy(tokenise([prompt.text for prompt in prompts]))
    ids[torch.from_numpy(rng.random(plan.batch) < plan.drop_caption)] = 0
    t = torch.sigmoid(torch.from_numpy(rng.normal(plan.time_mean, plan.time_std, plan.batch)).float())
    noise = torch.from_numpy(rng.standard_normal(x0.shape, dtype=np.float32))
    return x0, noise, t.clamp(0.01, 0.999), ids


def velocity_loss(network: nn.Module, x0: Tensor, noise: Tensor, t: Tensor, ids: Tensor) -> Tensor:
    spread = t.reshape(-1, *[1] * (x0.ndim - 1))
    return (network((1 - spread) * x0 + spread * noise, t, ids) - (noise - x0)).square().mean()


@torch.no_grad()
def caption_gap(network: nn.Module, name: str, plan: FlowPlan) -> dict[str, float]:
    """Loss with the right and with a shuffled caption on fixed batches: the smoothest sign of progress."""
    right = wrong = 0.0
    for step in range(8):
        x0, noise, t, ids = training_batch(name, plan, seed=987_654, step=step)
        right += velocity_loss(network, x0, noise, t, ids).item() / 8
        wrong += velocity_loss(network, x0, noise, t, ids.roll(1, dims=0)).item() / 8
    return {"loss_right_caption": right, "loss_wrong_caption": wrong}


def build(name: str, out: Path, *, steps: int | None = None, seed: int = 0, install: bool = False) -> Path:
    """Train a lab generator into `out`, going on from its last checkpoint when there is one; returns the weights file."""
    if name not in PLANS:
        raise RecipeError(f"lab build: unknown model {name!r}; allowed: {', '.join(PLANS)}")
    plan = PLANS[name]
    torch.manual_seed(seed)
    network = NETWORKS[name]()

    def loss(step: int) -> Tensor:
        return velocity_loss(network, *training_batch(name, plan, seed, step))

    def measured(average: Mapping[str, Tensor]) -> dict[str, float]:
        shown = NETWORKS[name]()
        shown.load_state_dict(average)
        return caption_gap(shown, name, plan)

    return pretrain(name, network, plan, loss, measured, out, steps=steps, install=install)
