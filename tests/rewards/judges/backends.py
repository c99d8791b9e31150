"""Judges of the tests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from plaudit.rewards.base import Status
from plaudit.rewards.judges.ask import Answer, Asked, Cost, declined


class Scripted:
    """Says what a function of the question and `k` says, and counts what it was asked."""

    draws = True

    def __init__(self, say: Callable[[Asked], Any], identity: str | None = "scripted") -> None:
        self.say, self.identity, self.asked = say, identity, list[Asked]()
        self.lock = threading.Lock()

    def answer(self, asked: Sequence[Asked]) -> list[Answer]:
        with self.lock:
            self.asked += asked
        return [self._answer(self.say(one)) for one in asked]

    def _answer(self, said: Any) -> Answer:
        return said if isinstance(said, Answer) else Answer(text=said, cost=Cost(calls=1, tokens=len(said)))


def refusing(asked: Asked) -> Answer:
    return declined(Status.REFUSED, "no")
