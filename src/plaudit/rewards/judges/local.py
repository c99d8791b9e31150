"""A judge in this process: `{type: local, model: {type: transformers, path: NAME}}`, or `type: vision` for one that sees."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from PIL import Image
from pydantic import Field, TypeAdapter, ValidationError

from plaudit.data.prompt import Prompt
from plaudit.errors import RecipeError
from plaudit.models.build import build_model
from plaudit.models.tokens import Ids, with_media
from plaudit.recipe.base import NotNegative, Positive
from plaudit.recipe.explain import of_one_value
from plaudit.recipe.models import Model
from plaudit.recipe.sampling import TokenSampling
from plaudit.rewards.base import Status
from plaudit.rewards.judges.ask import Answer, Asked, Cost, declined, name_of
from plaudit.sampling.noise import SampleKey
from plaudit.sampling.tokens import Completions, causal, draw_completions, left_padded, positions_of


class Local:
    """A token model of this house, named as in a recipe's `model:`.

    Answer k is drawn with noise of its own. `top_logprobs` gives the likeliest first tokens, and costs a reading of the prompt.
    Pictures are shown before the text, where `(picture 1)` stands for the first.
    """

    def __init__(
        self,
        *,
        model: Mapping[str, Any],
        temperature: NotNegative = 0.7,
        seed: int = 0,
        max_tokens: Positive = 512,
        top_logprobs: Annotated[int, Field(ge=0)] = 0,
        batch: Positive = 8,
    ) -> None:
        try:
            config = TypeAdapter[Any](Model).validate_python(dict(model))
        except ValidationError as error:
            raise RecipeError(of_one_value("arguments.judge.model", model, error)) from None
        self.sampling = TokenSampling(type="tokens", temperature=temperature, max_new_tokens=max_tokens)
        if config.family != "tokens":
            raise RecipeError(
                f"arguments.judge.model.type is {config.type!r}, which writes no text; take transformers or vision"
            )
        self.model: Any = build_model(config)
        self.seed, self.top_logprobs, self.batch, self.draws = seed, top_logprobs, batch, temperature > 0
        self.special = _special(self.model)
        self.identity = json.dumps(
            [dict(model), _files(model.get("path")), temperature, seed, max_tokens, top_logprobs]
        )

    def answer(self, asked: Sequence[Asked]) -> list[Answer]:
        answers: dict[int, Answer] = {}
        contexts = self.model.encode([self._prompt(one) for one in asked])
        for rows in self._batches(asked, contexts):
            answers |= dict(zip(rows, self._drawn([asked[i] for i in rows], [contexts[i] for i in rows]), strict=True))
        answers |= {i: self._too_long(len(contexts[i])) for i in range(len(asked)) if i not in answers}
        return [answers[i] for i in range(len(asked))]

    def _batches(self, asked: Sequence[Asked], contexts: Sequence[Ids]) -> Iterator[list[int]]:
        """Rows that one call can hold: their pictures have the same sizes. Those that the model cannot hold are left out."""
        alike: dict[tuple[tuple[int, int], ...], list[int]] = {}
        for i, one in enumerate(asked):
            if self.model.context is None or len(contexts[i]) + self.sampling.max_new_tokens <= self.model.context:
                sizes = tuple(part.size for part in one.question.parts if isinstance(part, Image.Image))
                alike.setdefault(sizes, []).append(i)
        for rows in alike.values():
            yield from (rows[at : at + self.batch] for at in range(0, len(rows), self.batch))

    def _too_long(self, length: int) -> Answer:
        room = self.model.context - self.sampling.max_new_tokens
        return declined(
            Status.ERRORED, f"the question has {length} tokens, and beside its answer there is room for {room}"
        )

    def _drawn(self, asked: Sequence[Asked], contexts: Sequence[Ids]) -> list[Answer]:
        started = time.monotonic()
        keys = [SampleKey(seed=self.seed, step=0, prompt=name_of(one), index=one.k) for one in asked]
        drawn = draw_completions(self.model, contexts, self.sampling, keys)
        likeliest = self._likeliest(contexts) if self.top_logprobs else [()] * len(asked)
        seconds = (time.monotonic() - started) / len(asked)
        return [self._answer(drawn, i, likeliest[i], seconds) for i in range(len(asked))]

    def _answer(self, drawn: Completions, i: int, likeliest: Sequence[Mapping[str, float]], seconds: float) -> Answer:
        ids = drawn.rows()[i]
        cost = Cost(tokens=len(drawn.prompt_ids[i]) + len(ids), seconds=seconds, calls=1)
        return Answer(text=self.model.decode(ids), cut=bool(drawn.cut[i]), log_probs=likeliest, cost=cost)

    def _prompt(self, asked: Asked) -> Prompt:
        words: list[str] = []
        pictures: dict[str, Image.Image] = {}
        for part in asked.question.parts:
            if isinstance(part, str):
                words.append(part)
            else:
                pictures[f"picture {len(pictures) + 1:03}"] = part
                words.append(f"(picture {len(pictures)})")
        text = "".join(words)
        for token in self.special:  # written as text, they would end the question and begin the answer
            text = text.replace(token, token[0] + " " + token[1:])
        return Prompt(id=name_of(asked), text=text, inputs=pictures)

    @torch.no_grad()
    def _likeliest(self, contexts: Sequence[Ids]) -> list[tuple[dict[str, float]]]:
        ids, valid = left_padded(contexts, self.model.pad_id)
        last = torch.tensor([ids.shape[1] - 1])
        logits = self.model.logits(ids, positions_of(valid), causal(valid), keep=last, **with_media(contexts))[:, 0]
        top = logits.float().log_softmax(1).topk(self.top_logprobs, dim=1)
        return [(self._by_text(*row),) for row in zip(top.values.tolist(), top.indices.tolist(), strict=True)]

    def _by_text(self, values: Sequence[float], tokens: Sequence[int]) -> dict[str, float]:
        """Tokens of one text share its probability."""
        found: dict[str, float] = {}
        for value, token in zip(values, tokens, strict=True):
            text = self.model.decode([token])
            found[text] = math.log(math.exp(value) + math.exp(found[text])) if text in found else value
        return found


def _special(model: Any) -> list[str]:
    """Texts that the tokenizer reads as marks, the longest first."""
    tokenizer = getattr(model, "tokenizer", None)
    known = [] if tokenizer is None else [str(token) for token in tokenizer.added_tokens_decoder.values()]
    return sorted((token for token in known if len(token) > 1), key=len, reverse=True)


def _files(path: Any) -> list[Any]:
    """What tells a folder of weights from what lay there before."""
    folder = Path(str(path))
    files = sorted(folder.iterdir()) if path is not None and folder.is_dir() else []
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
