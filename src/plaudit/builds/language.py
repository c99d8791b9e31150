"""Pretrain the lab's language network: `plaudit lab build sums`.

It learns the planted mixture of `lab.sums.traces`: next characters of solutions, not of the problems. Seeded by step,
resumable from its checkpoints, logged one JSON line at a time. The shipped weights are the moving average of the parameters,
stored in half precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plaudit.builds.sums_report import attempts, summary
from plaudit.builds.training import Plan, pretrain
from plaudit.lab.language import LanguageNetwork, initialise
from plaudit.lab.sums.grammar import END_ID, PAD_ID, encode, evaluation_prompts, sample_prompts
from plaudit.lab.sums.traces import sample_trace
from plaudit.models.lab_text import LabTokenModel

IGNORED = -100
WIDTH = 100  # columns of a training row; no problem with its solution is longer


PLAN = Plan(
    steps=1_500,
    batch=64,
    adam_lr=3e-3,
    muon_lr=0.02,
    ema=0.995,
    decay_from=0.55,
    log_every=200,
    save_every=400,
)


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


def build_language(name: str, out: Path, *, steps: int | None = None, seed: int = 0, install: bool = False) -> Path:
    """Train into `out`, going on from its last checkpoint when there is one; returns the weights file."""
    network = initialise(LanguageNetwork(), torch.Generator().manual_seed(seed))

    def loss(step: int) -> Tensor:
        return cross_entropy(network, training_batch(seed, step, PLAN.batch))

    return pretrain(name, network, PLAN, loss, solved, out, steps=steps, install=install)


def solved(average: Mapping[str, Tensor]) -> dict[str, float]:
    """What the averaged network does on held-out problems, sampled and greedily."""
    network = LanguageNetwork()
    network.load_state_dict(average)
    model, prompts = LabTokenModel(network=network.eval()), evaluation_prompts("heldout", 128)
    measured = {}
    for name, temperature in (("sampled", 1.0), ("greedy", 0.0)):
        found = summary(attempts(model, prompts, temperature=temperature))
        measured |= {f"{name}_{key}": round(found[key], 4) for key in ("pass", "well_formed", "length")}
    return measured
