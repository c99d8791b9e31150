"""What the service remembers, all of it bounded: media by hash, and answers by idempotency key."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from torch import Tensor


class MediaCache:
    """Tensors by their hash; the least recently used go first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.bytes = max_bytes, 0
        self.lock = threading.Lock()
        self.kept: OrderedDict[str, Tensor] = OrderedDict()

    def find(self, sha256: str) -> Tensor | None:
        with self.lock:
            if sha256 in self.kept:
                self.kept.move_to_end(sha256)
            return self.kept.get(sha256)

    def keep(self, sha256: str, tensor: Tensor) -> None:
        if tensor.nbytes > self.max_bytes:
            return
        with self.lock:
            if sha256 not in self.kept:
                self.kept[sha256] = tensor.clone()  # a row would keep its whole stack alive
                self.bytes += tensor.nbytes
            self.kept.move_to_end(sha256)
            while self.bytes > self.max_bytes:
                self.bytes -= self.kept.popitem(last=False)[1].nbytes


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An HTTP answer. Those that are `final` are given again to a repeat of their request."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    final: bool = False


class KeyConflict(Exception):
    """An idempotency key that came with another body before."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What an idempotency key stands for."""

    digest: asyncio.Future[bytes]
    task: asyncio.Task[Answer]


class AnswerStore:
    """Runs each idempotency key once: a repeat waits for the answer of the first, or is given it."""

    def __init__(self, max_keys: int, max_bytes: int) -> None:
        self.max_keys, self.max_bytes, self.bytes = max_keys, max_bytes, 0
        self.kept: dict[str, Entry] = {}
        self.sizes: OrderedDict[str, int] = OrderedDict()  # of those that are answered

    async def once(
        self, key: str, digest: Callable[[], bytes], work: Callable[[], Awaitable[Answer]]
    ) -> tuple[Answer, bool]:
        """The answer, and whether an earlier request had asked for it. The work goes on if its client hangs up.

        `digest` tells requests of one key apart; that of the first is taken while its scores are already being computed.
        """
        entry = self.kept.get(key)
        if entry is not None:
            if await asyncio.shield(entry.digest) != digest():
                raise KeyConflict(key)
            return await asyncio.shield(entry.task), True
        entry = Entry(digest=asyncio.get_running_loop().create_future(), task=asyncio.ensure_future(work()))
        entry.task.add_done_callback(lambda done: self._answered(key, done))
        self.kept[key] = entry
        try:
            await asyncio.sleep(0)  # the work begins
        finally:  # repeats wait for the digest, whatever becomes of this request
            entry.digest.set_result(digest())
        return await asyncio.shield(entry.task), False

    def _answered(self, key: str, task: asyncio.Task[Answer]) -> None:
        """A refusal or a failure is no answer: the repeat is done anew."""
        if task.cancelled() or task.exception() is not None or not task.result().final:
            del self.kept[key]
            return
        self.sizes[key] = len(task.result().body)
        self.bytes += self.sizes[key]
        while self.sizes and (len(self.kept) > self.max_keys or self.bytes > self.max_bytes):
            oldest, size = self.sizes.popitem(last=False)
            self.bytes -= size
            del self.kept[oldest]
