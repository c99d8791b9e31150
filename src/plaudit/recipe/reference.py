"""Every key of a recipe in words, from the schema alone: `plaudit recipe KEY`, docs/recipe.md and the list of what is shipped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from inspect import cleandoc
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from plaudit.recipe.explain import nearest, shown
from plaudit.recipe.load import load, shipped
from plaudit.recipe.schema import Recipe
from plaudit.recipe.walk import Component, fields_of, type_of, variants

NAME = "NAME"  # stands for a key that the user chooses
HEAD = """# Recipes

<!-- plaudit recipe --markdown > docs/recipe.md -->

A recipe is YAML: what generates, what is asked, what scores, how it is learned. `plaudit recipe --list` prints those that
come with Plaudit, `plaudit recipe RECIPE` every value that one resolves to, and `plaudit recipe KEY` a key of this page
(`train.lr`, `objective.grpo`).

Sources lie over each other: a file over its `base`, a later file over an earlier one, `--train.lr 1e-4` over all. Mappings
merge, lists and values replace. Who changes a `type` starts from the defaults of the new one; likewise the `arguments` of a
changed `factory`, the `options` of a `method`, the `config` of a `task` and the `weights` of a `name` go. `rewards: {match:
null}` takes out a reward, and `drop: [model.arguments.scale, train.minutes]` (or `--drop train.minutes`) any key of the
sources below: it goes back to its default.

Of YAML, recipes have what JSON has: no anchors, aliases or tags; and no key twice, at most 64 KiB and 5,000 keys and
values. `1e-4` is a number; `on`, `no` and `12:30` are text.

"""
PLAIN = {int: "integer", float: "number", str: "text", bool: "true or false", NoneType: "null"}
BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A key, or one of the components that may stand at it."""

    key: str  # as it is written: objective.clip_low
    path: str  # with the types on the way: objective.grpo.clip_low
    takes: str
    default: str
    meaning: str
    below: Component | None  # whose keys lie below


def entries(component: Component = Recipe, key: str = "", path: str = "") -> Iterator[Entry]:
    """All keys, each followed by what lies below it."""
    for name, field in fields_of(component).items():
        key_here, path_here = f"{key}{name}", f"{path}{name}"
        table = get_origin(field.annotation) is dict and variants(get_args(field.annotation)[1])
        possible = table or variants(field.annotation)
        single = possible[0] if len(possible) == 1 and not table else None
        meaning = " ".join(dict.fromkeys(filter(None, (field.description, _doc(single)))))
        takes = _words(field.annotation, field.metadata)
        yield Entry(key=key_here, path=path_here, takes=takes, default=_default(field), meaning=meaning, below=single)
        if table:
            key_here, path_here = f"{key_here}.{NAME}", f"{path_here}.{NAME}"
        for each in possible:
            chosen = f"{path_here}.{type_of(each)}" if len(possible) > 1 else path_here
            if each is not single:
                yield Entry(key=key_here, path=chosen, takes="mapping", default="", meaning=_doc(each), below=each)
            yield from entries(each, f"{key_here}.", f"{chosen}.")


def _doc(component: Component | None) -> str:
    return " ".join(cleandoc(component.__doc__ or "").split()) if component else ""


def _words(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """A type in words: `integer above 0 or null`."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _words(
            inner[0], [bound for item in annotation.__metadata__ for bound in getattr(item, "metadata", [item])]
        )
    if len(possible := variants(annotation)) > 1:
        return (
            f"{'null or ' * (NoneType in inner)}mapping with `type` {', '.join(filter(None, map(type_of, possible)))}"
        )
    if origin in (Union, UnionType):
        return " or ".join(map(_words, inner))
    if origin is Literal:
        return ", ".join(map(str, inner))
    if origin is tuple:
        return f"list of {'' if inner[1:] == (...,) else f'{len(inner)}: '}{_words(inner[0])}"
    if origin is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return "mapping"
    bounds = [
        f"{word} {getattr(item, bound):g}"
        for item in metadata
        for bound, word in BOUNDS.items()
        if hasattr(item, bound)
    ]
    return f"{PLAIN.get(annotation, 'anything')} {' and '.join(bounds)}".strip()


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        kind = {"type": default.type} if hasattr(default, "type") else {}
        default = {**kind, **default.model_dump(exclude_unset=True)}
    elif isinstance(default, dict):
        default = {name: value.model_dump(exclude_unset=True) for name, value in default.items()}
    return shown(default).strip('"') or '""'


# --- plaudit recipe KEY ----------------------------------------------------------------------------------------------


def describe(key: str) -> str | None:
    """What is known of a key: `train.lr`, `objective.grpo`, `objective.clip_low`, `rewards.match.weight`."""
    known = list(entries())
    found = [entry for entry in known if _same(entry.path, key)] or [entry for entry in known if _same(entry.key, key)]
    return "\n\n".join(_block(entry, known) for entry in found) or None


def similar(key: str) -> list[str]:
    """The keys that may have been meant."""
    known = list(entries())
    return nearest(key, list(dict.fromkeys(name for entry in known for name in (entry.key, entry.path))))


def _same(pattern: str, key: str) -> bool:
    parts, given = pattern.split("."), key.split(".")
    return len(parts) == len(given) and all(part in (NAME, own) for part, own in zip(parts, given, strict=True))


def _children(entry: Entry, known: Sequence[Entry]) -> list[Entry]:
    return [other for other in known if other.path.rpartition(".")[0] == entry.path]


def _block(entry: Entry, known: Sequence[Entry]) -> str:
    default = [f"  default  {entry.default}"] if entry.default else []
    below = [f"  {other.path}: {other.meaning}" for other in _children(entry, known)]
    return "\n".join([f"{entry.path}: {entry.meaning}", f"  takes    {entry.takes}", *default, *below])


# --- docs/recipe.md and the list -------------------------------------------------------------------------------------


def markdown() -> str:
    """A table of keys for every component; one that stands at several places is written where it stands first."""
    known = list(entries())
    written: dict[Component, Entry] = {}
    lines = [HEAD + "## Top level", "", *_table([entry for entry in known if "." not in entry.path], written)]
    for entry in known:
        if entry.below is not None and entry.below not in written:
            written[entry.below] = entry
            kind = type_of(entry.below)
            lines += [
                "",
                f"## `{entry.key}`{f' of type `{kind}`' if kind else ''}",
                "",
                _doc(entry.below) or entry.meaning,
                "",
            ]
            lines += _table(_children(entry, known), written)
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Entry], written: dict[Component, Entry]) -> list[str]:
    lines = ["| key | takes | default | meaning |", "| --- | --- | --- | --- |"]
    for entry in rows:
        first = written.get(entry.below) if entry.below else None
        takes = f"{entry.takes}, as `{first.key}`" if first else entry.takes
        default = entry.default if entry.default == "required" else f"`{entry.default}`"
        cells = (
            f"`{entry.key}`",
            takes,
            default,
            entry.meaning.removesuffix(_doc(entry.below)).strip() or entry.meaning,
        )
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return lines


def shipped_rows() -> list[tuple[str, str, str, str]]:
    """Name, family, system and summary of every recipe that comes with Plaudit."""
    recipes = {name: load(name) for name in shipped()}
    return [(name, each.model.family, each.system or "-", each.summary) for name, each in recipes.items()]
