"""Folders of tensors and JSON that are either complete or absent, whenever the process is killed.

A snapshot is written beside its destination, every file is flushed to disk, a marker with the checksums is written last,
and only then the folder is renamed into place. Nothing is ever pickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from plaudit.errors import RecipeError, RunError

REFUSALS = (OSError, SafetensorError)  # safetensors wraps what the operating system says in its own type
TENSORS, META, MARKER = "state.safetensors", "state.json", "COMPLETE.json"


@contextlib.contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turn what a file system refuses into one line that says where and what to do."""
    try:
        yield
    except REFUSALS as error:
        raise RunError(
            f"cannot write {path}: {getattr(error, 'strerror', None) or error}. What was written before is intact; free "
            "some space or make the folder writable, then go on with --resume"
        ) from error


def flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace a small file atomically."""
    partial = path.with_name(path.name + ".partial")
    with explain_write_errors(path):
        partial.unlink(missing_ok=True)  # a link there would be written through
        partial.write_text(text, encoding="utf-8")
        flush(partial)
        os.replace(partial, path)
        flush(path.parent)


def write_snapshot(folder: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write a complete snapshot, replacing an older one of the same name."""
    partial = folder.with_name("." + folder.name + ".partial")
    with explain_write_errors(folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial / TENSORS)
            (partial / META).write_text(json.dumps(meta), encoding="utf-8")
            sums = {name: _checksum(partial / name) for name in (TENSORS, META)}
            (partial / MARKER).write_text(json.dumps(sums), encoding="utf-8")
            for name in (TENSORS, META, MARKER):
                flush(partial / name)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
            flush(folder.parent)
        except REFUSALS:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_complete(folder: Path) -> bool:
    """Whether every file of a snapshot is there and is what its marker says."""
    try:
        if not all((folder / name).is_file() for name in (TENSORS, META, MARKER)):
            return False  # absent, or a folder, a pipe, links in a ring
        sums = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return bool(sums == {name: _checksum(folder / name) for name in (TENSORS, META)})
    except (FileNotFoundError, ValueError, RecursionError):  # removed just now, or a marker that is no JSON
        return False
    except OSError as error:  # it may well be complete, so no older one is taken for it, and it is not pruned
        raise RunError(f"cannot read {folder}: {error.strerror}; make it readable, or remove it") from error


def read_snapshot(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not is_complete(folder):
        raise RunError(f"{folder} is not a complete snapshot; use an older one or start again")
    return load_file(folder / TENSORS), read_meta(folder)


def read_meta(folder: Path) -> dict[str, Any]:
    """What a complete snapshot says besides its tensors."""
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise RunError(f"{folder / META} is no JSON ({error}); remove {folder} or start again") from error
    if not isinstance(meta, dict):
        raise RunError(f"{folder / META} holds a {type(meta).__name__}, not an object; remove {folder} or start again")
    return meta


def latest_snapshot(parent: Path) -> Path | None:
    """The complete `step_N` snapshot with the largest N."""
    return next((path for path in reversed(_snapshots(parent)) if is_complete(path)), None)


def _snapshots(parent: Path) -> list[Path]:
    """What is named like a snapshot, by its number; other names are somebody's."""
    numbered = [path for path in parent.glob("step_*") if path.name.removeprefix("step_").isdecimal()]
    return sorted(numbered, key=lambda path: int(path.name.removeprefix("step_")))


def prune_snapshots(parent: Path, keep: int) -> None:
    """Keep the newest `keep` complete snapshots; an incomplete one does not count and goes."""
    steps = _snapshots(parent)
    kept = [path for path in steps if is_complete(path)][-keep:]
    for path in steps:
        if path not in kept and path.is_dir() and not path.is_symlink():  # files and links are somebody's
            with explain_write_errors(path):
                shutil.rmtree(path)


def finish_renames(parent: Path) -> None:
    """A process killed between removing a snapshot and renaming its replacement left the replacement beside it."""
    for partial in parent.glob(".step_*.partial"):
        folder = parent / partial.name.removeprefix(".").removesuffix(".partial")
        if not partial.is_symlink() and is_complete(partial) and not is_complete(folder):
            with explain_write_errors(folder):
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(partial, folder)


def pack_optimizer(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """Optimiser state as named tensors; learning rates are the schedule's, not the state's."""
    state = optimizer.state_dict()["state"]
    return {
        f"{prefix}.{index}.{name}": torch.as_tensor(v) for index, entry in state.items() for name, v in entry.items()
    }


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], prefix: str) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith(prefix + "."):
            index, name = key.removeprefix(prefix + ".").split(".", 1)
            state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def load_weights(network: nn.Module, path: Path, key: str) -> None:
    """A safetensors file into a network, in float32: every tensor of it, and no other."""
    try:
        found = {name: tensor.float() for name, tensor in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise RecipeError(f"{key}: {path} is no safetensors file: {error}; give one of this architecture") from error
    own = network.state_dict()
    for what, names in (
        ("lacks", own.keys() - found.keys()),
        ("has beside those of the network", found.keys() - own.keys()),
        ("has in another shape", {name for name in own.keys() & found.keys() if own[name].shape != found[name].shape}),
    ):
        if names:
            few = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
            raise RecipeError(f"{key}: {path} {what} {len(names)} tensors ({few}); give weights of this architecture")
    network.load_state_dict(found)
