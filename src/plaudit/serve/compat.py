"""Two formats that other trainers already speak, for rewards of texts.

OpenRLHF's remote reward model: `{"query": [...], "prompts": [...], "labels": [...]}` to `{"rewards": [...]}`.
vLLM's classification: `{"model": NAME, "input": [...]}` to `{"data": [{"index", "label", "probs", "num_classes"}]}`.
A score that is missing is null in both, never a number.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from plaudit.data.prompt import Prompt
from plaudit.rewards.base import Score, finite
from plaudit.rewards.calling.request import Request, make_request
from plaudit.serve.answers import decided
from plaudit.serve.service import Refused, Service
from plaudit.serve.stores import Answer
from plaudit.serve.wire import JSON, WireError, strict_json


async def openrlhf(
    service: Service, body: bytes, content_type: str, query: Mapping[str, str], arrived: float
) -> Answer:
    """`?reward=NAME` picks the reward, `?label=COLUMN` is what it calls the labels (default `answer`)."""
    document = _mapping(body, content_type)
    reward = _text_reward(service, query.get("reward"), "?reward=")
    texts = _texts(document, "query")
    prompts = _texts(document, "prompts") if document.get("prompts") is not None else [""] * len(texts)
    labels = document["labels"] if document.get("labels") is not None else [None] * len(texts)
    if not isinstance(labels, list) or {len(prompts), len(labels)} != {len(texts)}:
        raise Refused(422, "query, prompts and labels must be lists of one length", field="labels")
    column = query.get("label", "answer")
    request = make_request(
        [
            Prompt(id=str(i), text=prompt, facts={} if label is None else {column: label})
            for i, (prompt, label) in enumerate(zip(prompts, labels, strict=True))
        ],
        [text.removeprefix(prompt) for text, prompt in zip(texts, prompts, strict=True)],
        _groups(prompts),
    )
    scores = await service.scores(reward, request, None, arrived)
    rewards = [finite(score.value) for score in scores]
    content = {"rewards": rewards, "scores": rewards, "statuses": [score.status.value for score in scores]}
    return _answer(content, scores)


async def classify(service: Service, body: bytes, content_type: str, arrived: float) -> Answer:
    """One number per text: `probs` has one entry."""
    document = _mapping(body, content_type)
    reward = _text_reward(service, document.get("model"), "model")
    given = document.get("input")
    texts = [given] if isinstance(given, str) else _texts(document, "input")
    request = Request(
        prompts=[Prompt(id=str(i), text="") for i in range(len(texts))], outputs=texts, group=range(len(texts))
    )
    scores = await service.scores(reward, request, None, arrived)
    content = {
        "id": f"classify-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": reward,
        "data": [_classified(i, score, reward) for i, score in enumerate(scores)],
        "usage": {"prompt_tokens": 0, "total_tokens": 0, "completion_tokens": 0},  # nothing here counts tokens
    }
    return _answer(content, scores)


def _classified(index: int, score: Score, reward: str) -> dict[str, Any]:
    value = finite(score.value)
    label = None if value is None else reward
    return {"index": index, "label": label, "probs": [value], "num_classes": 1, "status": score.status.value}


def _mapping(body: bytes, content_type: str) -> dict[str, Any]:
    if content_type != JSON:
        raise Refused(415, f"Content-Type: {content_type!r}; allowed: {JSON}", field="Content-Type")
    try:
        document = strict_json(body)
    except WireError as error:
        raise Refused(422, str(error)) from None
    if not isinstance(document, dict):
        raise Refused(422, "the body must be a JSON object")
    return document


def _texts(document: Mapping[str, Any], name: str) -> list[str]:
    texts = document.get(name)
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise Refused(422, f"{name}: must be a list of one or more texts", field=name)
    return texts


def _groups(prompts: Sequence[str]) -> list[int]:
    known: dict[str, int] = {}
    return [known.setdefault(prompt, len(known)) for prompt in prompts]


def _text_reward(service: Service, name: Any, key: str) -> str:
    """The reward asked for, or the only one of texts that there is."""
    of_texts = [each for each, reward in service.rewards.items() if reward.card is None or reward.card.kind == "text"]
    if name in of_texts:
        return str(name)
    if name is None and len(of_texts) == 1:
        return of_texts[0]
    listed = ", ".join(of_texts) or "none"
    raise Refused(404, f"{key}: name a reward of texts; served: {listed}", field=key.strip("?="))


def _answer(content: Mapping[str, Any], scores: Sequence[Score]) -> Answer:
    return Answer(status=200, body=json.dumps(content).encode(), final=decided(scores))
