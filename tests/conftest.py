"""What all tests share. Models here are so small that one thread is the fastest way to run them."""

from __future__ import annotations

import os
import tempfile
from collections import Counter

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
CACHE = tempfile.TemporaryDirectory(prefix="plaudit-cache-")  # nothing of a test stays in the user's own
os.environ["PLAUDIT_CACHE"] = CACHE.name


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Why tests were skipped, one line per reason."""
    reports = terminalreporter.stats.get("skipped", [])
    for reason, count in Counter(reason_of(report) for report in reports).most_common():
        terminalreporter.write_line(f"{count} skipped: {reason}")


def reason_of(report: pytest.TestReport | pytest.CollectReport) -> str:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return reason.removeprefix("Skipped: ").partition("\n")[0]
