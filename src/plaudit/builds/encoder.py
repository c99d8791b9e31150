"""Train the lab's captioner and dual encoder: `plaudit lab build captioner|encoder`.

Both see true pictures of the training captions, slightly shaded and noisy; half of them are of relations, which are
learnt last. The encoder starts from the captioner's picture tower and learns to tell each caption from the others of the
batch and from edited ones (another count, colour, shape or relation, or colours swapped).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from plaudit.builds.training import export_weights, write_measured
from plaudit.data.prompt import Prompt
from plaudit.errors import RecipeError
from plaudit.lab.encoder_networks import UNKNOWN, Captioner, DualEncoder
from plaudit.lab.networks import WEIGHTS
from plaudit.lab.scenes.grammar import (
    CATEGORIES,
    COLORS,
    RELATION_WORDS,
    SHAPES,
    SPLITS,
    all_prompts,
    evaluation_prompts,
    noun,
    sample_prompts,
    tokenise,
)
from plaudit.lab.scenes.render import rasterise, sample_scenes

OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
EDITS = ("count", "color", "shape", "relation", "swap")
BATCH = 64
MOSTLY_RELATIONS = (*CATEGORIES, *["relation"] * 4)
STEPS = {"captioner": 1_800, "encoder": 1_600}
RATE = {"captioner": 2e-3, "encoder": 1e-3}


# --- edited captions ---------------------------------------------------------------------------------------------


def edited(prompt: Prompt, kind: str, splits: Sequence[str], rng: np.random.Generator) -> Prompt | None:
    """The caption with one thing changed, so that it is false of the prompt's pictures; None where that is no caption
    of these splits."""
    objects = [(item["count"], item["color"], item["shape"]) for item in prompt.facts["objects"]]
    relation = prompt.facts["relation"]
    which = int(rng.integers(len(objects)))
    count, color, shape = objects[which]
    if kind == "relation":
        if relation is None:
            return None
        relation = OPPOSITE[relation]
    elif kind == "swap":
        if len(objects) < 2 or objects[0][1] == objects[1][1] or objects[0][2] == objects[1][2]:
            return None
        (n, a, first), (m, b, second) = objects[:2]
        objects[:2] = [(n, b, first), (m, a, second)]
    elif kind == "count":
        objects[0] = (_another(range(1, 5), objects[0][0], rng), *objects[0][1:])
    elif kind == "color":
        objects[which] = (count, _another(COLORS, color, rng), shape)
    else:
        objects[which] = (count, color, _another(SHAPES, shape, rng))
    found = captions_of(tuple(splits)).get(_text(objects, relation))
    return found if found is not None and meaning(found) != meaning(prompt) else None


def _another(values: Sequence, value: object, rng: np.random.Generator) -> object:
    others = [other for other in values if other != value]
    return others[int(rng.integers(len(others)))]


def _text(objects: Sequence[tuple[int, str, str]], relation: str | None) -> str:
    nouns = [noun(count, (color, shape)) for count, color, shape in objects]
    if relation is not None:
        return f"{nouns[0]} {RELATION_WORDS[relation]} {nouns[1]}"
    return " and ".join([", ".join(nouns[:-1]), nouns[-1]] if len(nouns) == 3 else nouns)


@functools.cache
def captions_of(splits: tuple[str, ...]) -> dict[str, Prompt]:
    return {prompt.text: prompt for split in splits for pool in all_prompts(split).values() for prompt in pool}


def meaning(prompt: Prompt) -> tuple:
    """Equal for captions that say the same of a picture, whatever the order of their words."""
    objects = [(item["color"], item["shape"], item["count"]) for item in prompt.facts["objects"]]
    relation = prompt.facts["relation"]
    if relation is not None and objects[0] > objects[1]:
        relation = OPPOSITE[relation]
    return (*sorted(objects), relation)


def surely_false(pictures: Sequence[Prompt], captions: Sequence[Prompt]) -> Tensor:
    """`[pictures, captions]`: other objects, or the opposite relation. Of other pairs the truth is open."""
    shown, said = [meaning(prompt) for prompt in pictures], [meaning(prompt) for prompt in captions]
    return torch.tensor([[a[:-1] != b[:-1] or OPPOSITE.get(a[-1]) == b[-1] != None for b in said] for a in shown])  # noqa: E711


# --- batches -----------------------------------------------------------------------------------------------------


def pictures_of(prompts: Sequence[Prompt], rng: np.random.Generator, *, spoil: bool = True) -> Tensor:
    """True pictures, each `spoil`ed by a shade within 12 % and noise up to 0.05."""
    images = rasterise(sample_scenes(list(prompts), rng))
    if not spoil:
        return images
    gain = torch.from_numpy(rng.uniform(0.88, 1.12, (len(images), 1, 1, 1))).float()
    level = torch.from_numpy(rng.uniform(0, 0.05, (len(images), 1, 1, 1))).float()
    noise = torch.from_numpy(rng.standard_normal(images.shape, dtype=np.float32))
    return (gain * images + level * noise).clamp(0, 1)


def ids_of(prompts: Sequence[Prompt], forget: np.random.Generator | None = None) -> Tensor:
    """Token ids; with `forget`, one word in fifty is replaced by the unknown one."""
    ids = tokenise([prompt.text for prompt in prompts])
    if forget is not None:
        ids[(forget.random(ids.shape) < 0.02) & (ids > 0)] = UNKNOWN
    return torch.from_numpy(ids)


def captioner_loss(network: Captioner, rng: np.random.Generator) -> Tensor:
    prompts = sample_prompts("train", BATCH, rng, MOSTLY_RELATIONS)
    log_probs = network.log_probs(pictures_of(prompts, rng), ids_of(prompts))
    return -log_probs.sum() / (log_probs != 0).sum()


def encoder_loss(network: DualEncoder, rng: np.random.Generator) -> Tensor:
    """InfoNCE both ways; the edited captions are further negatives of every picture."""
    prompts = sample_prompts("train", BATCH, rng, MOSTLY_RELATIONS)
    tries = [edited(p, EDITS[int(rng.integers(len(EDITS)))], ("train",), rng) for p in prompts for _ in range(2)]
    captions = [*prompts, *(prompt for prompt in tries if prompt is not None)]
    images = network.embed_images(pictures_of(prompts, rng))
    texts = network.embed_texts(ids_of(captions, rng))
    logits = network.log_scale.exp().clamp(max=100) * images @ texts.T
    own = torch.arange(len(prompts))
    allowed = surely_false(prompts, captions)
    allowed[own, own] = True
    logits = logits.masked_fill(~allowed, -torch.inf)
    return (
        nn.functional.cross_entropy(logits, own) + nn.functional.cross_entropy(logits[:, : len(prompts)].T, own)
    ) / 2


# --- what was learnt ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Pictures of distinct meaning, their captions, and captions edited so as to be false of the same row."""

    prompts: list[Prompt]
    images: Tensor
    wrong: dict[str, tuple[list[int], list[Prompt]]]


def make_trial(split: str, count: int, seed: int = 1) -> Trial:
    rng = np.random.default_rng([seed, 80])
    distinct = {meaning(prompt)[:-1]: prompt for prompt in evaluation_prompts(split, 4 * count)}
    prompts = list(distinct.values())[:count]
    wrong: dict[str, tuple[list[int], list[Prompt]]] = {}
    for kind in EDITS:
        tried = [edited(prompt, kind, SPLITS, rng) for prompt in prompts]
        wrong[kind] = ([i for i, p in enumerate(tried) if p is not None], [p for p in tried if p is not None])
    return Trial(prompts=prompts, images=pictures_of(prompts, rng, spoil=False), wrong=wrong)


Scorer = Callable[[Tensor, Tensor], Tensor]  # pictures and token ids of the same rows to scores


def pair_accuracy(score: Scorer, trial: Trial) -> dict[str, float]:
    """By kind of edit, how often the true caption scores above the edited one."""
    right = score(trial.images, ids_of(trial.prompts))
    return {
        kind: (right[rows] > score(trial.images[rows], ids_of(false))).float().mean().item()
        for kind, (rows, false) in trial.wrong.items()
        if rows
    }


@torch.no_grad()
def measure_encoder(network: DualEncoder, count: int = 200) -> dict[str, object]:
    measured: dict[str, object] = {}
    for split in ("heldout", "compositional"):
        trial = make_trial(split, count)
        similarity = network.embed_images(trial.images) @ network.embed_texts(ids_of(trial.prompts)).T
        own = torch.arange(len(trial.prompts))
        measured[split] = {
            "pictures": len(own),
            "r_at_1_picture_to_caption": (similarity.argmax(1) == own).float().mean().item(),
            "r_at_1_caption_to_picture": (similarity.argmax(0) == own).float().mean().item(),
            "true_above_edited": pair_accuracy(
                lambda images, ids: (network.embed_images(images) * network.embed_texts(ids)).sum(1), trial
            ),
        }
    return measured


@torch.no_grad()
def measure_captioner(network: Captioner, count: int = 200) -> dict[str, object]:
    measured: dict[str, object] = {}
    for split in ("heldout", "compositional"):
        trial = make_trial(split, count)
        own = network.log_probs(trial.images, ids_of(trial.prompts))
        measured[split] = {
            "pictures": len(own),
            "nats_per_word": (-own.sum() / (own != 0).sum()).item(),
            "true_above_edited": pair_accuracy(lambda images, ids: network.log_probs(images, ids).sum(1), trial),
        }
    return measured


# --- the run -----------------------------------------------------------------------------------------------------


def build_encoder(name: str, out: Path, *, steps: int | None = None, seed: int = 0, install: bool = False) -> Path:
    """Train `captioner` or `encoder`, measure it, and write the weights with what was measured beside them."""
    torch.manual_seed(seed)
    network: nn.Module = Captioner() if name == "captioner" else DualEncoder()
    loss_of: Callable[..., Tensor] = captioner_loss if name == "captioner" else encoder_loss
    if name == "encoder":
        _take_tower(network, out)
    steps = steps or STEPS[name]
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE[name], betas=(0.9, 0.98), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE[name], total_steps=steps, pct_start=0.1)
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    for step in range(steps):
        loss = loss_of(network, np.random.default_rng([seed, 79, step]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1} of {steps}: loss {loss.item():.4f}, {time.monotonic() - started:.0f} s", flush=True)
    network.eval()
    measured = (measure_captioner if name == "captioner" else measure_encoder)(network)
    write_measured(out, name, measured)
    return export_weights(out, name, network.state_dict(), install)


def _take_tower(network: nn.Module, out: Path) -> None:
    folder = next((folder for folder in (out, WEIGHTS) if (folder / "captioner.safetensors").is_file()), None)
    if folder is None:
        raise RecipeError(
            f"lab build encoder: {out} holds no captioner.safetensors; run `plaudit lab build captioner` first"
        )
    weights = load_file(folder / "captioner.safetensors")
    tower = {key: value.float() for key, value in weights.items() if key.startswith("picture.")}
    network.load_state_dict(tower, strict=False)
