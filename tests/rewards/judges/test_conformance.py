"""What every reward that asks a judge must hold to, whatever it asks and however it reads."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tests.rewards.judges.backends import Scripted

from plaudit.dotted import import_dotted
from plaudit.rewards.base import Status
from plaudit.rewards.calling.call import Caller
from plaudit.rewards.judges.ask import Answer, AnswerCache, Asked, Cost, Judge, as_judge, declined
from plaudit.rewards.load import find_reward
from plaudit.rewards.pinned import agrees, load_pinned
from plaudit.rewards.table import BUILT_IN, UNPINNED


def asks(name: str) -> bool:
    """Whether a reward of the table asks a judge."""
    thing = import_dotted(BUILT_IN[name], name)
    return inspect.isclass(thing) and "judge" in inspect.signature(thing).parameters


JUDGED = sorted(name for name in BUILT_IN if ".judges." in BUILT_IN[name] and name not in UNPINNED and asks(name))


@dataclass(frozen=True, kw_only=True)
class Case:
    """A reward with its pinned outputs, and a judge that says what the lab's judge would, from the same questions."""

    name: str
    cache: Path

    @property
    def pinned(self) -> Any:
        return load_pinned(self.name)

    def lab(self) -> Callable[[Asked], str]:
        backend = as_judge(self.pinned.arguments["judge"]).backend
        return lambda asked: backend.answer([asked])[0].text

    def scored(
        self, say: Callable[[Asked], Any], identity: str | None = None, **more: Any
    ) -> tuple[list[Any], Scripted]:
        backend = Scripted(say, identity)
        judge = Judge(backend, cache=AnswerCache(self.cache))
        arguments = {**self.pinned.arguments, "judge": judge, **more}
        return Caller(self.name, find_reward(self.name, self.name, arguments))(self.pinned.request), backend

    @property
    def applicable(self) -> list[bool]:
        """Which outputs are asked about at all."""
        scores, _ = self.scored(lambda asked: "no verdict")
        return [score.status is Status.PARSE_FAILED for score in scores]


@pytest.fixture(params=JUDGED)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return Case(name=request.param, cache=tmp_path)


def test_the_lab_judge_by_way_of_questions_gives_what_is_pinned(case: Case) -> None:
    scores, backend = case.scored(case.lab(), samples=1)
    assert all(agrees(*row, case.pinned.tolerance) for row in zip(scores, case.pinned.expected, strict=True))
    assert backend.asked and all(asked.question.parts for asked in backend.asked), "the question cannot be sent"


@pytest.mark.parametrize(
    "answer, status",
    [
        (declined(Status.REFUSED, "no"), Status.REFUSED),
        (declined(Status.TIMED_OUT, "late"), Status.TIMED_OUT),
        (declined(Status.ERRORED, "away"), Status.ERRORED),
        (Answer(text=""), Status.PARSE_FAILED),
        (Answer(text="Lovely! 9 of 10."), Status.PARSE_FAILED),
        (Answer(text="{}"), Status.PARSE_FAILED),
        (Answer(text="[]"), Status.PARSE_FAILED),
    ],
)
def test_what_is_declined_or_cannot_be_read_is_missing(case: Case, answer: Answer, status: Status) -> None:
    """The middle of the scale, which papers' code puts there, would praise what is bad."""
    scores, _ = case.scored(lambda asked: answer)
    asked = case.applicable
    assert any(asked)
    assert all(score.status is status and score.note for score, there in zip(scores, asked, strict=True) if there)


def test_a_cut_answer_is_missing(case: Case) -> None:
    lab = case.lab()
    scores, _ = case.scored(lambda asked: Answer(text=lab(asked), cut=True))
    assert all(
        score.status is Status.PARSE_FAILED for score, there in zip(scores, case.applicable, strict=True) if there
    )


def test_a_verdict_that_the_judge_quotes_is_none(case: Case) -> None:
    """What is judged holds a verdict as good as any, and the judge repeats it and goes on talking."""
    lab = case.lab()
    for quote in (
        "It says {0} and wants to be believed.",
        "It says:\n{0}\nI do not follow that.",
        '{{"thought": "it says {0}',
    ):
        scores, _ = case.scored(lambda asked, quote=quote: quote.format(lab(asked)))
        there = [score for score, asked in zip(scores, case.applicable, strict=True) if asked]
        assert {score.status for score in there} == {Status.PARSE_FAILED}, quote


def test_thoughts_and_prose_before_a_verdict_change_nothing(case: Case) -> None:
    lab = case.lab()
    plain, _ = case.scored(lab)
    for around in ("<think>{0}\nNo, wait.</think>\n{0}", "I looked closely.\n\n{0}\n\n"):
        found, _ = case.scored(lambda asked, around=around: around.format(lab(asked)))
        assert all(agrees(one, other, 1e-9) for one, other in zip(found, values(plain), strict=True)), around


def values(scores: list[Any]) -> list[Any]:
    return [score.value if score.status is Status.OK else score.status.value for score in scores]


def test_nothing_is_asked_twice(case: Case) -> None:
    lab = case.lab()
    first, backend = case.scored(lab, identity="lab", samples=2)
    again, silent = case.scored(lambda asked: pytest.fail("asked again"), identity="lab", samples=2)
    assert values(first) == values(again) and not silent.asked
    assert len({(asked.question.key, asked.k) for asked in backend.asked}) == len(backend.asked)
    assert {asked.k for asked in backend.asked} == {0, 1}


def test_several_answers_are_averaged_and_those_that_cannot_be_read_left_out(case: Case) -> None:
    lab = case.lab()
    plain, _ = case.scored(lab)
    found, _ = case.scored(lambda asked: lab(asked) if asked.k != 1 else "no verdict", samples=3)
    assert all(agrees(one, other, 1e-9) for one, other in zip(found, values(plain), strict=True))


def test_what_it_costs_is_a_metric(case: Case) -> None:
    lab = case.lab()
    backend = Scripted(lambda asked: Answer(text=lab(asked), cost=Cost(calls=1, tokens=5, seconds=0.5)))
    judge = Judge(backend, cache=AnswerCache(case.cache))
    caller = Caller(case.name, find_reward(case.name, case.name, {**case.pinned.arguments, "judge": judge}))
    caller(case.pinned.request)
    metrics = caller.meter.take_metrics()
    calls = len(backend.asked)
    assert {name: metrics[f"judge_{name}"] for name in ("calls", "tokens", "seconds")} == {
        "calls": calls, "tokens": 5 * calls, "seconds": 0.5 * calls
    }  # fmt: skip
    assert judge.cost == Cost(calls=calls, tokens=5 * calls, seconds=0.5 * calls)
    caller(case.pinned.request)
    assert caller.meter.take_metrics()["judge_calls"] == 0, "what was known costs nothing"


def test_each_output_is_asked_about_with_its_own_prompt(case: Case) -> None:
    lab, request = case.lab(), case.pinned.request
    turned = replace(case.pinned, request=request.rows(range(len(request))[::-1])).request
    judge = Judge(Scripted(lab, None))
    reward = Caller(case.name, find_reward(case.name, case.name, {**case.pinned.arguments, "judge": judge}))
    assert all(agrees(*row, 1e-9) for row in zip(reward(turned)[::-1], values(reward(request)), strict=True))
