"""Ctrl-C and SIGTERM between steps instead of inside one, so that what is saved is what an uninterrupted run had."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


class Patience:
    """`asked` turns True at the first signal; the second one interrupts at once."""

    def __init__(self, announce: Callable[[str], None]) -> None:
        self.asked = False
        self._announce = announce

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._announce(
            "finishing this step, then saving; once more to stop at once and fall back to the last checkpoint"
        )


@contextlib.contextmanager
def between_steps(announce: Callable[[str], None]) -> Iterator[Patience]:
    patience = Patience(announce)
    if threading.current_thread() is not threading.main_thread():
        yield patience  # signals reach only the main thread
        return
    previous = {number: signal.signal(number, patience) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield patience
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
