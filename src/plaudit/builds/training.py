"""What pretraining the lab's generators shares: rates, optimisers, a moving average of the weights, checkpoints, the log."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from plaudit import storage
from plaudit.errors import RunError
from plaudit.lab.networks import WEIGHTS

Optimizers = Mapping[str, torch.optim.Optimizer]
TRUNKS = (".blocks.", ".layers.")  # where networks keep what repeats


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The learning rate rises for `warmup` steps and falls linearly to zero from `decay_from` of the way on."""

    steps: int
    batch: int
    adam_lr: float
    muon_lr: float | None
    ema: float = 0.999
    warmup: int = 200
    decay_from: float = 0.6
    log_every: int = 250
    save_every: int = 500


def rate(plan: Plan, steps: int, step: int) -> float:
    """Fraction of the full learning rate at a step."""
    return min(1.0, (step + 1) / plan.warmup, (steps - step) / (steps * (1 - plan.decay_from)))


def make_optimizers(network: nn.Module, plan: Plan) -> dict[str, torch.optim.Optimizer]:
    """Muon for the matrices of the trunk where the plan asks for it, AdamW for the rest."""
    matrices, rest = list[nn.Parameter](), list[nn.Parameter]()
    for name, parameter in network.named_parameters():
        of_trunk = any(trunk in name for trunk in TRUNKS) and parameter.ndim == 2 and name.endswith("weight")
        (matrices if plan.muon_lr and of_trunk else rest).append(parameter)
    optimizers: dict[str, torch.optim.Optimizer] = {
        "adam": torch.optim.AdamW(rest, lr=plan.adam_lr, betas=(0.9, 0.98), weight_decay=0.0)
    }
    if plan.muon_lr and matrices:
        optimizers["muon"] = torch.optim.Muon(matrices, lr=plan.muon_lr, weight_decay=0.0)
    return optimizers


def update(network: nn.Module, steps: Iterable[tuple[torch.optim.Optimizer, float]], loss: Tensor) -> None:
    """One step of each optimiser, with its learning rate, down the loss; the gradient's norm is clipped to 1."""
    if not loss.isfinite():
        raise RunError(f"lab build: the loss is {loss.item()}; start again from an older checkpoint")
    steps = list(steps)
    for optimizer, learning_rate in steps:
        optimizer.param_groups[0]["lr"] = learning_rate
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    for optimizer, _ in steps:
        optimizer.step()


def copy_of(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in network.state_dict().items()}


def follow(average: Mapping[str, Tensor], network: nn.Module, plan: Plan, step: int) -> None:
    """Move the average towards the weights, faster at first."""
    decay = min(plan.ema, (1 + step) / (10 + step))
    for key, value in network.state_dict().items():
        average[key].lerp_(value, 1 - decay)


def log(out: Path, entry: Mapping[str, Any]) -> None:
    """One line of `log.jsonl`, printed too."""
    line = json.dumps(entry)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    print(line, flush=True)


def save_state(out: Path, step: int, network: nn.Module, average: Mapping[str, Tensor], optimizers: Optimizers) -> None:
    tensors = {f"network.{k}": v for k, v in network.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.items()}
    for key, optimizer in optimizers.items():
        tensors |= storage.pack_optimizer(optimizer, f"optimizer.{key}")
    storage.write_snapshot(out / "checkpoints" / f"step_{step}", tensors, {"step": step})
    storage.prune_snapshots(out / "checkpoints", keep=2)


def restore_state(out: Path, network: nn.Module, average: dict[str, Tensor], optimizers: Optimizers) -> int:
    """The steps done, 0 where there is no checkpoint."""
    latest = storage.latest_snapshot(out / "checkpoints")
    if latest is None:
        return 0
    tensors, meta = storage.read_snapshot(latest)
    network.load_state_dict({k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")})
    average.update({k.removeprefix("average."): v for k, v in tensors.items() if k.startswith("average.")})
    for key, optimizer in optimizers.items():
        storage.unpack_optimizer(optimizer, tensors, f"optimizer.{key}")
    step: int = meta["step"]
    return step


def write_measured(out: Path, name: str, measured: Mapping[str, Any]) -> None:
    """What was measured of a network, printed and beside its weights."""
    text = json.dumps(measured)
    print(text)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(text, encoding="utf-8")


def export_weights(out: Path, name: str, weights: Mapping[str, Tensor], install: bool) -> Path:
    """Weights in half precision, in `out` or in the place of the weights that ship."""
    path = (WEIGHTS if install else out) / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.half().contiguous() for key, value in weights.items()}, path)
    return path


def pretrain(
    name: str,
    network: nn.Module,
    plan: Plan,
    loss: Callable[[int], Tensor],
    measured: Callable[[Mapping[str, Tensor]], Mapping[str, float]],
    out: Path,
    *,
    steps: int | None,
    install: bool,
) -> Path:
    """Minimise the loss of every step, going on from the last checkpoint in `out`; logs what is measured of the average and
    returns the weights file."""
    steps = steps or plan.steps
    average, optimizers = copy_of(network), make_optimizers(network, plan)
    base_rates = {key: optimizer.param_groups[0]["lr"] for key, optimizer in optimizers.items()}
    first = restore_state(out, network, average, optimizers)
    started = time.monotonic()
    for step in range(first, steps):
        value, share = loss(step), rate(plan, steps, step)
        update(network, [(optimizers[key], base * share) for key, base in base_rates.items()], value)
        follow(average, network, plan, step)
        last = step + 1 == steps
        if last or (step + 1) % plan.log_every == 0:
            seconds = time.monotonic() - started
            left = seconds / (step + 1 - first) * (steps - step - 1) / 60
            entry = {"step": step + 1, "steps": steps, "loss": value.item(), **measured(average)}
            log(out, entry | {"seconds": round(seconds, 1), "minutes_left": round(left, 1)})
        if last or (step + 1) % plan.save_every == 0:
            save_state(out, step + 1, network, average, optimizers)
    return export_weights(out, name, average, install)
