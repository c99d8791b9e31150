"""The service without its web server: rewards, their queues, what is remembered, and how it ends."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from plaudit.errors import PlauditError, RewardError, SandboxError
from plaudit.rewards.base import Score, Status
from plaudit.rewards.calling.request import Request
from plaudit.rewards.load import Reward, load_reward
from plaudit.sandbox import lacking, safe_level
from plaudit.serve.answers import card_json, decided, error_json, remembering, results_json
from plaudit.serve.batching import Batcher, QueueFull
from plaudit.serve.config import MIB, ServeConfig, ServeFile
from plaudit.serve.metrics import Metrics
from plaudit.serve.stores import Answer, AnswerStore, KeyConflict, MediaCache
from plaudit.serve.wire import Decoded, Limits, UnknownMedia, WireError, decode_request
from plaudit.version import __version__

logger = logging.getLogger("plaudit.serve")
IN_LOOP_BYTES = 2**20  # larger bodies are read in a thread, so that other clients need not wait
MAX_KEY = 256


class Refused(Exception):
    """A request that gets an answer other than scores."""

    def __init__(self, status: int, message: str, retry_after_s: float | None = None, **rest: Any) -> None:
        super().__init__(message)
        self.status, self.retry_after_s, self.rest = status, retry_after_s, rest

    @property
    def answer(self) -> Answer:
        headers = (
            [("Retry-After", str(max(1, math.ceil(self.retry_after_s))))] if self.retry_after_s is not None else []
        )
        headers += [("Connection", "close")] if self.status in (408, 413) else []  # the rest of the body is not awaited
        body = json.dumps(error_json(str(self), **self.rest)).encode()
        return Answer(status=self.status, body=body, headers=tuple(headers))


def closing() -> Refused:
    return Refused(503, "the service is shutting down", 1.0)


def isolation() -> tuple[str | None, list[str]]:
    """How far programs are kept from this machine; what that does not give, and why it is no more."""
    try:
        return safe_level().name.lower(), list(lacking())
    except SandboxError as error:
        return None, [str(error)]


class Service:
    """One set of rewards behind one address. Made before the event loop; `start` is called in it."""

    def __init__(self, rewards: Mapping[str, Reward], config: ServeConfig) -> None:
        self.rewards, self.config = rewards, config
        self.metrics = Metrics()
        self.media = MediaCache(int(config.media_cache_mb * MIB))
        self.answers = AnswerStore(config.max_keys, int(config.answers_mb * MIB))
        self.batchers: dict[str, Batcher] = {}
        self.limits = Limits(media_bytes=int(config.max_media_mb * MIB), items=config.max_items)
        self.max_bytes = int(config.max_request_mb * MIB)
        self.reading = self.held = self.arrived_bytes = 0
        self.draining = False
        self.idle = asyncio.Event()
        self.idle.set()
        untrusted = any(reward.card is not None and reward.card.untrusted for reward in rewards.values())
        self.sandbox = isolation() if untrusted else None

    def start(self) -> None:
        self.batchers = {
            name: Batcher(
                reward,
                max_batch=self.config.max_batch,
                max_wait_s=self.config.max_wait_ms / 1000,
                max_queue=self.config.max_queue,
                arriving=lambda: self.reading > 0,
                on_batch=lambda outputs, name=name: self._batch_done(name, outputs),  # type: ignore[misc]
            )
            for name, reward in self.rewards.items()
        }

    def _batch_done(self, name: str, outputs: int) -> None:
        self.metrics.count("plaudit_batches_total", reward=name)
        self.metrics.count("plaudit_outputs_total", outputs, reward=name)

    async def drain(self) -> bool:
        """Refuse new work and finish what is held, in bounded time. Whether all of it was finished."""
        self.draining = True
        try:
            await asyncio.wait_for(self.idle.wait(), self.config.drain_s)
        except TimeoutError:
            logger.error("gave up %d requests that were not finished within %g s", self.held, self.config.drain_s)
        return self.idle.is_set()

    def stop(self) -> None:
        for batcher in self.batchers.values():
            batcher.close()
        for reward in self.rewards.values():
            close = getattr(reward.caller.function, "close", None)
            if close is not None:
                close()

    # --- requests ----------------------------------------------------------------------------------------------------

    def check_room(self) -> None:
        """Refuse what cannot be held: before its body is read, and once it is there."""
        if self.draining:
            raise closing()
        if self.held >= self.config.max_requests:
            raise Refused(429, f"{self.held} requests are held already", self._typical_wait())

    def receive(self, size: int) -> None:
        """Bytes of bodies that are still arriving. They take no place among the requests, so that slow ones starve nobody, but
        all together no more room than full requests would."""
        self.arrived_bytes += size
        if self.arrived_bytes > self.config.max_requests * self.max_bytes:
            raise Refused(429, "too much is arriving at once", self._typical_wait())

    async def hold(self, work: Callable[[], Awaitable[Answer]]) -> Answer:
        """Do a piece of work that the end of the service waits for."""
        self.check_room()
        self.held += 1
        self.idle.clear()
        try:
            return await work()
        finally:
            self.held -= 1
            if not self.held:
                self.idle.set()

    def _typical_wait(self) -> float:
        return max((b.queued * b.seconds_per_output for b in self.batchers.values()), default=1.0)

    async def once(self, key: str, digest: Callable[[], bytes], work: Callable[[], Awaitable[Answer]]) -> Answer:
        """`work`, or what it gave to an earlier request with the same idempotency key."""
        if not 0 < len(key) <= MAX_KEY:
            raise Refused(422, f"Idempotency-Key: 1 to {MAX_KEY} characters", field="Idempotency-Key")
        try:
            answer, replayed = await self.answers.once(key, digest, work)
        except KeyConflict:
            raise Refused(
                422, "Idempotency-Key: this key came with another body before", field="Idempotency-Key"
            ) from None
        if replayed:
            self.metrics.count("plaudit_replayed_total")
        return answer

    async def score(
        self, body: bytes, content_type: str, deadline_ms: float | None, arrived: float, query: Mapping[str, str]
    ) -> Answer:
        """The answer to `POST /v1/score`."""
        decoded = await self._decoded(body, content_type, query)
        scores = await self.scores(decoded.reward, decoded.request, deadline_ms or decoded.deadline_ms, arrived)
        body = json.dumps(results_json(decoded.reward, scores)).encode()
        return Answer(status=200, body=body, final=decided(scores))

    async def _decoded(self, body: bytes, content_type: str, query: Mapping[str, str]) -> Decoded:
        asked = (body, content_type, self.limits, self.media.find, query)
        try:
            large = len(body) > IN_LOOP_BYTES
            decoded = await asyncio.to_thread(decode_request, *asked) if large else decode_request(*asked)
        except WireError as error:
            raise Refused(error.status, str(error), field=error.where or None) from None
        except UnknownMedia as error:
            raise Refused(409, str(error), missing=error.hashes) from None
        for sha256, tensor in decoded.seen.items():
            self.media.keep(sha256, tensor)
        return decoded

    async def scores(self, name: str, request: Request, deadline_ms: float | None, arrived: float) -> list[Score]:
        """Scores by the queue; `deadline_ms` counts from the arrival."""
        batcher = self.batchers.get(name)
        if batcher is None:
            raise Refused(404, f"reward {name!r} is not served; there are {', '.join(self.rewards)}", field="reward")
        if len(request) > self.limits.items:
            raise Refused(413, f"{len(request)} outputs; at most {self.limits.items} in one request (serve.max_items)")
        deadline_s = self.config.deadline_s if deadline_ms is None else deadline_ms / 1000
        try:
            scores = await batcher.score(request, max(deadline_s - (time.monotonic() - arrived), 0.0))
        except QueueFull as error:
            raise Refused(429, f"the queue of {name!r} is full", error.retry_after_s, reward=name) from None
        except PlauditError as error:
            raise Refused(422, str(error), reward=name) from None
        self.metrics.observe(name, time.monotonic() - arrived)
        for score in scores:
            if score.status is not Status.OK:
                self.metrics.count("plaudit_missing_total", reward=name, status=score.status.value)
        return scores

    # --- what is asked beside scores ---------------------------------------------------------------------------------

    def catalogue(self) -> dict[str, Any]:
        rewards = {name: card_json(reward.card) for name, reward in self.rewards.items()}
        limits = {"max_request_bytes": self.max_bytes, "max_items": self.config.max_items}
        remembers = [name for name, reward in self.rewards.items() if remembers_calls(reward)]
        return {"rewards": rewards, "remembers": remembers, "limits": limits, "version": __version__}

    def metrics_text(self) -> str:
        return self.metrics.text({name: batcher.queued for name, batcher in self.batchers.items()}, self.held)


def make_service(file: ServeFile) -> Service:
    """Rewards are loaded here, so that a mistake in their arguments is told before anything listens."""
    rewards = {name: load_reward(name, config) for name, config in file.rewards.items()}
    for name, reward in rewards.items():
        if remembers_calls(reward):
            raise RewardError(remembering(f"rewards.{name}"))
    return Service(rewards, file.serve)


def remembers_calls(reward: Reward) -> bool:
    return hasattr(reward.caller.function, "state")


def digest_of(path: str, content_type: str, body: bytes) -> bytes:
    """What tells requests with one idempotency key apart."""
    digest = hashlib.sha256(f"{path}\n{content_type}\n".encode())
    digest.update(body)
    return digest.digest()
