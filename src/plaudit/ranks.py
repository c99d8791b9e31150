"""One process, or several that share the work of a run.

Every rank runs the same program on the same numbers. Shared are the network calls: pieces of a rollout and of a measurement, and
micro-batches of an update, go round by their index, so that a piece is computed in the same shape whoever computes it. The first
rank alone asks rewards, writes, and decides when to stop; the others are told. Samples, scores and credit are therefore those of
one process to the bit, and gradients differ in the order of a sum.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from plaudit.errors import RecipeError, RunError

Part = TypeVar("Part")
Made = TypeVar("Made")

LOST = "another process of this run has ended, and so does this one; what ended it stands in its own message. Go on with --resume"


class StoppedByMain(RunError):
    """On the other ranks, what has stopped the first one: told once, by the first."""


class Lost(RunError):
    """Another rank is gone; of those left the first says so."""

    def __init__(self) -> None:
        super().__init__(LOST)
        _met.lost = True


@dataclass(kw_only=True)
class _Met:
    """What has come of this process's others: `begun` once they were met, or nobody waits for them any more."""

    begun: threading.Event = field(default_factory=threading.Event)
    lost: bool = False


_met = _Met()


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The processes of a run as one of them sees them; alone, everything is the identity."""

    index: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        return self.index == 0

    def own(self, parts: Sequence[Part]) -> Sequence[Part]:
        """This rank's share of parts that need not come back."""
        return parts[self.index :: self.count]

    def share(self, parts: Sequence[Part], make: Callable[[Part], Made]) -> Iterator[Made]:
        """`make(part)` for all parts in order, of which this rank makes its share and is given the rest."""
        for start in range(0, len(parts), self.count):
            mine = start + self.index
            made = make(parts[mine]) if mine < len(parts) else None
            yield from self.gather(made)[: len(parts) - start]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in order."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.count
        with _together():
            dist.all_gather_object(values, value, group=_messages())
        return values

    def from_main(self, make: Callable[[], Made]) -> Made:
        """What the first rank makes, on all of them; what stops it there stops the others here."""
        if self.count == 1:
            return make()
        import torch.distributed as dist

        told: list[Any] = [None, None]
        failure: BaseException | None = None
        if self.is_main:
            try:
                told = [make(), None]
            except BaseException as error:
                failure, told = error, [None, f"{type(error).__name__}: {error}"]
        with _together():
            dist.broadcast_object_list(told, src=0, group=_messages())
        if failure is not None:
            raise failure
        if told[1] is not None:
            raise StoppedByMain(told[1])
        made: Made = told[0]
        return made

    def add(self, tensors: Sequence[Any]) -> None:
        """Sums over the ranks, in place. The order of a sum is the same on all of them, and so are the results."""
        if self.count == 1:
            return
        import torch
        import torch.distributed as dist

        with _together():
            for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
                some = [tensor for tensor in tensors if tensor.dtype is dtype]
                flat = torch.cat([tensor.reshape(-1) for tensor in some])
                dist.all_reduce(flat)
                for tensor, part in zip(some, flat.split([tensor.numel() for tensor in some]), strict=True):
                    tensor.copy_(part.view_as(tensor))


ALONE = Ranks()


@contextmanager
def _together() -> Iterator[None]:
    """What a rank meets when another is gone."""
    try:
        yield
    except RuntimeError as error:  # the only class that the backends raise
        raise Lost from error


def _messages() -> Any:
    """The group in which Python values travel: in the memory of processes that one run has started, never from a file."""
    global _group
    import torch.distributed as dist

    if _group is None:
        _group = dist.new_group(backend="gloo")
    return _group


_group: Any = None


def asked() -> int:
    """How many processes the launcher has started; 1 without one."""
    count = os.environ.get("WORLD_SIZE") or "1"
    if not count.isdecimal():
        raise RunError(
            f"WORLD_SIZE is {count!r}; a launcher sets it to the number of processes, and without one it is unset"
        )
    return max(int(count), 1)


def join() -> Ranks:
    """The ranks that a launcher has started together: `--processes`, torchrun or `accelerate launch`."""
    if asked() == 1:
        return ALONE
    import torch
    from accelerate import PartialState

    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="OMP_NUM_THREADS", category=UserWarning
        )  # `run.threads` says how many
        state = PartialState(cpu=not torch.cuda.is_available())
    ranks = Ranks(index=state.process_index, count=state.num_processes)
    _met.begun.set()
    if not ranks.is_main:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal tells all; the first one decides
    return ranks


@contextmanager
def started(processes: int) -> Iterator[None]:
    """This process as the first of so many that run the same command on this machine."""
    if processes == 1:
        yield
        return
    if asked() > 1:
        raise RecipeError(f"--processes {processes}: WORLD_SIZE is {asked()} already; leave one of the two out")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "plaudit", *_without("--processes", sys.argv[1:])]
    with ExitStack() as stack:
        for rank in range(1, processes):
            environment = os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            child = stack.enter_context(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
            stack.callback(child.terminate)
            threading.Thread(target=_meet, args=(rank, child), daemon=True).start()
        stack.callback(_met.begun.set)
        os.environ |= shared | {"RANK": "0", "LOCAL_RANK": "0"}
        try:
            yield
        finally:
            for name in ("RANK", "LOCAL_RANK", *shared):
                os.environ.pop(name)


def _meet(rank: int, child: subprocess.Popen[bytes]) -> None:
    """The backend would wait half an hour for a process that ended before it was met; nothing has begun that could be lost."""
    code = child.wait()
    if not _met.begun.is_set():
        print(
            f"error: process {rank} of this run ended with exit code {code} before the run began",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)


def leave(code: int | str | None) -> None:
    """End at once where another rank is lost: tearing the backend down would abort this process, and with another exit code."""
    if _met.lost:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def _without(option: str, words: Sequence[str]) -> list[str]:
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word == option:
            skip = True
        elif not word.startswith(f"{option}="):
            kept.append(word)
    return kept
