"""A reward in a process and an environment of its own: heavy libraries that do not agree with each other stay apart.

The process serves this one reward on a loopback port, to whoever knows a random token. It ends with its parent, however
that ends: its standard input closes.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from plaudit.errors import RewardError
from plaudit.http import Client, Failed, Reply
from plaudit.recipe.rewards import RewardConfig, key_of
from plaudit.rewards.base import Card, Score, Status, missing
from plaudit.rewards.calling.child import Child, Late
from plaudit.rewards.calling.request import Outputs, Request
from plaudit.serve.pack import Packed
from plaudit.serve.remote import Remote

MODULE = "plaudit.serve.worker"
OWN_KEYS = ("type", "arguments")  # the rest of a reward's configuration is this side's business
SCORING_S = 600.0
DYING_S = 2.0


class WorkerProcess:
    """`python -m plaudit.serve.worker` with a token of its own; a context manager.

    `config` is the content of a rewards.yaml. It is started again when it has died, at most
    `max_restarts` times without an answer in between.
    """

    def __init__(
        self,
        *,
        python: str | Path,
        config: Mapping[str, Any],
        name: str = "rewards",
        start_s: float = 120.0,
        max_restarts: int = 3,
    ) -> None:
        self.python, self.config, self.name = str(python), dict(config), name
        self.start_s, self.max_restarts, self.restarts_left = start_s, max_restarts, max_restarts
        self.lock = threading.RLock()
        self.child: Child | None = None
        self.client: Client | None = None

    def __enter__(self) -> WorkerProcess:
        self.connection()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        return self.child is not None and self.child.alive

    def connection(self) -> Client:
        """A client of the running process, which is started first if need be."""
        with self.lock:
            if self.alive and self.client is not None:
                return self.client
            if self.child is not None:
                if not self.restarts_left:
                    raise RewardError(f"the process of {self.name} died too often; its last messages say why")
                self.restarts_left -= 1
            self.stop()
            self._start()
            assert self.client is not None
            return self.client

    def replaced(self) -> Client:
        """A client after a failed exchange: of another process if this one turns out to be dying."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self.child is not None:
                self.child.process.wait(DYING_S)  # its threads take a moment to end
        return self.connection()

    def proved(self) -> None:
        """It has done what it is for: the count of restarts begins anew."""
        self.restarts_left = self.max_restarts

    def _start(self) -> None:
        token = self.token = secrets.token_urlsafe(32)
        try:
            # Ctrl-C is for the trainer, which may still want scores while it ends.
            self.child = Child([self.python, "-m", MODULE], _environment(), apart=True)
        except OSError as error:
            raise RewardError(
                f"{self.name}: cannot start {self.python}: {error.strerror}; `python` must be an interpreter"
            ) from None
        greeting = self._greeting(self.child, json.dumps({"token": token, "config": self.config}).encode())
        if "port" not in greeting:
            self.stop()
            why = greeting["error"]
            raise RewardError(why if why.startswith(self.name) else f"{self.name}: {why}")
        self.client = Client(f"http://127.0.0.1:{greeting['port']}", token)

    def _greeting(self, child: Child, given: bytes) -> dict[str, Any]:
        """The first line that the process writes: its port, or what is wrong."""
        who = f"{self.python} -m {MODULE}"
        try:
            line = child.ask(given, self.start_s)
        except Late:
            return {"error": f"{who} did not start within {self.start_s:g} s"}
        if not line:
            return {"error": f"{who} ended with code {child.process.wait(10)}; its messages are above"}
        try:
            greeting = dict(json.loads(line))
        except (ValueError, TypeError):
            greeting = {}
        return greeting if greeting.keys() & {"port", "error"} else {"error": f"{who} greeted with {line[:100]!r}"}

    def stop(self) -> None:
        """End the process now; the next call may start another."""
        with self.lock:
            if self.client is not None:
                self.client.close()
                self.client = None
            if self.child is not None:
                self.child.stop()

    def close(self) -> None:
        """End the process for good."""
        with self.lock:
            self.max_restarts = self.restarts_left = 0
            self.stop()


def _environment() -> dict[str, str]:
    """This process's, without what would make another environment find this one's packages."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "__PYVENV_LAUNCHER__")}


class Isolated(Remote):
    """A reward of a recipe in a process of its own: the key `python` of its configuration names the interpreter."""

    def __init__(self, name: str, config: RewardConfig, *, start_s: float = 120.0, max_restarts: int = 3) -> None:
        assert config.python is not None
        content = {"rewards": {name: config.model_dump(include=set(OWN_KEYS))}}
        self.worker = WorkerProcess(
            python=config.python, config=content, name=key_of(name), start_s=start_s, max_restarts=max_restarts
        )
        timeout_s = config.deadline_s or SCORING_S
        super().__init__(f"http://{name}.invalid", reward=name, timeout_s=timeout_s, retries=1, by_hash="none")
        self.url = f"the process of {key_of(name)}"
        self.content = {"python": str(config.python), **content}

    @property
    def source(self) -> Any:
        return self.content

    def fetched_card(self) -> Card | None:
        self.client = self.worker.connection()
        try:
            return super().fetched_card()
        except RewardError:
            self.worker.stop()
            raise

    def __call__(self, prompts: Sequence[str], outputs: Outputs, request: Request) -> list[Score]:
        try:
            self.client = self.worker.connection()
            scores = super().__call__(prompts, outputs, request)
        except RewardError as error:
            return [missing(Status.ERRORED, str(error))] * len(prompts)
        if scores and all(score.status is Status.TIMED_OUT for score in scores):
            self.worker.stop()  # its thread may hang for ever, and whatever comes would wait behind it
        elif any(score.status is Status.OK for score in scores):
            self.worker.proved()
        return scores

    def _post(self, packed: Packed, key: str, deadline: float) -> Reply:
        try:
            return super()._post(packed, key, deadline)
        except Failed as failed:
            if not failed.late:
                self.client = self.worker.replaced()
            raise

    def close(self) -> None:
        super().close()
        self.worker.close()
