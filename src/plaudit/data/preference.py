"""One record of what somebody preferred, and importers for the layouts that such data comes in.

Polarity is settled here and nowhere else: `ranks` has a number per output, 0 the best, equal numbers a tie. Layouts differ:
`human_preference [1, 0]` (HPDv2) and `human_ranking [0, 1]` (VL-RewardBench) both say that the first is better. Where a layout
always has the winner in one place, the two are laid out in a random order that follows from a seed and the row's id.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np

from plaudit.data.files import brief, read_rows, read_text
from plaudit.data.pictures import PICTURES
from plaudit.data.prompt import Prompt, is_conversation, text_of
from plaudit.errors import DataError

Output = str | Path | bytes | tuple[str | Path, ...]
"""A text, the path of a picture, an encoded picture, or texts and pictures in turn."""
Outcome = Literal["ordered", "tie", "both_bad", "skip"]


@dataclass(frozen=True, kw_only=True)
class Preference:
    """What one annotator said of several outputs of one prompt. `both_bad` is no tie: it says that neither is good; `skip` says
    nothing. `shown` are the places in which the source had the outputs; `margin` is by how much the best leads, where that is
    known."""

    id: str
    prompt: Prompt
    outputs: tuple[Output, ...]
    ranks: tuple[float, ...]
    outcome: Outcome
    scores: tuple[float, ...] | None = None
    weight: float = 1.0
    margin: float | None = None
    dimension: str = "overall"
    annotator: str | None = None
    models: tuple[str, ...] | None = None
    shown: tuple[int, ...] = ()
    split: str | None = None
    source: str = ""

    def pairs(self) -> list[tuple[int, int]]:
        """Numbers of a better and a worse output; none of a tie."""
        if self.outcome != "ordered":
            return []
        both, ranks = combinations(range(len(self.outputs)), 2), self.ranks
        return [(i, j) if ranks[i] < ranks[j] else (j, i) for i, j in both if ranks[i] != ranks[j]]


def read_preferences(path: Path, layout: str | None = None, *, seed: int = 0, key: str = "") -> list[Preference]:
    """Records of a file, in a layout that is named or told from its columns. `seed` decides the order of outputs where the layout
    always has the winner first."""
    rows = _rows(path, key)
    name = layout or _told(rows[0][0], rows[0][1])
    if name not in LAYOUTS:
        raise DataError(f"{key or path}: layout {name!r}; allowed: {', '.join(LAYOUTS)}")
    of, records = LAYOUTS[name], list[Preference]()
    for number, (where, row) in enumerate(rows, start=1):
        if lacking := [column for column in of.columns if column not in row]:
            raise DataError(f"{where}: has no `{lacking[0]}`, which layout {name} has; found {brief(sorted(row))}")
        record = replace(of.read(Row(where=where, values=row, folder=path.parent)), source=name)
        record = replace(record, id=record.id or str(number), shown=tuple(range(len(record.outputs))))
        records.append(_shuffled(_told_apart(record), seed) if of.winner_first else _told_apart(record))
    return records


def counted(records: Sequence[Preference]) -> dict[str, int]:
    """How many of each outcome, and the pairs that can be learned from."""
    outcomes = Counter[str](record.outcome for record in records)
    return {"records": len(records), **outcomes, "pairs": sum(len(record.pairs()) for record in records)}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a file, with what importers ask of it."""

    where: str
    values: Mapping[str, Any]
    folder: Path

    def text(self, name: str) -> str:
        return text_of(self._of(name, str)) if not is_conversation(self.values[name]) else text_of(self.values[name])

    def number(self, name: str) -> float | None:
        value = self.values.get(name)
        return None if value is None else float(self._of(name, int, float))

    def list(self, name: str) -> list[Any]:
        found: list[Any] = self._of(name, list)
        return found

    def _of(self, name: str, *kinds: type) -> Any:
        value = self.values[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise DataError(
                f"{self.where}: `{name}` is {brief(value)[:80]}; expected {' or '.join(k.__name__ for k in kinds)}"
            )
        return value

    def refuse(self, what: str) -> DataError:
        return DataError(f"{self.where}: {what}")

    def picture(self, value: Any, name: str) -> Path | bytes:
        if isinstance(value, dict):  # how `datasets` writes pictures
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return value
        if not isinstance(value, str):
            raise self.refuse(f"`{name}` is {brief(value)[:80]}; expected the path of a picture")
        return self.folder / value

    def text_or_picture(self, name: str) -> str | Path:
        """A text, or a picture when it is the path of one."""
        value = self.text(name)
        return self.folder / value if value.lower().endswith(PICTURES) and "\n" not in value else value

    def record(self, prompt: Prompt, outputs: Sequence[Output], ranks: Sequence[float], **more: Any) -> Preference:
        outcome = more.pop("outcome", "tie" if len(set(ranks)) == 1 else "ordered")
        given = self.values.get("id", self.values.get("pair_id"))
        return Preference(
            id="" if given is None else str(given),
            prompt=prompt,
            outputs=tuple(outputs),
            ranks=tuple(float(rank) for rank in ranks),
            outcome=outcome,
            split=self.values.get("split"),
            **more,
        )


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Columns that tell it, how a row is read, and whether the winner always comes first."""

    columns: tuple[str, ...]
    read: Callable[[Row], Preference]
    winner_first: bool = False


# --- TRL and RewardBench -----------------------------------------------------------------------------------------------


def _trl(row: Row) -> Preference:
    """`prompt`, `chosen`, `rejected`; without `prompt` the two are whole conversations with a common beginning."""
    chosen, rejected = row.values["chosen"], row.values["rejected"]
    messages = row.values.get("prompt", row.values.get("caption"))
    if messages is None:
        if not (is_conversation(chosen) and is_conversation(rejected)):
            raise row.refuse("has no `prompt`, so `chosen` and `rejected` must be conversations that begin with it")
        alike = [a == b for a, b in zip(chosen, rejected, strict=False)]
        shared = alike.index(False) if False in alike else min(len(chosen), len(rejected)) - 1
        if shared == 0:
            raise row.refuse("has no `prompt`, and `chosen` and `rejected` begin with different messages")
        messages = chosen[:shared]
    facts = row.values.get("facts") or {}
    scores = [row.number(name) for name in ("score_chosen", "score_rejected")]
    margin = row.number("margin")
    return row.record(
        _asked(row, messages, facts=facts),
        [row.text_or_picture("chosen"), row.text_or_picture("rejected")],
        (0, 1),
        scores=None if None in scores else tuple(s for s in scores if s is not None),
        margin=margin,
        models=_models(row, "chosen_model", "rejected_model"),
        dimension=str(row.values.get("subset", "overall")),
    )


def _asked(row: Row, value: Any, **more: Any) -> Prompt:
    if not isinstance(value, str) and not is_conversation(value):
        raise row.refuse(f"its prompt is {brief(value)[:80]}; expected a text or a list of messages")
    inputs = more.pop("inputs", {}) | ({} if isinstance(value, str) else {"messages": value})
    text = text_of(value)
    return Prompt(id=hashlib.sha256(text.strip().encode()).hexdigest()[:12], text=text, inputs=inputs, **more)


def _models(row: Row, first: str, second: str) -> tuple[str, ...] | None:
    found = (row.values.get(first), row.values.get(second))
    return None if None in found else tuple(map(str, found))


# --- pictures ----------------------------------------------------------------------------------------------------------


def _pick_a_pic(row: Row) -> Preference:
    """`label_0`, `label_1`: 1 and 0, or a half each for a tie; without `has_label` nobody has said anything. UnifiedReward's
    rows for generators have the label of the first alone."""
    label = row.number("label_0")
    if label is None or label not in (0, 0.5, 1):
        raise row.refuse(f"`label_0` is {label}; expected 1, 0, or 0.5 for a tie")
    other = row.number("label_1")
    if other is not None and other != 1 - label:
        raise row.refuse(f"`label_0` {label:g} and `label_1` {other:g} do not add up to 1")
    who = row.values.get("user_id")
    return row.record(
        _asked(row, row.text("caption")),
        [row.picture(row.values[name], name) for name in ("jpg_0", "jpg_1")],
        (1 - label, label),
        annotator=None if who is None else hashlib.sha256(f"pick-a-pic {who}".encode()).hexdigest()[:12],
        models=_models(row, "model_0", "model_1"),
        **({"outcome": "skip"} if row.values.get("has_label") is False else {}),
    )


def _hpdv2(row: Row) -> Preference:
    """Of a pair `human_preference` marks the better one with 1; of several `rank` has 0 or 1 for the best."""
    pictures = [row.picture(path, "image_path") for path in row.list("image_path")]
    said = row.values.get("human_preference")
    ranks = [1 - mark for mark in said] if said is not None else row.values.get("rank")
    if not isinstance(ranks, list) or len(ranks) != len(pictures) or len(pictures) < 2:
        raise row.refuse(
            f"`human_preference` or `rank` is {brief(said or ranks)}; expected a number for each of {len(pictures)}"
        )
    return row.record(_asked(row, row.text("prompt")), pictures, ranks)


def _ranking(row: Row) -> Preference:
    """VL-RewardBench: `human_ranking` has 0 for the better of `response`; here [0, 1] says that the first is."""
    texts, ranks = row.list("response"), row.list("human_ranking")
    if len(texts) != len(ranks):
        raise row.refuse(f"has {len(texts)} responses and {len(ranks)} ranks; expected one for each")
    return row.record(_asked(row, row.text("query"), inputs=_source(row, "image")), texts, ranks)


def _source(row: Row, name: str) -> dict[str, Any]:
    return {} if row.values.get(name) is None else {"image": row.picture(row.values[name], name)}


def _hpdv3(row: Row) -> Preference:
    """`path1` is always the better one; `choice_dist` says how many chose each, `confidence` how sure they were."""
    votes = row.values.get("choice_dist")
    return row.record(
        _asked(row, row.text("prompt"), inputs=_source(row, "path_src")),
        [row.picture(row.values[name], name) for name in ("path1", "path2")],
        (0, 1),
        margin=(max(votes) - min(votes)) / sum(votes) if votes and sum(votes) else None,
        weight=1.0 if row.number("confidence") is None else row.number("confidence"),
        models=_models(row, "model1", "model2"),
    )


def _edit_reward(row: Row) -> Preference:
    """HPDv3's columns with the picture that was edited and scores of two dimensions; `tie_case` overrules the order of paths."""
    record = _hpdv3(row)
    scores = [row.number(f"model{i}_overall_score") for i in (1, 2)]
    known = [score for score in scores if score is not None]
    record = replace(record, scores=tuple(known) if len(known) == 2 else None)
    if record.scores and record.margin is None:
        record = replace(record, margin=abs(known[0] - known[1]))
    return replace(record, ranks=(0.0, 0.0), outcome="tie") if row.values.get("tie_case") is True else record


# --- judges ------------------------------------------------------------------------------------------------------------


def _mmrb2(row: Row) -> Preference:
    """`chosen` (or `human_preference`) is A or B; prompt and responses are lists of texts and pictures in turn."""
    better = row.values.get("chosen", row.values.get("human_preference"))
    if better not in ("A", "B"):
        raise row.refuse(f"`chosen` is {brief(better)}; expected A or B")
    asked = _parts(row, row.values["prompt_content"])
    responses = [row.values["response_a"], row.values["response_b"]]
    text = " ".join(part for part in asked if isinstance(part, str))
    pictures = [part for part in asked if isinstance(part, Path)]
    return row.record(
        _asked(row, text, inputs={f"image_{i}": path for i, path in enumerate(pictures, start=1)}),
        [_parts(row, response.get("response_content")) for response in responses],
        (0, 1) if better == "A" else (1, 0),
        models=tuple(str(response.get("model")) for response in responses),
    )


def _parts(row: Row, content: Any) -> tuple[str | Path, ...]:
    kinds = ("text", "image")
    if not isinstance(content, list) or not all(isinstance(i, list) and len(i) == 2 and i[0] in kinds for i in content):
        raise row.refuse(f"a content is {brief(content)[:80]}; expected a list of ['text', ...] and ['image', ...]")
    return tuple(value if kind == "text" else row.folder / value for kind, value in content)


CAPTION = re.compile(r"Text Caption:\s*\[(.*?)\]\s*$", re.DOTALL)
VERDICTS = {"Image 1 is better": (0, 1), "Image 2 is better": (1, 0), "Both images are equally good": (0, 0)}


def _unified(row: Row) -> Preference:
    """A conversation about two `images` that ends with the verdict. The reasoning before it may name both pictures, so only the
    last line is read."""
    turns, pictures = row.list("conversations"), row.list("images")
    if len(turns) < 2 or len(pictures) != 2:
        raise row.refuse(f"has {len(turns)} turns and {len(pictures)} images; expected a question, a verdict and two")
    question, answer = (str(turn.get("value", "")) for turn in (turns[0], turns[-1]))
    asked = CAPTION.search(question.strip())
    last = answer.strip().splitlines()[-1] if answer.strip() else ""
    said = [ranks for words, ranks in VERDICTS.items() if words.lower() in last.lower()]
    if asked is None or len(said) != 1:
        raise row.refuse(
            f"has no caption, or no single verdict in {last[:80]!r}; expected one of {', '.join(VERDICTS)}"
        )
    shown = [row.picture(path, "images") for path in pictures]
    return row.record(_asked(row, asked[1]), shown, said[0])


LAYOUTS: dict[str, Layout] = {
    "pick_a_pic": Layout(columns=("caption", "jpg_0", "jpg_1", "label_0"), read=_pick_a_pic),
    "hpdv2": Layout(columns=("prompt", "image_path"), read=_hpdv2),
    "vl_rewardbench": Layout(columns=("query", "response", "human_ranking"), read=_ranking),
    "edit_reward": Layout(columns=("prompt", "path_src", "path1", "path2"), read=_edit_reward, winner_first=True),
    "hpdv3": Layout(columns=("prompt", "path1", "path2"), read=_hpdv3, winner_first=True),
    "mmrb2": Layout(columns=("prompt_content", "response_a", "response_b"), read=_mmrb2),
    "unified_reward": Layout(columns=("conversations", "images"), read=_unified),
    "trl": Layout(columns=("chosen", "rejected"), read=_trl, winner_first=True),
}


def _told(where: str, row: Mapping[str, Any]) -> str:
    for name, layout in LAYOUTS.items():
        if all(column in row for column in layout.columns):
            return name
    raise DataError(
        f"{where}: the columns {brief(sorted(row))} are those of no layout of preferences; known: "
        + "; ".join(f"{name} ({', '.join(layout.columns)})" for name, layout in LAYOUTS.items())
    )


def _rows(path: Path, key: str) -> list[tuple[str, dict[str, Any]]]:
    """Whatever has rows, and JSON files that are one list, or an object with `pairs`."""
    if path.suffix.lower() != ".json" or not os.path.isfile(path):
        return read_rows(path, key, media=True)
    said = f"{key}: {brief(path)}" if key else brief(path)
    try:
        found = json.loads(read_text(path, said))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{said} is no JSON: {brief(error)}; write it again") from error
    rows = found.get("pairs") if isinstance(found, dict) else found
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{said} holds no list of objects; give a list, or an object with `pairs`")
    return [(f"{said} row {number}", row) for number, row in enumerate(rows, start=1)]


def _told_apart(record: Preference) -> Preference:
    """Of two equal outputs none is better."""
    same = len(set(record.outputs)) < len(record.outputs)
    return replace(record, outcome="skip") if same and record.outcome == "ordered" else record


def _shuffled(record: Preference, seed: int) -> Preference:
    number = int(hashlib.sha256(f"{record.id} {record.prompt.id}".encode()).hexdigest()[:8], 16)
    order = np.random.default_rng([seed, number, 7]).permutation(len(record.outputs)).tolist()

    def laid(values: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(values[i] for i in order)

    return replace(
        record,
        outputs=laid(record.outputs),
        ranks=laid(record.ranks),
        scores=laid(record.scores) if record.scores else None,
        models=laid(record.models) if record.models else None,
        shown=tuple(order),
    )
