"""Which model a run, a checkpoint or a name stands for."""

from __future__ import annotations

from pathlib import Path

import torch

from plaudit import storage
from plaudit.errors import RunError
from plaudit.models.lora import Generator


def load_result(model: Generator, run: Path) -> None:
    """The trained weights of a run's last checkpoint, or of the checkpoint folder itself."""
    latest = run if storage.is_complete(run) else storage.latest_snapshot(run / "checkpoints")
    if latest is None:
        raise RunError(f"{run} is neither a complete checkpoint nor a run folder with one")
    tensors, meta = storage.read_snapshot(latest)
    prefix = f"{meta['result']}."
    own = dict(model.network.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            if name.startswith(prefix):
                own[name.removeprefix(prefix)].copy_(tensor)
