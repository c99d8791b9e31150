"""Rewards that learn while the generator does: references are better than what it draws, so what it finds to hack is unlearned
(Adv-GRPO, S002).

Departures: the frozen features are the lab's or those of any encoder named; the score of a picture is the head's of its pooled
features where the paper takes DINO's class token; how the lab's proxy is updated is the paper's way with PickScore, the last
layers under the loss of two pictures.

Shape legend: B pictures, N patches, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plaudit import storage
from plaudit.data.files import read_rows
from plaudit.data.pictures import read_picture
from plaudit.data.prompt import Prompt
from plaudit.errors import RecipeError
from plaudit.lab.scenes.grammar import tokenise
from plaudit.lab.scenes.render import rasterise, sample_scenes
from plaudit.rewards.base import Card
from plaudit.rewards.encoders.load import load_encoder
from plaudit.rewards.learned.proxy import SceneProxy

HIDDEN = 512
OF_A_PICTURE, OF_PATCHES = 0.7, 0.3  # in the score
PATCH_WEIGHT, PATCHES = 0.3, 64  # in the loss, and how many of a picture's patches take part


# --- references ------------------------------------------------------------------------------------------------------


class References:
    """Good pictures of prompts: the lab's renderings, or those that a file names."""

    def __init__(self, where: str = "scenes", seed: int = 0) -> None:
        self.seed = seed
        self.listed = None if where == "scenes" else _listed(Path(where))

    def of(self, prompts: Sequence[Prompt], step: int) -> Tensor:
        """One for each prompt, another at every step."""
        rng = np.random.default_rng([self.seed, step, 91])
        if self.listed is None:
            return rasterise(sample_scenes(list(prompts), rng))
        return torch.stack([read_picture(self._one(prompt, rng)) for prompt in prompts])

    def _one(self, prompt: Prompt, rng: np.random.Generator) -> Path:
        assert self.listed is not None
        if prompt.text not in self.listed:
            raise RecipeError(f"references: no row for the prompt {prompt.text!r}; every prompt of the run needs one")
        paths = self.listed[prompt.text]
        return paths[int(rng.integers(len(paths)))]


def _listed(path: Path) -> Mapping[str, Sequence[Path]]:
    """Paths of pictures by prompt, relative to the file."""
    found: dict[str, list[Path]] = {}
    for where, row in read_rows(path, "references"):
        pictures = row.get("pictures")
        if not isinstance(row.get("prompt"), str) or not isinstance(pictures, list) or not pictures:
            raise RecipeError(f"{where}: give `prompt`, a text, and `pictures`, a list of paths")
        found.setdefault(row["prompt"], []).extend(path.parent / str(picture) for picture in pictures)
    return found


class Learner(Protocol):
    """A reward that learns from what is drawn."""

    network: nn.Module

    references: References

    def losses(self, prompts: Sequence[Prompt], references: Tensor, outputs: Tensor, step: int) -> Tensor:
        """`[B]`, with a graph to the trainable parameters of `network`. What it draws follows from `step`."""

    def lead(self, prompts: Sequence[Prompt], references: Tensor, outputs: Tensor) -> Tensor:
        """By how much `[B]` references score above outputs."""


# --- the two rewards -------------------------------------------------------------------------------------------------


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """0.5 (relu(1 - real) + relu(1 + fake)), element by element."""
    assert real.shape == fake.shape, (real.shape, fake.shape)
    return 0.5 * (F.relu(1 - real) + F.relu(1 + fake))


class Discriminator:
    """One head on a frozen encoder's features, of the picture and of its patches, that tells references from what is drawn."""

    card = Card(
        summary="head on frozen features that learns to tell references from what is drawn",
        cost_ms=0.2,
        systems=("S002",),
    )

    def __init__(
        self, encoder: str = "lab", references: str = "scenes", weights: str | None = None, seed: int = 0
    ) -> None:
        self.encoder, self.references, self.seed = load_encoder(encoder), References(references, seed), seed
        width = self._seen(torch.zeros(1, 3, 32, 32)).shape[-1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = nn.Sequential(nn.Linear(width, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, 1))
        if weights is not None:
            storage.load_weights(self.network, Path(weights), "discriminator")

    @torch.no_grad()
    def _seen(self, images: Tensor) -> Tensor:
        """Features `[B, 1 + N, D]`: of the picture, then of its patches."""
        return torch.cat([self.encoder.embed_images(images)[:, None], self.encoder.embed_patches(images)], 1)

    def _judged(self, features: Tensor) -> Tensor:
        return self.network(features)[..., 0]

    def __call__(self, prompts: Sequence[str], outputs: Tensor) -> Tensor:
        score = self._judged(self._seen(outputs))
        return (OF_A_PICTURE * score[:, 0] + OF_PATCHES * score[:, 1:].mean(1)).double()

    def losses(self, prompts: Sequence[Prompt], references: Tensor, outputs: Tensor, step: int) -> Tensor:
        real, fake = self._seen(references), self._seen(outputs)
        some = torch.from_numpy(np.random.default_rng([self.seed, step, 92]).permutation(real.shape[1] - 1)[:PATCHES])
        real, fake = (self._judged(torch.cat([seen[:, :1], seen[:, 1 + some]], 1)) for seen in (real, fake))
        loss = hinge(real, fake)
        return loss[:, 0] + PATCH_WEIGHT * loss[:, 1:].mean(1)

    @torch.no_grad()
    def lead(self, prompts: Sequence[Prompt], references: Tensor, outputs: Tensor) -> Tensor:
        texts = [prompt.text for prompt in prompts]
        return self(texts, references) - self(texts, outputs)


class AdversarialProxy(SceneProxy):
    """The lab's proxy, whose last layers learn that references are better."""

    card = Card(
        summary="scene_proxy whose last layers learn that references are better than what is drawn",
        low=0,
        high=1,
        cost_ms=0.1,
        systems=("S002",),
    )

    def __init__(self, references: str = "scenes", weights: str | None = None, seed: int = 0) -> None:
        super().__init__(weights)
        self.references = References(references, seed)
        for part in (self.network.late, self.network.judge):
            part.requires_grad_(True)

    def _logits(self, prompts: Sequence[Prompt], images: Tensor) -> Tensor:
        return self.network(images, torch.from_numpy(tokenise([prompt.text for prompt in prompts])))

    def losses(self, prompts: Sequence[Prompt], references: Tensor, outputs: Tensor, step: int) -> Tensor:
        return -F.logsigmoid(self._logits(prompts, references) - self._logits(prompts, outputs))

    @torch.no_grad()
    def lead(self, prompts: Sequence[Prompt], references: Tensor, outputs: Tensor) -> Tensor:
        return self._logits(prompts, references) - self._logits(prompts, outputs)
