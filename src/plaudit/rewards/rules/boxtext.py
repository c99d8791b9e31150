"""Boxes and points in what models write: tolerant of the packaging, strict about the meaning.

Understood: JSON (whole, fenced, inside prose, cut off), `[x1, y1, x2, y2]`, `(x1, y1, x2, y2)`, `(x, y)`, and the tags
`<box>...</box>` and `<|box_start|>...<|box_end|>` with a label in `<ref>` or `<|object_ref_start|>` before them. Thinking
(`<think>`) is not an answer; what stands in the last `<answer>` is, where there is one.

Never guessed: the unit of coordinates, which of two corners is which, and whether `(a, b), (c, d)` outside a tag are two
points or a box (`pairs` says). A box keeps its corners as written, with a fault when they span nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from plaudit.rewards.rules.geometry import Box, Point

LONGEST = 20_000  # characters of an answer; more is cut
LARGEST = 1e6  # of a coordinate's magnitude
DEEPEST = 8  # levels of lists and objects
MOST_FAILURES = 500  # opening brackets that begin no JSON; nested garbage would take quadratic time

BOX_KEYS = ("bbox_2d", "bbox", "box")  # not box_2d, whose order is y before x
LIST_KEYS = ("bbox_2d_list", "bboxes", "boxes", "objects")
POINT_KEYS = ("point_2d", "point", "coordinate")
POINT_LIST_KEYS = ("points",)
LABEL_KEYS = ("label", "name", "category")
CONFIDENCE_KEYS = ("confidence", "score")


class Fault(StrEnum):
    NOTHING = "nothing found"
    NOT_DATA = "more than one JSON value, or none"
    COUNT = "wrong number of coordinates"
    NUMBER = "a coordinate is not a number, infinite or beyond a million"
    CORNERS = "corners that span no area"
    CHARACTERS = "full-width characters or another minus sign"
    THINKING = "thinking that does not end"
    DEPTH = "nested too deeply"
    LENGTH = "too long, cut"


@dataclass(frozen=True, kw_only=True)
class FoundBox:
    """A box as written; `before` is the prose that leads to it."""

    box: Box
    label: str | None = None
    confidence: float | None = None
    before: str = ""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a text names, in its order. `data` is the JSON value that the text consists of, None where it does not."""

    boxes: tuple[FoundBox, ...]
    points: tuple[Point, ...]
    faults: tuple[Fault, ...]
    data: Any = None

    @property
    def valid(self) -> tuple[FoundBox, ...]:
        return tuple(found for found in self.boxes if found.box.valid)


def parse(text: str, pairs: Literal["points", "box"] = "points") -> Found:
    """Everything a text names. Never raises: what is wrong with it is in `faults`."""
    answer = answer_of(text)
    if answer is None:
        return Found(boxes=(), points=(), faults=(Fault.THINKING, Fault.NOTHING))
    faults: list[Fault] = [Fault.LENGTH] if len(answer) > LONGEST else []
    body = answer[:LONGEST]
    plain = body.translate(PLAIN)
    whole = whole_json(body)
    reader = _Reader(pairs=pairs, faults=faults)
    if whole is not NO_JSON:
        reader.walk(whole)
    else:
        faults += [Fault.NOT_DATA] + ([Fault.CHARACTERS] if plain != body else [])
        reader.scan(plain)
    if not reader.boxes and not reader.points:
        faults.append(Fault.NOTHING)
    return Found(
        boxes=tuple(reader.boxes),
        points=tuple(reader.points),
        faults=tuple(dict.fromkeys(faults)),
        data=None if whole is NO_JSON else whole,
    )


def write(boxes: Sequence[FoundBox]) -> str:
    """The canonical text: what `parse` reads back without a fault."""
    entries = []
    for found in boxes:
        entry: dict[str, Any] = {"bbox_2d": list(found.box)}
        entry |= {} if found.label is None else {"label": found.label}
        entries.append(entry | ({} if found.confidence is None else {"confidence": found.confidence}))
    return json.dumps(entries, ensure_ascii=False)


# --- packaging -------------------------------------------------------------------------------------------------------

PLAIN = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: " ", 0x2212: "-", 0x2013: "-"}
NO_JSON = object()
_FENCE = "```"


def answer_of(text: str) -> str | None:
    """The text without its thinking, and only the last answer where answers are marked. None: still thinking."""
    _, mark, rest = text.rpartition("</think>")
    if "<think>" in (rest if mark else text):
        return None
    body = rest if mark else text
    _, mark, answer = body.rpartition("<answer>")
    return answer.partition("</answer>")[0] if mark else body


def whole_json(text: str) -> Any:
    """The one JSON value that a text, less its code fence, consists of; NO_JSON otherwise."""
    body = text.strip()
    if body.startswith(_FENCE) and body.endswith(_FENCE):
        body = body.removesuffix(_FENCE).partition("\n")[2]
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return NO_JSON


# --- numbers ---------------------------------------------------------------------------------------------------------


def legal(value: Any) -> bool:
    """Whether a value can be a coordinate."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST  # NaN: false


_NUMBER = r"(?:[-+]?(?:\d++(?:\.\d*+)?|\.\d++)(?:[eE][-+]?\d++)?|[-+]?(?:nan|inf(?:inity)?))"
_SEPARATOR = r"(?:\s*+[,;]\s*+|\s++)"
_GROUP = re.compile(rf"[\[(]\s*+({_NUMBER}(?:{_SEPARATOR}{_NUMBER})*+)\s*+[,;]?\s*+[\])]", re.IGNORECASE)
_OPENING = re.compile(r"[\[{]")
_TOKEN = re.compile(_NUMBER, re.IGNORECASE)
_BETWEEN_CORNERS = re.compile(r"\s*+[,;]?\s*+")
_TAG = re.compile(
    r"(?:(?:<ref>|<\|object_ref_start\|>)(?P<label>[^<]{0,200})(?:</ref>|<\|object_ref_end\|>)\s*+)?"
    r"(?:<box>|<\|box_start\|>)(?P<body>[^<]{0,2000})(?:</box>|<\|box_end\|>)"
)


def _numbers(text: str) -> list[float]:
    return [float(token) for token in _TOKEN.findall(text)]


class _Reader:
    """Collects boxes, points and faults from JSON values (`walk`) and from prose (`scan`)."""

    def __init__(self, *, pairs: Literal["points", "box"], faults: list[Fault]) -> None:
        self.pairs, self.faults = pairs, faults
        self.boxes: list[FoundBox] = []
        self.points: list[Point] = []

    # JSON

    def walk(self, value: Any, before: str = "", depth: int = 0) -> None:
        if depth > DEEPEST:
            self.faults.append(Fault.DEPTH)
        elif isinstance(value, Mapping):
            self._object(value, before, depth)
        elif isinstance(value, list) and value and not any(isinstance(item, list | dict) for item in value):
            self._bare(value, before)
        elif self.pairs == "box" and _corners(value):
            self._box(value[0] + value[1], before=before)
        elif isinstance(value, list):
            for item in value:
                self.walk(item, before, depth + 1)

    def _bare(self, values: list[Any], before: str) -> None:
        """A list without names: its length says what it is. Words and single numbers are prose."""
        if len(values) < 2 or any(isinstance(value, str) for value in values):
            return
        if len(values) == 2:
            self._point(values)
        else:
            self._box(values, before=before)

    def _object(self, value: Mapping[str, Any], before: str, depth: int) -> None:
        label = next((value[key] for key in LABEL_KEYS if isinstance(value.get(key), str)), None)
        confidence = next((float(value[key]) for key in CONFIDENCE_KEYS if legal(value.get(key))), None)
        named = {key for key in (*BOX_KEYS, *POINT_KEYS) if key in value}
        for key in BOX_KEYS:
            if key in named:
                self._box(value[key], label, confidence, before)
        for key in POINT_KEYS:
            if key in named:
                self._point(value[key])
        if not named and {"x1", "y1", "x2", "y2"} <= value.keys():
            self._box([value[key] for key in ("x1", "y1", "x2", "y2")], label, confidence, before)
        elif not named and {"x", "y"} <= value.keys():
            self._point([value["x"], value["y"]])
        for key in LIST_KEYS:
            for item in self._entries(value.get(key)):
                self.walk(item, before, depth + 1) if isinstance(item, dict) else self._box(item, before=before)
        for key in POINT_LIST_KEYS:
            for item in self._entries(value.get(key)):
                self.walk(item, before, depth + 1) if isinstance(item, dict) else self._point(item)

    @staticmethod
    def _entries(value: Any) -> list[Any]:
        """The entries of a list; four or two bare numbers are one entry."""
        if not isinstance(value, list):
            return []
        return [value] if _flat_numbers(value) else value

    def _box(self, values: Any, label: str | None = None, confidence: float | None = None, before: str = "") -> None:
        if self._usable(values, 4):
            box = Box(*(float(value) for value in values))
            self.faults += [] if box.valid else [Fault.CORNERS]
            self.boxes.append(FoundBox(box=box, label=label, confidence=confidence, before=before))

    def _point(self, values: Any) -> None:
        if self._usable(values, 2):
            self.points.append(Point(*(float(value) for value in values)))

    def _usable(self, values: Any, count: int) -> bool:
        if not isinstance(values, list) or len(values) != count:
            self.faults.append(Fault.COUNT)
        elif not all(legal(value) for value in values):
            self.faults.append(Fault.NUMBER)
        else:
            return True
        return False

    # prose

    def scan(self, text: str) -> None:
        at = 0
        for tag in _TAG.finditer(text):
            self._prose(text[at : tag.start()])
            self._tagged(tag["body"], (tag["label"] or "").strip() or None)
            at = tag.end()
        self._prose(text[at:])

    def _tagged(self, body: str, label: str | None) -> None:
        """Inside a tag two points are corners, and four numbers need no brackets."""
        inner = _Reader(pairs="box", faults=self.faults)
        inner._prose(body)
        if not inner.boxes and not _GROUP.search(body):
            inner._box(_numbers(body))
        self.boxes += [FoundBox(box=found.box, label=label or found.label) for found in inner.boxes]
        self.points += inner.points

    def _prose(self, text: str) -> None:
        at = 0
        for start, end, value in json_values(text):
            if _flat_numbers(value):
                continue  # left to `_groups`, which knows its neighbours
            self._groups(text[at:start])
            self.walk(value, before=text[at:start])
            at = end
        self._groups(text[at:])

    def _groups(self, text: str) -> None:
        """Bracketed numbers that are not JSON."""
        groups = list(_GROUP.finditer(text))
        at, i = 0, 0
        while i < len(groups):
            values, first, last = _numbers(groups[i][1]), groups[i], groups[i]
            if self.pairs == "box" and len(values) == 2 and i + 1 < len(groups):
                second = _numbers(groups[i + 1][1])
                adjacent = _BETWEEN_CORNERS.fullmatch(text, groups[i].end(), groups[i + 1].start())
                if len(second) == 2 and adjacent:
                    values, last, i = values + second, groups[i + 1], i + 1
            self._bare(values, before=text[at : first.start()])
            at, i = last.end(), i + 1


def json_values(text: str) -> Iterator[tuple[int, int, Any]]:
    """The JSON lists and objects inside a text, outermost first: start, end and value."""
    decoder, at, failures = json.JSONDecoder(), 0, 0
    while failures < MOST_FAILURES and (opening := _OPENING.search(text, at)) is not None:
        at = opening.start()
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            at, failures = at + 1, failures + 1
            continue
        yield at, end, value
        at = end


def _corners(value: Any) -> bool:
    """Whether a list is two points."""
    return isinstance(value, list) and len(value) == 2 and all(_flat_numbers(item) and len(item) == 2 for item in value)


def _flat_numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) in (int, float) for item in value)
