"""CIB: every token of the reasoning costs its surprisal under a frozen prior that reads the reasoning but not the prompt.

    R = r_acc + beta * sum_t log Q(z_t | z_<t)                       (the second term is never above 0)

Priors, from the crudest: `uniform` charges log|V| a token, which is a linear length penalty; `laplace` charges the
distance to a target length; `ngram` and `lm` charge what they did not expect. A prior reads text with its own tokenizer.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import torch
from pydantic import AfterValidator
from torch import Tensor

from plaudit.errors import RecipeError
from plaudit.models.loading import pretrained
from plaudit.optional import require
from plaudit.recipe.base import Positive, PositiveFloat
from plaudit.rewards.base import Card, Score
from plaudit.rewards.calling.request import Request
from plaudit.rewards.options import checked
from plaudit.rewards.rules.outcomes import Column, Rightness, count, inheriting

Part = Literal["thought", "output"]
START = "\0start"
WHO = "reward reasoning_nats"


def _countable(unit: str) -> str:
    if unit == "tokens":
        raise ValueError(
            f"{WHO}: prior.unit `tokens` would need to know which ids are the reasoning; set words, characters or a "
            "tokenizer's name or folder"
        )
    return unit


Unit = Annotated[str, AfterValidator(_countable)]


class Prior(Protocol):
    def log_prob(self, texts: Sequence[str]) -> list[Tensor]:
        """Per text the log-probability of each of its tokens; a prior over whole texts gives one number for all."""
        ...


def reasoning(text: str, part: Part) -> str:
    """The reasoning Z in an output: all of it, or what stands before </think> (the whole where that never comes: an
    unfinished thought costs too)."""
    if part == "output":
        return text
    return re.sub(r"^\s*<think>", "", text.partition("</think>")[0])


# --- priors ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """log Q = -log `vocabulary` for each `unit` of length."""

    vocabulary: Positive
    unit: Unit = "words"

    def log_prob(self, texts: Sequence[str]) -> list[Tensor]:
        lengths = count(texts, self.unit, "reasoning_nats")
        return [torch.full((int(n),), -math.log(self.vocabulary)) for n in lengths]  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Laplace:
    """log Q = -|L - target| / scale, up to the constant that no comparison of outputs sees."""

    target: float
    scale: PositiveFloat
    unit: Unit = "words"

    def log_prob(self, texts: Sequence[str]) -> list[Tensor]:
        lengths = count(texts, self.unit, "reasoning_nats")
        return [torch.tensor([-abs(int(n) - self.target) / self.scale]) for n in lengths]  # type: ignore[arg-type]


class Ngram:
    """Counts of `order` consecutive words or characters in `texts`, with `smoothing` added to each; the vocabulary is that of
    `texts` and one place for all that it lacks."""

    def __init__(
        self,
        texts: Sequence[str],
        order: Positive = 2,
        smoothing: PositiveFloat = 1.0,
        unit: Literal["words", "characters"] = "words",
    ) -> None:
        self.order, self.smoothing, self.unit = order, smoothing, unit
        grams = [gram for text in texts for gram in self._grams(text)]
        self.grams, self.contexts = Counter(grams), Counter(gram[:-1] for gram in grams)
        self.vocabulary = len({gram[-1] for gram in grams}) + 1

    def _grams(self, text: str) -> list[tuple[str, ...]]:
        tokens = text.split() if self.unit == "words" else list(text)
        padded = [START] * (self.order - 1) + tokens
        return list(zip(*(itertools.islice(padded, i, None) for i in range(self.order)), strict=False))

    def log_prob(self, texts: Sequence[str]) -> list[Tensor]:
        return [torch.tensor([self._log_prob(gram) for gram in self._grams(text)]) for text in texts]

    def _log_prob(self, gram: tuple[str, ...]) -> float:
        total = self.contexts[gram[:-1]] + self.smoothing * self.vocabulary
        return math.log((self.grams[gram] + self.smoothing) / total)


class CausalLM:
    """A frozen transformers model, loaded at the first call. The first token is predicted from the beginning-of-text token,
    or the end-of-text token where there is none; texts longer than `max_tokens` are refused, not cut."""

    def __init__(self, model: str, device: str = "cpu", batch: Positive = 8, max_tokens: Positive = 32_768) -> None:
        self.name, self.device, self.batch, self.max_tokens = model, device, batch, max_tokens
        self._loaded: tuple[Any, Any] | None = None

    def loaded(self) -> tuple[Any, Any]:
        if self._loaded is None:
            transformers = require("transformers", extra="transformers", who=WHO)
            tokenizer = transformers.AutoTokenizer.from_pretrained(self.name)
            model = pretrained(transformers.AutoModelForCausalLM, self.name, key=WHO, dtype=torch.float32)
            self._loaded = tokenizer, model.to(self.device).eval().requires_grad_(False)
        return self._loaded

    def log_prob(self, texts: Sequence[str]) -> list[Tensor]:
        tokenizer, _ = self.loaded()
        ids = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        longest = max(map(len, ids), default=0)
        if longest > self.max_tokens:
            raise ValueError(f"a reasoning of {longest} tokens; the prior reads at most {self.max_tokens}")
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # alike lengths together, so that little is padding
        found: dict[int, Tensor] = {}
        for start in range(0, len(order), self.batch):
            rows = order[start : start + self.batch]
            found |= dict(zip(rows, self._batch([ids[i] for i in rows]), strict=True))
        return [found[i] for i in range(len(ids))]

    @torch.no_grad()
    def _batch(self, ids: Sequence[Sequence[int]]) -> list[Tensor]:
        """Padded on the right, where a causal model's earlier tokens cannot see it."""
        tokenizer, model = self.loaded()
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if start is None:
            raise RecipeError(
                f"{WHO}: the tokenizer of {self.name!r} has neither a begin nor an end token; use another prior"
            )
        width = max(map(len, ids)) + 1
        tokens = torch.tensor([[start, *row] + [start] * (width - 1 - len(row)) for row in ids], device=self.device)
        mask = torch.tensor([[1] * (len(row) + 1) + [0] * (width - 1 - len(row)) for row in ids], device=self.device)
        logits = model(input_ids=tokens, attention_mask=mask).logits[:, :-1].float()
        chosen = logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0].cpu()
        return [chosen[i, : len(row)] for i, row in enumerate(ids)]


PRIORS = {"uniform": Uniform, "laplace": Laplace, "ngram": Ngram, "lm": CausalLM}


def make_prior(spec: Mapping[str, Any]) -> Prior:
    arguments = dict(spec)
    type_ = arguments.pop("type", None)
    if type_ not in PRIORS:
        raise RecipeError(f"{WHO}: prior.type {type_!r}; allowed: {', '.join(PRIORS)}")
    try:
        prior: Prior = PRIORS[type_](**checked(f"{WHO}.prior", PRIORS[type_], arguments))
    except TypeError as error:
        raise RecipeError(f"{WHO}: prior of type {type_!r}: {error}") from error
    return prior


# --- the reward ------------------------------------------------------------------------------------------------------


class ReasoningNats:
    """`dense` holds beta * log Q for each of the prior's tokens of the reasoning; they sum to the component `price`."""

    card = Card(
        summary="1 where right, less beta times the nats of the reasoning under a prior that does not see the prompt.",
        kind="text",
        high=1,
        systems=("S098",),
    )

    def __init__(
        self,
        prior: Mapping[str, Any],
        beta: PositiveFloat = 1e-4,
        part: Part = "thought",
        correct: Mapping[str, Any] | None = None,
        threshold: float = 1.0,
    ) -> None:
        self.prior, self.beta, self.part = make_prior(prior), beta, part
        self.right = Rightness("reasoning_nats", correct, threshold)
        self.inner_rewards = self.right.inner_rewards
        self.card = inheriting(type(self).card, self.right)

    def __call__(
        self,
        prompts: Sequence[str],
        outputs: Sequence[str],
        request: Request,
        correct: Column = None,
    ) -> list[Score]:
        log_probs = self.prior.log_prob([reasoning(text, self.part) for text in outputs])
        return [self._score(right, lp) for right, lp in zip(self.right(request, correct), log_probs, strict=True)]

    def _score(self, right: bool | Score, log_prob: Tensor) -> Score:
        if isinstance(right, Score):
            return right
        dense = self.beta * log_prob
        price = float(dense.double().sum())
        parts = {"correct": float(right), "price": price, "nats": -price / self.beta, "tokens": float(len(log_prob))}
        return Score(value=float(right) + price, components=parts, dense=dense)
