from __future__ import annotations

import json

import pytest

from plaudit.data.prompt import Prompt
from plaudit.data.tasks import UNSOUND, decode, encode, reasoning_gym_prompts
from plaudit.rewards.base import Status
from plaudit.rewards.calling.call import call_reward
from plaudit.rewards.rules import puzzles
from plaudit.rewards.rules.bounded import Helper
from plaudit.rewards.rules.puzzles import COMPUTED, EVALUATED, harmless, reasoning_gym

pytest.importorskip("reasoning_gym")
from reasoning_gym.factory import DATASETS

WITHOUT_ORACLE = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
TASKS = sorted(set(DATASETS) - UNSOUND - {"composite"})
GARBAGE = "zz garbage 7?"


def test_every_task_pays_its_own_answer_and_not_garbage() -> None:
    """Facts go through JSON, as they do in files and over the wire."""
    assert len(TASKS) >= 100
    stored = [prompt for task in TASKS for prompt in reasoning_gym_prompts(task, 1, 7)]
    prompts = [Prompt(id=one.id, text=one.text, facts=json.loads(json.dumps(one.facts))) for one in stored]
    oracles = [decode(prompt.facts["entry"])["answer"] for prompt in prompts]
    right = call_reward("gym", reasoning_gym, prompts, [f"<answer>{oracle}</answer>" for oracle in oracles])
    wrong = call_reward("gym", reasoning_gym, prompts, [f"<answer>{GARBAGE}</answer>" for _ in prompts])
    for task, good, bad in zip(TASKS, right, wrong, strict=True):
        assert good.status is Status.OK and bad.status is Status.OK, (task, good, bad)
        assert bad.value <= 0.2, (task, bad)
        assert good.value == 1 or task in WITHOUT_ORACLE or "Integral(" in str(oracles[TASKS.index(task)]), (task, good)


@pytest.mark.parametrize("task", sorted(EVALUATED | COMPUTED))
def test_oracles_of_evaluating_tasks_are_harmless(task: str) -> None:
    for prompt in reasoning_gym_prompts(task, 8, 0):
        oracle = decode(prompt.facts["entry"])["answer"]
        assert harmless(task, oracle) or "Integral(" in oracle, oracle


HOSTILE = [
    "__import__('os').system('true')",
    "[x for x in ().__class__.__bases__]",
    "open('x','w')",
    "entry",
    "oracle_answer",
    "[9**9**9]",
    "(lambda: 0)()",
    "x.__class__",
    "sin.__globals__",
    "sympify('1')",
    "eval(1)",
    "Integral(x**2, x)",
    "a b; import os",
    "1 if open('x') else 2",
    "{}.get(1)",
]


@pytest.mark.parametrize("answer", HOSTILE)
def test_no_answer_becomes_a_program(answer: str) -> None:
    for task in EVALUATED | COMPUTED:
        try:
            compile(answer, "answer", "eval")
        except SyntaxError:
            assert task in EVALUATED or not harmless(task, answer)
        else:
            assert not harmless(task, answer), (task, answer)


def test_plain_answers_reach_the_scorer() -> None:
    assert harmless("countdown", "49*(85 - 1)/14 - 42") and harmless("simple_integration", "x**2*sin(x) + C")
    assert harmless("n_queens", "[['Q', '_'], ['_', 'Q']]") and harmless("spiral_matrix", "1 2 3")
    assert harmless("string_insertion", "ABCDE") and harmless("chain_sum", "anything(")


def test_a_scorer_that_never_ends_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    helper = Helper("puzzles", seconds=0.5)
    monkeypatch.setattr(puzzles, "helper", lambda kind: helper)
    prompts = reasoning_gym_prompts("countdown", 1, 0)
    found = call_reward("gym", reasoning_gym, prompts * 2, ["<answer>9**9**9**9</answer>", "<answer>1</answer>"])
    assert [one.status for one in found] == [Status.TIMED_OUT, Status.OK]
    helper.stop()


def test_a_broken_entry_is_an_error_and_a_broken_answer_is_worth_nothing() -> None:
    whole = reasoning_gym_prompts("prime_factorization", 1, 0)[0]  # its scorer raises on words
    broken = Prompt(id="b", text="", facts={"task": "countdown", "config": {"nonsense": 1}, "entry": {"answer": "1"}})
    found = call_reward("gym", reasoning_gym, [whole, broken], [f"<answer>{GARBAGE}</answer>", "<answer>1</answer>"])
    assert found[0].value == 0 and found[1].status is Status.ERRORED and "nonsense" in found[1].note


@pytest.mark.parametrize(
    "task, answer, paid",
    [
        ("countdown", "94*4 - 61 - 6", True),
        ("countdown", "-(6 + 61) + 94 * 4", True),
        ("countdown", "309*x/x", False),
        ("countdown", "(94*4 - 61 - 6)*x/x", False),
        ("countdown", "94*4 - 61 - 6 + y - y", False),
        ("countdown", "94*4 - 61 - 6.0", False),
        ("countdown", "309 + 0*(94 + 4 + 61 + 6)", False),
        ("countdown", "94**4 - 61 - 6", False),
        ("countdown", "94/(4 - 4) + 61 + 6", False),
        ("countdown", "True*94*4 - 61 - 6", False),
        ("countdown", "(" * 300 + "1" + ")" * 300, False),
        ("puzzle24", "10*(8 - 5) - 6", True),
        ("puzzle24", "6*4*1*1", False),
        ("puzzle24", "24*x/x + 5 - 5", False),
        ("puzzle24", "8*(10 - 6) - 5 - 2.5", False),
        ("puzzle24", "6*5 - 10/8 - 4", False),
    ],
)
def test_games_are_paid_for_what_they_ask(task: str, answer: str, paid: bool) -> None:
    """Of the given numbers, each once, by plain arithmetic, exactly the target."""
    metadata = {"countdown": {"numbers": [6, 61, 94, 4], "target": 309}, "puzzle24": {"numbers": [8, 5, 10, 6]}}[task]
    entry = encode({"question": "", "answer": "", "metadata": metadata})
    prompt = Prompt(id="q", text="", facts={"task": task, "config": {}, "entry": entry})
    found = call_reward("gym", reasoning_gym, [prompt], [f"<answer>{answer}</answer>"])[0]
    assert found.status is Status.OK and (found.value == 1) == paid, found


def test_the_configuration_reaches_the_scorer() -> None:
    """puzzle24 refuses numbers outside its range."""
    entry = encode({"question": "", "answer": "8*3*1*1", "metadata": {}})
    prompts = [
        Prompt(id=str(most), text="", facts={"task": "puzzle24", "config": {"max_value": most}, "entry": entry})
        for most in (5, 10)
    ]
    found = call_reward("gym", reasoning_gym, prompts, ["<answer>8*3*1*1</answer>"] * 2)
    assert found[0].value < 0.1 and found[1].value == 1
