from __future__ import annotations

import itertools

import pytest

from plaudit.errors import RewardError
from plaudit.rewards.rules.formats import JsonFormat, RegexFormat, tags_soft, tags_strict


def test_soft_is_one_exactly_where_strict_is() -> None:
    marks = ["<a>", "</a>", "<b>", "</b>", "x"]
    texts = ["".join(order) for order in itertools.permutations(marks)] + ["".join(marks[:4]), "", "<a></a>"]
    soft, strict = tags_soft([], texts, tags=("a", "b")), tags_strict([], texts, tags=("a", "b"))
    assert [one == 1 for one in soft] == [one == 1 for one in strict]
    right = {"<a>x</a><b></b>", "<a></a><b>x</b>", "<a></a><b></b>"}
    assert {text for text, one in zip(texts, strict, strict=True) if one} == right
    assert all(0 <= one <= 1 for one in soft)


def test_other_tags_and_three_of_them() -> None:
    text = "<plan>p</plan>\n<code>c</code>\n<answer>a</answer>"
    assert tags_strict([], [text], tags=("plan", "code", "answer")) == [1.0]
    assert tags_strict([], [text], tags=("plan", "answer")) == [0.0]  # the code lies outside


def test_a_wrong_pattern_is_named() -> None:
    with pytest.raises(RewardError, match="is not a regular expression"):
        RegexFormat(pattern="(")


def test_deeply_nested_json_is_refused() -> None:
    assert JsonFormat()([], ["[" * 100_000, '{"a": {}}', "{'a': 1}"]) == [0.0, 1.0, 0.0]
