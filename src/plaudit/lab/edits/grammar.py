"""Instructions of the `edits` world and the facts they state.

A source shows one to three objects of different kinds. One of them is changed, or one is added:

    recolour   make the red circle blue
    reshape    turn the red circle into a square
    remove     remove the red circle
    move       move the red circle left
    add        add a green triangle

An object is `{"color", "shape", "x", "y"}`, in pixels. The facts of an instruction are its `category`, what is `kept` as it
is, what is `gone`, and what is `new`: at a place, somewhere (`add`), or in a direction from where it was (`move`). An edit is in
`compositional` when an attribute pair of `UNSEEN_PAIRS` stands in its source or in what becomes of it, otherwise in `heldout` or
`train` by a hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.errors import DataError
from plaudit.lab.scenes.grammar import COLORS, SHAPES, UNSEEN_PAIRS
from plaudit.lab.scenes.render import OUTER_RADIUS, RADIUS_RANGE, SIZE, rasterise, slots_of

CATEGORIES = ("recolour", "reshape", "remove", "move", "add")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
MOST = 3  # objects of a source
MAX_TOKENS = 8
_WORDS = (*COLORS, *SHAPES, *DIRECTIONS, "a", "add", "into", "make", "move", "remove", "the", "turn")
VOCABULARY = {word: index for index, word in enumerate(_WORDS, start=1)}  # 0 is padding and the empty instruction
SHIFT = (8.0, 14.0)  # pixels that an object is moved by

Object = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Edit:
    """An instruction, and its two scenes as slots."""

    prompt: Prompt
    source: Tensor
    target: Tensor


def name(thing: Object) -> str:
    return f"{thing['color']} {thing['shape']}"


@dataclass(frozen=True, kw_only=True)
class _Made:
    """What an instruction makes of a scene."""

    category: str
    before: list[Object]
    text: str
    kept: list[Object]
    gone: list[Object]
    new: list[Object]
    direction: str | None = None


def _sampled(rng: np.random.Generator, category: str) -> _Made:
    """Drawn until everything has room."""
    pairs = [(c, s) for c in COLORS for s in SHAPES]
    while True:
        chosen = [pairs[i] for i in rng.permutation(len(pairs))[: int(rng.integers(1, MOST + 1))]]
        before = [_somewhere(color, shape, rng) for color, shape in chosen]
        made = _edited(category, before, rng) if _fit(before) else None
        if made is not None and _fit([*made.kept, *made.new]):
            return made


def _edited(category: str, before: list[Object], rng: np.random.Generator) -> _Made | None:
    """Nothing where there would be two objects of a kind."""
    one, *rest = before
    kept, gone, direction, taken = rest, [one], None, {name(thing) for thing in before}
    match category:
        case "recolour":
            color = COLORS[rng.integers(len(COLORS))]
            new, text = {**one, "color": color}, f"make the {name(one)} {color}"
        case "reshape":
            shape = SHAPES[rng.integers(len(SHAPES))]
            new, text = {**one, "shape": shape}, f"turn the {name(one)} into a {shape}"
        case "remove":
            new, text = {}, f"remove the {name(one)}"
        case "move":
            direction = list(DIRECTIONS)[rng.integers(4)]
            along, by = DIRECTIONS[direction], rng.uniform(*SHIFT)
            new = {**one, "x": one["x"] + by * along[0], "y": one["y"] + by * along[1]}
            text, taken = f"move the {name(one)} {direction}", set()
        case "add":
            new = _somewhere(COLORS[rng.integers(len(COLORS))], SHAPES[rng.integers(len(SHAPES))], rng)
            text, kept, gone = f"add a {name(new)}", before, []
        case _:
            raise DataError(f"edits: unknown category {category!r}; allowed: {', '.join(CATEGORIES)}")
    if new and name(new) in taken:
        return None
    whole = [new] if new else []
    return _Made(category=category, before=before, text=text, kept=kept, gone=gone, new=whole, direction=direction)


def _somewhere(color: str, shape: str, rng: np.random.Generator) -> Object:
    radius = float(rng.uniform(RADIUS_RANGE[0], RADIUS_RANGE[1]))
    margin = radius * OUTER_RADIUS[shape] + 0.5
    x, y = (float(margin + rng.random() * (SIZE - 2 * margin)) for _ in range(2))
    return {"color": color, "shape": shape, "x": x, "y": y, "radius": radius}


def _fit(things: Sequence[Object]) -> bool:
    """Whether nothing touches anything, or leaves the picture."""
    reach = [thing["radius"] * OUTER_RADIUS[thing["shape"]] for thing in things]
    inside = all(
        r + 0.5 <= thing[axis] <= SIZE - r - 0.5 for thing, r in zip(things, reach, strict=True) for axis in "xy"
    )
    return inside and all(
        np.hypot(a["x"] - b["x"], a["y"] - b["y"]) >= reach[i] + reach[j] + 1.0
        for i, a in enumerate(things)
        for j, b in enumerate(things[:i])
    )


def _identity(made: _Made) -> str:
    said = json.dumps([made.text, _plain(made.before)], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:12]


def _split(made: _Made) -> str:
    if any((thing["color"], thing["shape"]) in UNSEEN_PAIRS for thing in [*made.before, *made.new]):
        return "compositional"
    return "heldout" if int(_identity(made)[:8], 16) % 8 == 0 else "train"


def _rendered(drafts: Sequence[_Made]) -> list[Edit]:
    sources = torch.stack([slots_of(made.before) for made in drafts])
    pictures = rasterise(sources)
    return [
        Edit(
            prompt=Prompt(id=_identity(made), text=made.text, inputs={"source": picture}, facts=_facts(made)),
            source=source,
            target=slots_of([*made.kept, *made.new]),
        )
        for made, source, picture in zip(drafts, sources, pictures, strict=True)
    ]


def _facts(made: _Made) -> dict[str, Any]:
    new = [_told(made, thing) for thing in _plain(made.new)]
    return {"category": made.category, "kept": _plain(made.kept), "gone": _plain(made.gone), "new": new}


def _told(made: _Made, new: Object) -> Object:
    """What the instruction says of something new: never its size, and its place only where that is the old one."""
    if made.category == "add":
        return {"color": new["color"], "shape": new["shape"]}
    if made.category == "move":
        return {**_plain(made.gone)[0], "direction": made.direction}
    return new


def _plain(things: Sequence[Object]) -> list[Object]:
    return [{**{k: t[k] for k in ("color", "shape")}, "x": round(t["x"], 2), "y": round(t["y"], 2)} for t in things]


def sample_edits(
    split: str, count: int, rng: np.random.Generator, categories: Sequence[str] = CATEGORIES
) -> list[Edit]:
    """Edits of a split, categories equally likely."""
    drafts: list[_Made] = []
    while len(drafts) < count:
        category = categories[int(rng.integers(len(categories)))]
        made = _sampled(rng, category)
        while _split(made) != split:
            made = _sampled(rng, category)
        drafts.append(made)
    return _rendered(drafts)


def tokenise(texts: Sequence[str]) -> np.ndarray:
    """Token ids `[B, MAX_TOKENS]`, zero-padded; the empty text is no instruction."""
    ids = np.zeros((len(texts), MAX_TOKENS), dtype=np.int64)
    for row, text in enumerate(texts):
        words = text.lower().split()
        unknown = [word for word in words if word not in VOCABULARY]
        if unknown or len(words) > MAX_TOKENS:
            raise DataError(
                f"edits: the instruction {text!r} {f'uses {unknown[0]!r}' if unknown else f'has {len(words)} words'}; at most "
                f"{MAX_TOKENS} words are read, of: {' '.join(VOCABULARY)}"
            )
        ids[row, : len(words)] = [VOCABULARY[word] for word in words]
    return ids
