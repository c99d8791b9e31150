"""Rebuild the lab's pretrained generators: `plaudit lab build slots|pixels`.

Seeded by step, resumable from its checkpoints, logged one JSON line at a time. The shipped weights are the moving average
of the parameters, stored in half precision.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from plaudit import storage
from plaudit.errors import RecipeError
from plaudit.lab.networks import PixelNetwork, SlotNetwork
from plaudit.lab.scenes.grammar import sample_prompts, tokenise
from plaudit.lab.scenes.render import BACKGROUND, rasterise, sample_scenes

WEIGHTS = Path(__file__).parent / "weights"
PIXEL_SCALE = 2.0
NETWORKS: dict[str, type[nn.Module]] = {"slots": SlotNetwork, "pixels": PixelNetwork}


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """How one generator is pretrained. Times are logit-normal; the learning rate falls to zero over the last 40 %."""

    steps: int
    batch: int
    adam_lr: float
    muon_lr: float | None
    time_mean: float
    time_std: float
    drop_caption: float = 0.1
    ema: float = 0.999
    warmup: int = 200
    decay_from: float = 0.6


PLANS = {
    "slots": BuildPlan(steps=6_000, batch=64, adam_lr=1.5e-3, muon_lr=None, time_mean=0.3, time_std=1.0),
    "pixels": BuildPlan(steps=10_850, batch=24, adam_lr=2e-3, muon_lr=0.02, time_mean=0.9, time_std=1.2),
}


def to_pixel_latents(images: Tensor) -> Tensor:
    """Images in [0, 1] to latents in which the background is zero."""
    return (images - images.new_tensor(BACKGROUND)[:, None, None]) * PIXEL_SCALE


def from_pixel_latents(latents: Tensor) -> Tensor:
    return (latents / PIXEL_SCALE + latents.new_tensor(BACKGROUND)[:, None, None]).clamp(0, 1)


def training_batch(name: str, plan: BuildPlan, seed: int, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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
def caption_gap(network: nn.Module, name: str, plan: BuildPlan) -> dict[str, float]:
    """Loss with the right and with a shuffled caption on fixed batches: the smoothest sign of progress."""
    right = wrong = 0.0
    for step in range(8):
        x0, noise, t, ids = training_batch(name, plan, seed=987_654, step=step)
        right += velocity_loss(network, x0, noise, t, ids).item() / 8
        wrong += velocity_loss(network, x0, noise, t, ids.roll(1, dims=0)).item() / 8
    return {"loss_right_caption": right, "loss_wrong_caption": wrong}


def make_optimizers(network: nn.Module, plan: BuildPlan) -> dict[str, torch.optim.Optimizer]:
    """Muon for the matrices of the blocks where the plan asks for it, AdamW for the rest."""
    named = list(network.named_parameters())
    matrices = [p for n, p in named if plan.muon_lr and ".blocks." in n and p.ndim == 2 and n.endswith("weight")]
    rest = [p for _, p in named if all(p is not matrix for matrix in matrices)]
    optimizers: dict[str, torch.optim.Optimizer] = {
        "adam": torch.optim.AdamW(rest, lr=plan.adam_lr, betas=(0.9, 0.98), weight_decay=0.0)
    }
    if plan.muon_lr and matrices:
        optimizers["muon"] = torch.optim.Muon(matrices, lr=plan.muon_lr, weight_decay=0.0)
    return optimizers


def rate(plan: BuildPlan, steps: int, step: int) -> float:
    """Fraction of the full learning rate at a step: warm-up, plateau, linear fall."""
    fall = (steps - step) / (steps * (1 - plan.decay_from))
    return min(1.0, (step + 1) / plan.warmup, fall)


def build(name: str, out: Path, *, steps: int | None = None, seed: int = 0, install: bool = False) -> Path:
    """Train a lab generator into `out`, going on from its last checkpoint when there is one; returns the weights file."""
    if name not in PLANS:
        raise RecipeError(f"lab build: unknown model {name!r}; allowed: {', '.join(PLANS)}")
    plan = PLANS[name]
    steps = steps or plan.steps
    torch.manual_seed(seed)
    network = NETWORKS[name]()
    average = {key: value.detach().clone() for key, value in network.state_dict().items()}
    optimizers = make_optimizers(network, plan)
    first = restore_state(out, network, average, optimizers)
    started = time.monotonic()
    base_rates = {key: optimizer.param_groups[0]["lr"] for key, optimizer in optimizers.items()}
    out.mkdir(parents=True, exist_ok=True)
    for step in range(first, steps):
        for key, optimizer in optimizers.items():
            optimizer.param_groups[0]["lr"] = base_rates[key] * rate(plan, steps, step)
            optimizer.zero_grad(set_to_none=True)
        loss = velocity_loss(network, *training_batch(name, plan, seed, step))
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimizer in optimizers.values():
            optimizer.step()
        decay = min(plan.ema, (1 + step) / (10 + step))
        for key, value in network.state_dict().items():
            average[key].lerp_(value, 1 - decay)
        if (step + 1) % 250 == 0 or step + 1 == steps:
            seconds = time.monotonic() - started
            entry = {"step": step + 1, "steps": steps, "loss": loss.item(), "seconds": round(seconds, 1)}
            entry |= _with_weights(network, average, name, plan)
            entry["minutes_left"] = round(seconds / (step + 1 - first) * (steps - step - 1) / 60, 1)
            with (out / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(entry) + "\n")
            print(json.dumps(entry), flush=True)
        if (step + 1) % 500 == 0 or step + 1 == steps:
            save_state(out, step + 1, network, average, optimizers)
    return export_weights(out, name, average, install)


def _with_weights(network: nn.Module, average: dict[str, Tensor], name: str, plan: BuildPlan) -> dict[str, float]:
    own = {key: value.clone() for key, value in network.state_dict().items()}
    network.load_state_dict(average)
    gap = caption_gap(network, name, plan)
    network.load_state_dict(own)
    return gap


def save_state(out: Path, step: int, network: nn.Module, average: dict[str, Tensor], optimizers: dict) -> None:
    tensors = {f"network.{k}": v for k, v in network.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.items()}
    for key, optimizer in optimizers.items():
        tensors |= storage.pack_optimizer(optimizer, f"optimizer.{key}")
    storage.write_snapshot(out / "checkpoints" / f"step_{step}", tensors, {"step": step})
    storage.prune_snapshots(out / "checkpoints", keep=2)


def restore_state(out: Path, network: nn.Module, average: dict[str, Tensor], optimizers: dict) -> int:
    latest = storage.latest_snapshot(out / "checkpoints")
    if latest is None:
        return 0
    tensors, meta = storage.read_snapshot(latest)
    network.load_state_dict({k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")})
    average.update({k.removeprefix("average."): v for k, v in tensors.items() if k.startswith("average.")})
    for key, optimizer in optimizers.items():
        storage.unpack_optimizer(optimizer, tensors, f"optimizer.{key}")
    return meta["step"]


def export_weights(out: Path, name: str, average: dict[str, Tensor], install: bool) -> Path:
    path = (WEIGHTS if install else out) / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.half().contiguous() for key, value in average.items()}, path)
    return path
