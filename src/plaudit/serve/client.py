"""The client's half of the wire: kept connections, one deadline for everything, and failures that have a name.

Only the standard library: who asks a service needs no web framework. Redirects are never followed.
"""

from __future__ import annotations

import http.client
import io
import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from plaudit.errors import RecipeError

MAX_ANSWER_BYTES = 64 * 2**20
CHUNK = 2**18
CONNECT_S = 10.0  # a machine that does not answer at all


class Failed(Exception):
    """No answer could be had. `late` when the deadline was the reason; `reused` when a kept connection had died."""

    def __init__(self, note: str, *, late: bool = False, reused: bool = False) -> None:
        super().__init__(note)
        self.late, self.reused = late, reused


@dataclass(frozen=True, kw_only=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, kw_only=True)
class Address:
    secure: bool
    host: str
    port: int
    prefix: str


def parse_url(url: str, key: str) -> Address:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise RecipeError(f"{key}: {url!r} is not a URL: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise RecipeError(f"{key}: {url!r}; write it like http://127.0.0.1:8000")
    secure = parts.scheme == "https"
    return Address(
        secure=secure, host=parts.hostname, port=port or (443 if secure else 80), prefix=parts.path.rstrip("/")
    )


def token_from(token_env: str | None, key: str) -> str | None:
    if token_env is None:
        return None
    token = os.environ.get(token_env, "").strip()
    if not token:
        raise RecipeError(f"{key}: the environment variable {token_env} is not set or empty")
    return token


class _Timed(io.RawIOBase):
    """Reads of a socket that all end at the connection's deadline, however slowly the bytes come."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.connection.limit()
        assert self.connection.socket is not None
        return self.connection.socket.recv_into(buffer)


class _SocketOf:
    """What `http.client` reads an answer from."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Timed(self.connection), CHUNK)


class Connection:
    """One kept connection. Not for two threads at a time."""

    def __init__(self, address: Address) -> None:
        self.address, self.deadline = address, 0.0
        self.socket: socket.socket | None = None
        self.used = False

    def limit(self) -> None:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        assert self.socket is not None
        self.socket.settimeout(left)

    def open(self) -> None:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        address = self.address
        self.socket = socket.create_connection((address.host, address.port), min(left, CONNECT_S))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if address.secure:
            import ssl

            self.socket = ssl.create_default_context().wrap_socket(self.socket, server_hostname=address.host)

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def exchange(self, method: str, head: bytes, body: bytes, deadline: float) -> Reply:
        """Send a request and read its answer, or raise `Failed`."""
        self.deadline = deadline
        reused = self.used
        try:
            if self.socket is None:
                self.open()
            reply, keep = self._exchange(method, head, body)
        except TimeoutError:
            self.close()
            late = time.monotonic() >= deadline
            raise Failed(
                "no answer in time" if late else "the connection could not be made in time", late=late
            ) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            raise Failed(f"{type(error).__name__}: {error}", reused=reused) from None
        self.used = True
        if not keep:
            self.close()
        return reply

    def _exchange(self, method: str, head: bytes, body: bytes) -> tuple[Reply, bool]:
        assert self.socket is not None
        refused = None
        try:
            self.limit()
            self.socket.sendall(head)
            if body:
                self.socket.sendall(body)
        except (BrokenPipeError, ConnectionResetError) as error:
            refused = error  # the service may have answered without reading everything
        response = http.client.HTTPResponse(_SocketOf(self), method=method)  # type: ignore[arg-type]
        try:
            response.begin()
            content = self._content(response)
        except (OSError, http.client.HTTPException):
            if refused is not None and not isinstance(refused, TimeoutError):
                raise refused from None
            raise
        headers = {name.lower(): value for name, value in response.getheaders()}
        reply = Reply(status=response.status, headers=headers, body=content)
        return reply, refused is None and not response.will_close

    def _content(self, response: http.client.HTTPResponse) -> bytes:
        """The whole body: half of one is `IncompleteRead`, too much of one is refused."""
        content = bytearray()
        while chunk := response.read1(CHUNK) if response.length is None else response.read(min(CHUNK, response.length)):
            content += chunk
            if len(content) > MAX_ANSWER_BYTES:
                raise ValueError(f"the answer is larger than {MAX_ANSWER_BYTES} bytes")
        if response.length:
            raise http.client.IncompleteRead(bytes(content[:64]), response.length)
        return bytes(content)


class Client:
    """Connections to one service, for any number of threads."""

    def __init__(self, url: str, token: str | None = None, key: str = "url") -> None:
        self.url, self.address, self.token = url, parse_url(url, key), token
        self.lock = threading.Lock()
        self.free: list[Connection] = []

    def ask(
        self, method: str, path: str, deadline: float, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Reply:
        """One exchange, without repeats, except that a kept connection which has died is replaced at once.

        The caller makes repeating safe with an idempotency key.
        """
        head = self._head(method, path, len(body), headers or {})
        while True:
            with self.lock:
                connection = self.free.pop() if self.free else Connection(self.address)
            try:
                reply = connection.exchange(method, head, body, deadline)
            except Failed as failed:
                if failed.reused:
                    continue
                raise
            if connection.socket is not None:
                with self.lock:
                    self.free.append(connection)
            return reply

    def _head(self, method: str, path: str, length: int, headers: Mapping[str, str]) -> bytes:
        address = self.address
        host = f"[{address.host}]" if ":" in address.host else address.host
        lines = [
            f"{method} {address.prefix}{path} HTTP/1.1",
            f"Host: {host}:{address.port}",
            f"Content-Length: {length}",
        ]
        lines += ["Accept: application/json", "Accept-Encoding: identity"]
        if self.token is not None:
            lines.append(f"Authorization: Bearer {self.token}")
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if not all(line.isascii() and line.isprintable() for line in lines):
            raise Failed("a header has characters that headers cannot have")
        return "\r\n".join([*lines, "", ""]).encode("ascii")

    def close(self) -> None:
        with self.lock:
            for connection in self.free:
                connection.close()
            self.free.clear()
