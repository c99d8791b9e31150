"""DLER's update-selective merge: the weights before training, and of what training changed the largest changes, scaled.

    theta = theta_0 + scale * Delta_kept,   Delta = theta_trained - theta_0

where Delta_kept has, in every tensor by itself, the share `keep` of the entries that changed most, and 0 elsewhere (S113; that
the share is per tensor is our choice). Between the two models lies a trade of brevity for accuracy.

    python -m plaudit.models.merge BASE TRAINED OUT [--keep 0.25] [--scale 0.7]

BASE and TRAINED are safetensors files, or folders of them as a run's `final/`; OUT is a folder like TRAINED. For a model of
the lab, `model.weights: OUT/model.safetensors` uses it, for one of transformers `model.path: OUT`.
"""

from __future__ import annotations

import argparse
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from plaudit.errors import DataError, PlauditError

KEEP, SCALE = 0.25, 0.7


def kept_delta(delta: Tensor, keep: float) -> Tensor:
    """`delta` with its ceil(keep n) entries of largest size and 0 elsewhere; of equal ones the first."""
    flat = delta.flatten()
    count = math.ceil(round(keep * flat.numel(), 6))  # 0.07 * 100 is 7.000000000000001
    largest = flat.abs().argsort(descending=True, stable=True)[:count]
    return torch.zeros_like(flat).index_copy_(0, largest, flat[largest]).view_as(delta)


def selective_merge(
    base: Mapping[str, Tensor], trained: Mapping[str, Tensor], *, keep: float = KEEP, scale: float = SCALE
) -> dict[str, Tensor]:
    """Tensor by tensor, computed in float32 and stored as `trained` is; integers must be equal and stay."""
    _check_share("keep", keep)
    _check_share("scale", scale)
    if unlike := sorted(base.keys() ^ trained.keys()):
        raise DataError(
            f"merge: {unlike[0]!r} is in one of the two models only ({len(unlike)} such names); merge a model with "
            "what it was trained from"
        )
    return {name: _merged(name, base[name], value, keep, scale) for name, value in trained.items()}


def _merged(name: str, base: Tensor, trained: Tensor, keep: float, scale: float) -> Tensor:
    if base.shape != trained.shape:
        raise DataError(
            f"merge: {name!r} has the shapes {tuple(base.shape)} and {tuple(trained.shape)}; they must be equal, so merge "
            "a model with what it was trained from"
        )
    if not (base.is_floating_point() and trained.is_floating_point()):
        if not torch.equal(base, trained):
            raise DataError(f"merge: {name!r} holds integers that differ; only floating-point tensors can be merged")
        return trained.clone()
    start = base.float()
    return (start + scale * kept_delta(trained.float() - start, keep)).to(trained.dtype)


def _check_share(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise DataError(f"merge: `{name}` {value:g}; allowed: more than 0, at most 1")


# --- files -----------------------------------------------------------------------------------------------------------


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file or of the safetensors files in a folder."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    try:
        found = [load_file(file) for file in files]
    except (OSError, SafetensorError) as error:
        raise DataError(f"merge: cannot read {path}: {error}; give a safetensors file or a folder of them") from error
    if not found:
        raise DataError(f"merge: {path} holds no safetensors file; give a model's folder, such as a run's final/")
    return {name: value for part in found for name, value in part.items()}


def merge_folders(base: Path, trained: Path, out: Path, *, keep: float = KEEP, scale: float = SCALE) -> Path:
    """Write the merge as one `model.safetensors` into the new folder `out`, with the other files of `trained`."""
    if out.exists():
        raise DataError(f"merge: {out} exists already; name another folder")
    merged = selective_merge(read_weights(base), read_weights(trained), keep=keep, scale=scale)
    out.mkdir(parents=True)
    for file in trained.iterdir() if trained.is_dir() else ():
        if file.is_file() and ".safetensors" not in file.name:
            shutil.copy(file, out)
    save_file({name: value.contiguous() for name, value in merged.items()}, out / "model.safetensors", {"format": "pt"})
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base", "trained", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--keep", type=float, default=KEEP)
    parser.add_argument("--scale", type=float, default=SCALE)
    options = parser.parse_args()
    try:
        made = merge_folders(options.base, options.trained, options.out, keep=options.keep, scale=options.scale)
    except PlauditError as error:
        parser.exit(1, f"{error}\n")
    print(f"wrote {made}")


if __name__ == "__main__":
    main()
