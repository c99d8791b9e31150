"""Calling a reward: what it is handed, what it may return, and what happens when it fails.

One bad output never harms its batch: when a call raises, the outputs are tried one by one and only the guilty ones are
marked. What cannot be judged has a status and no number.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from plaudit.data.prompt import Prompt, is_conversation, text_of
from plaudit.errors import PlauditError, RewardError
from plaudit.rewards.base import Card, RewardFunction, Score, Status, missing
from plaudit.rewards.cache import ScoreCache
from plaudit.rewards.generators import GENERATORS
from plaudit.rewards.results import as_scores, in_range

Outputs = Any  # Tensor [B, ...], or a list with one output each
OUTPUT_NAMES = ("outputs", "completions", "images")
COUNTS = ("calls", "outputs", "repeats", "cache_hits")
TRANSIENT = (Status.TIMED_OUT, Status.ERRORED)


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


@dataclass
class Meter:
    """What calling a reward has cost so far. `latencies_s` and the reward's own `metrics` are those since last taken."""

    calls: int = 0
    outputs: int = 0
    repeats: int = 0
    cache_hits: int = 0
    latencies_s: list[float] = field(default_factory=list)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    extra: dict[str, list[Any]] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in COUNTS}

    def load_counts(self, counts: Mapping[str, int]) -> None:
        for name in COUNTS:
            setattr(self, name, counts[name])

    def take_latencies(self) -> list[float]:
        taken, self.latencies_s = self.latencies_s, []
        return taken

    def take_metrics(self) -> dict[str, float]:
        taken, self.metrics = self.metrics, {}
        return {name: sum(values) / len(values) for name, values in taken.items()}


@dataclass(frozen=True, kw_only=True)
class Request:
    """A batch to be scored. `group [B]` tells which outputs answer the same prompt; `step` is the training step; `columns`
    are the names of all facts and inputs, which a larger batch that this is a part of may have more of. `completion_ids`
    are there where a token model has drawn the outputs."""

    prompts: Sequence[Prompt]
    outputs: Outputs
    group: Sequence[int]
    step: int = 0
    columns: frozenset[str] = frozenset()
    completion_ids: Sequence[Sequence[int]] | None = None

    def __post_init__(self) -> None:
        distinct = {id(prompt): prompt for prompt in self.prompts}.values()
        own = {name for prompt in distinct for name in (*prompt.facts, *prompt.inputs)}
        object.__setattr__(self, "columns", self.columns | own)

    def __len__(self) -> int:
        return len(self.prompts)

    def rows(self, rows: Sequence[int]) -> Request:
        return Request(
            prompts=[self.prompts[i] for i in rows],
            outputs=select(self.outputs, rows),
            group=[self.group[i] for i in rows],
            columns=self.columns,
            step=self.step,
            completion_ids=None if self.completion_ids is None else [self.completion_ids[i] for i in rows],
        )


def make_request(
    prompts: Sequence[Prompt],
    outputs: Outputs,
    group: Sequence[int] | Tensor | None = None,
    step: int = 0,
    columns: frozenset[str] = frozenset(),
    completion_ids: Sequence[Sequence[int]] | None = None,
) -> Request:
    """Without `group`, outputs of the same prompt id and text belong together. `columns` are those of a larger batch."""
    if len(prompts) != len(outputs):
        raise RewardError(f"{len(prompts)} prompts for {len(outputs)} outputs; give one prompt per output")
    if group is None:
        seen: dict[tuple[str, str], int] = {}
        group = [seen.setdefault((prompt.id, prompt.text), len(seen)) for prompt in prompts]
    members = group.tolist() if isinstance(group, Tensor) else list(group)
    return Request(
        prompts=prompts, outputs=outputs, group=members, step=step, columns=columns, completion_ids=completion_ids
    )


def select(outputs: Outputs, rows: Sequence[int]) -> Outputs:
    return outputs[list(rows)] if isinstance(outputs, Tensor) else [outputs[i] for i in rows]


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
        self.lock = threading.Lock()
        self.parameters = inspect.signature(function).parameters
        self.ours = _is_ours(function)
        self.sees_request = "request" in self.parameters  # to ask another reward the same
        self.bound = set(function.keywords) if isinstance(function, functools.partial) else set()
        self.takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in self.parameters.values())
        self.output_name = next((name for name in OUTPUT_NAMES if name in self.parameters), "outputs")

    @property
    def whole_batch(self) -> bool:
        """Whether the reward must see all outputs at once, because they are compared with each other."""
        return not self.card.batch_invariant if self.card is not None else "group" in self.parameters

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

    def _asks(self, column: str) -> bool:
        return (column in self.parameters or self.takes_all) and column not in self.bound

    def _cached(self, request: Request, cache: Cached) -> list[Score]:
        """Scores from the cache, and calls for the others; equal outputs of a batch are scored once."""
        step = request.step if self._asks("step") or self.sees_request else None
        with_ids = self._asks("ids") or self.sees_request
        keys = cache.store.keys(cache.identity, request.prompts, request.outputs, ids=with_ids, step=step)
        found = cache.store.find(list(dict.fromkeys(keys)))
        with self.lock:
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
        with self.lock:
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
        if isinstance(request.outputs, Tensor) or self._kind == "audio" or len(set(sizes)) == 1:
            together = [rows]
        else:
            together = [[i for i in rows if sizes[i] == size] for size in dict.fromkeys(sizes)]
        batch = self.handling.batch or len(rows)
        return [chunk[at : at + batch] for chunk in together for at in range(0, len(chunk), batch)]

    @property
    def _kind(self) -> str | None:
        return self.card.kind if self.card else None

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
        except PlauditError:
            raise
        except _Late:
            return [missing(Status.TIMED_OUT, f"no answer within {self.handling.deadline_s:g} s")] * len(request)
        except Exception as error:  # user code may raise anything; it becomes a status and a note, never a number
            if len(request) == 1 or self.whole_batch:
                status = Status.TIMED_OUT if isinstance(error, TimeoutError) else Status.ERRORED
                return [missing(status, f"{type(error).__name__}: {error}")] * len(request)
        return [score for i in range(len(request)) for score in self._isolated(request.rows([i]))]

    def _within_deadline(self, request: Request) -> list[Score]:
        started = time.perf_counter()
        try:
            result = self._run(request)
        finally:
            with self.lock:
                self.meter.calls += 1
                self.meter.outputs += len(request)
                self.meter.latencies_s.append(time.perf_counter() - started)
        scores = as_scores(self.name, result, len(request))
        return scores if self.card is None else [in_range(score, self.card) for score in scores]

    def _run(self, request: Request) -> Any:
        deadline, arguments = self.handling.deadline_s, self.arguments(request)
        if deadline is None:
            return _finished(_invoke(self.function, arguments), None)
        box: dict[str, Any] = {}

        def work() -> None:
            try:
                box["result"] = _invoke(self.function, arguments)
            except BaseException as error:  # handed to the caller's thread
                box["error"] = error

        started = time.monotonic()
        thread = threading.Thread(target=work, name=f"reward {self.name}", daemon=True)
        thread.start()
        thread.join(deadline)
        if thread.is_alive():
            raise _Late
        if "error" in box:
            raise box["error"]
        return _finished(box["result"], deadline - (time.monotonic() - started))

    # --- what the reward is handed -----------------------------------------------------------------------------------

    def arguments(self, request: Request) -> dict[str, Any]:
        """Only those columns that the signature asks for; copies, where a stranger could write into them."""
        given: dict[str, Any] = {"prompts": self._prompt_copies(request.prompts)}
        given[self.output_name] = self._output_copies(request.outputs)
        columns = {
            "ids": lambda: [prompt.id for prompt in request.prompts],
            "group": lambda: list(request.group),
            "step": lambda: request.step,
            "trainer_state": lambda: SimpleNamespace(global_step=request.step),
            "log_metric": lambda: self._log_metric,
            "log_extra": lambda: self._log_extra,
            "facts": lambda: self._copies([prompt.facts for prompt in request.prompts]),
            "inputs": lambda: self._copies([prompt.inputs for prompt in request.prompts]),
        }
        if request.completion_ids is not None:
            columns["completion_ids"] = lambda: [list(ids) for ids in request.completion_ids or ()]
        given |= {name: make() for name, make in columns.items() if self._asks(name)}
        if self.sees_request:
            prompts = self._copies(request.prompts)
            given["request"] = replace(request, prompts=prompts, outputs=given[self.output_name])
        carried = request.columns - given.keys()
        for name in sorted(carried):
            if self._asks(name):
                given[name] = self._copies([column(prompt, name) for prompt in request.prompts])
        absent = [
            name
            for name, parameter in self.parameters.items()
            if name not in given and parameter.default is parameter.empty and parameter.kind in NAMED
        ]
        if "completion_ids" in absent:
            raise RewardError(
                f"rewards.{self.name} needs `completion_ids`, which exist only where a token model has drawn the outputs; give "
                "them as a fact, or read the texts"
            )
        if absent:
            raise RewardError(
                f"rewards.{self.name} needs the column {absent[0]!r}, which no prompt carries; prompts carry "
                f"{', '.join(sorted(carried)) or 'no facts or inputs'}; add {absent[0]!r} to the prompts' `facts`"
            )
        return given

    def _copies(self, values: Sequence[Any]) -> list[Any]:
        """What the reward may write into; samples of one prompt share theirs."""
        if self.ours:
            return list(values)
        made: dict[int, Any] = {}
        for value in values:
            if id(value) not in made:
                made[id(value)] = copy.deepcopy(value)
        return [made[id(value)] for value in values]

    def _log_metric(self, name: str, value: float) -> None:
        """TRL's way for a reward to report numbers: their mean over a step becomes a metric."""
        with self.lock:
            self.meter.metrics.setdefault(name, []).append(float(value))

    def _log_extra(self, column: str, values: Sequence[Any]) -> None:
        """TRL's way for a reward to add a column to the table of samples."""
        with self.lock:
            self.meter.extra[column] = list(values)

    def _prompt_copies(self, prompts: Sequence[Prompt]) -> list[Any]:
        """Texts; a function without a card gets conversations as they are, as TRL hands them over."""
        if self.card is None and prompts and all("messages" in prompt.inputs for prompt in prompts):
            return copy.deepcopy([prompt.inputs["messages"] for prompt in prompts])
        return [prompt.text for prompt in prompts]

    def _check_kind(self, outputs: Outputs) -> None:
        given = "text" if isinstance(outputs[0], str) or is_conversation(outputs[0]) else None
        given = "image" if isinstance(outputs[0], Tensor) and outputs[0].ndim == 3 else given
        if self._kind == "image" and isinstance(outputs[0], Tensor):
            self._check_pixels(outputs)
        if given and self._kind and given != self._kind and {given, self._kind} != {"image", "video"}:
            raise RewardError(
                f"rewards.{self.name} looks at {PLURAL[self._kind]}, and these outputs are {PLURAL[given]}; `plaudit rewards "
                f"list --kind {given}` names those for {PLURAL[given]}"
            )

    def _check_pixels(self, outputs: Outputs) -> None:
        first = outputs[0]
        if first.ndim != 3 or first.shape[0] != 3:
            raise RewardError(f"rewards.{self.name}: a picture is [3, height, width], not {list(first.shape)}")
        most = outputs.max() if isinstance(outputs, Tensor) else max(output.max() for output in outputs)
        if not first.is_floating_point() or most > 2:
            kind = str(first.dtype).removeprefix("torch.")
            raise RewardError(
                f"rewards.{self.name}: pixels are {kind} up to {float(most):g}; they must be floats in 0..1, so divide by 255"
            )

    def _output_copies(self, outputs: Outputs) -> Outputs:
        self._check_kind(outputs)
        if isinstance(outputs, Tensor):
            return outputs.detach() if self.ours else outputs.detach().clone()
        if self._kind == "text":
            return [text_of(output) for output in outputs]
        shapes = {tuple(output.shape) if isinstance(output, Tensor) else None for output in outputs}
        if self._kind in ("image", "video") and len(shapes) == 1 and None not in shapes:
            return torch.stack(list(outputs))
        if self.ours:
            return list(outputs)
        return [output.clone() if isinstance(output, Tensor) else copy.deepcopy(output) for output in outputs]


PLURAL = {"image": "pictures", "text": "texts", "audio": "signals", "video": "videos"}
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _is_ours(function: RewardFunction) -> bool:
    """Plaudit's own rewards write into nothing that they are handed, so they need no copies."""
    function = function.func if isinstance(function, functools.partial) else function
    home = function.__module__ if inspect.isroutine(function) else type(function).__module__
    return (home or "").startswith("plaudit.")


def column(prompt: Prompt, name: str) -> Any:
    return prompt.facts.get(name, prompt.inputs.get(name))


def _invoke(function: RewardFunction, arguments: dict[str, Any]) -> Any:
    with torch.no_grad():
        return function(**arguments)


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """One loop for all async rewards, in a thread of its own: clients that they keep open stay usable."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="async rewards", daemon=True).start()
    return loop


def _finished(result: Any, seconds: float | None) -> Any:
    if not inspect.isawaitable(result):
        return result
    future = asyncio.run_coroutine_threadsafe(_awaited(result), _event_loop())
    try:
        return future.result(seconds)
    except TimeoutError:
        if future.done():
            raise  # the reward's own
        future.cancel()
        raise _Late from None


async def _awaited(result: Any) -> Any:
    return await result
