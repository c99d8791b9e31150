"""SVG that a model wrote, drawn and compared with what it should show (SGP-RL, S018).

A drawing passes the gate when it is well-formed, within its limits of time and memory, and has nothing banned. The paper
bans `<text>`, `<tspan>` and `<textPath>`, with which a model writes the caption instead of drawing it. We also ban what an
honest drawing does not need: references outside the drawing (href, src, url(...), @import), embedded pictures (`<image>`,
`<feImage>`, data:), scripts and on... attributes, foreign content, and entities. Letters drawn as paths are not found.
Drawing is done by resvg (the paper: CairoSVG), on white, fitted into a square, inside the sandbox.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from plaudit.errors import RewardError
from plaudit.optional import require
from plaudit.recipe.base import NotNegative
from plaudit.rewards.base import Card, Score, Status, missing
from plaudit.rewards.encoders.base import embed_once
from plaudit.rewards.encoders.load import load_encoder
from plaudit.rewards.rules.code import FENCED
from plaudit.rewards.rules.formats import tag_conditions
from plaudit.rewards.rules.rendering import (
    Drawn,
    Megabytes,
    Seconds,
    Side,
    Workshop,
    alike,
    drawn_or_missing,
    load_similarity,
)

SVG_MARK = re.compile(r"<(/?)svg(?=[\s/>])[^<>]*?(/?)>", re.IGNORECASE)


def extract_svg(text: str) -> str | None:
    """The last fenced block that has an `<svg`; else the first `<svg ...>` with its own `</svg>`."""
    blocks = [block for block in FENCED.findall(text) if "<svg" in block.lower()]
    if blocks:
        return str(blocks[-1]).strip()
    depth, start = 0, None
    for mark in SVG_MARK.finditer(text):
        closes, empty = mark.groups()
        if start is None:
            if closes:
                continue
            start = mark.start()
        depth += -1 if closes else 0 if empty else 1
        if depth == 0:
            return text[start : mark.end()]
    return None


class SvgGate:
    """What both rewards share: from texts to drawings."""

    def __init__(
        self,
        who: str,
        *,
        tags: Sequence[str] = (),
        allow_text: bool = False,
        size: Side = 128,
        item_s: Seconds = 2.0,
        memory_mb: Megabytes = 512,
    ) -> None:
        """`tags: [think, answer]` is the paper's format: the text is these parts, in order, and the drawing in the last."""
        require("resvg_py", extra="render", who=f"reward {who}")
        self.tags = tuple(tags)
        self.workshop = Workshop(
            worker="svg_worker", size=size, item_s=item_s, memory_mb=memory_mb, allow_text=allow_text, facts=False
        )

    def draw(self, outputs: Sequence[str]) -> list[Drawn] | Score:
        found = [self.extract(output) for output in outputs]
        drawn = drawn_or_missing(self.workshop, [svg for svg in found if not isinstance(svg, Drawn)])
        if isinstance(drawn, Score):
            return drawn
        left = iter(drawn)
        return [svg if isinstance(svg, Drawn) else next(left) for svg in found]

    def extract(self, output: str) -> str | Drawn:
        if self.tags:
            if not all(tag_conditions(output, self.tags)):
                return Drawn(problem=f"not of the form {' '.join(f'<{tag}>' for tag in self.tags)}")
            output = output.rpartition(f"<{self.tags[-1]}>")[2].rpartition(f"</{self.tags[-1]}>")[0]
        return extract_svg(output) or Drawn(problem="no <svg> in the text")

    def references(self, svgs: Sequence[str]) -> list[Drawn] | Score:
        """Drawn as they are: what is banned in an output may stand in a reference."""
        return drawn_or_missing(replace(self.workshop, judged=False), svgs)


class SvgRenders:
    """1 where the text has an SVG that can be drawn and has nothing banned, else 0 (S018's format reward)."""

    card = Card(
        summary="1 where the text has an SVG that can be drawn and has nothing banned, else 0",
        kind="text",
        low=0,
        high=1,
        verdict=True,
        extra="render",
        untrusted=True,
        systems=("S018",),
        cost_ms=8,
    )

    def __init__(
        self,
        *,
        tags: Sequence[str] = (),
        allow_text: bool = False,
        size: Side = 128,
        item_s: Seconds = 2.0,
        memory_mb: Megabytes = 512,
    ) -> None:
        self.gate = SvgGate(
            "svg_renders", tags=tags, allow_text=allow_text, size=size, item_s=item_s, memory_mb=memory_mb
        )

    def __call__(self, prompts: Sequence[str], outputs: Sequence[str]) -> list[Score]:
        drawn = self.gate.draw(outputs)
        if isinstance(drawn, Score):
            return [drawn] * len(outputs)
        return [Score(value=float(not one.problem), note=one.problem) for one in drawn]


class SvgSimilarity:
    """format (text_weight x text + image_weight x image), S018's reward.

    `format` is 1 or 0 as in `svg_renders`. `text` is (1 + cosine) / 2 of drawing and prompt under `encoder`; without one
    it is left out. `image` compares the drawing with the prompt's `reference` (a picture) or `reference_svg` by
    `similarity` (see rendering.py; the paper: DINO, (1 + cosine) / 2); without a reference it is left out, as in the paper
    (its weight 0), so that prompts with and without one are not on one scale. The paper gives text the weight 1; the weight of an
    image is not on record, ours is 1. A prompt for which nothing is left is not judged.
    """

    card = Card(
        summary="whether an SVG can be drawn, times how like the prompt and the reference it looks",
        kind="text",
        low=0,
        high=1,
        extra="render",
        untrusted=True,
        systems=("S018",),
        cost_ms=25,
    )

    def __init__(
        self,
        *,
        similarity: str = "ssim",
        encoder: str | None = None,
        text_weight: NotNegative = 1.0,
        image_weight: NotNegative = 1.0,
        tags: Sequence[str] = (),
        allow_text: bool = False,
        size: Side = 128,
        item_s: Seconds = 2.0,
        memory_mb: Megabytes = 512,
    ) -> None:
        if not (text_weight if encoder else 0) + image_weight:
            raise RewardError(
                f"svg_similarity: text_weight {text_weight}, image_weight {image_weight}, encoder {encoder}; one that "
                "counts must be above 0 (that of the text counts with an `encoder`)"
            )
        self.gate = SvgGate(
            "svg_similarity", tags=tags, allow_text=allow_text, size=size, item_s=item_s, memory_mb=memory_mb
        )
        self.similarity = load_similarity(similarity, "svg_similarity")
        self.encoder = load_encoder(encoder) if encoder and text_weight else None
        self.text_weight, self.image_weight = text_weight if self.encoder else 0.0, image_weight
        limit = self.encoder.max_tokens if self.encoder else None
        self.card = replace(type(self).card, high=self.text_weight + image_weight, max_prompt_tokens=limit)

    def __call__(
        self,
        prompts: Sequence[str],
        outputs: Sequence[str],
        reference: Sequence[Tensor | None] | None = None,
        reference_svg: Sequence[str | None] | None = None,
    ) -> list[Score]:
        nothing = [None] * len(outputs)
        wanted = self.wanted(reference or nothing, reference_svg or nothing)
        drawn = self.gate.draw(outputs)
        if isinstance(wanted, Score) or isinstance(drawn, Score):
            return [wanted if isinstance(wanted, Score) else drawn] * len(outputs)  # type: ignore[list-item]
        pictures = {i: one.picture for i, one in enumerate(drawn) if not one.problem}
        pairs = {i: (seen, other) for i, seen in pictures.items() if isinstance(other := wanted[i], Tensor)}
        image = dict(zip(pairs, alike(self.similarity, list(pairs.values())), strict=True)) if self.image_weight else {}
        text = dict(zip(pictures, self.text_rewards(prompts, pictures), strict=False))
        return [self.score(drawn[i], wanted[i], text.get(i), image.get(i)) for i in range(len(outputs))]

    def wanted(
        self, pictures: Sequence[Tensor | None], svgs: Sequence[str | None]
    ) -> list[Tensor | Score | None] | Score:
        """The picture that each output should look like; a missing score where the reference cannot be drawn."""
        texts = [svg for picture, svg in zip(pictures, svgs, strict=True) if picture is None and svg is not None]
        drawn = self.gate.references(texts) if texts else []
        if isinstance(drawn, Score):
            return drawn
        by_text = dict(zip(texts, drawn, strict=True))
        found: list[Tensor | Score | None] = []
        for picture, svg in zip(pictures, svgs, strict=True):
            if picture is not None or svg is None:
                found.append(picture)
            elif by_text[svg].problem:
                found.append(missing(Status.ERRORED, f"the reference cannot be drawn: {by_text[svg].problem}"))
            else:
                found.append(by_text[svg].picture)
        return found

    def text_rewards(self, prompts: Sequence[str], pictures: Mapping[int, Tensor]) -> list[float]:
        """Of the pictures in order; none without an encoder."""
        if self.encoder is None or not pictures:
            return []
        seen = self.encoder.embed_images(torch.stack(list(pictures.values())))
        cosines = (seen * embed_once(self.encoder, [prompts[i] for i in pictures])).sum(-1)
        return [(1 + float(value)) / 2 for value in cosines.clamp(-1, 1)]

    def score(self, drawn: Drawn, wanted: Tensor | Score | None, text: float | None, image: float | None) -> Score:
        if isinstance(wanted, Score):
            return wanted
        if self.encoder is None and (wanted is None or not self.image_weight):
            return missing(Status.NOT_APPLICABLE, "the prompt has neither `reference` nor `reference_svg`")
        if drawn.problem:
            return Score(value=0.0, components={"format": 0.0}, note=drawn.problem)
        parts = {"text": text, "image": image}
        components = {"format": 1.0} | {name: value for name, value in parts.items() if value is not None}
        value = self.text_weight * (text or 0.0) + self.image_weight * (image or 0.0)
        return Score(value=value, components=components)
