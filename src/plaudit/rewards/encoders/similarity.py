"""Cosines of a frozen encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from torch import Tensor

from plaudit.errors import RecipeError, RewardError
from plaudit.rewards.base import Card, Score, Status, missing
from plaudit.rewards.encoders.base import Encoder, embed_once
from plaudit.rewards.encoders.load import load_encoder


class EncoderSimilarity:
    """Pictures against their prompt; with `kind: text`, texts against their prompt or `reference` (`against`)."""

    card = Card(
        summary="cosine between output and prompt (or reference) under a frozen encoder",
        low=-1,
        high=1,
        differentiable=True,
        cost_ms=1.5,
        systems=("S068", "S080", "S102"),
    )

    def __init__(
        self,
        encoder: str = "lab",
        kind: Literal["image", "text"] = "image",
        against: Literal["prompt", "reference"] = "prompt",
    ) -> None:
        self.encoder, self.against = load_encoder(encoder), against
        if kind == "image":
            needs_pictures(self.encoder, "encoder_similarity")
        self.card = replace(
            type(self).card, kind=kind, differentiable=kind == "image", max_prompt_tokens=self.encoder.max_tokens
        )

    def __call__(
        self,
        prompts: Sequence[str],
        outputs: Tensor | Sequence[str],
        reference: Sequence[str | None] | None = None,
    ) -> Tensor | list[Score | float]:
        if self.against == "prompt":
            return self.similarity(prompts, outputs)
        if reference is None:
            raise RewardError("encoder_similarity against a reference needs the column 'reference', which is not there")
        known = [i for i, text in enumerate(reference) if text is not None]
        scores: list[Score | float] = [missing(Status.NOT_APPLICABLE, "no reference")] * len(reference)
        if known:
            chosen = outputs[known] if isinstance(outputs, Tensor) else [outputs[i] for i in known]
            texts = [text for text in reference if text is not None]
            for i, value in zip(known, self.similarity(texts, chosen).tolist(), strict=True):
                scores[i] = value
        return scores

    def similarity(self, texts: Sequence[str], outputs: Tensor | Sequence[str]) -> Tensor:
        """`[B]`."""
        seen = self.encoder.embed_images(outputs) if isinstance(outputs, Tensor) else embed_once(self.encoder, outputs)
        return (seen * embed_once(self.encoder, texts)).sum(-1)


def needs_pictures(encoder: Encoder, who: str) -> None:
    if not encoder.sees_pictures:
        raise RecipeError(f"{who}: the encoder {encoder.name} sees no pictures; use lab, picture or clip:NAME")
