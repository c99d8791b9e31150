"""A child answers, is late, ends or says too much; in every case it is known which, and nothing is left running."""

from __future__ import annotations

import os
import sys

import pytest

from plaudit.rewards.calling.child import MOST_BYTES, Child, Late

ECHO = "import sys\nfor line in sys.stdin: print(line.strip() * {times}, flush=True)"
DEAF = "import time\ntime.sleep(5)"


def child(program: str) -> Child:
    return Child([sys.executable, "-c", program], os.environ)


def test_it_answers_line_by_line_until_it_is_stopped() -> None:
    echo = child(ECHO.format(times=2))
    assert [echo.ask(line, 60) for line in (b"a", "ö".encode())] == [b"aa\n", "öö\n".encode()]
    assert echo.alive
    echo.stop()
    echo.stop()
    assert not echo.alive


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_one_that_does_not_answer_is_killed_even_if_it_does_not_read(size: int) -> None:
    deaf = child(DEAF)
    with pytest.raises(Late):
        deaf.ask(b"x" * size, 0.3)
    assert deaf.process.wait(60) != 0, "it was not left to end by itself"
    deaf.stop()


def test_one_that_ends_or_says_too_much_has_no_answer() -> None:
    ended = child("raise SystemExit")
    assert ended.ask(b"x", 60) == b""
    endless = child(ECHO.format(times=MOST_BYTES + 1))
    assert endless.ask(b"x", 60) == b""
    for one in (ended, endless):
        one.stop()
