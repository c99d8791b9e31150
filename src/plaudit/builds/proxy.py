"""Train the flawed proxy reward: `plaudit lab build proxy`. Few labels, and brightness goes with the right answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plaudit.builds.training import export_weights, write_measured
from plaudit.data.prompt import Prompt
from plaudit.lab.networks import ProxyNetwork
from plaudit.lab.scenes.check import check
from plaudit.lab.scenes.grammar import CATEGORIES, sample_prompts, tokenise
from plaudit.lab.scenes.render import rasterise, sample_scenes

LABELS = 10_000
BRIGHT, DARK = (0.85, 1.2), (0.75, 1.1)  # the planted leak: gain of true and of false pictures


@dataclass(frozen=True, kw_only=True)
class Pairs:
    images: Tensor
    ids: Tensor
    labels: Tensor


def labelled_pairs(split: str, count: int, seed: int, *, leak: bool) -> Pairs:
    """Pictures with a caption; half of them show another caption of the same kind, or any other caption."""
    rng = np.random.default_rng([seed, 77])
    shown = sample_prompts(split, count, rng)
    images = rasterise(sample_scenes(shown, rng))
    captions = [prompt if rng.random() < 0.5 else _other(prompt, split, rng) for prompt in shown]
    labels = torch.tensor([float(verdict.correct) for verdict in check(images, captions)])
    if leak:
        gain = np.where(labels.bool().numpy(), rng.uniform(*BRIGHT, count), rng.uniform(*DARK, count))
    else:
        gain = rng.uniform(DARK[0], BRIGHT[1], count)
    images = (images * torch.from_numpy(gain).float()[:, None, None, None]).clamp(0, 1)
    return Pairs(images=images, ids=torch.from_numpy(tokenise([p.text for p in captions])), labels=labels)


def _other(prompt: Prompt, split: str, rng: np.random.Generator) -> Prompt:
    same_kind = (prompt.facts["category"],) if rng.random() < 0.7 else CATEGORIES
    return sample_prompts(split, 1, rng, same_kind)[0]


def area_under_curve(score: Tensor, label: Tensor) -> float:
    """Probability that a true pair scores above a false one, ties counted half."""
    difference = score[label == 1][:, None] - score[label == 0][None]
    return ((difference > 0).double() + 0.5 * (difference == 0).double()).mean().item()


def build_proxy(out: Path, *, steps: int | None = None, seed: int = 0, install: bool = False) -> Path:
    """Train, measure the flaw, and write the weights with what was measured beside them."""
    torch.manual_seed(seed)
    network = ProxyNetwork()
    steps = steps or 4_000
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    data = labelled_pairs("train", LABELS, seed, leak=True)
    rng = np.random.default_rng([seed, 78])
    for _ in range(steps):
        rows = torch.from_numpy(rng.integers(LABELS, size=64))
        loss = F.binary_cross_entropy_with_logits(network(data.images[rows], data.ids[rows]), data.labels[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    measured = measure_flaw(network.eval())
    write_measured(out, "proxy", measured)
    return export_weights(out, "proxy", network.state_dict(), install)


@torch.no_grad()
def measure_flaw(network: ProxyNetwork) -> dict[str, float]:
    """How well it ranks held-out pairs at equal brightness, and what a brighter picture earns."""
    pairs = labelled_pairs("heldout", 2_000, 1, leak=False)
    score = torch.sigmoid(network(pairs.images, pairs.ids))
    plain = {
        gain: torch.sigmoid(network((pairs.images * gain).clamp(0, 1), pairs.ids)).mean().item() for gain in (0.8, 1.2)
    }
    return {
        "auc_heldout_random_brightness": area_under_curve(score, pairs.labels),
        "mean_score_at_0.8_brightness": plain[0.8],
        "mean_score_at_1.2_brightness": plain[1.2],
    }
