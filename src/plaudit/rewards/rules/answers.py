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
from plaudit.rewards.rules.numbers import number_of, scripts_written_out

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
BETWEEN = re.compile(r"(?<!\w) | (?!\w)")  # spaces that part nothing
SEVERAL = re.compile(r"\d \d")  # math-verify would read one number


def equal(found: str, truth: Any, who: str) -> float | Score:
    """Equivalence by math-verify; equal texts, equal numbers and plain integers are told without it."""
    reference = str(truth).strip()
    spaced = " ".join(found.split())
    shown, expected = (BETWEEN.sub("", text).replace("**", "^") for text in (spaced, " ".join(reference.split())))
    number = None if "=" in shown and "=" in expected else number_of(reference)  # x=5 is not y=5
    if shown == expected or (number is not None and number == number_of(found)):
        return 1.0
    if SEVERAL.search(spaced):
        return 0.0
    if INTEGER.fullmatch(shown) and INTEGER.fullmatch(expected):
        return float(int(shown) == int(expected))
    if len(spaced) > MAX_EXPRESSION:
        return 0.0
    same = ask_algebra(who, "equal", expected, shown)
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
    """1 where the answer is one number within a tolerance of `answer`, as a decimal, fraction, power or `7 million`; a unit
    behind it is not compared."""

    def close(found: str, truth: Any) -> float | Score:
        expected, number = number_of(str(truth)), number_of(found)
        if expected is None:
            return missing(Status.ERRORED, f"the reference {truth!r} is not a number")
        tolerance = max(Fraction(absolute), Fraction(relative) * abs(expected))
        return float(number is not None and abs(number - expected) <= tolerance)

    return judged(outputs, answer, place, close)


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


CHOICE_LEAD = r"(?i:(?:the )?(?:correct |final |best )*(?:option|choice|answer)(?: is)? ?:? ?)?"
CHOICE_MARKS = re.compile(r"\\(?:text|textbf|mathrm|boxed) ?\{([^{}]*)\}|[*$]")
JOINED = r"(?i:or|and|plus|nor|with|then|vs|versus)"
TAKEN_BACK = (
    r"(?i:\b(?:it|that|answer|choice|option)(?: is|'s) (?:really |actually |rather )?|"
    r"\b(?:rather|instead|wait|actually|meant?)\b\W{0,3})(?i:option |choice )?"
)


def letter_of(text: str, choices: str) -> str | None:
    """The letter that a text chooses; None where it chooses none or more than one."""
    bare = " ".join(unicodedata.normalize("NFKC", text).split())
    for _ in range(2):  # a box around a text
        bare = CHOICE_MARKS.sub(lambda match: match[1] or "", bare)
    letter, large = f"[{re.escape(choices + choices.lower())}]", f"[{re.escape(choices.upper())}]"
    set_off = r"(?=$|\)|(?<!\d)[.:,](?![^\W_]\b)|(?<=\d)[.:,](?!\w))"  # neither C.E.O. nor 1.9
    match = re.fullmatch(rf"{CHOICE_LEAD}(?:\(({letter})\)|({letter}){set_off})(.*)", bare.strip(), re.DOTALL)
    if match is None:
        return None
    alone = rf"\(?{large}\)?(?=[\W_]*$| ?[.,:;)/&])"  # A, B and A: B, but not B. A cat
    listed = rf"(?<!\w){letter}[):]|(?<!\w){large}\. \S"
    if re.search(rf"^[\W_]*+(?:{JOINED}\b )?{alone}|{TAKEN_BACK}{alone}|{listed}", match[3]):
        return None
    return (match[1] or match[2]).upper()


@card(kind="text", low=0, high=1, verdict=True, cost_ms=0.02)
def exact_answer(
    prompts: Sequence[str], outputs: Sequence[str], answer: Sequence[str | Sequence[str]], place: str = "tag"
) -> list[float | Score]:
    """1 where the answer is `answer`, or one of several, but for case, spaces, width, and the quotes, brackets and full stop
    around a word. Signs, and what makes another word of it, count: `-5`, `C#`, `10²`."""

    def same(found: str, truth: str | Sequence[str]) -> float | Score:
        accepted = {normalised(str(one)) for one in ([truth] if isinstance(truth, str | int | float) else truth)} - {""}
        if not accepted:
            return missing(Status.ERRORED, f"the reference {truth!r} is empty but for punctuation")
        return float(normalised(found) in accepted)

    return judged(outputs, answer, place, same)


ENCLOSING = (
    ("(", ")"),
    ('"', '"'),
    ("'", "'"),
    ("`", "`"),
    ("“", "”"),
    ("‘", "’"),
    ("«", "»"),
    ("**", "**"),
    ("*", "*"),
)


def normalised(text: str) -> str:
    """Compatibility form, case folded, single spaces, one kind of dash, without what merely surrounds a word."""
    plain = unicodedata.normalize("NFKC", scripts_written_out(text)).casefold()
    words = " ".join("".join(map(_plain_letter, plain)).split())
    before = None
    while words != before:
        before = words
        words = _without_stops(words)
        for opening, closing in ENCLOSING:
            inside = words[len(opening) : -len(closing)]
            if (
                words.startswith(opening)
                and words.endswith(closing)
                and opening not in inside
                and closing not in inside
            ):
                words = inside
    return words


FACTORIAL = re.compile(r"(?:\d|(?<![^\W\d_]{3})[)\]}|]|(?<![^\W_])(?!no$|ok$)[a-zα-ω]{1,2})$")  # 5!, (n+1)!, n!


def _without_stops(words: str) -> str:
    bare = words.lstrip("¿¡,;: ")
    if bare[:1].isdigit() and words[: len(words) - len(bare)].endswith((",", ":")):
        bare = words[-len(bare) - 1 :]  # ,5 and :5 may be other numbers
    stem = bare.rstrip(",;:?.! ")
    return bare.rstrip(",;:?. ") if "!" in bare[len(stem) :] and FACTORIAL.search(stem[-4:]) else stem


def _plain_letter(letter: str) -> str:
    category = unicodedata.category(letter)
    return "" if category == "Cf" else "-" if category == "Pd" or letter == "−" else letter
