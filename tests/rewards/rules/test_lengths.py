"""Budgets, turning points and conciseness, and how lengths and rightness are learned."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from tests.rewards.rules.tiny_lm import save_tiny_lm

from plaudit.data.prompt import Prompt
from plaudit.errors import RewardError
from plaudit.rewards.base import Card, Score, Status, card
from plaudit.rewards.calling.call import call_reward
from plaudit.rewards.rules.lengths import (
    Brevity,
    BriefThought,
    CorrectWithin,
    FormatLength,
    concise,
    edge,
    format_gated,
    parabola,
    polyline,
)
from plaudit.rewards.rules.outcomes import OutcomeReward, count

EXACT = {"type": "tests.rewards.rules.test_lengths:ends_with"}
BOXED = {"type": "tests.rewards.rules.test_lengths:boxed"}


@card(kind="text", low=0, high=1)
def ends_with(prompts: Sequence[str], outputs: Sequence[str], answer: Sequence[str | None]) -> list[float | None]:
    """1 where the last word is the answer."""
    return [None if a is None else float(o.split()[-1:] == [a]) for o, a in zip(outputs, answer, strict=True)]


@card(kind="text", low=0, high=1)
def boxed(prompts: Sequence[str], outputs: Sequence[str]) -> list[float]:
    """1 where something is boxed."""
    return [float("\\boxed{" in output) for output in outputs]


@card(kind="text", low=0, high=1, batch_invariant=False)
def majority(prompts: Sequence[str], outputs: Sequence[str]) -> list[float]:
    """1 for the batch's most frequent output."""
    return [float(output == max(sorted(set(outputs)), key=outputs.count)) for output in outputs]


def broken(prompts: Sequence[str], outputs: Sequence[str]) -> list[float]:
    raise OSError("the verifier is away")


def prompts(facts: Sequence[dict], ids: Sequence[str] | None = None) -> list[Prompt]:
    return [Prompt(id=ids[i] if ids else str(i), text="?", facts=fact) for i, fact in enumerate(facts)]


def scores(reward, outputs: Sequence[str], facts: Sequence[dict], **rest) -> list[Score]:
    return call_reward("reward", reward, prompts(facts), list(outputs), **rest)


def values(*args, **rest) -> list[float]:
    return [score.value for score in scores(*args, **rest)]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_lm(tmp_path_factory.mktemp("tiny"))


# --- lengths and rightness -------------------------------------------------------------------------------------------


def test_units_are_what_they_say() -> None:
    text = "Größe  is\n面積"
    assert count([text, ""], "characters", "x") == [12, 0]
    assert count([text, ""], "words", "x") == [3, 0]
    assert count([text, ""], "tokens", "x", [[1, 2, 3, 4], []]) == [4, 0]


def test_a_tokenizer_counts_its_own_tokens(tokenizer_folder: str) -> None:
    assert count(["go on stop", "zebra", ""], tokenizer_folder, "x") == [3, 1, 0]


def test_tokens_are_never_replaced_by_something_else() -> None:
    """The text is there, but nobody asked for its characters."""
    with pytest.raises(RewardError, match=r"completion_ids.*words, characters"):
        scores(CorrectWithin(limit=3), ["a b"], [{"correct": 1}])
    found = scores(CorrectWithin(limit=3), ["a b", "a b"], [{"correct": 1, "completion_ids": [1]}, {"correct": 1}])
    assert [s.status for s in found] == [Status.OK, Status.NOT_APPLICABLE]


def test_rightness_from_a_column_or_from_a_reward_is_the_same() -> None:
    outputs = ["it is 7", "it is 8", "well then it is 7"]
    column = [{"correct": 1}, {"correct": 0}, {"correct": True}]
    from_column = values(CorrectWithin(limit=3, unit="words"), outputs, column)
    from_reward = values(CorrectWithin(limit=3, unit="words", correct=EXACT), outputs, [{"answer": "7"}] * 3)
    assert from_column == from_reward == [1, 0, 0]


def test_what_is_not_known_to_be_right_has_no_score() -> None:
    assert [
        s.status
        for s in scores(
            CorrectWithin(unit="words", correct=EXACT), ["it is 7"] * 2, [{"answer": "7"}, {"answer": None}]
        )
    ] == [Status.OK, Status.NOT_APPLICABLE]
    failed = scores(
        CorrectWithin(unit="words", correct={"type": "tests.rewards.rules.test_lengths:broken"}), ["it is 7"], [{}]
    )
    assert failed[0].status is Status.ERRORED and "the verifier is away" in failed[0].note
    unknown = scores(CorrectWithin(unit="words"), ["a", "a"], [{"correct": math.nan}, {"correct": 1}])
    assert [s.status for s in unknown] == [Status.NOT_APPLICABLE, Status.OK]
    with pytest.raises(RewardError, match="column `correct`"):
        scores(CorrectWithin(unit="words"), ["a"], [{}])


def test_an_inner_reward_that_compares_outputs_sees_the_whole_batch() -> None:
    reward = CorrectWithin(unit="words", correct={"type": "tests.rewards.rules.test_lengths:majority"})
    assert not reward.card.batch_invariant and CorrectWithin.card.batch_invariant
    assert values(reward, ["a", "b", "b"], [{}] * 3) == [0, 1, 1]


def test_the_base_scores_nothing() -> None:
    class Bare(OutcomeReward):
        card = Card(summary="nothing", kind="text", low=0, high=1)

    found = scores(Bare("bare", "words", None, 1.0), ["a"], [{"correct": 1}])
    assert found[0].status is Status.ERRORED


# --- the rewards -----------------------------------------------------------------------------------------------------


def test_truncation_pays_only_right_and_short() -> None:
    facts = [{"correct": c, "completion_ids": [0] * n} for c in (1, 0) for n in (0, 3999, 4000, 4001)]
    assert values(CorrectWithin(), [""] * 8, facts) == [1, 1, 1, 0, 0, 0, 0, 0]


def test_the_parabola_goes_through_its_points_and_is_smooth_at_the_turn() -> None:
    for turn in (0.1, 0.4, 0.5, 0.6, 0.8):
        assert parabola(0, turn) == 0 and parabola(turn, turn) == 1 and parabola(1, turn) == pytest.approx(-1)
        step = 1e-6
        left = (parabola(turn, turn) - parabola(turn - step, turn)) / step
        right = (parabola(turn + step, turn) - parabola(turn, turn)) / step
        assert abs(left) < 1e-3 and abs(right) < 1e-3
    assert parabola(0.25, 0.5) == pytest.approx(0.75) and parabola(0.75, 0.5) == pytest.approx(0.5)
    assert parabola(1, 1.0) == 1 and parabola(0.5, 1.0) == pytest.approx(0.75)
    assert [polyline(x) for x in (0, 0.25, 0.5, 0.75, 1)] == pytest.approx([0, 0.5, 1, 0, -1])


def test_a_malformed_output_never_gains_by_its_length() -> None:
    """The best length is worth nothing without the format, the worst still costs."""
    assert format_gated(False, 1.0) == 0 and format_gated(False, -1.0) == -1 and format_gated(False, 0.0) == 0
    assert format_gated(True, 1.0) == 2 and format_gated(True, -1.0) == 0
    reward = FormatLength(format=BOXED, limit=4, unit="words")
    outputs = ["", "7", "it 7", "it is 7", "it is now 7", "it is now surely 7", "\\boxed{7}", "a b c \\boxed{7}"]
    found = scores(reward, outputs, [{}] * len(outputs))
    assert [s.value for s in found] == pytest.approx([0, 0, 0, 0, -1, -1, 1.75, 0])
    assert found[2].components == {"format": 0, "length_term": 1, "length": 2}


def test_the_straight_curve() -> None:
    assert values(
        FormatLength(format=BOXED, limit=4, unit="words", curve="polyline"), ["a \\boxed{1}", "a b c"], [{}] * 2
    ) == [
        2,
        0,
    ]


def test_conciseness_is_linear_and_ends_at_its_floor() -> None:
    assert [concise(n, 100, 0.1) for n in (0, 25, 90, 100, 1000)] == pytest.approx([1, 0.75, 0.1, 0.1, 0.1])
    facts = [{"completion_ids": [0] * n} for n in (5, 20)]
    assert values(Brevity(limit=20, low=0), ["", ""], facts) == pytest.approx([0.75, 0])
    assert scores(Brevity(limit=20), ["", ""], [*facts[:1], {}])[1].status is Status.NOT_APPLICABLE


def test_a_brief_thought_by_default_is_one_of_fewer_than_ten_characters() -> None:
    outputs = [f"<think>{'x' * n}</think><answer>a</answer>" for n in (0, 9, 10, 11)]
    assert values(BriefThought(), outputs, [{}] * 4) == [1, 1, 0, 0]
    assert [edge(n, 10, 0) for n in (9, 10)] == [1, 0] and [edge(n, 10, 2) for n in (9, 10, 11, 12)] == [1, 0.5, 0, 0]


def test_leaving_the_thought_out_does_not_pay() -> None:
    outputs = ["<answer>robin</answer>", "", "<think>x", "x</think>", "<think>a</think>"]
    assert values(BriefThought(), outputs, [{}] * 5) == [0, 0, 0, 0, 1]
    assert values(
        BriefThought(limit=2, unit="words"), ["<think>two words</think>", "<think>one\n</think>"], [{}] * 2
    ) == [0, 1]
