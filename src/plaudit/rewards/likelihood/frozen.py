"""Rewards that ask how probable a known text is after an output: a reference answer, or the caption of a picture.

Shape legend: B outputs, T tokens of context and answer, L answer tokens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from plaudit.errors import RecipeError, RewardError
from plaudit.lab.encoder_networks import Captioner
from plaudit.lab.scenes.grammar import MAX_TOKENS
from plaudit.lab.scenes.render import SIZE
from plaudit.models.loading import pretrained
from plaudit.optional import require
from plaudit.rewards.base import Card, Score, Status, missing
from plaudit.rewards.encoders.base import check_pictures, resized, warn_if_cut
from plaudit.rewards.encoders.lab import lab_weights, read_words

Reduction = Literal["mean", "sum", "probability", "mean_probability"]
PLACES = re.compile(r"(\{prompt\}|\{output\})")
REDUCTIONS = ("mean", "sum", "probability", "mean_probability")


def reduced(log_probs: Tensor, reduction: str) -> float:
    """Of token log-probabilities `[L]`: `mean` or `sum` of them, the `probability` of all, or the `mean_probability` of one
    token."""
    values = log_probs.double()
    match reduction:
        case "mean":
            return values.mean().item()
        case "sum":
            return values.sum().item()
        case "probability":
            return values.sum().exp().item()
    return values.exp().mean().item()


def likelihood_score(log_probs: Tensor, reduction: str) -> Score:
    total = log_probs.double().sum().item()
    if not math.isfinite(total):
        return missing(Status.ERRORED, f"the model's log-probability is {total}")
    parts = {"log_prob": total, "tokens": float(len(log_probs))}
    return Score(value=reduced(log_probs, reduction), components=parts, dense=log_probs.detach())


def reduction_card(card: Card, reduction: str, who: str) -> Card:
    if reduction not in REDUCTIONS:
        raise RecipeError(f"{who}: reduction {reduction!r}; allowed: {', '.join(REDUCTIONS)}")
    if reduction in ("mean", "sum"):
        return replace(card, low=-math.inf, high=0.0)
    return replace(card, low=0.0, high=1.0)


# --- language models ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One row for the model: token ids of the context and of the answer."""

    context: list[int]
    answer: list[int]


@torch.no_grad()
def answer_log_probs(model: Any, rows: Sequence[Scored]) -> list[Tensor]:
    """Log-probability of each answer token, by teacher forcing, all rows in one call.

    Rows are padded on the right, where causal attention never looks, so that a row's numbers do not depend on the others.
    """
    ids = [torch.tensor(row.context + row.answer) for row in rows]
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    lengths = torch.tensor([len(row) for row in ids])
    valid = torch.arange(padded.shape[1])[None] < lengths[:, None]
    device = next(model.parameters()).device
    logits = model(input_ids=padded.to(device), attention_mask=valid.to(device)).logits
    found = []
    for row, own, scores in zip(rows, ids, logits, strict=True):
        start = len(row.context)
        predicted = scores[start - 1 : len(own) - 1].float().log_softmax(-1)
        found.append(predicted.gather(-1, own[start:, None].to(device))[:, 0].cpu())
    return found


class AnswerLikelihood:
    """Likelihood of the reference `answer` after prompt and output, under a frozen causal language model.

    The answer's tokens are counted apart from the context's, so that their number does not depend on the output. `template`
    lays out the context; the answer's delimiter belongs to the output or to the template. `chat: true` puts the prompt
    into the model's chat template first. A context too long for the model loses its beginning, with a warning.
    Only the reward: the direct gradient term that goes with it where the model is the policy is the objective's.
    """

    card = Card(
        summary="likelihood of the reference answer after the prompt and the generated reasoning",
        kind="text",
        high=0,
        extra="transformers",
        systems=("S073",),
    )

    def __init__(
        self,
        model: str,
        reduction: Reduction = "mean",
        template: str = "{prompt}{output}",
        chat: bool = False,
        max_tokens: int | None = None,
        batch: int = 16,
    ) -> None:
        self.card = reduction_card(type(self).card, reduction, "answer_likelihood")
        self.reduction, self.template, self.chat, self.batch = reduction, template, chat, batch
        if "{output}" not in template:
            raise RecipeError(
                f"answer_likelihood: the template {template!r} has no {{output}}: nothing would be scored"
            )
        self.tokenizer, self.model = load_causal_lm(model, "answer_likelihood")
        limit = getattr(self.model.config, "max_position_embeddings", None)
        self.max_tokens = min(filter(None, (max_tokens, limit)), default=None)
        self.card = replace(self.card, max_prompt_tokens=self.max_tokens)

    def __call__(self, prompts: Sequence[str], outputs: Sequence[str], answer: Sequence[str | None]) -> list[Score]:
        rows = [self._row(*row) for row in zip(prompts, outputs, answer, strict=True)]
        if self.max_tokens is not None:
            lengths = [len(row.context) + len(row.answer) for row in rows if row]
            warn_if_cut("answer_likelihood", lengths, self.max_tokens, lost="beginnings")
        scores = [missing(Status.NOT_APPLICABLE, "no reference answer")] * len(rows)
        fits: list[int] = []
        for i, row in enumerate(rows):
            if row is not None and self.max_tokens is not None and len(row.answer) >= self.max_tokens:
                scores[i] = missing(Status.NOT_APPLICABLE, f"the answer alone has {len(row.answer)} tokens")
            elif row is not None:
                fits.append(i)
        for at in range(0, len(fits), self.batch):
            chunk = fits[at : at + self.batch]
            found = answer_log_probs(self.model, [self._cut(rows[i]) for i in chunk])
            for i, log_probs in zip(chunk, found, strict=True):
                scores[i] = likelihood_score(log_probs, self.reduction)
        return scores

    def _row(self, prompt: str, output: str, answer: str | None) -> Scored | None:
        ids = self.tokenizer(answer, add_special_tokens=False)["input_ids"] if answer else []
        if not ids:
            return None
        if self.chat:
            messages = [{"role": "user", "content": prompt}]
            prompt = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        parts = {"{prompt}": prompt, "{output}": output}  # in one pass: a text may itself hold braces
        text = "".join(parts.get(piece, piece) for piece in PLACES.split(self.template))
        context = self.tokenizer(text, add_special_tokens=not self.chat, verbose=False)["input_ids"]
        start = getattr(self.tokenizer, "bos_token_id", None) or getattr(self.tokenizer, "eos_token_id", None)
        if not context and start is None:
            raise RewardError("answer_likelihood: prompt and output are empty and the tokenizer has no first token")
        return Scored(context=context or [start], answer=ids)

    def _cut(self, row: Scored | None) -> Scored:
        assert row is not None
        if self.max_tokens is None:
            return row
        return Scored(context=row.context[-(self.max_tokens - len(row.answer)) :], answer=row.answer)


def load_causal_lm(name: str, who: str) -> tuple[Any, Any]:
    """Tokenizer and frozen model of a transformers causal LM by name or folder; `FOLDER/FILE.gguf` reads that file."""
    transformers = require("transformers", extra="transformers", who=who)
    extra: dict[str, str] = {}
    if name.endswith(".gguf"):
        name, _, extra["gguf_file"] = name.rpartition("/")
    tokenizer = transformers.AutoTokenizer.from_pretrained(name, **extra)
    model = pretrained(transformers.AutoModelForCausalLM, name, key=who, dtype=torch.float32, **extra)
    return tokenizer, model.eval().requires_grad_(False)


# --- captioners --------------------------------------------------------------------------------------------------


class LabCaptioner:
    """The captioner trained on `scenes`: it reads 12 words and counts the end of the caption as one more.

    Held-out captions beat edited ones always (count, colour, shape, relation, swapped colours). Pairs of colour and shape
    that it never saw are unlikely words to it, whatever it sees: there a wrong shape wins in a quarter of cases.
    """

    max_tokens: int | None = MAX_TOKENS

    def __init__(self) -> None:
        self.network = Captioner().eval().requires_grad_(False)
        self.network.load_state_dict(lab_weights("captioner"))

    def log_probs(self, images: Tensor, captions: Sequence[str]) -> list[Tensor]:
        ids = read_words(captions, "caption_likelihood")
        found = self.network.log_probs(resized(images, SIZE, SIZE), ids)
        return [row[: int(count) + 1] for row, count in zip(found, (ids > 0).sum(1), strict=True)]


class ChatCaptioner:
    """A transformers image-text-to-text model asked to describe the picture, with the caption as its answer.

    Pictures go through one by one, so that no padding can change a score; they are not differentiable on this way.
    """

    max_tokens = None

    def __init__(self, name: str, question: str) -> None:
        transformers = require("transformers", extra="transformers", who="caption_likelihood")
        self.processor = transformers.AutoProcessor.from_pretrained(name)
        self.model = pretrained(
            transformers.AutoModelForImageTextToText, name, key="caption_likelihood", dtype=torch.float32
        )
        self.model.eval().requires_grad_(False)
        content = [{"type": "image"}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        self.context = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    @torch.no_grad()
    def log_probs(self, images: Tensor, captions: Sequence[str]) -> list[Tensor]:
        return [self._one(image, caption) for image, caption in zip(images, captions, strict=True)]

    def _one(self, image: Tensor, caption: str) -> Tensor:
        answer = self.processor.tokenizer(caption, add_special_tokens=False, return_tensors="pt")["input_ids"]
        picture = to_pil_image(image)
        given = self.processor(text=[self.context], images=[picture], return_tensors="pt", add_special_tokens=False)
        length = given["input_ids"].shape[1]
        values = {"input_ids": answer, "attention_mask": torch.ones_like(answer)}
        for key, tensor in given.items():  # marks of each token, such as its modality, are 0 for the caption's text
            if tensor.shape == (1, length):
                given[key] = torch.cat([tensor, values.get(key, torch.zeros_like(answer)).to(tensor.dtype)], dim=1)
        predicted = self.model(**given).logits[0, length - 1 : -1].float().log_softmax(-1)
        return predicted.gather(-1, answer[0, :, None])[:, 0]


def to_pil_image(image: Tensor) -> Any:
    from PIL import Image

    return Image.fromarray((image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())


class CaptionLikelihood:
    """PromptEcho: how easily a frozen captioner that looks at the picture recites the prompt.

    `mean` is minus its cross-entropy per token. Compare pictures of one prompt only: across prompts, how likely and long
    the caption is of itself differs. `model` is `lab` or a transformers image-text-to-text model by name or folder.
    """

    card = Card(
        summary="log-likelihood of the prompt as a frozen captioner's caption of the picture",
        high=0,
        cost_ms=2.5,
        systems=("S023",),
    )

    def __init__(
        self,
        model: str = "lab",
        reduction: Reduction = "mean",
        question: str = "Describe this image in detail.",
    ) -> None:
        self.card = reduction_card(type(self).card, reduction, "caption_likelihood")
        self.reduction = reduction
        self.captioner = LabCaptioner() if model == "lab" else ChatCaptioner(model, question)
        self.card = replace(self.card, max_prompt_tokens=self.captioner.max_tokens)

    def __call__(self, prompts: Sequence[str], outputs: Tensor) -> list[Score]:
        empty = [not prompt.strip() for prompt in prompts]
        rows = [i for i, blank in enumerate(empty) if not blank]
        scores = [missing(Status.NOT_APPLICABLE, "an empty prompt says nothing of a picture")] * len(prompts)
        if rows:
            images = check_pictures(outputs, "caption_likelihood")[rows]
            found = self.captioner.log_probs(images, [prompts[i] for i in rows])
            for i, log_probs in zip(rows, found, strict=True):
                scores[i] = likelihood_score(log_probs, self.reduction)
        return scores
