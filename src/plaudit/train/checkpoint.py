"""A run's state on disk. Randomness is counter-based, so weights, optimiser, counters and what rewards remember are all
there is."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from plaudit import storage
from plaudit.train.folder import RunFolder
from plaudit.train.setup import Setup


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
    policy = setup.policy
    tensors = {f"current.{name}": parameter for name, parameter in policy.trainable.items()}
    for snapshot, values in policy.snapshots.items():
        tensors |= {f"{snapshot}.{name}": value for name, value in values.items()}
    tensors |= storage.pack_optimizer(setup.optimizer, "optimizer")
    meta = {"progress": asdict(progress), "snapshots": list(policy.snapshots), "result": setup.result}
    meta["rewards"] = {
        "calibration": setup.rewards.calibration(),
        "memory": setup.rewards.state(),
        "counts": {reward.name: reward.caller.meter.counts() for reward in setup.rewards.rewards},
    }
    storage.write_snapshot(folder.checkpoints / f"step_{progress.step}", tensors, meta)
    storage.prune_snapshots(folder.checkpoints, setup.recipe.run.keep_checkpoints)


def restore_checkpoint(folder: RunFolder, setup: Setup) -> Progress:
    """Load the newest complete checkpoint and forget what was logged after it."""
    latest = storage.latest_snapshot(folder.checkpoints)
    assert latest is not None, "open_run has checked this"
    tensors, meta = storage.read_snapshot(latest)
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
    storage.unpack_optimizer(setup.optimizer, tensors, "optimizer")
    progress = Progress(**meta["progress"])
    folder.rewind(progress.step)
    return progress
