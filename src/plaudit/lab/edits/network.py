"""The editor: slots as in `lab.networks.SlotNetwork`, drawn from an instruction and a source picture.

Shape legend: B batch, K slots, C their numbers, L instruction tokens, D width, N = 16 tokens of the source.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from plaudit.data.prompt import Prompt
from plaudit.errors import DataError
from plaudit.lab.edits.grammar import MAX_TOKENS, VOCABULARY, Edit, sample_edits, tokenise
from plaudit.lab.networks import Trunk, grid_features
from plaudit.lab.scenes.grammar import MAX_OBJECTS
from plaudit.lab.scenes.render import SIZE, SLOT_DIM, rasterise

SIDE = 4  # the source is read as 4 x 4 patches
POOL = 24_000  # edits that it was pretrained on, for drawing one takes longer than learning from it


class EditNetwork(nn.Module):
    """Velocity of `[B, K, 10]` slot latents, with the source's patches beside them in the trunk."""

    latent_shape = (MAX_OBJECTS, SLOT_DIM)

    def __init__(self, width: int = 96, depth: int = 4, heads: int = 4, base: int = 32) -> None:
        super().__init__()
        self.see = nn.Sequential(
            nn.Conv2d(3, base, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(base, 2 * base, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(2 * base, width, 4, stride=2, padding=1),
        )
        self.register_buffer("grid", grid_features(SIDE, width), persistent=False)
        self.enter = nn.Linear(SLOT_DIM, width)
        self.trunk = Trunk(width, depth, heads, expansion=3, side=None, words=len(VOCABULARY), length=MAX_TOKENS)
        self.leave = nn.Linear(width, SLOT_DIM)
        nn.init.zeros_(self.leave.weight)

    def forward(self, x_BKC: Tensor, t: Tensor, ids_BL: Tensor, source: Tensor) -> Tensor:
        seen_BND = self.see(2 * source - 1).flatten(2).transpose(1, 2) + self.grid
        state = self.trunk(torch.cat([seen_BND, self.enter(x_BKC)], 1), t, ids_BL)
        return self.leave(state[:, seen_BND.shape[1] :])

    @staticmethod
    def read(prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        ids = torch.from_numpy(tokenise([prompt.text for prompt in prompts]))
        return {"ids": ids, "source": torch.stack([_source_of(prompt) for prompt in prompts])}

    @staticmethod
    def examples(count: int, rng: np.random.Generator) -> tuple[Tensor, Sequence[Prompt]]:
        """In an order of slots that says nothing."""
        edits = [_pool(POOL)[i] for i in rng.integers(POOL, size=count)]
        targets = [edit.target[torch.from_numpy(rng.permutation(len(edit.target)))] for edit in edits]
        return torch.stack(targets), [edit.prompt for edit in edits]

    @staticmethod
    def decode(latents: Tensor) -> Tensor:
        return rasterise(latents)


@functools.cache
def _pool(count: int) -> list[Edit]:
    return sample_edits("train", count, np.random.default_rng([0, 77]))


def _source_of(prompt: Prompt) -> Tensor:
    """The empty prompt, which guidance leads away from, has a black one."""
    if not prompt.text and not prompt.inputs:
        return torch.zeros(3, SIZE, SIZE)
    source = prompt.inputs.get("source")
    if not isinstance(source, Tensor) or source.shape != (3, SIZE, SIZE):
        raise DataError(
            f"edits: the prompt {prompt.text!r} has no picture `source` of {SIZE} x {SIZE} pixels among its inputs"
        )
    return source
