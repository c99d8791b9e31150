"""The conversation with one launcher: a message in, three streams out, and an end to it whatever happens."""

from __future__ import annotations

import os
import select
import selectors
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from plaudit.errors import SandboxError
from plaudit.sandbox.paths import interpreter
from plaudit.sandbox.records import Limits

CHILD = Path(__file__).parent / "child"
START = f"import sys; sys.path.append({os.fspath(CHILD)!r}); import launcher; launcher.main()"
PATIENCE_S = 0.6  # beyond the wall limit, for a launcher that does not answer
FAREWELL_S = 0.3
OVERLOADED_S = 10.0  # for what a killed launcher leaves to end on a machine that has no time for it


@dataclass
class Stream:
    """What a pipe has brought, up to `most` bytes."""

    most: int
    content: bytearray = field(default_factory=bytearray)
    too_much: bool = False

    def add(self, part: bytes) -> None:
        room = self.most - len(self.content)
        self.too_much |= len(part) > room
        self.content += part[:room]


@dataclass(frozen=True, kw_only=True)
class Heard:
    """`code` is the launcher's exit status, None when it had to be killed."""

    stdout: Stream
    stderr: Stream
    report: Stream
    code: int | None


def converse(message: bytes, limits: Limits) -> Heard:
    """Start a launcher, hand it the message, and listen until it has gone."""
    until = time.monotonic() + limits.wall_s + PATIENCE_S
    launcher, report = _start()
    streams = {
        _number(launcher.stdout): Stream(limits.output_kb << 10),
        _number(launcher.stderr): Stream(limits.output_kb << 10),
        report: Stream((limits.disk_mb + 1) << 20),
    }
    try:
        _exchange(launcher, streams, memoryview(len(message).to_bytes(8, "little") + message), until)
        _ended(launcher, max(until - time.monotonic(), 0))  # before we let go of its input, which would stop it
    finally:  # also when the user interrupts us
        _tell_to_stop(launcher)
        code = _ended(launcher, FAREWELL_S)
        launcher.kill()
        launcher.wait()
        if code is None:  # who was to end the program has the other end, and lets go of it when that is done
            _drain(report, time.monotonic() + OVERLOADED_S)
        os.close(report)
        for stream in (launcher.stdout, launcher.stderr):
            assert stream is not None
            stream.close()
    stdout, stderr, reported = streams.values()
    return Heard(stdout=stdout, stderr=stderr, report=reported, code=code)


def _start() -> tuple[subprocess.Popen[bytes], int]:
    report, theirs = os.pipe()
    try:
        launcher = subprocess.Popen(
            [interpreter(), "-I", "-S", "-c", START, "outer", str(theirs)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(theirs,),
            env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
            cwd="/",
            start_new_session=True,
            bufsize=0,
        )
    except OSError as error:
        os.close(report)
        raise SandboxError(f"the sandbox's launcher does not start: {error}") from error
    finally:
        os.close(theirs)
    return launcher, report


def _number(stream: IO[bytes] | None) -> int:
    assert stream is not None
    return stream.fileno()


def _exchange(launcher: subprocess.Popen[bytes], streams: dict[int, Stream], unsent: memoryview, until: float) -> None:
    """Until all streams have ended. The message's pipe stays open: closing it tells the launcher to stop."""
    outgoing = _number(launcher.stdin)
    os.set_blocking(outgoing, False)
    with selectors.DefaultSelector() as selector:
        selector.register(outgoing, selectors.EVENT_WRITE)
        for number in streams:
            selector.register(number, selectors.EVENT_READ)
        open_streams = set(streams)
        while open_streams and (left := until - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                if key.fd == outgoing:
                    unsent = _send(outgoing, unsent)
                    if not unsent:
                        selector.unregister(outgoing)
                elif part := os.read(key.fd, 1 << 16):
                    streams[key.fd].add(part)
                else:
                    selector.unregister(key.fd)
                    open_streams.remove(key.fd)
            if not unsent and any(stream.too_much for stream in streams.values()):
                _tell_to_stop(launcher)


def _send(number: int, unsent: memoryview) -> memoryview:
    try:
        return unsent[os.write(number, unsent) :]
    except BlockingIOError:
        return unsent
    except BrokenPipeError:  # the launcher has gone, and its report says why
        return unsent[:0]


def _drain(number: int, until: float) -> None:
    while select.select([number], [], [], max(until - time.monotonic(), 0))[0] and os.read(number, 1 << 16):
        pass


def _tell_to_stop(launcher: subprocess.Popen[bytes]) -> None:
    assert launcher.stdin is not None
    launcher.stdin.close()


def _ended(launcher: subprocess.Popen[bytes], within_s: float) -> int | None:
    """The exit status of a launcher that ends by itself."""
    try:
        return launcher.wait(within_s)
    except subprocess.TimeoutExpired:
        return None
