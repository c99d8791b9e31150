"""What the end of a test session says of the tests that were skipped."""

from __future__ import annotations

from types import SimpleNamespace

from tests.conftest import pytest_terminal_summary


def test_skipped_tests_are_counted_by_reason() -> None:
    lines: list[str] = []
    reasons = ["Skipped: no Landlock here", "Skipped: no GPU\nat all", "Skipped: no Landlock here"]
    reports = [SimpleNamespace(longrepr=("test_a.py", 3, reason)) for reason in reasons]
    pytest_terminal_summary(SimpleNamespace(stats={"skipped": reports}, write_line=lines.append))  # type: ignore[arg-type]
    assert lines == ["2 skipped: no Landlock here", "1 skipped: no GPU"]
