"""Pretrain the lab's language network: `plaudit lab build sums`.

It learns the planted mixture of `lab.sums.traces`: next characters of solutions, not of the problems. Seeded by step,
resumable from its checkpoints, logged one JSON line at a time. The shipped weights are the moving average of the parameters,
stored in half precision.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from plaudit import storage
from plaudit.lab.language import WEIGHTS, LanguageNetwork, initialise
from plaudit.lab.sums.grammar import END_ID, PAD_ID, encode, evaluation_prompts, sample_prompts
from plaudit.lab.sums.measure import attempts, summary
from plaudit.lab.sums.traces import sample_trace

Optimizers = Mapping[str, torch.optim.Optimizer]
IGNORED = -100
WIDTH = 100  # columns of a training row; no problem with its solution is longer


@dataclass(frozen=True, kw_only=True)
class LanguagePlan:
    """The learning rate rises for `warmup` steps and falls linearly to zero from `decay_from` of the way on."""

    steps: int = 1_500
    batch: int = 64
    adam_lr: float = 3e-3
    muon_lr: float = 0.02
    ema: float = 0.995
    warmup: int = 200
    decay_from: float = 0.55
    clip: float = 1.0
    log_every: int = 200
    save_every: int = 400


PLAN = LanguagePlan()


# --- data ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Problems with their solutions, several to a row `[N, L]`. `following` holds the next ids where they are to be learnt."""

    ids: Tensor
    following: Tensor
    positions: Tensor
    visible: Tensor


def rows_of(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Which items share a row of `width` columns: first fit, longest first."""
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, free in enumerate(room) if free >= lengths[i]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(width)
        rows[row].append(i)
        room[row] -= lengths[i]
    return rows


def training_batch(seed: int, step: int, batch: int) -> Packed:
    """`batch` problems of the training split with planted solutions; a pure function of (seed, step)."""
    rng = np.random.default_rng([seed, step])
    items = []
    for prompt in sample_prompts("train", batch, rng):
        ids = encode(prompt.text) + encode(sample_trace(prompt, rng).text) + (END_ID,)
        items.append(
            (torch.tensor(ids[:-1]), torch.tensor([IGNORED] * (len(prompt.text) - 1) + list(ids[len(prompt.text) :])))
        )
    rows = rows_of([len(ids) for ids, _ in items], WIDTH)
    ids, positions = (torch.full((len(rows), WIDTH), PAD_ID) for _ in range(2))
    following, owner = torch.full_like(ids, IGNORED), torch.full_like(ids, -1)
    for r, row in enumerate(rows):
        start = 0
        for i in row:
            end = start + len(items[i][0])
            ids[r, start:end], following[r, start:end] = items[i]
            positions[r, start:end], owner[r, start:end] = torch.arange(end - start), i
            start = end
    causal = torch.ones(WIDTH, WIDTH, dtype=torch.bool).tril()
    visible = (owner[:, :, None] == owner[:, None, :]) & causal
    return Packed(ids=ids, following=following, positions=positions, visible=visible)


def cross_entropy(network: LanguageNetwork, batch: Packed) -> Tensor:
    """Mean over the batch's solution characters."""
    logits = network(batch.ids, batch.positions, batch.visible)
    return F.cross_entropy(logits.flatten(0, 1), batch.following.flatten(), ignore_index=IGNORED)


# --- training --------------------------------------------------------------------------------------------------------


def rate(plan: LanguagePlan, steps: int, step: int) -> float:
    """Fraction of the full learning rate at a step."""
    return min(1.0, (step + 1) / plan.warmup, (steps - step) / (steps * (1 - plan.decay_from)))


def make_optimizers(network: LanguageNetwork) -> dict[str, torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the rest."""
    matrices = [p for name, p in network.named_parameters() if ".layers." in name and p.ndim == 2]
    rest = [p for name, p in network.named_parameters() if ".layers." not in name or p.ndim != 2]
    return {
        "adam": torch.optim.AdamW(rest, lr=PLAN.adam_lr, betas=(0.9, 0.98), weight_decay=0.0),
        "muon": torch.optim.Muon(matrices, lr=PLAN.muon_lr, weight_decay=0.0),
    }


def build_language(out: Path, *, steps: int | None = None, seed: int = 0, install: bool = False) -> Path:
    """Train into `out`, going on from its last checkpoint when there is one; returns the weights file."""
    steps = steps or PLAN.steps
    network = initialise(LanguageNetwork(), torch.Generator().manual_seed(seed))
    average = {key: value.detach().clone() for key, value in network.state_dict().items()}
    optimizers = make_optimizers(network)
    base_rates = {key: optimizer.param_groups[0]["lr"] for key, optimizer in optimizers.items()}
    first = restore_state(out, network, average, optimizers)
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    for step in range(first, steps):
        for key, optimizer in optimizers.items():
            optimizer.param_groups[0]["lr"] = base_rates[key] * rate(PLAN, steps, step)
            optimizer.zero_grad(set_to_none=True)
        loss = cross_entropy(network, training_batch(seed, step, PLAN.batch))
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), PLAN.clip)
        for optimizer in optimizers.values():
            optimizer.step()
        decay = min(PLAN.ema, (1 + step) / (10 + step))
        for key, value in network.state_dict().items():
            average[key].lerp_(value, 1 - decay)
        if (step + 1) % PLAN.log_every == 0 or step + 1 == steps:
            _log(out, step + 1, steps, loss.item(), average, time.monotonic() - started)
        if (step + 1) % PLAN.save_every == 0 or step + 1 == steps:
            save_state(out, step + 1, network, average, optimizers)
    return export_weights(out, average, install)


def _log(out: Path, step: int, steps: int, loss: float, average: Mapping[str, Tensor], seconds: float) -> None:
    network = LanguageNetwork()
    network.load_state_dict(average)
    prompts = evaluation_prompts("heldout", 128)
    entry = {"step": step, "steps": steps, "loss": loss, "seconds": round(seconds, 1)}
    for name, temperature in (("sampled", 1.0), ("greedy", 0.0)):
        found = summary(attempts(network.eval(), prompts, temperature=temperature))
        entry |= {f"{name}_{key}": round(found[key], 4) for key in ("pass", "well_formed", "length")}
    with (out / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps(entry) + "\n")
    print(json.dumps(entry), flush=True)


def save_state(out: Path, step: int, network: nn.Module, average: Mapping[str, Tensor], optimizers: Optimizers) -> None:
    tensors = {f"network.{k}": v for k, v in network.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.items()}
    for key, optimizer in optimizers.items():
        tensors |= storage.pack_optimizer(optimizer, f"optimizer.{key}")
    storage.write_snapshot(out / "checkpoints" / f"step_{step}", tensors, {"step": step})
    storage.prune_snapshots(out / "checkpoints", keep=2)


def restore_state(out: Path, network: nn.Module, average: dict[str, Tensor], optimizers: Optimizers) -> int:
    latest = storage.latest_snapshot(out / "checkpoints")
    if latest is None:
        return 0
    tensors, meta = storage.read_snapshot(latest)
    network.load_state_dict({k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")})
    average.update({k.removeprefix("average."): v for k, v in tensors.items() if k.startswith("average.")})
    for key, optimizer in optimizers.items():
        storage.unpack_optimizer(optimizer, tensors, f"optimizer.{key}")
    return meta["step"]


def export_weights(out: Path, average: Mapping[str, Tensor], install: bool) -> Path:
    path = WEIGHTS if install else out / WEIGHTS.name
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.half().contiguous() for key, value in average.items()}, path)
    return path
