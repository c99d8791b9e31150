"""A queue of tasks over processes that can be stopped at any time and gone on with.

A worker is a process of its own, so that one that dies takes no other with it. It sits in a session of its own, so that Ctrl-C
reaches only the parent, which asks every worker once to stop, as it does after SIGTERM; a second Ctrl-C stops them at once. One
whose parent is gone ends when it next has something to say.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from plaudit.errors import Interrupted, PlauditError, first_line
from plaudit.runs.interrupt import between_steps

Say = Callable[[str], None]
Work = Callable[[Any, Say], None]  # does one task, and may say how far it is
CHECK_S = 0.5
AT_ONCE_S = 10.0


@dataclass(kw_only=True)
class Watch:
    """What the parent hears."""

    started: Callable[[Any], None]
    said: Callable[[Any, str], None]
    ended: Callable[[Any, str | None], None]  # with the error of a task that failed
    announce: Say


@dataclass(kw_only=True)
class _Worker:
    process: SpawnProcess
    connection: Connection
    task: Any = None


def run_queue(tasks: Sequence[Any], work: Work, processes: int, watch: Watch) -> bool:
    """Do every task; False where it was stopped before the end."""
    waiting, workers, told = deque(tasks), list[_Worker](), False
    try:
        with between_steps(watch.announce) as patience:
            while True:
                if patience.asked and not told:
                    waiting.clear()
                    _ask_to_stop(workers)
                    told = True
                _hand_out(waiting, workers, work, processes, watch)
                busy = [worker for worker in workers if worker.task is not None]
                if not busy:
                    return not patience.asked
                ready = wait([worker.connection for worker in busy], timeout=CHECK_S)
                for worker in busy:
                    if worker.connection in ready and not _hear(worker, watch, patience.asked):
                        workers.remove(worker)
    except KeyboardInterrupt:
        return False
    finally:
        _end(workers)


def _hand_out(waiting: deque[Any], workers: list[_Worker], work: Work, processes: int, watch: Watch) -> None:
    while waiting and len(workers) < processes and all(worker.task is not None for worker in workers):
        ours, theirs = get_context("spawn").Pipe()
        process = get_context("spawn").Process(target=_serve, args=(theirs, work), daemon=False)
        process.start()
        theirs.close()  # so that the end of the process is heard
        worker = _Worker(process=process, connection=ours)
        workers.append(worker)
        _give(worker, waiting.popleft(), watch)
    for worker in workers:
        if worker.task is None and waiting:
            _give(worker, waiting.popleft(), watch)


def _give(worker: _Worker, task: Any, watch: Watch) -> None:
    worker.task = task
    worker.connection.send(task)
    watch.started(task)


def _hear(worker: _Worker, watch: Watch, stopping: bool) -> bool:
    """One message of a worker; False where there is no worker any more."""
    alive = True
    try:
        kind, text = worker.connection.recv()
    except (EOFError, ConnectionResetError):
        alive = False
        worker.process.join()
        kind, text = "stopped" if stopping else "failed", f"its process ended with exit code {worker.process.exitcode}"
    if kind == "said":
        watch.said(worker.task, text)
        return alive
    task, worker.task = worker.task, None
    if kind != "stopped":
        watch.ended(task, text)
    return alive


def _ask_to_stop(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        if worker.task is not None:
            worker.process.terminate()


def _end(workers: Sequence[_Worker]) -> None:
    """Idle ones end by themselves once their pipe is closed; one that is still busy was asked before and is stopped at once."""
    _ask_to_stop(workers)
    for worker in workers:
        worker.connection.close()
    for worker in workers:
        worker.process.join(AT_ONCE_S)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


# --- in the worker ---------------------------------------------------------------------------------------------------


def _serve(connection: Connection, work: Work) -> None:
    if hasattr(os, "setsid"):
        os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # a KeyboardInterrupt, where no run waits for the end of its step
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):  # the parent is gone, or wants this gone
        while True:
            connection.send(_outcome(connection, work, connection.recv()))


def _outcome(connection: Connection, work: Work, task: Any) -> tuple[str, str | None]:
    try:
        work(task, lambda text: connection.send(("said", text)))
    except (Interrupted, KeyboardInterrupt):
        return "stopped", None
    except PlauditError as error:
        return "failed", str(error).splitlines()[0]
    except Exception as error:  # a bug, which is this task's and not the queue's
        return "failed", first_line(error)
    return "done", None
