"""A judge behind an OpenAI-compatible service: `{type: endpoint, url: "http://127.0.0.1:8000/v1", model: NAME}`.

Pictures go as PNG, so that nothing is lost on the way. What goes wrong declines an answer and never makes one up.
"""

from __future__ import annotations

import base64
import io
import json
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, Any

from PIL import Image
from pydantic import Field

from plaudit.http import Client, Failed, Reply, persistently, token_from
from plaudit.recipe.base import Fraction, NotNegative, Positive, PositiveFloat
from plaudit.rewards.base import Status
from plaudit.rewards.judges.ask import Answer, Asked, Cost, declined

SHOWN = 200  # characters of an answer that a note quotes


class _Budget:
    """Repeats that the questions of a batch share."""

    def __init__(self, repeats: int) -> None:
        self.left, self.lock = repeats, threading.Lock()

    def grant(self) -> bool:
        with self.lock:
            self.left -= 1
            return self.left >= 0


class _Unreadable(Exception):
    """A reply that holds no answer."""


class Endpoint:
    """Chat completions of a service.

    `key_env` names the environment variable with the API key, which is kept nowhere. Answer k is drawn with seed + k.
    `timeout_s` bounds one question with its repeats, `deadline_s` a batch of them; `retry_budget` is the share of a batch that
    may be repeats, at least those of one question. `top_logprobs` asks for that many token probabilities. `options` go into the
    request as they are.
    """

    waits = True

    def __init__(
        self,
        *,
        url: str,
        model: str,
        key_env: str | None = None,
        temperature: NotNegative = 0.7,
        seed: int = 0,
        max_tokens: Positive = 1024,
        top_logprobs: Annotated[int, Field(ge=0)] = 0,
        timeout_s: PositiveFloat = 120.0,
        deadline_s: PositiveFloat = 1800.0,
        retries: Annotated[int, Field(ge=0)] = 3,
        retry_budget: Fraction = 0.2,
        backoff_s: NotNegative = 0.5,
        concurrency: Positive = 8,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.key = token_from(key_env, "arguments.judge.key_env")
        self.client = Client(url, self.key, "arguments.judge.url")
        self.url, self.seed, self.draws = url, seed, temperature > 0
        self.timeout_s, self.deadline_s, self.concurrency = timeout_s, deadline_s, concurrency
        self.retries, self.retry_budget, self.backoff_s = retries, retry_budget, backoff_s
        self.body: dict[str, Any] = {"model": model, "temperature": temperature, "max_tokens": max_tokens, "n": 1}
        if top_logprobs:
            self.body |= {"logprobs": True, "top_logprobs": top_logprobs}
        self.body |= options or {}
        self.identity = json.dumps([self.client.url, seed, self.body], sort_keys=True)

    def answer(self, asked: Sequence[Asked]) -> list[Answer]:
        deadline = time.monotonic() + self.deadline_s
        budget = _Budget(max(int(self.retry_budget * len(asked)), self.retries))
        with ThreadPoolExecutor(max_workers=min(self.concurrency, len(asked))) as pool:
            return list(pool.map(lambda one: self._answer(one, deadline, budget.grant), asked))

    def _answer(self, asked: Asked, deadline: float, granted: Callable[[], bool]) -> Answer:
        started, calls = time.monotonic(), 0
        deadline = min(deadline, started + self.timeout_s)
        body = json.dumps({**self.body, "seed": self.seed + asked.k, "messages": _messages(asked)}).encode()

        def ask() -> Reply:
            nonlocal calls
            calls += 1
            return self.client.ask("POST", "/chat/completions", deadline, body, {"Content-Type": "application/json"})

        spent = partial(self._spent, started)
        try:
            reply = persistently(ask, deadline, self.retries, self.backoff_s, granted)
        except Failed as failed:
            status = Status.TIMED_OUT if failed.late else Status.ERRORED
            return declined(status, self._note(f"{failed} (asked {failed.attempts} times)"), spent(calls))
        try:
            return _read(reply, partial(spent, calls))
        except _Unreadable as error:
            return declined(Status.ERRORED, self._note(f"{error}: {reply.body[:SHOWN]!r}"), spent(calls))

    def _note(self, text: str) -> str:
        """Services quote the key that they refuse."""
        return f"{self.url}: {text}".replace(self.key, "[key]") if self.key else f"{self.url}: {text}"

    def _spent(self, started: float, calls: int, tokens: int = 0) -> Cost:
        return Cost(tokens=tokens, seconds=time.monotonic() - started, calls=calls)


def _messages(asked: Asked) -> list[dict[str, Any]]:
    parts = asked.question.parts
    if all(isinstance(part, str) for part in parts):  # which every service takes
        return [{"role": "user", "content": "".join(part for part in parts if isinstance(part, str))}]
    return [{"role": "user", "content": [_part(part) for part in parts]}]


def _part(part: str | Image.Image) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    file = io.BytesIO()
    part.save(file, format="PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


# --- what comes back -------------------------------------------------------------------------------------------------


def _read(reply: Reply, spent: Callable[[int], Cost]) -> Answer:
    """The answer, or a refusal by the model or a filter before it."""
    document = _document(reply)
    if reply.status != 200:
        error = document.get("error") if document else None
        if isinstance(error, Mapping) and error.get("code") == "content_filter":
            return declined(Status.REFUSED, "the service's content filter refused the question", spent(0))
        raise _Unreadable(f"answered {reply.status}")
    choices = document.get("choices") if document else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise _Unreadable("gave no single choice")
    choice, cost = choices[0], spent(_tokens(document))
    message = choice.get("message")
    if not isinstance(message, dict):
        raise _Unreadable("gave no message")
    if message.get("refusal") or choice.get("finish_reason") == "content_filter":
        return declined(Status.REFUSED, f"the judge refused: {str(message.get('refusal') or 'filtered')[:SHOWN]}", cost)
    if not isinstance(message.get("content"), str):
        raise _Unreadable("gave no text")
    cut = choice.get("finish_reason") == "length"
    return Answer(text=message["content"], cut=cut, log_probs=_log_probs(choice.get("logprobs")), cost=cost)


def _document(reply: Reply) -> dict[str, Any] | None:
    try:
        found = json.loads(reply.body)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _tokens(document: Any) -> int:
    usage = document.get("usage")
    total = usage.get("total_tokens") if isinstance(usage, dict) else None
    return total if type(total) is int and total >= 0 else 0


def _log_probs(given: Any) -> tuple[dict[str, float], ...]:
    """By place; the chosen token counts among the likeliest. What is not of this form is not there."""
    places = given.get("content") if isinstance(given, dict) else None
    return tuple(_place(place) for place in places) if isinstance(places, list) else ()


def _place(place: Any) -> dict[str, float]:
    rows = [place, *(place.get("top_logprobs") or ())] if isinstance(place, dict) else []
    found: list[tuple[Any, Any]] = [(row.get("token"), row.get("logprob")) for row in rows if isinstance(row, dict)]
    return {
        token: float(value)
        for token, value in found
        if isinstance(token, str) and type(value) in (int, float) and math.isfinite(value) and value <= 0
    }
