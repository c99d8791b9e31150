"""Rebuild the lab's pretrained generators of pictures: `plaudit lab build slots|pixels|edits`.

Seeded by step, resumable from its checkpoints, logged one JSON line at a time. The shipped weights are the moving average
of the parameters, stored in half precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plaudit.builds.training import Plan, pretrain
from plaudit.dotted import import_dotted
from plaudit.worlds import world_of


@dataclass(frozen=True, kw_only=True)
class FlowPlan(Plan):
    """How a generator is pretrained. Times are logit-normal."""

    time_mean: float
    time_std: float
    drop_caption: float = 0.1


SLOTS = FlowPlan(steps=6_000, batch=64, adam_lr=1.5e-3, muon_lr=None, time_mean=0.3, time_std=1.0)
PLANS = {  # of those that are not pretrained as `slots` is
    "pixels": FlowPlan(steps=10_850, batch=24, adam_lr=2e-3, muon_lr=0.02, time_mean=0.9, time_std=1.2),
}


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Clean latents, noise, times, and what the network reads of the prompts."""

    x0: Tensor
    noise: Tensor
    t: Tensor
    read: Sequence[Tensor]


def training_batch(network: Any, plan: FlowPlan, seed: int, step: int) -> Examples:
    """Of one step; a pure function of (seed, step). Some lose what they would read."""
    rng = np.random.default_rng([seed, step])
    x0, prompts = network.examples(plan.batch, rng)
    read = list(network.read(prompts).values())
    lost = torch.from_numpy(rng.random(plan.batch) < plan.drop_caption)
    for tensor in read:
        tensor[lost] = 0
    t = torch.sigmoid(torch.from_numpy(rng.normal(plan.time_mean, plan.time_std, plan.batch)).float())
    noise = torch.from_numpy(rng.standard_normal(x0.shape, dtype=np.float32))
    return Examples(x0=x0, noise=noise, t=t.clamp(0.01, 0.999), read=read)


def velocity_loss(network: nn.Module, of: Examples) -> Tensor:
    spread = of.t.reshape(-1, *[1] * (of.x0.ndim - 1))
    found = network((1 - spread) * of.x0 + spread * of.noise, of.t, *of.read)
    return (found - (of.noise - of.x0)).square().mean()


@torch.no_grad()
def caption_gap(network: nn.Module, plan: FlowPlan) -> dict[str, float]:
    """Loss with the right and with a shuffled caption on fixed batches: the smoothest sign of progress."""
    right = wrong = 0.0
    for step in range(8):
        batch = training_batch(network, plan, seed=987_654, step=step)
        right += velocity_loss(network, batch).item() / 8
        others = replace(batch, read=[tensor.roll(1, dims=0) for tensor in batch.read])
        wrong += velocity_loss(network, others).item() / 8
    return {"loss_right_caption": right, "loss_wrong_caption": wrong}


def build(name: str, out: Path, *, steps: int | None = None, seed: int = 0, install: bool = False) -> Path:
    """Train a lab generator into `out`, going on from its last checkpoint when there is one; returns the weights file."""
    plan = PLANS.get(name, SLOTS)
    torch.manual_seed(seed)
    make = import_dotted(world_of(name).networks[name], "lab build")
    network = make()

    def loss(step: int) -> Tensor:
        return velocity_loss(network, training_batch(network, plan, seed, step))

    def measured(average: Mapping[str, Tensor]) -> dict[str, float]:
        shown = make()
        shown.load_state_dict(average)
        return caption_gap(shown, plan)

    return pretrain(name, network, plan, loss, measured, out, steps=steps, install=install)
