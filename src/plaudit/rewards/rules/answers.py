"""Rewards for a final answer that can be checked against a reference.

An answer is read from one place of the output, never searched for in it: a text that names every candidate is not right.
`place` says where: `boxed` (the last box), `tag` (the last `<answer>` part), `hash` (after the last `####`), `line` (the
last line that is not empty) or `whole`. Thoughts, that is all before the last `</think>`, are no place for an answer.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from plaudit.errors import RewardError
from plaudit.optional import require
from plaudit.rewards.base import Score, Status, card, missing
from plaudit.rewards.rules.bounded import HelperError, helper

MAX_EXPRESSION = 500  # characters; a longer expression is right only when it is the reference

# --- where the answer is ---------------------------------------------------------------------------------------------


def find_answer(text: str, place: str, tag: str = "answer") -> str | None:
    """The answer in its place, stripped; None where there is none, it is empty, or the output was cut off before it."""
    if place not in PLACES:
        raise RewardError(f"place {place!r}; allowed: {', '.join(PLACES)}")
    if "</think>" not in text and "<think>" in text:
        return None
    spoken = text.rpartition("</think>")[2]
    found = tagged(spoken, tag) if place == "tag" else PLACES[place](spoken)
    return (found or "").strip() or None


def tagged(text: str, tag: str = "answer") -> str | None:
    """The contents of the last complete part of this name."""
    before, closing, _ = text.rpartition(f"</{tag}>")
    _, opening, inside = before.rpartition(f"<{tag}>")
    return inside if closing and opening else None


def boxed(text: str) -> str | None:
    r"""The contents of the last `\boxed{...}`; None where it was never closed."""
    start = max(text.rfind(mark) + len(mark) if mark in text else -1 for mark in (r"\boxed{", r"\fbox{"))
    depth, at = 1, start
    while 0 <= at < len(text):
        if text[at] == "\\":
            at += 1  # an escaped brace is a letter
        elif text[at] in "{}":
            depth += 1 if text[at] == "{" else -1
            if depth == 0:
                return text[start:at]
        at += 1
    return None


def hashed(text: str) -> str | None:
    _, mark, rest = text.rpartition("####")
    return rest.strip().partition("\n")[0] if mark else None


def last_line(text: str) -> str | None:
    return text.strip().rpartition("\n")[2]


PLACES: dict[str, Callable[[str], str | None]] = {
    "boxed": boxed,
    "tag": tagged,
    "hash": hashed,
    "line": last_line,
    "whole": str,
}


def judged(
    outputs: Sequence[str], answer: Sequence[Any], place: str, judge: Callable[[str, Any], float | Score]
) -> list[float | Score]:
    """0 where the output has no answer in its place; nothing where the prompt has no reference."""
    scores: list[float | Score] = []
    for output, reference in zip(outputs, answer, strict=True):
        if reference is None or reference == "":
            scores.append(missing(Status.NOT_APPLICABLE, "the prompt has no reference answer"))
        else:
            found = find_answer(output, place)
            scores.append(judge(found, reference) if found is not None else 0.0)
    return scores


# --- mathematics -----------------------------------------------------------------------------------------------------


@card(kind="text", low=0, high=1, verdict=True, extra="math", systems=("S126", "S128"), cost_ms=5)
def boxed_answer(prompts: Sequence[str], outputs: Sequence[str], answer: Sequence[Any]) -> list[float | Score]:
    """1 where the last boxed expression equals `answer` mathematically."""
    return judged(outputs, answer, "boxed", lambda found, truth: equal(found, truth, "boxed_answer"))


@card(kind="text", low=0, high=1, verdict=True, extra="math", systems=("S128",), cost_ms=5)
def math_equal(
    prompts: Sequence[str], outputs: Sequence[str], answer: Sequence[Any], place: str = "tag"
) -> list[float | Score]:
    """1 where the answer in its place equals `answer` mathematically."""
    return judged(outputs, answer, place, lambda found, truth: equal(found, truth, "math_equal"))


INTEGER = re.compile(r"[+-]?\d{1,30}")


def equal(found: str, truth: Any, who: str) -> float | Score:
    """Equivalence by math-verify; equal texts and plain integers are told apart without it."""
    reference = str(truth).strip()
    shown, expected = found.replace(" ", ""), reference.replace(" ", "")
    if shown == expected:
        return 1.0
    if INTEGER.fullmatch(shown) and INTEGER.fullmatch(expected):
        return float(int(shown) == int(expected))
    if len(found) > MAX_EXPRESSION:
        return 0.0
    same = ask_algebra(who, "equal", reference, found)
    if same is None:
        return missing(Status.ERRORED, f"the reference {reference[:80]!r} cannot be read as mathematics")
    return same if isinstance(same, Score) else float(same)


def ask_algebra(who: str, question: str, *arguments: str) -> Any:
    """The answer of a helper process that can be stopped; a missing score where it had to be."""
    require("math_verify", extra="math", who=f"reward {who}")
    try:
        return helper("algebra")(question, *arguments)
    except TimeoutError as error:
        return missing(Status.TIMED_OUT, str(error))
    except HelperError as error:
        return missing(Status.ERRORED, str(error))


# --- numbers, letters, words -----------------------------------------------------------------------------------------


@card(kind="text", low=0, high=1, verdict=True, cost_ms=0.02)
def number_answer(
    prompts: Sequence[str],
    outputs: Sequence[str],
    answer: Sequence[Any],
    place: str = "tag",
    relative: float = 1e-6,
    absolute: float = 1e-9,
) -> list[float | Score]:
    """1 where the answer is one number within a tolerance of `answer`; a unit behind it is not compared."""

    def close(found: str, truth: Any) -> float | Score:
        expected, number = number_of(str(truth)), number_of(found)
        if expected is None:
            return missing(Status.ERRORED, f"the reference {truth!r} is not a number")
        tolerance = max(Fraction(absolute), Fraction(relative) * abs(expected))
        return float(number is not None and abs(number - expected) <= tolerance)

    return judged(outputs, answer, place, close)


DECIMAL = r"(?:\d{1,3}(?:,\d{3})+|\d{1,40})(?:\.\d{0,40})?|\.\d{1,40}"
NUMBER = re.compile(
    rf"[$€£¥]?\s*([+-]?)\s*[$€£¥]?\s*({DECIMAL})(?:[eE]([+-]?\d{{1,3}}))?(?:\s*/\s*(\d{{1,40}}))?(?P<unit>.*)"
)
UNIT = re.compile(
    r"\s*[^\W\d_.,]{0,20}[%°]?(?:\s+(?!and\b|or\b|to\b)[^\W\d_]{1,20}){0,2}(?:/[^\W\d_]{1,10})?(?:[²³]|\^[23])?\s*\.?"
)
LATEX_NOISE = re.compile(r"\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}|\\[,;! ]|\\\(|\\\)|\$(?!\d)|(?<=\\)%")


def number_of(text: str) -> Fraction | None:
    """The one number that a text is, exactly: 1,234.5, -3/4, 2e-3, $5, 12 cm. None where it is anything else."""
    cleaned = LATEX_NOISE.sub(lambda match: f" {match[1] or ''}", text).replace("\\", "").replace("−", "-")
    match = NUMBER.fullmatch(cleaned.strip().strip("*").strip())
    if match is None or not UNIT.fullmatch(match["unit"]):
        return None
    sign, digits, exponent, divisor = match[1], match[2], match[3], match[4]
    if divisor is not None and int(divisor) == 0:
        return None
    magnitude = Fraction(digits.replace(",", "").rstrip(".") or "0") * Fraction(10) ** int(exponent or 0)
    return (-1 if sign == "-" else 1) * magnitude / int(divisor or 1)


@card(kind="text", low=0, high=1, verdict=True, cost_ms=0.02)
def choice_answer(
    prompts: Sequence[str],
    outputs: Sequence[str],
    answer: Sequence[str],
    place: str = "tag",
    choices: str = "ABCD",
) -> list[float | Score]:
    """1 where the answer is the letter of `answer`, alone or set off from a text behind it: B, (B), B. because."""

    def same(found: str, truth: str) -> float | Score:
        expected = letter_of(truth, choices)
        if expected is None:
            return missing(Status.ERRORED, f"the reference {truth!r} is none of the letters {choices}")
        return float(letter_of(found, choices) == expected)

    return judged(outputs, answer, place, same)


def letter_of(text: str, choices: str) -> str | None:
    """The letter that a text chooses; None where it chooses none or more than one."""
    bare = re.sub(r"\\(?:text|textbf|mathrm)\s*\{([^{}]*)\}|[*$]", lambda match: match[1] or "", text).strip()
    letter = f"[{re.escape(choices + choices.lower())}]"
    lead = r"(?:(?i:option|choice|answer)\s*:?\s*)?"
    match = re.fullmatch(rf"{lead}(?:\(({letter})\)|({letter})(?=[.:),]|$))(.*)", bare, re.DOTALL)
    if match is None or re.search(rf"{letter}\)|(?:\bor\b|\band\b|,)\s*\(?{letter}\b", match[3]):
        return None
    return (match[1] or match[2]).upper()


@card(kind="text", low=0, high=1, verdict=True, cost_ms=0.02)
def exact_answer(
    prompts: Sequence[str], outputs: Sequence[str], answer: Sequence[str | Sequence[str]], place: str = "tag"
) -> list[float | Score]:
    """1 where the answer is `answer`, or one of several, but for case, spaces, width and the punctuation around it."""

    def same(found: str, truth: str | Sequence[str]) -> float | Score:
        accepted = {normalised(str(one)) for one in ([truth] if isinstance(truth, str | int | float) else truth)} - {""}
        if not accepted:
            return missing(Status.ERRORED, f"the reference {truth!r} is empty but for punctuation")
        return float(normalised(found) in accepted)

    return judged(outputs, answer, place, same)


def normalised(text: str) -> str:
    """Compatibility form, case folded, single spaces, without punctuation at the ends."""
    words = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    kept = [i for i, letter in enumerate(words) if unicodedata.category(letter)[0] not in "PZ"]
    return words[kept[0] : kept[-1] + 1] if kept else ""
