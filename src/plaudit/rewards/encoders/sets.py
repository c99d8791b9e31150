"""SDR (S079): a text as an unordered set of unit vectors, compared with a reference's set.

Shape legend: n candidate vectors, m reference vectors, D embedding; C = [n, m] costs 1 - cosine, in 0..2.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from plaudit.errors import RecipeError
from plaudit.rewards.base import Card, Score, Status, missing
from plaudit.rewards.encoders.base import Encoder
from plaudit.rewards.encoders.load import load_encoder
from plaudit.rewards.transport import emd

SENTENCE_END = re.compile(r"(?<=[.!?…。！？])[\"')\]]*\s+|[;\n]+")
FURTHEST = 2.0  # the cost of opposite vectors


def sentences(text: str) -> list[str]:
    """Pieces with at least one letter or digit; they end with a full stop and space, a semicolon or a line."""
    return [piece.strip() for piece in SENTENCE_END.split(text) if any(c.isalnum() for c in piece)]


def costs(candidate: Tensor, reference: Tensor) -> Tensor:
    return 1 - candidate @ reference.T


def chamfer(candidate: Tensor, reference: Tensor) -> Tensor:
    """mean_i min_j c + mean_j min_i c, in 0..4."""
    cost = costs(candidate, reference)
    return cost.amin(1).mean() + cost.amin(0).mean()


def hausdorff(candidate: Tensor, reference: Tensor) -> Tensor:
    """The worst nearest neighbour of either side, in 0..2."""
    cost = costs(candidate, reference)
    return torch.maximum(cost.amin(1).max(), cost.amin(0).max())


def energy(candidate: Tensor, reference: Tensor) -> Tensor:
    """2 E|a - b| - E|a - a'| - E|b - b'| of Euclidean distances, in 0..4: 0 only for equal distributions.

    With 1 - cosine instead of distances only the means would be compared.
    """

    def mean_distance(x: Tensor, y: Tensor) -> Tensor:  # by matrix products, equal vectors would be 1e-3 apart
        return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").mean()

    across, within = mean_distance(candidate, reference), mean_distance(candidate, candidate)
    return 2 * across - within - mean_distance(reference, reference)


def transport(candidate: Tensor, reference: Tensor) -> Tensor:
    """Earth mover's distance between uniform masses, in 0..2."""
    return torch.tensor(emd(costs(candidate, reference)))


def assignment(candidate: Tensor, reference: Tensor, unmatched: float = 1.0) -> Tensor:
    """Best one-to-one matching; what stays alone costs `unmatched`. Divided by the larger set's size."""
    cost = costs(candidate, reference)
    rows, columns = linear_sum_assignment(cost.detach().numpy())
    n, m = cost.shape
    return (cost[rows, columns].sum() + unmatched * abs(n - m)) / max(n, m)


Distance = Callable[[Tensor, Tensor], Tensor]
DistanceName = Literal["chamfer", "hausdorff", "energy", "transport", "assignment"]
DISTANCES: dict[DistanceName, Distance] = {
    "chamfer": chamfer,
    "hausdorff": hausdorff,
    "energy": energy,
    "transport": transport,
    "assignment": assignment,
}
LARGEST = {"chamfer": 4.0, "hausdorff": 2.0, "energy": 4.0, "transport": 2.0, "assignment": 2.0}


def embedded_sets(encoder: Encoder, texts: Sequence[str], unit: str) -> list[Tensor]:
    """Each text's set of unit vectors `[n, D]`, by sentence or by token; all are embedded together."""
    if unit == "token":
        return encoder.embed_tokens(texts)
    pieces = [sentences(text) for text in texts]
    flat = list(dict.fromkeys(piece for own in pieces for piece in own))
    vectors = encoder.embed_texts(flat) if flat else torch.empty(0, 0)
    place = {piece: i for i, piece in enumerate(flat)}
    return [vectors[[place[piece] for piece in own]] for own in pieces]


class SetDistance:
    """Minus the distance between the sets of an output and of its `reference`; an empty output is as far as can be.

    `unmatched` (0..2) is what `distance: assignment` charges for each vector that has no partner.
    """

    card = Card(
        summary="minus the distance between an output's sentences and its reference's, in any order",
        kind="text",
        low=-4,
        high=0,
        cost_ms=8,
        extra="transformers",
        systems=("S079",),
    )

    def __init__(
        self,
        encoder: str = "minilm",
        distance: DistanceName = "chamfer",
        unit: Literal["sentence", "token"] = "sentence",
        unmatched: Annotated[float, Field(ge=0, le=FURTHEST)] = 1.0,
    ) -> None:
        self.encoder, self.unit, self.largest = load_encoder(encoder), unit, LARGEST[distance]
        self.distance = partial(assignment, unmatched=unmatched) if distance == "assignment" else DISTANCES[distance]
        self.card = replace(type(self).card, low=-self.largest)

    def __call__(
        self, prompts: Sequence[str], outputs: Sequence[str], reference: Sequence[str | None]
    ) -> list[Score | float]:
        sets = embedded_sets(self.encoder, [*outputs, *(text or "" for text in reference)], self.unit)
        return [self._score(*pair) for pair in zip(sets[: len(outputs)], sets[len(outputs) :], strict=True)]

    def _score(self, candidate: Tensor, reference: Tensor) -> Score | float:
        if not len(reference):
            return missing(Status.NOT_APPLICABLE, "the reference is missing or empty")
        return -self.largest if not len(candidate) else -self.distance(candidate, reference).item()


class BankSimilarity:
    """SDR's score without a reference: -mean_i min_e c(a_i, e) over a bank of sentences from good texts.

    `bank` holds the sentences, or names a text file with one per line. An empty output gets -2, the furthest.
    """

    card = Card(
        summary="how near an output's sentences are to a bank of sentences from good texts",
        kind="text",
        low=-2,
        high=0,
        cost_ms=7,
        extra="transformers",
        systems=("S079",),
    )

    def __init__(self, bank: str | Sequence[str], encoder: str = "minilm") -> None:
        self.encoder = load_encoder(encoder)
        lines = Path(bank).read_text(encoding="utf-8").splitlines() if isinstance(bank, str) else list(bank)
        kept = [piece for line in lines for piece in sentences(line)]
        if not kept:
            raise RecipeError("bank_similarity: the bank holds no sentence; give sentences or a file with one per line")
        self.bank = self.encoder.embed_texts(kept)

    def __call__(self, prompts: Sequence[str], outputs: Sequence[str]) -> list[float]:
        found = embedded_sets(self.encoder, outputs, "sentence")
        return [-costs(own, self.bank).amin(1).mean().item() if len(own) else -FURTHEST for own in found]
