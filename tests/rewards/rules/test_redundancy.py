"""Which tokens of a right output were superfluous."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tests.rewards.rules.tiny_lm import save_tiny_lm

from plaudit.data.prompt import Prompt
from plaudit.rewards.base import Score, Status, missing
from plaudit.rewards.calling.call import call_reward
from plaudit.rewards.rules.redundancy import NeededReasoning, chunks, needed_share, redundant, token_starts

JUDGE = {"type": "states_answer"}
CHECKED_TWICE = "first\n3+4 = 7\nWait, check\n3+4 = 7\nTherefore\n7</think>Therefore 7 it is"


def failing(prompts: Sequence[str], outputs: Sequence[str]) -> list[Score]:
    return [missing(Status.TIMED_OUT, "away") for _ in outputs]


def unreadable(prompts: Sequence[str], outputs: Sequence[str]) -> list[Score]:
    return [missing(Status.PARSE_FAILED, "what?") for _ in outputs]


def score(outputs: Sequence[str], right: Sequence[float | None], answer: object = "7", **arguments) -> list[Score]:
    prompts = [Prompt(id=str(i), text="3+4?", facts={"correct": r, "answer": answer}) for i, r in enumerate(right)]
    reward = NeededReasoning(**({"judge": JUDGE, "unit": "words", "limit": 100} | arguments))
    return call_reward("x", reward, prompts, list(outputs))


def pieces(text: str) -> list[str]:
    return [text[span.start : span.end] for span in chunks(text)]


def test_chunks_begin_at_words_of_reconsideration() -> None:
    assert pieces(CHECKED_TWICE) == ["first\n3+4 = 7\n", "Wait, check\n3+4 = 7\n", "Therefore\n7"]
    assert pieces("no such word") == ["no such word"] and pieces("") == [] and pieces("</think>Wait\n7\n") == []
    assert pieces("Letters and Buttons\nWaiting\nalso But") == ["Letters and Buttons\nWaiting\nalso ", "But"]


def test_one_line_pieces_join_the_next_and_nothing_is_lost() -> None:
    assert pieces("so\nWait, Wait, But look\nagain Hmm") == ["so\nWait, Wait, But look\nagain ", "Hmm"]
    for text in (CHECKED_TWICE, "Wait\nHmm\n\nBut a\nb Let us Therefore", "Wait"):
        assert "".join(pieces(text)) == text.partition("</think>")[0]


def test_the_needed_part_ends_with_the_first_chunk_that_answers() -> None:
    spans = chunks(CHECKED_TWICE)
    tail = redundant(spans, [True, True, False])
    assert tail is not None and CHECKED_TWICE[tail.start : tail.end] == "Wait, check\n3+4 = 7\nTherefore\n7"
    assert redundant(spans, [False, False, True]) is None and redundant(spans, [False] * 3) is None
    assert redundant([], []) is None
    assert [needed_share(v) for v in ([True, False], [False, True], [False, False])] == [0.5, 1, None]


def test_tokens_of_the_tail_earn_less_and_those_of_the_answer_do_not() -> None:
    found = score([CHECKED_TWICE, CHECKED_TWICE], [1, 0])
    words, beta = CHECKED_TWICE.split(), 0.1
    less = 1 + beta * (1 - len(words) / 100)
    tail = (
        ["first", "3+4", "=", "7"],
        ["Wait,", "check", "3+4", "=", "7", "Therefore"],
        ["7</think>Therefore", "7", "it", "is"],
    )
    assert words == [word for part in tail for word in part]
    # the word that straddles the mark begins in the tail
    assert found[0].dense.tolist() == pytest.approx([1.1] * 4 + [less] * 7 + [1.1] * 3)
    assert found[0].value == pytest.approx((7 * 1.1 + 7 * less) / 14)
    assert found[0].components["redundant_tokens"] == 7 and found[0].components["needed_share"] == pytest.approx(1 / 3)
    assert found[1].dense.tolist() == [0] * 14 and found[1].value == 0 and "needed_share" not in found[1].components


def test_a_wrong_output_does_not_profit_from_stopping_early() -> None:
    assert [s.value for s in score(["8", CHECKED_TWICE, "3+4 = 8 </think> 8"], [0, 0, 0])] == [0, 0, 0]


def test_needed_words_cost_nothing_however_many() -> None:
    brief, long = "3+4 = 7</think>7", "take 3 and\ncount on four times\nto reach 7</think>7"
    assert [s.value for s in score([brief, long], [1, 1])] == pytest.approx([1.1, 1.1])
    repeated = brief.replace("</think>", "\nWait\n7 again\n" * 5 + "</think>")
    assert score([repeated], [1])[0].value < 1.1


def test_a_right_output_whose_chunks_all_fail_is_not_punished() -> None:
    found = score(["Hmm\nseven\nWait\nyes</think>7"], [1])
    assert found[0].value == pytest.approx(1.1) and "needed_share" not in found[0].components
    nothing_read = score([CHECKED_TWICE], [1], judge={"type": "tests.rewards.rules.test_redundancy:unreadable"})
    assert nothing_read[0].value == pytest.approx(1.1)


def test_a_failing_judge_gives_no_number_and_is_not_asked_about_wrong_outputs() -> None:
    found = score([CHECKED_TWICE, "8"], [1, 0], judge={"type": "tests.rewards.rules.test_redundancy:failing"})
    assert [s.status for s in found] == [Status.TIMED_OUT, Status.OK]
    assert score([CHECKED_TWICE], [1], answer=None)[0].status is Status.NOT_APPLICABLE


def test_empty_outputs_and_outputs_past_the_limit() -> None:
    assert [s.value for s in score(["", ""], [1, 0])] == pytest.approx([1.1, 0])
    assert min(score([CHECKED_TWICE], [1], limit=5)[0].dense.tolist()) == 1


def test_tokens_of_a_tokenizer_follow_its_offsets(tmp_path) -> None:
    folder = save_tiny_lm(tmp_path)
    text = "the sum is 7 .\nso stop\nWait go on\n7</think>7"
    assert [text[s:][:4].split()[0] for s in token_starts(text, folder)][:4] == ["the", "sum", "is", "7"]
    dense = score([text], [1], unit=folder)[0].dense
    starts = token_starts(text, folder)
    assert len(dense) == len(starts)
    wait, end = text.index("Wait"), text.index("</think>")
    assert [bool(d < 1.1 - 1e-6) for d in dense] == [wait <= s < end for s in starts]
    assert token_starts("a b", "characters") == [0, 1, 2] and token_starts(" a  b", "words") == [1, 4]
