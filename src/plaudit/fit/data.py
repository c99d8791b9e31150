"""Pairs of pictures to fit a reward to: of a file of preferences, or rendered by the lab."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from plaudit.data.pictures import open_picture, pixels_of, read_picture
from plaudit.data.preference import Output, Preference, read_preferences
from plaudit.data.prompt import Prompt
from plaudit.errors import DataError
from plaudit.lab.scenes.grammar import all_prompts, evaluation_prompts, sample_prompts, split_of
from plaudit.lab.scenes.render import rasterise, sample_scenes
from plaudit.recipe.fit import FilePairs, Fit, ScenesPairs


@dataclass(frozen=True, kw_only=True)
class PicturePairs:
    """`better` and `worse` `[P, 3, H, W]` of the same caption; where `tie [P]` is True neither is. `margin [P]` is 0 where none
    is known."""

    prompts: tuple[Prompt, ...]
    better: Tensor
    worse: Tensor
    tie: Tensor
    margin: Tensor

    def __len__(self) -> int:
        return len(self.prompts)

    def select(self, rows: Tensor) -> PicturePairs:
        return PicturePairs(
            prompts=tuple(self.prompts[i] for i in rows.tolist()),
            better=self.better[rows],
            worse=self.worse[rows],
            tie=self.tie[rows],
            margin=self.margin[rows],
        )


@dataclass(frozen=True, kw_only=True)
class Split:
    train: PicturePairs
    heldout: PicturePairs


def pairs_of(fit: Fit, *, heldout: int, seed: int) -> Split:
    """`heldout` is the most that are measured on."""
    if isinstance(fit.data, ScenesPairs):
        rng = np.random.default_rng([seed, 61])
        train = rendered(sample_prompts("train", fit.data.pairs, rng), rng, fit.data.noise)
        fixed = np.random.default_rng([0, 62])
        return Split(train=train, heldout=rendered(evaluation_prompts("heldout", heldout), fixed, 0.0))
    return _of_file(fit.data, fit.heldout, heldout)


def rendered(prompts: Sequence[Prompt], rng: np.random.Generator, noise: float) -> PicturePairs:
    """A true picture of each caption and one of another caption of its kind; a share of them swapped."""
    prompts = tuple(prompts)
    others = [_other(prompt, rng) for prompt in prompts]
    true, false = (rasterise(sample_scenes(list(shown), rng)) for shown in (prompts, others))
    swapped = torch.from_numpy(rng.random(len(prompts)) < noise)[:, None, None, None]
    none = torch.zeros(len(prompts))
    return PicturePairs(
        prompts=prompts,
        better=torch.where(swapped, false, true),
        worse=torch.where(swapped, true, false),
        tie=none.bool(),
        margin=none,
    )


def _other(prompt: Prompt, rng: np.random.Generator) -> Prompt:
    pool = all_prompts(split_of(prompt))[prompt.facts["category"]]
    while (other := pool[int(rng.integers(len(pool)))]).id == prompt.id:
        pass
    return other


# --- files -----------------------------------------------------------------------------------------------------------


def _of_file(data: FilePairs, share: float, most: int) -> Split:
    """Whole prompts are held out, told by a hash of their text, so that no picture of one is on both sides."""
    records = read_preferences(Path(data.path), data.layout, key="fit.data.path")
    kept = [record for record in records if record.outcome in ("ordered", "tie")]
    held = [_is_held_out(record.prompt.text, share) for record in kept]
    train = [record for record, out in zip(kept, held, strict=True) if not out]
    test = [record for record, out in zip(kept, held, strict=True) if out]
    if not train or not test:
        raise DataError(
            f"fit.data.path: {data.path} has {len(kept)} preferences, of which {len(test)} are held out; both sides need some: "
            "give more prompts, or another fit.heldout"
        )
    return Split(train=_stacked(train), heldout=_stacked(test[:most]))


def _is_held_out(text: str, share: float) -> bool:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) < share * 16**8


def _stacked(records: Sequence[Preference]) -> PicturePairs:
    rows = [(record, i, j, False) for record in records for i, j in record.pairs()]
    rows += [(record, 0, 1, True) for record in records if record.outcome == "tie"]
    better, worse = ([_picture(record, row[place]) for record, *row in rows] for place in (0, 1))
    if len(sizes := {tuple(picture.shape) for picture in [*better, *worse]}) > 1:
        raise DataError(f"fit.data.path: pictures of sizes {sorted(sizes)}; bring them to one size")
    return PicturePairs(
        prompts=tuple(record.prompt for record, *_ in rows),
        better=torch.stack(better),
        worse=torch.stack(worse),
        tie=torch.tensor([tie for *_, tie in rows]),
        margin=torch.tensor([record.margin or 0.0 for record, *_ in rows]),
    )


def _picture(record: Preference, place: int) -> Tensor:
    output: Output = record.outputs[place]
    if isinstance(output, Path):
        return read_picture(output)
    if isinstance(output, bytes):
        with open_picture(io.BytesIO(output), f"a picture of preference {record.id}") as image:
            return pixels_of(image)
    raise DataError(f"fit.data.path: preference {record.id} is of texts; rewards are fitted to pictures")
