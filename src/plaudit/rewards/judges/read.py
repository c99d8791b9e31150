"""From what a judge said to a value. Whatever cannot be read is None and becomes a missing score; papers' code often puts the
middle of the scale in its place, which praises what is bad and blames what is good.

A judge may quote what it judges, and what it judges may be written to look like a verdict. So a verdict stands alone at the end
of an answer and begins a line; where two things could be it, or one lies inside what cannot be read, there is none.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from plaudit.rewards.judges.ask import Answer

NAMED = re.compile(r"[a-z ]{1,20}: *", re.IGNORECASE)  # `Verdict: `
LONGEST_LITERAL = 100_000
NOT_APPLICABLE = ("n/a", "na", None)


def spoken(text: str) -> str:
    """An answer without its thoughts; only what stands in the fence that it ends with, if there is one."""
    said = text.rpartition("</think>")[2].strip()
    if not said.endswith("```"):
        return said
    return said[:-3].rpartition("```")[2].partition("\n")[2].strip()


# --- JSON ------------------------------------------------------------------------------------------------------------


def find_json(text: str, key: str) -> dict[str, Any] | None:
    """The JSON object with this key that an answer ends with. Commas before a closing bracket and Python's quotes are read."""
    found = _ending(text, "{")
    return found if isinstance(found, dict) and key in found else None


def _ending(text: str, bracket: str) -> Any:
    """What the first line that begins with the bracket, and everything after it, is as JSON."""
    said = spoken(text)
    start = re.search(rf"^[ \t]*\{bracket}", said, re.MULTILINE)
    if start is None or said.count("{", 0, start.start()) > said.count("}", 0, start.start()):
        return None
    return _parsed(said[start.start() :].strip())


def _parsed(text: str) -> Any:
    try:
        return json.loads(re.sub(r",(?=\s*[\]}])", "", text), object_pairs_hook=_single, strict=False)
    except _Twice:
        return None
    except (ValueError, RecursionError):
        return _literal(text) if len(text) < LONGEST_LITERAL else None


class _Twice(Exception):
    """A key that comes twice: what was quoted has broken out of its quotes."""


def _single(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Twice
    return found


def _literal(text: str) -> Any:
    """With the quotes of Python."""
    try:
        tree = ast.parse(text, mode="eval")
        for node in ast.walk(tree):
            if isinstance(node, ast.Dict) and len({ast.dump(key) for key in node.keys if key}) < len(node.keys):
                return None
        return ast.literal_eval(tree)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


# --- readers ---------------------------------------------------------------------------------------------------------


def scores(text: str, count: int, low: float, high: float, key: str = "score") -> tuple[float, ...] | None:
    """`{"score": [a, b]}`, `{"score": a}` or `[a, b]`: `count` numbers, all in the range."""
    found = find_json(text, key)
    listed = _ending(text, "[") if found is None else found[key]
    numbers = listed if isinstance(listed, list) else [listed]
    return tuple(map(float, numbers)) if len(numbers) == count and all(between(n, low, high) for n in numbers) else None


def between(value: Any, low: float, high: float) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and low <= value <= high
    )


def yes_probability(answer: Answer, yes: str = "yes", no: str = "no") -> float | None:
    """p(yes) / (p(yes) + p(no)) of an answer's first token, in any case, with or without a space. One of them that is not
    among the likeliest has no probability (S003); where both are not, or the backend gives none, there is nothing to say."""
    place = answer.log_probs[0] if answer.log_probs else {}
    for_yes, for_no = (
        sum(math.exp(value) for token, value in place.items() if token.strip(" \n▁").lower() == word)
        for word in (yes, no)
    )
    return for_yes / (for_yes + for_no) if for_yes + for_no > 0 else None


def word(text: str, allowed: Sequence[str]) -> str | None:
    """The word that is an answer's last line, such as `NO` or `**Verdict: no.**`."""
    last = spoken(text).rpartition("\n")[2].strip(" \t*_`.")
    said = NAMED.sub("", last, count=1).strip(" \t*_`.").lower()
    return said if said in allowed else None


def winner(forward: str | None, swapped: str | None, first: str = "1", second: str = "2") -> float | None:
    """1 where the first of two candidates won, 0 where the second did, 0.5 for a tie. `swapped` is the word about them in
    the other order; a judge that wavers with the order sees a tie."""
    if forward is None or swapped is None:
        return None
    if forward == first and swapped == second:
        return 1.0
    return 0.0 if forward == second and swapped == first else 0.5


Check = Callable[[Any], bool]


def claims(found: Any, checks: Mapping[str, Check]) -> list[Mapping[str, Any]] | None:
    """A list of objects that all have what is checked, as it should be."""
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        return None
    good = all(name in item and check(item[name]) for item in found for name, check in checks.items())
    return found if good else None


def rubric(text: str, points: Sequence[str], low: float, high: float, key: str = "points") -> dict[str, float] | None:
    """`{"points": {NAME: number}}`: every point, and no other; those that are "N/A" are left out of what is found."""
    found = find_json(text, key)
    given = found[key] if found is not None else None
    if not isinstance(given, dict) or given.keys() != set(points):
        return None
    told = {name: value for name, value in given.items() if _lower(value) not in NOT_APPLICABLE}
    return {name: float(told[name]) for name in points if name in told} if _all_between(told, low, high) else None


def _lower(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


def _all_between(told: Mapping[str, Any], low: float, high: float) -> bool:
    return bool(told) and all(between(value, low, high) for value in told.values())
