"""Training a stitched value model on pictures without labels (StitchVM, S056).

    || e_V(z_t, t) - e(z_0) ||^2 + || tokens_V - tokens ||^2      e of unit length; tokens: mean over tokens and channels

The embedding of the clean picture is the target of its noisy latent, so what is learnt is its mean given the noisy one (the
direction of it, since embeddings are normalised). Only the stitch and the layers behind it learn.

Departures. AdamW's rate is 3e-4 (paper: 1e-5 for a tower of hundreds of millions) and five times that for the stitch; times
are logit-normal; batches are small and pictures drawn without end, so there are no epochs.

Shape legend: B batch, * latent dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from plaudit.lab.encoder_networks import DualEncoder
from plaudit.lab.networks import to_pixel_latents
from plaudit.lab.scenes.grammar import sample_prompts
from plaudit.lab.scenes.render import rasterise, sample_scenes
from plaudit.rewards.learned.stitched import (
    Seam,
    Seen,
    StitchedValue,
    find_seam,
    tower_features,
    tower_tail,
    trunk_features,
)

Student = Callable[[Tensor, Tensor], Seen]  # noisy latents and their times


@dataclass(frozen=True, kw_only=True)
class ValuePlan:
    steps: int = 250
    batch: int = 32
    probes: int = 200
    slack: float = 0.0
    layers: int = 4  # of the tower, from which one is chosen
    rate: float = 3e-4
    stitch_rate: float = 5.0  # times `rate`
    warmup: int = 50
    token_weight: float = 1.0
    time_std: float = 1.2
    clip: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Noised:
    """Clean pictures `[B, 3, H, W]`, and their latents brought to times `t [B]`."""

    images: Tensor
    z: Tensor
    t: Tensor


def noised(count: int, rng: np.random.Generator, times: Tensor) -> Noised:
    images = rasterise(sample_scenes(sample_prompts("train", count, rng), rng))
    clean = to_pixel_latents(images)
    noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32))
    t = times[:, None, None, None]
    return Noised(images=images, z=(1 - t) * clean + t * noise, t=times)


@torch.no_grad()
def seam_of(network: nn.Module, encoder: DualEncoder, plan: ValuePlan, rng: np.random.Generator) -> Seam:
    """Stage 1, on a few pictures at uniform times."""
    times = torch.from_numpy(rng.uniform(0, 1, plan.probes)).float()
    probe = noised(plan.probes, rng, times)
    tower = tower_features(encoder.picture, probe.images)[: plan.layers]
    return find_seam(trunk_features(network, probe.z, probe.t), tower, plan.slack)


def stitched(network: nn.Module, encoder: DualEncoder, seam: Seam) -> StitchedValue:
    return StitchedValue(encoder, seam.block, seam.layer, seam.fit.weight.float(), seam.size)


def value_loss(found: Seen, clean: Seen, token_weight: float) -> Tensor:
    embeddings = (found.embedding - clean.embedding).square().sum(-1).mean()
    return embeddings + token_weight * (found.tokens - clean.tokens).square().mean()


def groups(value: StitchedValue, plan: ValuePlan) -> list[dict]:
    """The parameters that learn, with their rates."""
    tail = [parameter for part in value.tail() for parameter in part.parameters()]
    return [
        {"params": tail, "lr": plan.rate},
        {"params": list(value.stitch.parameters()), "lr": plan.rate * plan.stitch_rate},
    ]


def train(
    student: Student, parameters: list[dict], encoder: DualEncoder, plan: ValuePlan, rng: np.random.Generator
) -> list[float]:
    """Stage 2; the loss of every step. The rate falls linearly to zero after the warm-up."""
    optimizer = torch.optim.AdamW(parameters)
    fall = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / plan.warmup, (plan.steps - step) / (plan.steps - plan.warmup))
    )
    learning = [parameter for group in parameters for parameter in group["params"]]
    losses = []
    for _ in range(plan.steps):
        times = torch.sigmoid(torch.from_numpy(rng.normal(0.0, plan.time_std, plan.batch)).float())
        batch = noised(plan.batch, rng, times)
        with torch.no_grad():
            clean = tower_tail(encoder, tower_features(encoder.picture, batch.images)[0], 0)
        loss = value_loss(student(batch.z, batch.t), clean, plan.token_weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learning, plan.clip)
        optimizer.step()
        fall.step()
        losses.append(loss.item())
    return losses
