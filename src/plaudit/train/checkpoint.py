"""The state on disk of what is trained. Randomness is counter-based, so weights, optimisers, counters and what rewards remember
are all there is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from torch import Tensor

from plaudit import storage
from plaudit.errors import RunError
from plaudit.ranks import Ranks
from plaudit.recipe.schema import Recipe
from plaudit.runs.folder import FORMAT, RunFolder
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


@dataclass(frozen=True, kw_only=True)
class State:
    """All that a checkpoint holds of what is trained: tensors by name, and what is JSON."""

    tensors: Mapping[str, Tensor]
    meta: Mapping[str, Any]


class Kept(Protocol):
    """What can be taken up again."""

    @property
    def recipe(self) -> Recipe: ...

    @property
    def ranks(self) -> Ranks: ...

    def state(self) -> State: ...

    def load_state(self, state: State) -> None:
        """Raises KeyError and the like where a state is of something else."""


def save_checkpoint(folder: RunFolder, kept: Kept, progress: Progress) -> None:
    kept.ranks.from_main(lambda: _save(folder, kept, progress))


def _save(folder: RunFolder, kept: Kept, progress: Progress) -> None:
    state = kept.state()
    meta = {"format": FORMAT, "tensors": sorted(state.tensors), "logs": folder.checksums(progress.step)}
    meta |= {"progress": asdict(progress), **state.meta}
    storage.write_snapshot(folder.checkpoints / f"step_{progress.step}", state.tensors, meta)
    storage.prune_snapshots(folder.checkpoints, kept.recipe.run.keep_checkpoints)


def restore_checkpoint(folder: RunFolder, kept: Kept) -> Progress:
    """Load the newest complete checkpoint and forget what was logged after it."""
    latest = storage.latest_snapshot(folder.checkpoints)
    assert latest is not None, "open_run has checked this"
    tensors, meta = storage.read_snapshot(latest)
    try:
        if meta.get("tensors", sorted(tensors)) != sorted(tensors):
            raise KeyError("tensors are missing, or there are others than it names")
        kept.load_state(State(tensors=tensors, meta=meta))
        progress = Progress(**meta["progress"])
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise RunError(
            f"{latest} does not hold what version {__version__} of Plaudit resumes from ({error}); remove it to go on "
            "from the one before, go on with the version that wrote it, or start a new --run.name"
        ) from error
    folder.rewind(progress.step, meta.get("logs", {}))
    return progress
