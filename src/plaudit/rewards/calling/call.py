"""Calling a reward: in which pieces, how long, how often, and what happens when it fails.

One bad output never harms its batch: when a call raises, the outputs are tried one by one and only the guilty ones are
marked. What cannot be judged has a status and no number.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sysconfig
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.errors import PlauditError, RewardError
from plaudit.recipe.rewards import key_of
from plaudit.rewards.base import TRANSIENT, Card, RewardFunction, Score, Status, missing
from plaudit.rewards.calling.cache import ScoreCache
from plaudit.rewards.calling.handing import Arguments
from plaudit.rewards.calling.meter import Meter
from plaudit.rewards.calling.randomness import GENERATORS
from plaudit.rewards.calling.request import Outputs, Request, make_request
from plaudit.rewards.calling.results import as_scores, in_range

LIBRARIES = (Path(__file__).parents[2], *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")))


@dataclass(frozen=True, kw_only=True)
class Handling:
    """How calls are made: chunks of `batch` outputs, `concurrency` of them at a time, each within `deadline_s`; outputs
    that failed are tried again up to `retries` times while no more than `retry_budget` of all calls were repeats."""

    batch: int | None = None
    concurrency: int = 1
    deadline_s: float | None = None
    retries: int = 0
    retry_budget: float = 0.2
    backoff_s: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Cached:
    """A store of scores and what the reward is called in it."""

    store: ScoreCache
    identity: str


def call_reward(
    name: str,
    function: RewardFunction,
    prompts: Sequence[Prompt],
    outputs: Outputs,
    *,
    group: Sequence[int] | Tensor | None = None,
    step: int = 0,
    handling: Handling | None = None,
) -> list[Score]:
    """One score per output, in order."""
    request = make_request(prompts, outputs, group, step)
    return Caller(name, function, handling or Handling())(request)


class _Late(Exception):
    """The deadline passed."""


class Caller:
    """Calls one reward as its `handling` says, and keeps the meter."""

    def __init__(
        self, name: str, function: RewardFunction, handling: Handling | None = None, cache: Cached | None = None
    ) -> None:
        self.name, self.function, self.handling, self.cache = name, function, handling or Handling(), cache
        self.card: Card | None = getattr(function, "card", None)
        self.meter = Meter()
        self.arguments = Arguments(name, function, self.card, self.meter)

    @property
    def whole_batch(self) -> bool:
        """Whether the reward must see all outputs at once, because they are compared with each other."""
        return not self.card.batch_invariant if self.card is not None else "group" in self.arguments.parameters

    # --- what it remembers -------------------------------------------------------------------------------------------

    def functions(self) -> Iterator[tuple[str, RewardFunction]]:
        """The reward, and those that it asks itself, which stand in its `inner_rewards`; each with a name of its own."""
        yield self.name, self.function
        for number, inner in enumerate(getattr(self.function, "inner_rewards", ())):
            for name, function in inner.functions():
                yield f"{self.name}/{number}/{name}", function

    def state(self) -> dict[str, Any]:
        """What the reward and those that it asks remember, by name."""
        return {name: function.state() for name, function in self.functions() if hasattr(function, "state")}

    def load_state(self, state: Mapping[str, Any]) -> None:
        for name, function in self.functions():
            if name in state:
                function.load_state(state[name])

    def bind(self, policy: Any, sampler: Any) -> None:
        """Hand the policy, and how it is sampled, to those that ask the model in training."""
        for _, function in self.functions():
            if hasattr(function, "bind"):
                function.bind(policy, sampler)

    # --- calls -------------------------------------------------------------------------------------------------------

    def __call__(self, request: Request) -> list[Score]:
        """One score per output, in order."""
        if not len(request):
            return []
        with GENERATORS.put_back():
            return self._with_retries(request) if self.cache is None else self._cached(request, self.cache)

    @contextmanager
    def uncached(self) -> Iterator[None]:
        cache, self.cache = self.cache, None
        try:
            yield
        finally:
            self.cache = cache

    def _cached(self, request: Request, cache: Cached) -> list[Score]:
        """Scores from the cache, and calls for the others; equal outputs of a batch are scored once."""
        step = request.step if self.arguments.asks("step") or self.arguments.sees_request else None
        with_ids = self.arguments.asks("ids") or self.arguments.sees_request
        keys = cache.store.keys(cache.identity, request.prompts, request.outputs, ids=with_ids, step=step)
        found = cache.store.find(list(dict.fromkeys(keys)))
        with self.meter.lock:
            self.meter.cache_hits += sum(key in found for key in keys)
        new = {key: i for i, key in reversed(list(enumerate(keys))) if key not in found}
        if new:
            rows = sorted(new.values())
            scored = {keys[i]: score for i, score in zip(rows, self._with_retries(request.rows(rows)), strict=True)}
            cache.store.keep(scored)
            found |= scored
        return [found[key] for key in keys]

    def _with_retries(self, request: Request) -> list[Score]:
        remembered = self.state() if self.handling.retries else {}
        scores = self._attempt(request, self._chunks(request))
        for attempt in range(self.handling.retries):
            failed = [i for i, score in enumerate(scores) if score.status in TRANSIENT]
            rows = self._repeatable(list(range(len(request))) if failed and self.whole_batch else failed)
            if not rows:
                break
            time.sleep(self.handling.backoff_s * 2**attempt)
            self.load_state(remembered)  # the batch that is scored again has not been seen before
            again = [rows] if self.whole_batch else [[i] for i in rows]  # alone, so that one slow output harms no other
            repeated = self._attempt(request, again)
            scores = [repeated[i] if i in set(rows) else score for i, score in enumerate(scores)]
        return scores

    def _repeatable(self, rows: list[int]) -> list[int]:
        """As many as the budget has room for: repeats may be this share of all outputs. A whole batch is repeated as long as
        there is any room."""
        with self.meter.lock:
            room = max(int(self.handling.retry_budget * self.meter.outputs), 1) - self.meter.repeats
            allowed = rows if self.whole_batch and room > 0 else [] if self.whole_batch else rows[: max(room, 0)]
            self.meter.repeats += len(allowed)
        return allowed

    def _chunks(self, request: Request) -> list[list[int]]:
        """Rows of each call. Pictures of unlike sizes cannot be stacked, so they are called size by size."""
        rows = list(range(len(request)))
        if self.whole_batch:
            return [rows]
        sizes = [tuple(output.shape) if isinstance(output, Tensor) else None for output in request.outputs]
        if isinstance(request.outputs, Tensor) or self.arguments.kind == "audio" or len(set(sizes)) == 1:
            together = [rows]
        else:
            together = [[i for i in rows if sizes[i] == size] for size in dict.fromkeys(sizes)]
        batch = self.handling.batch or len(rows)
        return [chunk[at : at + batch] for chunk in together for at in range(0, len(chunk), batch)]

    def _attempt(self, request: Request, chunks: Sequence[list[int]]) -> list[Score]:
        """Scores by row; those of rows outside the chunks are placeholders."""
        parts = [request if len(rows) == len(request) else request.rows(rows) for rows in chunks]
        if len(parts) == 1 or self.handling.concurrency == 1:
            results = [self._isolated(part) for part in parts]
        else:
            with ThreadPoolExecutor(max_workers=min(self.handling.concurrency, len(parts))) as pool:
                results = list(pool.map(self._isolated, parts))
        scores = [missing(Status.ERRORED, "not called")] * len(request)
        for rows, result in zip(chunks, results, strict=True):
            for i, score in zip(rows, result, strict=True):
                scores[i] = score
        return scores

    def _isolated(self, request: Request) -> list[Score]:
        """A call; where it raises, every output alone, so that only the guilty are marked."""
        try:
            return self._within_deadline(request)
        except (PlauditError, KeyboardInterrupt):
            raise
        except _Late:
            return [missing(Status.TIMED_OUT, f"no answer within {self.handling.deadline_s:g} s")] * len(request)
        except BaseException as error:  # user code may raise anything, also sys.exit: it becomes a note, never a number
            if len(request) == 1 or self.whole_batch:
                status = Status.TIMED_OUT if isinstance(error, TimeoutError) else Status.ERRORED
                return [missing(status, f"{told(error)}{_place(error)}")] * len(request)
        return [score for i in range(len(request)) for score in self._isolated(request.rows([i]))]

    def _within_deadline(self, request: Request) -> list[Score]:
        started = time.perf_counter()
        try:
            scores = self._run(request)
        finally:
            with self.meter.lock:
                self.meter.calls += 1
                self.meter.outputs += len(request)
                self.meter.latencies_s.append(time.perf_counter() - started)
        return scores if self.card is None else [in_range(score, self.card) for score in scores]

    def _run(self, request: Request) -> list[Score]:
        deadline, arguments = self.handling.deadline_s, self.arguments(request)

        def work() -> Any:
            with torch.no_grad():
                result = self.function(**arguments)
            return result if inspect.isawaitable(result) else as_scores(self.name, result, len(request))

        started = time.monotonic()
        result = work() if deadline is None else _in_thread(work, deadline, f"reward {self.name}")
        if isinstance(result, list):
            return result
        result = _awaited(result, None if deadline is None else deadline - (time.monotonic() - started))
        if isinstance(result, Iterator):  # nothing would bound the time that it takes
            raise RewardError(f"{key_of(self.name)} returned {result!r}; an async reward returns a list, no iterator")
        return as_scores(self.name, result, len(request))


def told(error: BaseException) -> str:
    """Kind and text of an exception; the kind alone where there is no text, or asking for it raises."""
    try:
        text = str(error)
    except KeyboardInterrupt:
        raise
    except BaseException:  # a stranger's __str__
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def place_of(error: BaseException) -> str:
    """The innermost line of code that is neither ours nor a library's, as `file.py:12`."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""


def _place(error: BaseException) -> str:
    return f" ({place})" if (place := place_of(error)) else ""


def _is_users(file: str) -> bool:
    path = Path(file)
    return path.is_file() and not any(path.is_relative_to(folder) for folder in LIBRARIES)


@dataclass
class _Outcome:
    """What some work in another thread came to, to be handed to the caller's."""

    result: Any = None
    error: BaseException | None = None

    def get(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.result


def _in_thread(work: Callable[[], Any], seconds: float, name: str) -> Any:
    outcome = _Outcome()

    def kept() -> None:
        try:
            outcome.result = work()
        except BaseException as error:
            outcome.error = error

    thread = threading.Thread(target=kept, name=name, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise _Late
    return outcome.get()


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """One loop for all async rewards, in a thread of its own: clients that they keep open stay usable."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="async rewards", daemon=True).start()
    return loop


def _awaited(result: Awaitable[Any], seconds: float | None) -> Any:
    outcome = _Outcome()

    async def kept() -> None:
        try:
            outcome.result = await result
        except BaseException as error:  # sys.exit would end the loop of all async rewards
            outcome.error = error

    future = asyncio.run_coroutine_threadsafe(kept(), _event_loop())
    try:
        future.result(seconds)
    except TimeoutError:
        future.cancel()
        raise _Late from None
    return outcome.get()
