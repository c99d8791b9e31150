"""A reward that a service elsewhere computes: `quality: {type: remote, arguments: {url: "http://127.0.0.1:8000"}}`.

Whatever goes wrong on the way (no connection, no answer in time, half an answer, a wrong count, something that is not a
number) becomes a missing score that says so. Repeats carry the same idempotency key, so that nothing is scored twice.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from plaudit.errors import RecipeError, RewardError
from plaudit.http import Client, Failed, Reply, persistently, token_from
from plaudit.rewards.base import Card, Score, Status, missing
from plaudit.rewards.calling.request import Outputs, Request
from plaudit.serve.answers import read_card, read_scores, remembering, shown
from plaudit.serve.pack import Packed, Packer, Unsendable
from plaudit.serve.wire import WireError, strict_json

TOO_LARGE = 413  # this request will never be taken, one with fewer outputs may be
NOT_READ = 409  # the service lacks media that were named by hash
CARD_S = 10.0

GENERAL = Card(summary="Scores of a reward service; its card is the one of the reward that it serves.")


class _CardOfReward:
    """On the class what is known of any service; on a reward the card of what it asks for, fetched when first read."""

    def __get__(self, reward: Remote | None, owner: type) -> Card | None:
        return GENERAL if reward is None else reward.fetched_card()


class Refusal(Exception):
    """No scores, and why."""

    def __init__(self, status: Status, note: str) -> None:
        super().__init__(note)
        self.status = status


class Unreached(Refusal):
    """Nothing answered."""


class Remote:
    """Scores of a reward service.

    `reward` may be left out where only one is served. `timeout_s` bounds a whole call with its `retries`, before which it
    waits `backoff_s`, twice that, and so on, or as long as the service asks for. `by_hash` names which media are named by
    their hash first and sent only if the service does not hold them: worth it for those that come again and again.
    """

    waits = True
    card = _CardOfReward()

    def __init__(
        self,
        url: str,
        reward: str | None = None,
        token_env: str | None = None,
        timeout_s: float = 120.0,
        retries: int = 3,
        backoff_s: float = 0.2,
        by_hash: Literal["none", "inputs", "all"] = "inputs",
    ) -> None:
        if by_hash not in ("none", "inputs", "all"):
            raise RecipeError(f"arguments.by_hash is {by_hash!r}; allowed: none, inputs, all")
        if not timeout_s > 0 or retries < 0 or backoff_s < 0:
            raise RecipeError("arguments: timeout_s must be positive, retries and backoff_s must not be negative")
        self.client = Client(url, token_from(token_env, "arguments.token_env"), "arguments.url")
        self.url, self.reward, self.timeout_s, self.by_hash = url, reward, timeout_s, by_hash
        self.retries, self.backoff_s = retries, backoff_s
        self.known = False
        self.its_card: Card | None = None
        self.published: Any = None  # the card as the service tells it
        self.max_bytes: int | None = None
        self.lock = threading.Lock()

    # --- the card ----------------------------------------------------------------------------------------------------

    def fetched_card(self) -> Card | None:
        """The card at the service, None if the reward has none. If it cannot be had, a run must not start: its scores
        could not be checked or mixed."""
        try:
            return self._learnt(time.monotonic() + min(self.timeout_s, CARD_S))
        except Unreached as refusal:
            raise RewardError(f"{refusal}; is `plaudit serve` running there?") from None
        except Refusal as refusal:
            raise RewardError(str(refusal)) from None

    def cache_identity(self) -> str:
        """What tells scores apart that come from here: the service, the reward and its whole card."""
        if self.fetched_card() is None:
            raise RewardError(
                f"{self.url}: {self.reward!r} has no card with a revision to be told apart by; give it a card, or leave "
                "`cache` out"
            )
        return json.dumps([self.source, self.reward, self.published], sort_keys=True)

    @property
    def source(self) -> Any:
        """Who scores, as JSON."""
        return self.url

    def _learnt(self, deadline: float) -> Card | None:
        with self.lock:
            if not self.known:
                self.its_card = self._fetch(deadline)
                self.known = True
            return self.its_card

    def _fetch(self, deadline: float) -> Card | None:
        reply = self._persistently(lambda: self.client.ask("GET", "/v1/rewards", deadline), deadline)
        document = _document(reply, self.url)
        rewards, limits = document.get("rewards"), document.get("limits")
        if not isinstance(rewards, Mapping):
            raise Refusal(Status.ERRORED, f"{self.url} lists no rewards: {shown(document)}")
        if self.reward is None and len(rewards) == 1:
            self.reward = next(iter(rewards))
        if self.reward not in rewards:
            served = ", ".join(map(str, rewards))
            raise Refusal(Status.ERRORED, f"{self.url} serves no reward {self.reward!r}; it serves {served}")
        remembers = document.get("remembers")
        if isinstance(remembers, list) and self.reward in remembers:
            raise RewardError(remembering(f"{self.url}: {self.reward!r}"))
        limit = limits.get("max_request_bytes") if isinstance(limits, Mapping) else None
        self.max_bytes = limit if type(limit) is int else None
        self.published = content = rewards[self.reward]
        try:
            return None if content is None else read_card(content)
        except (ValueError, TypeError) as error:
            raise Refusal(Status.ERRORED, f"{self.url}: the card of {self.reward!r} is not one: {error}") from None

    # --- scores ------------------------------------------------------------------------------------------------------

    def __call__(self, prompts: Sequence[str], outputs: Outputs, request: Request) -> list[Score]:
        deadline = time.monotonic() + self.timeout_s
        try:
            card = self._learnt(deadline)
            return self._score(request, card, deadline)
        except Refusal as refusal:
            return [missing(refusal.status, str(refusal))] * len(prompts)

    def _score(self, request: Request, card: Card | None, deadline: float) -> list[Score]:
        assert self.reward is not None
        packer = Packer(self.reward, request, by_hash=self.by_hash)
        wanted: frozenset[str] | None = frozenset()
        for _ in range(3):  # by hash; with what was lacking; with everything
            packed = self._packed(packer, wanted)
            reply = self._persistently(partial(self._post, packed, uuid.uuid4().hex, deadline), deadline)
            if reply.status != NOT_READ:
                break
            lacking = _document(reply, self.url, accept=NOT_READ).get("missing")
            wanted = frozenset(map(str, lacking)) if isinstance(lacking, list) and wanted == frozenset() else None
        document = _document(reply, self.url)
        try:
            return read_scores(document, len(request), card)
        except ValueError as error:
            raise Refusal(Status.ERRORED, f"{self.url}: {error}") from None

    def _packed(self, packer: Packer, wanted: frozenset[str] | None) -> Packed:
        try:
            packed = packer.pack(wanted)
        except Unsendable as error:
            raise Refusal(Status.ERRORED, f"cannot be sent to {self.url}: {error}") from None
        if self.max_bytes is not None and len(packed.body) > self.max_bytes:
            raise Refusal(
                Status.REFUSED,
                f"{self.url} takes requests of {self.max_bytes} bytes, this one has {len(packed.body)}; lower the reward's "
                "`batch` or raise serve.max_request_mb",
            )
        return packed

    def _post(self, packed: Packed, key: str, deadline: float) -> Reply:
        left_ms = max(1000 * (deadline - time.monotonic()), 1.0)
        headers = {"Content-Type": packed.content_type, "Idempotency-Key": key, "X-Deadline-Ms": f"{left_ms:.0f}"}
        return self.client.ask("POST", "/v1/score", deadline, packed.body, headers)

    def _persistently(self, ask: Callable[[], Reply], deadline: float) -> Reply:
        try:
            return persistently(ask, deadline, self.retries, self.backoff_s)
        except Failed as failed:
            status = Status.TIMED_OUT if failed.late else Status.ERRORED
            raise Unreached(status, f"{self.url}: {failed} ({_times(failed.attempts)})") from None

    def close(self) -> None:
        self.client.close()


def _times(attempts: int) -> str:
    return "1 attempt" if attempts == 1 else f"{attempts} attempts"


def _message(reply: Reply) -> str:
    """Why a service gives no scores, in its own words."""
    try:
        document = strict_json(reply.body)
    except WireError:
        document = None
    said = document.get("error") if isinstance(document, Mapping) else None
    if isinstance(said, str):
        return said
    return reply.body[:400].decode("utf-8", "replace")


def _document(reply: Reply, url: str, accept: int = 200) -> Mapping[str, Any]:
    """The answer's JSON; anything but the status that means one is a refusal."""
    if reply.status != accept:
        status = Status.REFUSED if reply.status == TOO_LARGE else Status.ERRORED
        raise Refusal(status, f"{url} answered {reply.status}: {shown(_message(reply))}")
    try:
        document = strict_json(reply.body)
    except WireError as error:
        raise Refusal(Status.ERRORED, f"{url}: {error}") from None
    if not isinstance(document, Mapping):
        raise Refusal(Status.ERRORED, f"{url}: the answer is not an object: {shown(document)}")
    return document
