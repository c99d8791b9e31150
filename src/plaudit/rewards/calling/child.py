"""A process of ours that answers lines: asked with a deadline, and killed when it is late."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Mapping, Sequence

MOST_BYTES = 1 << 20


class Late(Exception):
    """No answer in time; the process has been killed."""


class Child:
    """`apart` keeps Ctrl-C from it, `quiet` what it writes to stderr from the terminal. It may raise OSError."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], *, apart: bool = False, quiet: bool = False
    ) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if quiet else None,
            env=environment,
            start_new_session=apart,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.hear, self.say = self.process.stdout, self.process.stdin

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def ask(self, line: bytes, seconds: float) -> bytes:
        """The line that it answers to this one; empty where it ended instead, or says more than `MOST_BYTES`.

        A thread does the waiting, for a write to a process that does not read can hang like a read.
        """
        late = threading.Event()

        def kill() -> None:
            late.set()
            self.process.kill()

        timer = threading.Timer(seconds, kill)
        timer.start()
        try:
            with contextlib.suppress(BrokenPipeError):  # it has gone, which the missing answer will tell
                self.say.write(line + b"\n")
                self.say.flush()
            answer = self.hear.readline(MOST_BYTES)
        finally:
            timer.cancel()
        if answer.endswith(b"\n"):
            return answer
        if late.is_set():
            raise Late
        return b""

    def stop(self) -> None:
        self.process.kill()
        for pipe in (self.say, self.hear):
            with contextlib.suppress(OSError):  # what was not written cannot be any more
                pipe.close()
        self.process.wait()
