"""The exact checker of the `sums` world: what a solution says, whether it is right, and which part of it was needed.

A solution is statements and then `#` with the answer, such as `37+80=117;117+5=122#122`. A statement asserts a running
total (`122`), a step from one running total to the next (`117+5=122`) or the whole sum (`37+85=122`). `:` ends a
restatement of the problem, `?` begins the calculation anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from plaudit.lab.sums.grammar import expression

BOXED = re.compile(r"[^#]*#(0|[1-9]\d*)")
_STATEMENT = re.compile(r"[^;:?]+")
_VALUE = re.compile(r"(?:([0-9+-]+)=)?([0-9]{1,30})")
_STEP = re.compile(r"([0-9]{1,30})([+-][0-9]{1,30})")
_LAST_NUMBER = re.compile(r"([0-9]+)[^0-9]*$")
NEEDED, REDUNDANT, ANSWER, UNKNOWN = "n", "r", "a", "."


@dataclass(frozen=True, kw_only=True)
class Step:
    """A statement of a running total: characters `start` to before `end`, the value, and whether its own arithmetic holds
    (for a bare total, whether the total is that of the operands so far)."""

    start: int
    end: int
    value: int
    holds: bool


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the checker found in one solution.

    `necessary` is the length of the prefix up to and including the first place where the right answer is derived or
    stated; None where it never is. Of what follows, only the final answer is not redundant. `marks` has one letter per
    character: n(eeded), r(edundant), a(nswer), or `.` throughout where nothing is known. One character is one token;
    `length` does not count the end.
    """

    well_formed: bool
    answer: str | None
    correct: bool
    length: int
    necessary: int | None
    marks: str
    steps: tuple[Step, ...]

    @property
    def redundant(self) -> int | None:
        return None if self.necessary is None else self.marks.count(REDUNDANT)


@dataclass
class _Pass:
    """How far one calculation has come: operands done, what is left of the next one, the running total. It is lost with the
    first statement that does not go on from there."""

    operands: Sequence[int]
    done: int = 1
    left: int | None = None
    lost: bool = False
    total: int = field(init=False)

    def __post_init__(self) -> None:
        self.total = self.operands[0]

    @property
    def concludes(self) -> bool:
        return not self.lost and self.done == len(self.operands)

    def step(self, before: int, part: int, value: int) -> None:
        """`part` must be the next operand, its tens, or the units that its tens left over."""
        operand = self.operands[self.done] if self.done < len(self.operands) else None
        if (
            before != self.total
            or operand is None
            or part not in ({operand, tens(operand)} if self.left is None else {self.left})
        ):
            self.lost = True
            return
        rest = (operand if self.left is None else self.left) - part
        self.done, self.left, self.total = self.done + (rest == 0), rest or None, value

    def bare(self, value: int) -> None:
        """The total after the next operand."""
        self.lost = self.lost or self.left is not None or self.done == len(self.operands)
        if not self.lost:
            self.done, self.total = self.done + 1, value

    def whole(self, value: int) -> None:
        """The whole sum, from wherever the calculation was."""
        self.done, self.left, self.lost, self.total = len(self.operands), None, False, value


def read(completion: str, operands: Sequence[int]) -> Reading:
    """Judge the solution of the problem with these signed operands."""
    truth = sum(operands)
    boxed = BOXED.fullmatch(completion)
    answer = boxed[1] if boxed else None
    correct = answer == str(truth)
    body = completion.partition("#")[0]
    statements = list(_statements(body, operands))
    derived = next((step.end for step, concludes in statements if concludes and step.value == truth), None)
    necessary = derived if derived is not None else (len(completion) if correct else None)
    return Reading(
        well_formed=boxed is not None,
        answer=answer,
        correct=correct,
        length=len(completion),
        necessary=necessary,
        marks=_marks(len(completion), len(body) if boxed else len(completion), necessary),
        steps=tuple(step for step, _ in statements),
    )


def read_facts(completion: str, facts: Mapping[str, Any]) -> Reading:
    """`read` with the operands of a problem's facts."""
    return read(completion, facts["operands"])


def last_number(completion: str) -> str | None:
    """The last number of a text, wherever it stands."""
    found = _LAST_NUMBER.search(completion)
    return found[1] if found else None


def _marks(length: int, answer_from: int, necessary: int | None) -> str:
    if necessary is None:
        return UNKNOWN * length
    needed = min(necessary, answer_from)
    return NEEDED * needed + REDUNDANT * (answer_from - needed) + ANSWER * (length - answer_from)


def _statements(body: str, operands: Sequence[int]) -> Iterator[tuple[Step, bool]]:
    """Every readable statement, and whether it says what the whole sum is: by name, or at the end of an unbroken calculation."""
    whole = expression(operands)
    current = _Pass(operands)
    for match in _STATEMENT.finditer(body):
        if body[match.start() - 1 : match.start()] == "?":
            current = _Pass(operands)
        found = _VALUE.fullmatch(match[0])
        if found is None:
            continue
        left, value = found[1], int(found[2])
        if left == whole:
            current.whole(value)
            holds = value == sum(operands)
        elif left is None:
            current.bare(value)
            holds = not current.lost and value == sum(operands[: current.done])
        elif step := _STEP.fullmatch(left):
            current.step(int(step[1]), int(step[2]), value)
            holds = int(step[1]) + int(step[2]) == value
        else:
            continue
        yield Step(start=match.start(), end=match.end(), value=value, holds=holds), current.concludes


def tens(operand: int) -> int:
    """80 of 85, -10 of -14, 0 of 7."""
    size = abs(operand) // 10 * 10
    return size if operand > 0 else -size
