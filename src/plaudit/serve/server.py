"""The web server around a service: `POST /v1/score`, `GET /v1/rewards`, `/healthz`, `/metrics`, and what compat.py adds.

Importing this file needs the extra `serve`; `need_web_server` says so in the user's words.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hmac
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from plaudit.errors import RunError
from plaudit.serve import compat
from plaudit.serve.config import ServeConfig, token_of
from plaudit.serve.service import Refused, Service, closing, digest_of
from plaudit.serve.stores import Answer

logger = logging.getLogger("plaudit.serve")
MAX_HEAD_BYTES = 64 * 1024
KEEP_ALIVE_S = 75
READ_AHEAD_BYTES = 2**20
MAX_CONNECTIONS = 1000
LAST_ANSWERS_S = 1.0  # for requests that are given up to be answered

Work = Callable[[bytes, float], Awaitable[Answer]]


def make_app(service: Service, token: str | None) -> FastAPI:
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.stop()

    app = FastAPI(title="Plaudit rewards", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    entry = _Entry(service, token)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:  # the server logs it; the client learns no more
        service.metrics.count("plaudit_requests_total", path=request.url.path, code="500")
        return JSONResponse({"error": "internal error; the service's log says more"}, status_code=500)

    @app.post("/v1/score")
    async def score(request: Request) -> Response:
        async def work(body: bytes, arrived: float) -> Answer:
            return await service.score(body, content_type(request), deadline_of(request), arrived, request.query_params)

        return await entry.post(request, work)

    @app.post("/get_reward")
    async def get_reward(request: Request) -> Response:
        async def work(body: bytes, arrived: float) -> Answer:
            return await compat.openrlhf(service, body, content_type(request), request.query_params, arrived)

        return await entry.post(request, work)

    @app.post("/classify")
    async def classify(request: Request) -> Response:
        async def work(body: bytes, arrived: float) -> Answer:
            return await compat.classify(service, body, content_type(request), arrived)

        return await entry.post(request, work)

    @app.get("/v1/rewards")
    async def rewards(request: Request) -> Response:
        return entry.get(request, lambda: JSONResponse(service.catalogue()))

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        return entry.get(request, lambda: Response(service.metrics_text(), media_type="text/plain; version=0.0.4"))

    @app.get("/healthz")
    async def healthz() -> Response:
        health: dict[str, Any] = {"status": "draining" if service.draining else "ok"}
        if service.sandbox is not None:
            level, lacks = service.sandbox
            health["sandbox"] = {"level": level} | (
                {"lacks": lacks} if token is None else {}
            )  # which strangers need not know
        return JSONResponse(health, status_code=503 if service.draining else 200)

    return app


class _Entry:
    """What every request passes: the token, the limits, the count."""

    def __init__(self, service: Service, token: str | None) -> None:
        self.service, self.token = service, None if token is None else token.encode()

    def get(self, request: Request, work: Callable[[], Response]) -> Response:
        try:
            self._authorise(request)
            response = work()
        except Refused as refused:
            response = _response(refused.answer)
        self._count(request, response.status_code)
        return response

    async def post(self, request: Request, work: Work) -> Response:
        try:
            self._authorise(request)
            arrived, body = time.monotonic(), await self._body(request)
            answer = await self.service.hold(lambda: self._held(request, body, arrived, work))
        except Refused as refused:
            answer = refused.answer
        except asyncio.CancelledError:
            if not self.service.draining:
                raise
            answer = closing().answer  # it could not be finished, and is the last thing that this task does
        self._count(request, answer.status)
        return _response(answer)

    async def _held(self, request: Request, body: bytes, arrived: float, work: Work) -> Answer:
        async def answered() -> Answer:
            try:
                return await work(body, arrived)
            except Refused as refused:
                return refused.answer

        key = request.headers.get("idempotency-key")
        if key is None:
            return await answered()
        path = f"{request.url.path}?{request.url.query}"
        return await self.service.once(key, lambda: digest_of(path, content_type(request), body), answered)

    async def _body(self, request: Request) -> bytes:
        """The body, within its limits while it is still arriving."""
        service, limit = self.service, self.service.max_bytes
        service.check_room()
        too_large = Refused(413, f"the body is larger than {limit} bytes (serve.max_request_mb)")
        declared = request.headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared) > limit:
            raise too_large
        chunks, length, counted = [], 0, 0
        service.reading += 1
        try:
            async with asyncio.timeout(service.config.body_s):
                async for chunk in request.stream():
                    chunks.append(chunk)
                    length += len(chunk)
                    if length > limit:
                        raise too_large
                    counted += len(chunk)
                    service.receive(len(chunk))
        except TimeoutError:
            raise Refused(408, "the body did not arrive in time (serve.body_s)") from None
        except ClientDisconnect:
            raise Refused(400, "the client hung up while sending") from None
        finally:
            service.reading -= 1
            service.arrived_bytes -= counted
        return b"".join(chunks)

    def _authorise(self, request: Request) -> None:
        if self.token is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.token):
            raise Refused(401, "a bearer token is needed: `Authorization: Bearer TOKEN`")

    def _count(self, request: Request, status: int) -> None:
        self.service.metrics.count("plaudit_requests_total", path=request.url.path, code=str(status))


def content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def deadline_of(request: Request) -> float | None:
    text = request.headers.get("x-deadline-ms")
    if text is None:
        return None
    try:
        milliseconds = float(text)
    except ValueError:
        milliseconds = 0.0
    if not 0 < milliseconds < 1e9:
        raise Refused(422, f"X-Deadline-Ms: {text!r} is not a number of milliseconds", field="X-Deadline-Ms")
    return milliseconds


def _response(answer: Answer) -> Response:
    return Response(answer.body, answer.status, dict(answer.headers), media_type=answer.content_type)


# --- the process -----------------------------------------------------------------------------------------------------


class PatientProtocol(HttpToolsProtocol):
    """HTTP whose request heads must arrive in bounded time and size: an idle half of a request holds nothing for long.

    So must the rest of a body that is answered before it is there (a wrong token, a full queue): it is thrown away while it
    comes, so that the client can read why, and then the connection is closed.
    """

    header_s = 10.0
    body_s = 60.0
    max_bytes = 64 * 2**20
    waiting: asyncio.TimerHandle | None = None
    head_bytes = 0
    leaving: asyncio.TimerHandle | None = None
    unread_bytes = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_head()

    def on_headers_complete(self) -> None:
        self._head_is_there()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """As uvicorn's, but reading further ahead: stopping and starting again at every 64 KiB costs more than reading."""
        if self.cycle.response_complete:
            self.unread_bytes += len(body)
            if self.unread_bytes > self.max_bytes:
                self.transport.abort()
            return
        self.cycle.body += body
        if len(self.cycle.body) > READ_AHEAD_BYTES:
            self.flow.pause_reading()
        self.cycle.message_event.set()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if self.leaving is not None:
            self.transport.close()

    def on_response_complete(self) -> None:
        unread = not self.pipeline and self.cycle.more_body
        super().on_response_complete()
        if unread and not self.transport.is_closing():
            self.leaving = self.loop.call_later(self.body_s, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.waiting is None and self._idle:
            self._expect_head()  # empty lines between requests are no sign of life
        if self.waiting is not None:
            self.head_bytes += len(data)
            if self.head_bytes > MAX_HEAD_BYTES:
                self.transport.abort()

    @property
    def _idle(self) -> bool:
        return self.cycle is not None and self.cycle.response_complete and not self.cycle.more_body

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_there()
        if self.leaving is not None:
            self.leaving.cancel()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._head_is_there()
        self.head_bytes = 0
        self.waiting = self.loop.call_later(self.header_s, self.transport.abort)

    def _head_is_there(self) -> None:
        if self.waiting is not None:
            self.waiting.cancel()
            self.waiting = None


class DrainingServer(uvicorn.Server):
    """A server that finishes what it holds when it is told to stop. Told twice, it stops at once."""

    service: Service
    drainer: asyncio.Task[None] | None = None
    unfinished = False

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.loop.call_soon_threadsafe(self.begin_to_stop)

    def begin_to_stop(self) -> None:
        if self.drainer is None:
            self.drainer = self.loop.create_task(self._drain())
        elif not self.unfinished:
            self.drainer.cancel()
            self.drainer = self.loop.create_task(self._give_up())

    async def _drain(self) -> None:
        if not await self.service.drain():
            await self._give_up()
        self.should_exit = True

    async def _give_up(self) -> None:
        """Who has waited so long is told so, and not waited for once more."""
        self.unfinished = self.force_exit = self.service.draining = True
        tasks = list(self.server_state.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=LAST_ANSWERS_S)
        await self.lifespan.shutdown()
        self.should_exit = True


def make_server(service: Service, token: str | None) -> DrainingServer:
    limits = {"header_s": service.config.header_s, "body_s": service.config.body_s, "max_bytes": service.max_bytes}
    protocol = type("Protocol", (PatientProtocol,), limits)
    config = uvicorn.Config(
        make_app(service, token),
        http=protocol,
        ws="none",
        log_level="warning",
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=5,  # for the last answers to be read
        limit_concurrency=MAX_CONNECTIONS,
        server_header=False,
    )
    server = DrainingServer(config)
    server.service = service
    return server


def listen(config: ServeConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
    except OSError as error:
        listener.close()
        raise RunError(
            f"cannot listen on {config.host}:{config.port}: {error.strerror}; choose another serve.port"
        ) from None
    listener.listen(256)
    return listener


def serve(service: Service, on_ready: Callable[[int], None] = lambda port: None) -> bool:
    """Serve until SIGTERM or SIGINT; whether all that was held was finished. `on_ready` is told the port once it is bound."""
    token = token_of(service.config)
    return run(service, token, listen(service.config), on_ready)


def run(service: Service, token: str | None, listener: socket.socket, on_ready: Callable[[int], None]) -> bool:
    server = make_server(service, token)
    gc.collect()
    gc.freeze()  # what is loaded stays: collections that walk over it would make some answers late
    on_ready(listener.getsockname()[1])
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    return not server.unfinished
