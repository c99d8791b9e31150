"""HAPO's history: first visits, clipping, order, forgetting, resuming."""

from __future__ import annotations

import json
import math
import random

import pytest

from plaudit.data.prompt import Prompt
from plaudit.errors import RewardError
from plaudit.rewards.base import Score, Status
from plaudit.rewards.calling.call import Caller
from plaudit.rewards.calling.request import make_request
from plaudit.rewards.rules.length_history import ShorterThanBefore, against_history, length_term
from plaudit.rewards.rules.outcomes import Outcome

Row = tuple[str, int | None, int]  # prompt, right, length


def score(reward: ShorterThanBefore, rows: list[Row]) -> list[Score]:
    prompts = [Prompt(id=id_, text="?", facts={"correct": right, "completion_ids": [0] * n}) for id_, right, n in rows]
    return Caller("x", reward)(make_request(prompts, [""] * len(rows)))


def value(reward: ShorterThanBefore, rows: list[Row]) -> list[float]:
    return [s.value for s in score(reward, rows)]


def test_the_cosine_and_its_clips() -> None:
    assert against_history(0, 10) == 1 and against_history(10, 10) == pytest.approx(0, abs=1e-12)
    assert against_history(5, 10) == pytest.approx(math.sqrt(0.5)) and against_history(20, 10) == -1
    assert against_history(1000, 10) == -1 and against_history(0, 0) == 1 and against_history(5, 0) == -1
    right, wrong = (lambda n: Outcome(correct=True, length=n)), (lambda n: Outcome(correct=False, length=n))
    assert length_term(right(5), None, -0.7) == length_term(wrong(5), None, -0.7) == 0
    assert length_term(right(5), 10, -0.7) == pytest.approx(math.sqrt(0.5)) and length_term(right(20), 10, -0.7) == -0.7
    assert length_term(wrong(5), 10, -0.7) == 0 and length_term(wrong(20), 10, -0.7) == -1


def test_a_first_visit_has_no_length_term_and_a_second_one_has() -> None:
    reward = ShorterThanBefore()
    assert value(reward, [("a", 1, 30), ("a", 1, 10), ("a", 0, 5)]) == [1, 1, 0]
    assert value(reward, [("a", 1, 10), ("a", 1, 5), ("a", 1, 40), ("a", 0, 5), ("a", 0, 40)]) == pytest.approx(
        [1, 1 + math.sqrt(0.5), 0.3, 0, -1]
    )
    assert value(reward, [("b", 1, 10)]) == [1]
    assert value(reward, [("a", 1, 5)]) == pytest.approx([1])  # 5 is the shortest now


def test_a_long_right_output_stays_above_every_wrong_one() -> None:
    reward = ShorterThanBefore()
    score(reward, [("a", 1, 10)])
    found = value(reward, [("a", 1, 10**6), ("a", 0, 1), ("a", 0, 10**6)])
    assert found[0] > found[1] >= found[2]


def test_wrong_and_unknown_outputs_leave_no_trace() -> None:
    reward = ShorterThanBefore()
    found = score(reward, [("a", 0, 3), ("a", None, 2)])
    assert found[1].status is Status.NOT_APPLICABLE and not reward.shortest
    assert value(reward, [("a", 1, 10)]) == [1]
    score(reward, [("a", 0, 3), ("a", None, 2)])
    assert list(reward.shortest.values()) == [10]


def random_calls(count: int, seed: int = 0) -> list[list[Row]]:
    draw = random.Random(seed)
    return [
        [(f"p{draw.randrange(4)}", draw.choice((0, 1, 1, None)), draw.randrange(40)) for _ in range(12)]
        for _ in range(count)
    ]


def by_hand(calls: list[list[Row]], weight: float, floor: float) -> list[list[float]]:
    """The formulas written out once more, with a history kept row by row."""
    history: dict[str, int] = {}
    answers = []
    for rows in calls:
        answers.append([])
        for name, right, n in rows:
            f = 0.0
            if name in history and right is not None:
                f = math.cos(min(math.pi / 2 * n / max(history[name], 1), math.pi))
                f = max(f, floor) if right else min(f, 0.0)
            answers[-1].append(math.nan if right is None else right + weight * f)
        for name, right, n in rows:
            if right:
                history[name] = min(n, history.get(name, n))
    return answers


@pytest.mark.parametrize(("weight", "floor"), [(1.0, -0.7), (0.5, -0.2)])
def test_many_calls_are_the_formulas_written_out(weight: float, floor: float) -> None:
    reward, calls = ShorterThanBefore(weight=weight, floor=floor), random_calls(20)
    for rows, expected in zip(calls, by_hand(calls, weight, floor), strict=True):
        found = value(reward, rows)
        assert found == pytest.approx(expected, nan_ok=True)
        present = [v for v in found if not math.isnan(v)]
        assert reward.card.low <= min(present) and max(present) <= reward.card.high


def test_the_order_of_samples_does_not_matter() -> None:
    straight, mixed = ShorterThanBefore(capacity=3), ShorterThanBefore(capacity=3)
    for number, rows in enumerate(random_calls(20)):
        order = random.Random(number).sample(range(len(rows)), len(rows))
        found, moved = value(straight, rows), value(mixed, [rows[i] for i in order])
        assert moved == pytest.approx([found[i] for i in order], nan_ok=True)
        assert list(straight.shortest.items()) == list(mixed.shortest.items())


@pytest.mark.parametrize("killed_after", [0, 1, 7])
def test_resuming_is_the_uninterrupted_run(killed_after: int) -> None:
    calls, whole, first = random_calls(12), ShorterThanBefore(capacity=3), ShorterThanBefore(capacity=3)
    expected = [value(whole, rows) for rows in calls]
    for rows in calls[:killed_after]:
        value(first, rows)
    resumed = ShorterThanBefore(capacity=3)
    resumed.load_state(json.loads(json.dumps(first.state(), sort_keys=True)))
    for rows, wanted in zip(calls[killed_after:], expected[killed_after:], strict=True):
        assert value(resumed, rows) == pytest.approx(wanted, nan_ok=True)


def test_growth_is_bounded_and_the_longest_unsolved_go_first() -> None:
    reward = ShorterThanBefore(capacity=2)
    for name in ("a", "b", "a", "c"):
        score(reward, [(name, 1, 10)])
    assert len(reward.shortest) == 2
    assert value(reward, [("a", 1, 5), ("c", 1, 5), ("b", 1, 5)]) == pytest.approx([1 + math.sqrt(0.5)] * 2 + [1])


def test_prompts_with_the_same_id_but_another_text_are_two() -> None:
    reward = ShorterThanBefore(unit="words")
    one, other = (Prompt(id="7", text=text, facts={"correct": 1}) for text in ("2+2", "3+3"))
    Caller("x", reward)(make_request([one], ["a b"]))
    assert [s.value for s in Caller("x", reward)(make_request([one, other], ["a b c d"] * 2))] == pytest.approx(
        [0.3, 1]
    )


def test_a_history_in_another_unit_is_refused() -> None:
    with pytest.raises(RewardError, match="words"):
        ShorterThanBefore().load_state(ShorterThanBefore(unit="words").state())
