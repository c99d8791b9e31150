from __future__ import annotations

import pytest

from plaudit.rewards.rules.reasoning import PHRASES, reasoning_pattern, reasoning_phrases, repetition


def test_forty_phrases_and_their_cap() -> None:
    assert len(set(PHRASES)) == 40
    everything = " | ".join(PHRASES)
    assert reasoning_pattern(everything) == 1
    assert reasoning_pattern(everything, per_phrase=1 / 40, penalties=False) == pytest.approx(1)
    assert reasoning_pattern(" | ".join(PHRASES[:10]), per_phrase=1 / 40) == pytest.approx(0.25)
    assert reasoning_pattern("") == 0


def test_repetition_against_the_slow_count() -> None:
    words = "a b c a b c a b d".split()
    seen, repeats, total = [], 0, len(words) - 1
    for i in range(total):
        pair = words[i : i + 2]
        repeats += pair in seen
        seen.append(pair)
    assert repetition(" ".join(words), 2) == pytest.approx(repeats / total) == pytest.approx(0.5)
    assert repetition("one two", 20) == 0


def test_one_phrase_for_ever_and_invented_turns_are_worth_nothing() -> None:
    assert reasoning_pattern("wait " * 500) == 0
    assert reasoning_pattern("wait " * 500, penalties=False) == pytest.approx(0.05)
    assert reasoning_pattern(" | ".join(PHRASES) + " user: and 3+3?") == 0


def test_phrases_in_the_answer_count_only_where_asked() -> None:
    outputs = [
        "<think>thus</think><answer>5</answer>",
        "<think>hm</think><answer>thus 5</answer>",
        "<think>thus</think>",
    ]
    assert reasoning_phrases([], outputs, part="thought") == pytest.approx([0.05, 0, 0])
    assert reasoning_phrases([], outputs) == pytest.approx([0.05, 0.05, 0])
