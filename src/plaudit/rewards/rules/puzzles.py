"""Any reasoning-gym task's own scorer as a reward.

Nine scorers hand the answer to Python's or SymPy's evaluator. Here such an answer reaches them only where it is plain data
or plain arithmetic, and all scorers run in a process that is stopped when it takes too long.
"""

from __future__ import annotations

import ast
import operator
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from plaudit.data.tasks import decode
from plaudit.optional import require
from plaudit.rewards.base import Score, Status, card, missing
from plaudit.rewards.rules.answers import find_answer
from plaudit.rewards.rules.bounded import HelperError, helper

EVALUATED = frozenset({"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"})
COMPUTED = frozenset(
    {"countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration"}
)
# No `Integral`: a scorer that differentiates the answer would pay for naming the question.
FUNCTIONS = frozenset(
    "sin cos tan cot sec csc asin acos atan sinh cosh tanh asinh acosh atanh exp log ln sqrt erf pi Abs".split()
)
GAMES = {"countdown": None, "puzzle24": 24}  # make a number of others; None where the entry names it
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
MAX_ANSWER = 20_000  # characters
MAX_GAME = 400


@card(kind="text", low=0, high=1, extra="tasks", cost_ms=1)
def reasoning_gym(
    prompts: Sequence[str],
    outputs: Sequence[str],
    task: Sequence[str],
    entry: Sequence[Mapping[str, Any]],
    config: Sequence[Mapping[str, Any] | None] | None = None,
    place: str = "tag",
) -> list[Score]:
    """The puzzle's own scorer on the answer; prompts come from `reasoning_gym_prompts`."""
    require("reasoning_gym", extra="tasks", who="reward reasoning_gym")
    configs = config if config is not None else [None] * len(outputs)
    rows = zip(outputs, task, entry, configs, strict=True)
    return [_score(find_answer(output, place), *row) for output, *row in rows]


def _score(
    answer: str | None, task: str | None, entry: Mapping[str, Any] | None, config: Mapping[str, Any] | None
) -> Score:
    if task is None or entry is None:
        return missing(Status.NOT_APPLICABLE, "the prompt is no reasoning-gym puzzle")
    if answer is None or len(answer) > MAX_ANSWER:
        return Score(value=0.0, note="no answer in its place" if answer is None else "the answer is too long")
    if not harmless(task, answer):
        return Score(value=0.0, note="the answer holds more than data or arithmetic, and was not evaluated")
    try:
        value = helper("puzzles")("score", task, dict(config or {}), entry, answer)
    except TimeoutError as error:
        return missing(Status.TIMED_OUT, str(error))
    except HelperError as error:
        return missing(Status.ERRORED, str(error))
    if task in GAMES and value == 1 and (broken := rule_broken(task, answer, entry.get("metadata") or {})):
        return Score(value=0.0, note=broken)
    return Score(value=value)


def harmless(task: str, answer: str) -> bool:
    """Whether the task's scorer may see the answer: evaluating it does nothing but compute."""
    if task in EVALUATED:
        return _plain_data(answer)
    return task not in COMPUTED or _plain_arithmetic(answer)


def _plain_data(answer: str) -> bool:
    """Literals, single words and what is no Python at all (a matrix in rows, say), which an evaluator refuses."""
    try:
        ast.literal_eval(answer)
    except SyntaxError:
        return True
    except (ValueError, TypeError, MemoryError, RecursionError):
        return re.fullmatch(r"[A-Z]+", answer) is not None
    return True


def _plain_arithmetic(answer: str) -> bool:
    words = re.findall(r"[^\W\d]\w*", answer)
    known = all(len(word) == 1 or word in FUNCTIONS for word in words)
    return known and re.fullmatch(r"(?:[\w\s+\-*/^()=,]|(?<!\w)\.\d|(?<=\d)\.)*", answer) is not None


def rule_broken(task: str, answer: str, facts: Mapping[str, Any]) -> str | None:
    """Why an answer is not one, although the game's own scorer pays in full: to it `x/x` is 1, and 24.9 is 24."""
    used: list[int] = []
    try:
        if len(answer) > MAX_GAME:
            raise SyntaxError
        value = _game_value(ast.parse(answer.strip(), mode="eval").body, used)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return "the answer is more than whole numbers, brackets and + - * /"
    except ZeroDivisionError:
        return "the answer divides by zero"
    target = facts.get("target", GAMES[task])
    if target is not None and value != target:
        return f"the answer is {float(value):g}, not {target}"
    if "numbers" in facts and Counter(used) != Counter(decode(facts["numbers"])):
        return f"the answer uses {sorted(used)}, not the numbers given"
    return None


def _game_value(node: ast.expr, used: list[int]) -> Fraction:
    match node:
        case ast.Constant(value=int() as number) if not isinstance(number, bool):
            used.append(number)
            return Fraction(number)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_game_value(inner, used)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return Fraction(OPERATORS[type(op)](_game_value(left, used), _game_value(right, used)))
    raise ValueError(ast.dump(node))
