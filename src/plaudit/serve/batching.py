"""Requests of many clients, scored together: queued, merged, called in a thread, and split back.

Requests are merged only where it cannot change a score: the reward is batch-invariant, and step, columns and the kind of
outputs are the same. Group ids of different requests are kept apart. Where requests may be merged, one that is larger than a
batch is scored in pieces; what has no card is called with a request as it came.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from plaudit.errors import PlauditError
from plaudit.rewards.base import Score, Status, missing
from plaudit.rewards.calling.request import Request
from plaudit.rewards.load import Reward

Scored = list[Score] | BaseException


class QueueFull(Exception):
    """There is no room for these outputs. `retry_after_s` is when there may be."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("the queue is full")
        self.retry_after_s = retry_after_s


@dataclass(kw_only=True, eq=False)
class Job:
    """One request in the queue. `late_at` is on the clock of `time.monotonic`."""

    request: Request
    late_at: float
    done: asyncio.Future[list[Score]]
    key: Hashable = field(init=False)

    def __post_init__(self) -> None:
        self.key = merge_key(self.request)


def merge_key(request: Request) -> Hashable:
    """Requests may be merged where this is equal: a reward must not see what it would not have seen without the others."""
    return request.step, request.columns, _kind(request.outputs)


def _kind(outputs: Any) -> Hashable:
    if isinstance(outputs, Tensor):
        return outputs.dtype, tuple(outputs.shape[1:])
    return frozenset(output.dtype if isinstance(output, Tensor) else type(output) for output in outputs)


def merged(requests: Sequence[Request]) -> Request:
    if len(requests) == 1:
        return requests[0]
    outputs = [request.outputs for request in requests]
    stacked = isinstance(outputs[0], Tensor)
    groups: dict[tuple[int, int], int] = {}
    return Request(
        prompts=[prompt for request in requests for prompt in request.prompts],
        outputs=torch.cat(outputs) if stacked else [output for some in outputs for output in some],
        group=[
            groups.setdefault((i, member), len(groups))
            for i, request in enumerate(requests)
            for member in request.group
        ],
        step=requests[0].step,
        columns=requests[0].columns,
    )


def late(request: Request) -> list[Score]:
    return [missing(Status.TIMED_OUT, "not scored before the request's deadline")] * len(request)


class Batcher:
    """The queue of one reward and the thread that calls it. All methods but `_work` run in the event loop.

    `arriving` tells whether other requests are being read at the moment: only then is it worth waiting for them.
    """

    def __init__(
        self,
        reward: Reward,
        *,
        max_batch: int,
        max_wait_s: float,
        max_queue: int,
        arriving: Callable[[], bool],
        on_batch: Callable[[int], None] = lambda outputs: None,  # called in the thread
    ) -> None:
        self.reward, self.max_batch, self.max_wait_s, self.max_queue = reward, max_batch, max_wait_s, max_queue
        self.arriving, self.on_batch = arriving, on_batch
        self.waiting: deque[Job] = deque()
        self.busy = False
        self.timer: asyncio.TimerHandle | None = None
        self.seconds_per_output = 0.0  # lately, for Retry-After
        self.loop = asyncio.get_running_loop()
        self.handed: queue.SimpleQueue[list[Job] | None] = queue.SimpleQueue()
        # A daemon, so that a reward which hangs cannot keep the service from ending.
        threading.Thread(target=self._work, name=f"reward {reward.name}", daemon=True).start()

    @property
    def merges(self) -> bool:
        card = self.reward.card
        return card is not None and card.batch_invariant

    @property
    def queued(self) -> int:
        return sum(len(job.request) for job in self.waiting)

    async def score(self, request: Request, deadline_s: float) -> list[Score]:
        """One score per output; those that come too late are marked so, whatever becomes of them later."""
        if self.queued + len(request) > self.max_queue:
            raise QueueFull(self.queued * self.seconds_per_output)
        job = Job(request=request, late_at=time.monotonic() + deadline_s, done=self.loop.create_future())
        self.waiting.append(job)
        self._consider()
        try:
            return await asyncio.wait_for(asyncio.shield(job.done), deadline_s)
        except TimeoutError:
            if job in self.waiting:
                self.waiting.remove(job)
            return late(request)

    def _consider(self) -> None:
        """Hand over the next batch, unless the thread is busy or more is about to arrive."""
        if self.busy or not self.waiting:
            return
        full = self.queued >= self.max_batch
        if not (self.merges and not full and self.max_wait_s and self.arriving()):
            self._start()
        elif self.timer is None:
            self.timer = self.loop.call_later(self.max_wait_s, self._start)

    def _start(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        jobs = [] if self.busy else self._next()
        if jobs:
            self.busy = True
            self.handed.put(jobs)

    def _next(self) -> list[Job]:
        """The oldest request and those behind it that may join it."""
        if not self.waiting:
            return []
        jobs = [self.waiting.popleft()]
        total = len(jobs[0].request)
        for job in list(self.waiting) if self.merges else ():
            if job.key == jobs[0].key and total + len(job.request) <= self.max_batch:
                self.waiting.remove(job)
                jobs.append(job)
                total += len(job.request)
        return jobs

    def _finished(self, jobs: Sequence[Job], results: Sequence[Scored], seconds: float) -> None:
        outputs = sum(len(job.request) for job in jobs)
        pace = seconds / outputs
        self.seconds_per_output = pace if not self.seconds_per_output else 0.7 * self.seconds_per_output + 0.3 * pace
        self.busy = False
        for job, result in zip(jobs, results, strict=True):
            if job.done.done():
                continue
            if isinstance(result, BaseException):
                job.done.set_exception(result)
                job.done.exception()  # its request may have given up waiting: then nobody else asks
            else:
                job.done.set_result(result)
        self._consider()

    def close(self) -> None:
        self.handed.put(None)

    # --- in the thread -----------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (jobs := self.handed.get()) is not None:
            started = time.monotonic()
            results = self._score_all(jobs)
            try:
                self.loop.call_soon_threadsafe(self._finished, jobs, results, time.monotonic() - started)
            except RuntimeError:  # the loop was closed: the service has given up waiting
                return

    def _score_all(self, jobs: Sequence[Job]) -> list[Scored]:
        now = time.monotonic()
        results: list[Scored] = [late(job.request) for job in jobs]
        live = [i for i, job in enumerate(jobs) if job.late_at > now]
        for i, result in zip(live, self._score_live([jobs[i] for i in live]), strict=True):
            results[i] = result
        return results

    def _score_live(self, jobs: Sequence[Job]) -> list[Scored]:
        if not jobs:
            return []
        requests = [job.request for job in jobs]
        try:
            scores = self._in_pieces(merged(requests), max(job.late_at for job in jobs))
        except PlauditError as error:
            if len(jobs) == 1:
                return [error]
            # One request lacks what the reward needs: the others must not suffer for it.
            return [result for job in jobs for result in self._score_live([job])]
        except BaseException as error:
            return [error] * len(jobs)
        ends = [sum(len(request) for request in requests[: i + 1]) for i in range(len(requests))]
        return [scores[end - len(request) : end] for end, request in zip(ends, requests, strict=True)]

    def _in_pieces(self, request: Request, late_at: float) -> list[Score]:
        """Scores in order, of at most `max_batch` outputs at a time where that cannot change them."""
        size = self.max_batch if self.merges else len(request)
        scores: list[Score] = []
        for at in range(0, len(request), size):
            rows = range(at, min(at + size, len(request)))
            piece = request if len(rows) == len(request) else request.rows(rows)
            if time.monotonic() >= late_at:  # nobody waits for the rest
                return scores + late(request.rows(range(at, len(request))))
            scores += self.reward.score(piece)
            self.on_batch(len(piece))
        return scores
