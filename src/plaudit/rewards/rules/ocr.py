"""Whether a picture shows the text it should, read by RapidOCR (its models come with its package)."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plaudit.errors import RewardError
from plaudit.optional import require
from plaudit.recipe.base import Fraction, Positive
from plaudit.rewards.base import Card, Score, Status, missing
from plaudit.rewards.rules.pixels import as_bytes

QUOTED = re.compile(r'"([^"]*)"|“([^”]*)”|«([^»]*)»|「([^」]*)」')
PLAIN_MARKS = str.maketrans("‘’‚′“”„«»″‐‑‒–—−", '\'\'\'\'""""""------')  # recognisers read any of them as the plain one


def edit_distance(one: str, other: str) -> int:
    """Insertions, deletions and replacements of single characters that turn `one` into `other` (Levenshtein)."""
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, start=1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(other, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


def text_similarity(target: str, reading: str) -> float:
    """1 - edit distance / length of the longer text; two empty texts are equal, an empty and another are not at all."""
    longest = max(len(target), len(reading))
    return 1 - edit_distance(target, reading) / longest if longest else 1.0


def normalised(text: str, *, ignore_case: bool = True, ignore_spaces: bool = False) -> str:
    """Unicode NFKC, plain quotes and dashes, single spaces; by default without regard to case."""
    text = unicodedata.normalize("NFKC", text.translate(PLAIN_MARKS)).translate(PLAIN_MARKS)
    if ignore_case:
        text = unicodedata.normalize("NFKC", text.casefold())
    return ("" if ignore_spaces else " ").join(text.split())


def quoted_text(prompt: str) -> str | None:
    """What a prompt puts in double quotes, its parts joined by spaces; None when it quotes nothing."""
    parts = ["".join(groups) for groups in QUOTED.findall(prompt)]
    return " ".join(parts) if parts else None


@functools.cache
def reader(limit_side_len: int, num_threads: int) -> Any:
    """One RapidOCR engine per setting; its networks are loaded when first used."""
    rapidocr = require("rapidocr", extra="ocr", who="reward ocr_accuracy")
    return rapidocr.RapidOCR(
        params={
            "Global.log_level": "critical",
            "Det.limit_side_len": limit_side_len,
            "EngineConfig.onnxruntime.intra_op_num_threads": num_threads,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )


class OcrAccuracy:
    """Likeness of the text read in the picture to `text`: 1 - edit distance / length of the longer one.

    Without `text` the target is what the prompt has in double quotes. `mode: line` reads the whole picture as one line of
    writing (17 ms); `mode: page` first looks for lines, in the picture scaled so that its short side is at least
    `limit_side_len`, and reads them from top to bottom. Lines read with less than `min_confidence` were not written
    legibly and count as not there. Spaces are ignored by default, because the recogniser misses some. A target with letters
    that it does not know cannot be judged.
    """

    card = Card(
        summary="likeness of the text in the picture to the text asked for", low=0, high=1, extra="ocr", cost_ms=17
    )

    def __init__(
        self,
        mode: Literal["line", "page"] = "line",
        ignore_case: bool = True,
        ignore_spaces: bool = True,
        min_confidence: Fraction = 0.5,
        limit_side_len: Positive = 224,
    ) -> None:
        self.mode, self.min_confidence = mode, min_confidence
        self.normalise = functools.partial(normalised, ignore_case=ignore_case, ignore_spaces=ignore_spaces)
        self.reader = reader(limit_side_len, torch.get_num_threads())
        self.recogniser = self.reader._load_rec_model()
        self.alphabet = frozenset(self.normalise("\n".join(self.recogniser.postprocess_op.character)))

    def __call__(
        self, prompts: Sequence[str], outputs: Tensor, text: Sequence[str | None] | None = None
    ) -> list[Score]:
        targets = [self._target(*row) for row in zip(prompts, text or [None] * len(prompts), strict=True)]
        rows = [i for i, target in enumerate(targets) if isinstance(target, str)]
        pictures = [
            np.ascontiguousarray(picture[:, :, ::-1]) for picture in as_bytes(outputs[rows])
        ]  # RapidOCR wants BGR
        found = iter(self._read_lines(pictures) if self.mode == "line" else map(self._read_page, pictures))
        return [self._score(target, next(found)) if isinstance(target, str) else target for target in targets]

    def _target(self, prompt: str, text: str | None) -> str | Score:
        target = quoted_text(prompt) if text is None else text
        if target is None:
            return missing(Status.NOT_APPLICABLE, "neither `text` nor a quotation in the prompt says what to write")
        if not isinstance(target, str):
            raise RewardError(f"ocr_accuracy: `text` is {target!r}; it must be text: put it in quotes")
        target = self.normalise(target)
        unknown = sorted({letter for letter in target if letter.isalnum()} - self.alphabet)
        return missing(Status.NOT_APPLICABLE, f"the recogniser cannot read {unknown[0]!r}") if unknown else target

    def _score(self, target: str, reading: str) -> Score:
        return Score(value=text_similarity(target, self.normalise(reading)), note=f"read {reading!r}")

    def _read_lines(self, pictures: list[NDArray[np.uint8]]) -> list[str]:
        if not pictures:
            return []
        from rapidocr.ch_ppocr_rec import TextRecInput

        read = self.recogniser(TextRecInput(img=pictures))
        return [
            line if confidence >= self.min_confidence else ""
            for line, confidence in zip(read.txts, read.scores, strict=True)
        ]

    def _read_page(self, picture: NDArray[np.uint8]) -> str:
        read = self.reader(picture, use_cls=False, text_score=self.min_confidence)
        return " ".join(getattr(read, "txts", None) or ())
