"""What a plotting program's figure shows, as plain values, and how far two figures agree.

The values come from the program's own process: it could write there what it did not draw. They are checked to be what
they should be and no more is believed of them.
"""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from plaudit.rewards.rules.ocr import text_similarity

ROLES = ("suptitle", "title", "xlabel", "ylabel", "ticks", "legend", "notes")
LONGEST_ROLE = 300
MOST_SERIES = 300
SMALL = 1e-9  # of the numbers that count as equal to zero


@dataclass(frozen=True, kw_only=True)
class Figure:
    """`types` and `series` (lists of numbers) of all axes in order; `texts` by role; `places` are the axes' in the grid."""

    types: tuple[str, ...] = ()
    rows: int = 1
    columns: int = 1
    places: tuple[str, ...] = ()
    texts: Mapping[str, tuple[str, ...]]
    colors: frozenset[str] = frozenset()
    series: tuple[tuple[float, ...], ...] = ()

    @property
    def all_texts(self) -> frozenset[str]:
        return frozenset(text for texts in self.texts.values() for text in texts)

    @property
    def numbers(self) -> frozenset[float]:
        return frozenset(number for values in self.series for number in values)


def read_figure(facts: Mapping[str, Any]) -> Figure:
    """ValueError or TypeError where the facts are not of their form."""
    axes, layout = facts["axes"], facts["layout"]
    texts = {role: tuple(text for each in axes for text in map(_text, each[role])) for role in ROLES[1:]}
    return Figure(
        types=tuple(name for each in axes for name in map(_text, each["types"])),
        rows=int(layout["rows"]),
        columns=int(layout["columns"]),
        places=tuple("x".join(str(int(number)) for number in place) for place in layout["places"]),
        texts={"suptitle": tuple(map(_text, facts["texts"])), **texts},
        colors=frozenset(color for each in axes for color in map(_text, each["colors"])),
        series=tuple(tuple(map(_number, values)) for each in axes for values in each["series"]),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not finite")
    return number


# --- numbers that are nearly equal ------------------------------------------------------------------------------------


def near(one: float, other: float, tolerance: float) -> bool:
    """Symmetric: the difference is at most `tolerance` of the larger magnitude."""
    return abs(one - other) <= tolerance * max(abs(one), abs(other)) + SMALL


def num_matched(one: Iterable[float], other: Iterable[float], tolerance: float) -> int:
    """Most pairs of nearly equal numbers, each number in at most one.

    Over sorted numbers the greedy choice is the best one: what a number may be paired with lies between two bounds
    that grow with it.
    """
    left, right = sorted(one), sorted(other)
    i = j = count = 0
    while i < len(left) and j < len(right):
        if near(left[i], right[j], tolerance):
            i, j, count = i + 1, j + 1, count + 1
        elif left[i] < right[j]:
            i += 1
        else:
            j += 1
    return count


def jaccard(num_common: int, num_one: int, num_other: int) -> float:
    """|A n B| / |A u B|; 1 where both are empty."""
    union = num_one + num_other - num_common
    return num_common / union if union else 1.0


def set_jaccard(one: Iterable[str], other: Iterable[str]) -> float:
    left, right = set(one), set(other)
    return jaccard(len(left & right), len(left), len(right))


# --- S049: sets -------------------------------------------------------------------------------------------------------


def attribute_jaccards(figure: Figure, wanted: Figure, tolerance: float) -> dict[str, float]:
    """Jaccard index of each kind of attribute; numbers match within a relative tolerance, one to one."""
    common = num_matched(figure.numbers, wanted.numbers, tolerance)
    return {
        "texts": set_jaccard(figure.all_texts, wanted.all_texts),
        "numbers": jaccard(common, len(figure.numbers), len(wanted.numbers)),
        "colors": set_jaccard(figure.colors, wanted.colors),
        "layout": set_jaccard(figure.places, wanted.places),
    }


# --- S027: fields -----------------------------------------------------------------------------------------------------


def field_scores(figure: Figure, wanted: Figure, tolerance: float) -> dict[str, float]:
    return {
        "data": series_agreement(figure.series, wanted.series, tolerance),
        "type": float(figure.types == wanted.types),
        "layout": float((figure.rows, figure.columns) == (wanted.rows, wanted.columns)),
        "text": text_agreement(figure.texts, wanted.texts),
        "colors": set_jaccard(figure.colors, wanted.colors),
    }


def series_agreement(found: Sequence[Sequence[float]], wanted: Sequence[Sequence[float]], tolerance: float) -> float:
    """Values that are nearly equal to the one in the same place of the paired series, of all values there could be.

    Series are paired so that most values agree, whatever the order they were drawn in; the larger of the two numbers of
    values is what the agreeing ones are divided by. 1 where there are no values at all.
    """
    found, wanted = found[:MOST_SERIES], wanted[:MOST_SERIES]
    largest = max(sum(map(len, found)), sum(map(len, wanted)))
    if not largest:
        return 1.0
    if not found or not wanted:
        return 0.0
    common = np.array([[_same_places(one, other, tolerance) for other in wanted] for one in found])
    return float(common[linear_sum_assignment(common, maximize=True)].sum() / largest)


def _same_places(one: Sequence[float], other: Sequence[float], tolerance: float) -> int:
    length = min(len(one), len(other))
    x, y = np.array(one[:length]), np.array(other[:length])
    return int((np.abs(x - y) <= tolerance * np.maximum(np.abs(x), np.abs(y)) + SMALL).sum())


def text_agreement(found: Mapping[str, Sequence[str]], wanted: Mapping[str, Sequence[str]]) -> float:
    """1 - normalised edit distance of what is written, mean over the roles in which either writes anything."""
    pairs = [(" ".join(found[role]), " ".join(wanted[role])) for role in ROLES]
    values = [text_similarity(one[:LONGEST_ROLE], other[:LONGEST_ROLE]) for one, other in pairs if one or other]
    return sum(values) / len(values) if values else 1.0


# --- the fields of a program that does not run ------------------------------------------------------------------------

TEXT_CALLS = {
    "suptitle": "suptitle",
    "title": "title", "set_title": "title",
    "xlabel": "xlabel", "set_xlabel": "xlabel",
    "ylabel": "ylabel", "set_ylabel": "ylabel",
    "text": "notes", "annotate": "notes",
}  # fmt: skip
PLOT_CALLS = frozenset(
    ["plot", "scatter", "bar", "barh", "hist", "pie", "imshow", "boxplot", "stem", "step", "errorbar"]
)
WRITTEN = re.compile(r"\.(\w+)\(\s*(?:x\s*=\s*|s\s*=\s*)?(['\"])(.*?)\2", re.DOTALL)
CALLED = re.compile(r"\.(\w+)\(")


def read_source(program: str) -> Figure | None:
    """What can be read in the text of a program: literal lists, texts, colours, names of methods. Nothing is run.

    None where it plots nothing: an empty text has the layout of most figures.
    """
    figure = _read_tree(program)
    return figure if figure.types else None


def _read_tree(program: str) -> Figure:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(program)
        nodes = list(ast.walk(tree))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return _read_broken(program)
    calls = [node for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    texts: dict[str, list[str]] = {role: [] for role in ROLES}
    colors, rows, columns = set(), 1, 1
    for call in calls:
        name = call.func.attr  # type: ignore[attr-defined]
        values = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
        if name in TEXT_CALLS:
            texts[TEXT_CALLS[name]] += [value for value in values if isinstance(value, str)]
        for keyword in call.keywords:
            value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
            if keyword.arg == "label" and isinstance(value, str):
                texts["legend"].append(value)
            if keyword.arg in ("color", "c", "facecolor") and isinstance(value, str):
                colors.add(_hex(value))
        if name == "subplots":
            sizes = [value for value in values if isinstance(value, int)][:2]
            rows, columns = (*sizes, *(1, 1)[len(sizes) :])
    return Figure(
        types=_plotting(call.func.attr for call in calls),  # type: ignore[attr-defined]
        rows=rows,
        columns=columns,
        texts={role: tuple(values) for role, values in texts.items()},
        colors=frozenset(colors),
        series=tuple(filter(None, map(_literal_numbers, nodes))),
    )


def _read_broken(program: str) -> Figure:
    """Text that is not even Python: by patterns."""
    texts: dict[str, list[str]] = {role: [] for role in ROLES}
    for name, _, text in WRITTEN.findall(program):
        if name in TEXT_CALLS:
            texts[TEXT_CALLS[name]].append(text)
    return Figure(
        types=_plotting(CALLED.findall(program)), texts={role: tuple(values) for role, values in texts.items()}
    )


def _plotting(names: Iterable[str]) -> tuple[str, ...]:
    """Each once, as figures have them."""
    return tuple(dict.fromkeys(name for name in names if name in PLOT_CALLS))


def _literal_numbers(node: ast.AST) -> tuple[float, ...]:
    if not isinstance(node, ast.List | ast.Tuple):
        return ()
    try:
        values = [ast.literal_eval(element) for element in node.elts]
        numbers = [float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError, OverflowError):
        return ()
    return tuple(numbers) if len(numbers) == len(values) and all(map(math.isfinite, numbers)) else ()


def _hex(color: str) -> str:
    from matplotlib.colors import is_color_like, to_hex

    return to_hex(color) if is_color_like(color) else color
