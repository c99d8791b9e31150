"""Asking over HTTP: kept connections, one deadline for everything, bounded answers, and failures that have a name.

httpcore is what httpx sends with. It is used directly, since httpx limits every read and not the whole: whoever sends a byte
a second would be waited for as long as it likes. Redirects are not followed, and no proxy is looked for.
"""

from __future__ import annotations

import contextvars
import os
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import httpcore

from plaudit.errors import RecipeError

MAX_ANSWER_BYTES = 64 * 2**20
CONNECT_S = 10.0  # a machine that does not answer at all
AGAIN = (408, 429, 500, 502, 503, 504)  # answers after which the same request may succeed


class Failed(Exception):
    """No answer could be had, in so many `attempts`; `late` when the deadline was the reason."""

    def __init__(self, note: str, *, late: bool = False, attempts: int = 1) -> None:
        super().__init__(note)
        self.late, self.attempts = late, attempts


@dataclass(frozen=True, kw_only=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes


def check_url(url: str, key: str) -> str:
    """The address without a slash at its end."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise RecipeError(f"{key}: {url!r} is not a URL: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise RecipeError(f"{key}: {url!r}; write it like http://127.0.0.1:8000")
    return url.rstrip("/")


def token_from(token_env: str | None, key: str) -> str | None:
    if token_env is None:
        return None
    token = os.environ.get(token_env, "").strip()
    if not token:
        raise RecipeError(f"{key}: the environment variable {token_env} is not set or empty")
    return token


@dataclass(kw_only=True)
class _Exchange:
    """What a thread is waiting for; `fresh` once it had to connect."""

    deadline: float
    fresh: bool = False

    def left(self) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise httpcore.TimeoutException
        return left


_NOW: contextvars.ContextVar[_Exchange] = contextvars.ContextVar("exchange")


class _Stream(httpcore.NetworkStream):
    """A connection whose every step ends at the deadline of the exchange that it serves."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self.stream = stream

    def close(self) -> None:
        self.stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self.stream.get_extra_info(info)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self.stream.read(max_bytes, _NOW.get().left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.stream.write(buffer, _NOW.get().left())

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self.stream.start_tls(ssl_context, server_hostname, _NOW.get().left()))


class _Backend(httpcore.SyncBackend):
    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        exchange = _NOW.get()
        exchange.fresh = True
        return _Stream(super().connect_tcp(host, port, min(exchange.left(), CONNECT_S), local_address, socket_options))


class Client:
    """Connections to one service, for any number of threads."""

    def __init__(self, url: str, token: str | None = None, key: str = "url") -> None:
        self.url, self.token = check_url(url, key), token
        secure = ssl.create_default_context() if url.startswith("https") else None
        self.pool = httpcore.ConnectionPool(secure, max_connections=None, network_backend=_Backend())

    def ask(
        self, method: str, path: str, deadline: float, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Reply:
        """One exchange, without repeats, except that a kept connection which has died is replaced at once."""
        given = {"Accept": "application/json", "Accept-Encoding": "identity", "Content-Length": str(len(body))}
        if self.token is not None:
            given["Authorization"] = f"Bearer {self.token}"
        while True:
            exchange = _Exchange(deadline=deadline)
            before = _NOW.set(exchange)
            try:
                return self._exchange(method, path, body, {**given, **(headers or {})})
            except httpcore.TimeoutException:
                late = time.monotonic() >= deadline
                note = "no answer in time" if late else "the connection could not be made in time"
                raise Failed(note, late=late) from None
            except (httpcore.NetworkError, httpcore.ProtocolError, UnicodeError) as error:
                if exchange.fresh or isinstance(error, httpcore.LocalProtocolError | UnicodeError):
                    raise Failed(f"{type(error).__name__}: {error}") from None
            finally:
                _NOW.reset(before)

    def _exchange(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        """Half a body is httpcore's error, too much of one is refused here."""
        content = bytearray()
        raw = [(name.encode("ascii"), value.encode("ascii")) for name, value in headers.items()]
        with self.pool.stream(method, self.url + path, headers=raw, content=body) as response:
            for chunk in response.iter_stream():
                content += chunk
                if len(content) > MAX_ANSWER_BYTES:
                    raise Failed(f"the answer is larger than {MAX_ANSWER_BYTES} bytes")
        kept = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
        return Reply(status=response.status, headers=kept, body=bytes(content))

    def close(self) -> None:
        self.pool.close()


def persistently(
    ask: Callable[[], Reply],
    deadline: float,
    retries: int,
    backoff_s: float,
    granted: Callable[[], bool] = lambda: True,
) -> Reply:
    """The answer, after as many repeats as it takes within the bounds; on the last one whatever came. `granted` takes a repeat
    out of a budget that many share.

    Before a repeat it waits `backoff_s`, twice that, and so on, or as long as the service asks for. What was answered is not
    asked again, unless the answer says that it should be.
    """
    for attempt in range(retries + 1):
        pause = backoff_s * 2**attempt
        over = partial(_over, attempt == retries, deadline)
        try:
            reply = ask()
        except Failed as failed:
            if failed.late or over(pause) or not granted():
                raise Failed(str(failed), late=failed.late, attempts=attempt + 1) from None
        else:
            pause = max(pause, _asked_pause(reply))
            if reply.status not in AGAIN or over(pause) or not granted():
                return reply
        time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _over(last: bool, deadline: float, pause: float) -> bool:
    return last or time.monotonic() + pause >= deadline


def _asked_pause(reply: Reply) -> float:
    text = reply.headers.get("retry-after", "")
    return float(text) if text.isdecimal() and len(text) < 6 else 0.0
