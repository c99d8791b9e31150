"""Small token models, on which completions can be enumerated, and slow ways to draw and score with any of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from plaudit.data.prompt import Prompt
from plaudit.lab.language import KeyValues, LanguageNetwork, Shape
from plaudit.models.lab_text import LabTokenModel
from plaudit.models.tokens import Ids
from plaudit.objectives.batch import Batch
from plaudit.recipe.load import load
from plaudit.recipe.sampling import TokenSampling
from plaudit.recipe.schema import Recipe
from plaudit.sampling.noise import SampleKey, uniform
from plaudit.sampling.tokens import Completions, draw_completions
from plaudit.shaping.credit import Credit

LETTERS = "_abcd."  # padding, four letters, the end


class Forgets:
    """The cache of a model without memory."""

    def select(self, rows: Tensor) -> None:
        pass


class BigramModel:
    """The next letter depends on the last one only: the parameters are the logits. Counts the rows of every network call."""

    end_ids = frozenset({5})
    pad_id = 0
    packs = True
    context = None
    lora_targets = ()

    def __init__(self, seed: int = 0, spread: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.network: nn.Module = nn.Embedding(len(LETTERS), len(LETTERS))
        with torch.no_grad():
            self.network.weight.copy_(spread * torch.randn(len(LETTERS), len(LETTERS), generator=generator))
        self.rows: list[int] = []

    @property
    def table(self) -> Tensor:
        return self.network.weight

    def encode(self, prompts: Sequence[Prompt]) -> list[Ids]:
        return [tuple(LETTERS.index(letter) for letter in prompt.text) for prompt in prompts]

    def encode_completion(self, text: str) -> Ids:
        return (*(LETTERS.index(letter) for letter in text), 5)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(LETTERS[i] for i in ids if i not in (0, 5))

    def new_cache(self) -> Forgets:
        return Forgets()

    def logits(
        self, ids: Tensor, positions: Tensor, visible: Tensor, *, cache=None, keep: Tensor | None = None
    ) -> Tensor:
        self.rows.append(len(ids))
        return self.network(ids if keep is None else ids[:, keep])

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"table": self.table.detach()}, folder / "bigram.safetensors")

    def completions(self, last: int, limit: int, temperature: float = 1.0) -> dict[Ids, float]:
        """Every completion after this letter, with its probability."""
        chance = (self.table.detach().double() / temperature).softmax(1)
        found = {}
        for length in range(1, limit + 1):
            for ids in itertools.product(range(len(LETTERS)), repeat=length):
                if 5 in ids[:-1] or (length < limit and ids[-1] != 5):
                    continue
                found[ids] = float(np.prod([chance[a, b].item() for a, b in itertools.pairwise((last, *ids))]))
        return found


class TinyLanguage(LabTokenModel):
    """The lab's language network in small, with random weights that are far from uniform. Counts the rows of its calls."""

    def __init__(self, seed: int = 0) -> None:
        self.network = LanguageNetwork(Shape(width=16, inner=24, layers=2, heads=2))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (1.5 if "embed" in name else 0.4))
        self.rows: list[int] = []

    def logits(
        self,
        ids: Tensor,
        positions: Tensor,
        visible: Tensor,
        *,
        cache: KeyValues | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        self.rows.append(len(ids))
        return super().logits(ids, positions, visible, cache=cache, keep=keep)


# --- slow ways -------------------------------------------------------------------------------------------------------


def plain_logits(model, ids: Sequence[int]) -> Tensor:
    """All logits of one sequence: a row of its own, without padding and cache."""
    L = len(ids)
    return model.logits(torch.tensor([ids]), torch.arange(L)[None], torch.ones(1, L, L, dtype=torch.bool).tril())[0]


def slow_log_probs(model, prompt: Ids, completion: Ids, temperature: float) -> Tensor:
    """Log-probability of each token, with gradients."""
    log_probs = (plain_logits(model, (*prompt, *completion)).double() / temperature).log_softmax(1)
    return torch.stack([log_probs[len(prompt) - 1 + t, token] for t, token in enumerate(completion)])


@torch.no_grad()
def slow_completion(model, prompt: Ids, sampling: TokenSampling, key: SampleKey) -> Ids:
    """Read everything again for every token, and walk along the probabilities."""
    numbers, drawn = uniform([key], "tokens", sampling.max_new_tokens)[0].double().tolist(), ()
    for number in numbers:
        chance = (plain_logits(model, (*prompt, *drawn))[-1].double() / sampling.temperature).softmax(0).tolist()
        token = 0
        while token < len(chance) - 1 and number >= sum(chance[: token + 1]):
            token += 1
        drawn = (*drawn, token)
        if token in model.end_ids:
            break
    return drawn


# --- batches ---------------------------------------------------------------------------------------------------------


def token_keys(count: int, seed: int = 0) -> list[SampleKey]:
    return [SampleKey(seed=seed, step=0, prompt="p", index=i) for i in range(count)]


def token_batch(completions: Completions, size: int) -> Batch:
    """Groups of `size`, with advantages of both signs."""
    count = len(completions)
    return Batch(
        samples=completions,
        prompts=tuple(Prompt(id=str(ids), text=str(ids)) for ids in completions.prompt_ids),
        keys=tuple(token_keys(count)),
        group=torch.arange(count) // size,
        score=torch.sin(torch.arange(count).double()),
        scores={"toy": torch.sin(torch.arange(count).double())},
        credit=Credit(
            value=torch.cos(torch.arange(count) * 1.7 + 0.3) * 1.5, valid=torch.ones(count, dtype=torch.bool)
        ),
        informative=torch.ones(count, dtype=torch.bool),
    )


def drawn_batch(model, prompts: Sequence[Ids], size: int, *, limit: int = 12, temperature: float = 1.0) -> Batch:
    sampling = TokenSampling(type="tokens", max_new_tokens=limit, temperature=temperature)
    members = [prompt for prompt in prompts for _ in range(size)]
    return token_batch(draw_completions(model, members, sampling, token_keys(len(members))), size)


# --- runs ------------------------------------------------------------------------------------------------------------


def sums_recipe(folder: Path, *layers: dict) -> Recipe:
    """A run of three steps on the lab's sums, in `folder`/runs/sums-toy."""
    sampler = {"type": "tokens", "max_new_tokens": 24, "pack": 0}
    base = {
        "name": "sums-toy",
        "model": "lab/sums",
        "prompts": {"type": "sums", "categories": ["pair"]},  # most of their solutions end within the limit
        "rewards": {
            "match": None,
            "correct": "sum_correct",
            "format": {"type": "sum_format", "weight": 0.5},
            "brief": {"type": "brevity", "weight": 0.1, "arguments": {"limit": 24, "low": 0.0}},
        },
        "sampler": sampler,
        "objective": {"type": "grpo"},
        "train": {"steps": 3, "minutes": None, "lr": 1e-4}
        | {"prompts_per_step": 3, "samples_per_prompt": 4, "micro_batch": 5},
        "evaluate": {"reward": "sum_correct", "every": 2, "prompts": 4, "final_prompts": 6, "sampler": sampler},
        "run": {"folder": str(folder / "runs"), "save_every": 1, "threads": 1},
    }
    return load([base, *layers])


KL = {"objective": {"kl": {"weight": 0.05, "scaling": "k3"}}}
PACKED = {"sampler": {"pack": 128}}
