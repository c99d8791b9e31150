"""The global random generators, kept apart from what rewards draw."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


class _Generators:
    """The global random generators. Rewards draw from a stream of their own, which goes on from call to call; outside of
    them the generators are as if no reward had drawn."""

    def __init__(self) -> None:
        self.lock, self.running = threading.Lock(), 0
        self.outside: Any = None
        self.stream: Any = None

    @contextmanager
    def put_back(self) -> Iterator[None]:
        with self.lock:
            if not self.running:
                self.outside = self._now()
                if self.stream is not None:
                    self._set(self.stream)
            self.running += 1
        try:
            yield
        finally:
            with self.lock:
                self.running -= 1
                if not self.running:
                    self.stream = self._now()
                    self._set(self.outside)

    @staticmethod
    def _now() -> Any:
        return torch.get_rng_state(), np.random.get_state(), random.getstate()

    @staticmethod
    def _set(state: Any) -> None:
        torch.set_rng_state(state[0])
        np.random.set_state(state[1])
        random.setstate(state[2])


GENERATORS = _Generators()
