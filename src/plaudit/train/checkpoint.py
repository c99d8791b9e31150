"""A run's state on disk. Randomness is counter-based, so weights, optimiser, counters and what rewards remember are all
there is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from plaudit import storage
from plaudit.errors import RunError
from plaudit.runs.folder import FORMAT, RunFolder
from plaudit.train.setup import Setup
from plaudit.version import __version__


@dataclass
class Progress:
    """Counters that outlive a kill."""

    step: int = 0
    updates: int = 0
    network_calls: int = 0
    reward_calls: int = 0
    training_seconds: float = 0.0
    total_seconds: float = 0.0


def save_checkpoint(folder: RunFolder, setup: Setup, progress: Progress) -> None:
    setup.ranks.from_main(lambda: _save(folder, setup, progress))


def _save(folder: RunFolder, setup: Setup, progress: Progress) -> None:
    policy = setup.policy
    tensors = {f"current.{name}": parameter for name, parameter in policy.trainable.items()}
    for snapshot, values in policy.snapshots.items():
        tensors |= {f"{snapshot}.{name}": value for name, value in values.items()}
    tensors |= storage.pack_optimizer(setup.optimizer, "optimizer")
    meta = {"format": FORMAT, "tensors": sorted(tensors), "logs": folder.checksums(progress.step)}
    meta |= {"progress": asdict(progress), "snapshots": list(policy.snapshots), "result": setup.result}
    meta["rewards"] = {
        "calibration": setup.rewards.calibration(),
        "memory": setup.rewards.state(),
        "counts": {reward.name: reward.caller.meter.counts() for reward in setup.rewards.rewards},
    }
    meta["curriculum"] = setup.curriculum.state()
    meta["levels"] = setup.levels()
    storage.write_snapshot(folder.checkpoints / f"step_{progress.step}", tensors, meta)
    storage.prune_snapshots(folder.checkpoints, setup.recipe.run.keep_checkpoints)


def restore_checkpoint(folder: RunFolder, setup: Setup) -> Progress:
    """Load the newest complete checkpoint and forget what was logged after it."""
    latest = storage.latest_snapshot(folder.checkpoints)
    assert latest is not None, "open_run has checked this"
    tensors, meta = storage.read_snapshot(latest)
    try:
        if meta.get("tensors", sorted(tensors)) != sorted(tensors):
            raise KeyError("tensors are missing, or there are others than it names")
        progress = _restore(setup, tensors, meta)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise RunError(
            f"{latest} does not hold what version {__version__} of Plaudit resumes from ({error}); remove it to go on "
            "from the one before, go on with the version that wrote it, or start a new --run.name"
        ) from error
    folder.rewind(progress.step, meta.get("logs", {}))
    return progress


def _restore(setup: Setup, tensors: dict[str, Tensor], meta: dict[str, Any]) -> Progress:
    policy = setup.policy
    with torch.no_grad():
        for name, parameter in policy.trainable.items():
            parameter.copy_(tensors[f"current.{name}"])
    for snapshot in meta["snapshots"]:
        policy.snapshots[snapshot] = {
            name: tensors[f"{snapshot}.{name}"].to(parameter.device) for name, parameter in policy.trainable.items()
        }
    setup.rewards.load_calibration(meta["rewards"]["calibration"])
    setup.rewards.load_state(meta["rewards"]["memory"])
    for reward in setup.rewards.rewards:
        reward.caller.meter.load_counts(meta["rewards"]["counts"][reward.name])
    if "curriculum" in meta:  # checkpoints of format 2 were written without one
        setup.curriculum.load_state(meta["curriculum"])
    setup.load_levels(meta.get("levels", []))
    storage.unpack_optimizer(setup.optimizer, tensors, "optimizer")
    return Progress(**meta["progress"])
