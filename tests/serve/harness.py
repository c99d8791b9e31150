"""A service in a thread of the test, and a server of raw sockets that misbehaves as it is told."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from plaudit.data.prompt import Prompt
from plaudit.http import Client, Reply
from plaudit.rewards.base import card
from plaudit.rewards.calling.call import Caller, Handling
from plaudit.rewards.calling.request import Request, make_request
from plaudit.rewards.load import Reward
from plaudit.serve.config import ServeConfig
from plaudit.serve.remote import Remote
from plaudit.serve.server import DrainingServer, make_server
from plaudit.serve.service import Service

LONG = 300.0  # nothing here takes so long, on a busy machine either, unless it hangs


@card(kind="image", low=0, high=1)
def red_mean(prompts, outputs):
    """Mean of the red channel: every picture has its own tag."""
    return [float(picture[0].mean()) for picture in outputs]


@card(kind="text", low=0, high=1e9)
def number_in(prompts, outputs, offset=None):
    """The number that the text is, plus the offset of its prompt."""
    offsets = offset or [0] * len(outputs)
    return [float(text) + (add or 0) for text, add in zip(outputs, offsets, strict=True)]


class Counting:
    """Counts how often each text was scored."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seen: dict[str, int] = {}
        self.batches: list[int] = []
        self.seconds = seconds
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    @property
    def card(self):
        return number_in.card

    def __call__(self, prompts: Sequence[str], outputs: Sequence[str]) -> list[float]:
        self.entered.set()
        assert self.go_on.wait(LONG)
        time.sleep(self.seconds)
        self.batches.append(len(outputs))
        for text in outputs:
            self.seen[text] = self.seen.get(text, 0) + 1
        return [float(text) for text in outputs]


@contextlib.contextmanager
def serving(
    rewards: Mapping[str, Any], token: str | None = None, port: int = 0, **config: Any
) -> Iterator[tuple[str, Service, DrainingServer]]:
    """The URL of a running service, the service and its server."""
    loaded = {name: Reward(name=name, caller=Caller(name, function, Handling())) for name, function in rewards.items()}
    service = Service(loaded, ServeConfig(**{"drain_s": 2.0, **config}))
    server = make_server(service, token)
    listener = socket.create_server(("127.0.0.1", port))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", service, server
    finally:
        if thread.is_alive():
            with contextlib.suppress(RuntimeError):
                server.loop.call_soon_threadsafe(server.begin_to_stop)
        thread.join(LONG)
        assert not thread.is_alive(), "the server did not stop"


def wait_for(condition: Callable[[], Any], seconds: float = LONG) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.002)


def post(
    url: str, document: Any, path: str = "/v1/score", headers: Mapping[str, str] | None = None, token: str | None = None
) -> tuple[int, Any]:
    reply = post_raw(url, json.dumps(document).encode(), path, headers, token)
    return reply.status, json.loads(reply.body)


def post_raw(
    url: str,
    body: bytes,
    path: str = "/v1/score",
    headers: Mapping[str, str] | None = None,
    token: str | None = None,
) -> Reply:
    given = {"Content-Type": "application/json", **(headers or {})}
    return Client(url, token).ask("POST", path, time.monotonic() + LONG, body, given)


def get(url: str, path: str, token: str | None = None) -> Reply:
    return Client(url, token).ask("GET", path, time.monotonic() + LONG)


def connected(url: str) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))
    client.settimeout(LONG)
    return client


def text_items(texts: Sequence[str], **prompt: Any) -> list[dict[str, Any]]:
    return [{"prompt": prompt, "output": {"kind": "text", "text": text}} for text in texts]


def ask(url: str, texts: list[str], reward: str = "n", headers: Any = None, **rest: Any) -> tuple[int, Any]:
    return post(url, {"reward": reward, "items": text_items(texts), **rest}, headers=headers)


def values(document: Any) -> list[Any]:
    return [result["value"] for result in document["results"]]


def texts_request(texts: Sequence[str], **facts: Any) -> Request:
    return make_request([Prompt(id=str(i), text="?", facts=facts) for i in range(len(texts))], list(texts))


def pictures_request(tags: Sequence[float]) -> Request:
    pictures = torch.stack([torch.full((3, 8, 8), tag) for tag in tags])
    return make_request([Prompt(id=str(i), text=f"picture {i}") for i in range(len(tags))], pictures)


def remote(url: str, reward: str | None = None, **options: Any) -> Caller:
    """A caller of a remote reward that gives up quickly."""
    options = {"timeout_s": 5.0, "retries": 2, "backoff_s": 0.01, **options}
    return Caller("remote", Remote(url, reward, **options))


class Misbehaving:
    """Answers each request with the next of `answers`: bytes to send, then the connection is closed.

    A callable is given the socket and the request's bytes. The card is served first, as if all were well.
    """

    def __init__(self, answers: Sequence[Any], card: Mapping[str, Any] | None = None) -> None:
        self.answers, self.requests = list(answers), []
        self.card = {"summary": "Tags.", "kind": "text", "low": 0, "high": 100, "batch_invariant": True, **(card or {})}
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.closing = threading.Event()

    def __enter__(self) -> Misbehaving:
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        with contextlib.suppress(OSError):
            socket.create_connection(self.listener.getsockname(), 1).close()
        self.thread.join(LONG)
        self.listener.close()

    def _serve(self) -> None:
        while not self.closing.is_set():
            connection, _ = self.listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.settimeout(LONG)
                request = read_request(connection)
                if request.startswith(b"GET /v1/rewards"):
                    connection.sendall(answer(json.dumps({"rewards": {"tags": self.card}}).encode()))
                elif request:
                    self.requests.append(request)
                    self._answer(connection, request)

    def _answer(self, connection: socket.socket, request: bytes) -> None:
        given = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if callable(given):
            given(connection, request)
        else:
            connection.sendall(given)


def read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        some = connection.recv(65536)
        if not some:
            return b""
        data += some
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def answer(body: bytes, status: str = "200 OK", *headers: str, length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", "Connection: close"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


def results(*values: Any) -> bytes:
    """An answer with these values, written as they are: `NaN` too."""
    return answer(json.dumps({"results": [{"value": value, "status": "ok"} for value in values]}).encode())


class Remembering:
    """The number of outputs that it has seen."""

    card = number_in.card

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, prompts: Sequence[str], outputs: Sequence[str]) -> list[float]:
        self.count += len(outputs)
        return [float(self.count)] * len(outputs)

    def state(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state(self, state: Mapping[str, int]) -> None:
        self.count = state["count"]
