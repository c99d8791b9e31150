"""Validation errors in the user's words: the dotted key, the value seen, where it was set, what is allowed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from types import NoneType
from typing import Any, get_args

from pydantic import ValidationError

from plaudit.recipe.schema import Recipe
from plaudit.recipe.text import visible
from plaudit.recipe.walk import Component, fields_of, inside, known_keys, type_of, variants

MOST = 20  # keys explained at once


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What one source says, before it is merged with the others, and the keys that it takes out of them."""

    label: str
    content: Mapping[str, Any]
    drop: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a validation error lies: its keys without pydantic's names of union members."""

    keys: tuple[str, ...]
    index: str = ""  # "[1]" inside a list
    annotation: Any = None
    siblings: Sequence[Component] = ()  # the components that its mapping may be

    @property
    def dotted(self) -> str:
        return ".".join(self.keys) + self.index


Problem = tuple[Place, Mapping[str, Any]]  # and pydantic's details


def explain(
    error: ValidationError, document: Mapping[str, Any], layers: Sequence[Layer] = (), schema: Any = Recipe
) -> str:
    """One line per key in error; the members of a union that all refused a value share a line."""
    grouped: dict[tuple[str, str], list[Problem]] = {}
    for details in _causes(error):
        place = locate(details["loc"], document, schema)
        if details["type"] in ("union_tag_invalid", "union_tag_not_found"):
            place = Place(keys=(*place.keys, "type"))
        own_words = str(details["ctx"]["error"]) if details["type"] == "value_error" else ""
        grouped.setdefault((place.dotted, own_words), []).append((place, details))
    known = list(known_keys(document, schema))
    lines = [visible(_line(problems, layers, known)) for problems in list(grouped.values())[:MOST]]
    return "\n".join([*lines, *([f"and {len(grouped) - MOST} more keys"] if len(grouped) > MOST else [])])


def of_one_value(name: str, value: Any, error: ValidationError) -> str:
    """One line on a value that stands by itself and not in a recipe's schema."""
    found = [(Place(keys=(name,), index=_index(one["loc"], value)), one) for one in _causes(error)]
    return visible(_line([one for one in found if one[0].index == found[0][0].index], (), ()))


def _index(location: Sequence[str | int], value: Any) -> str:
    """Keys and places inside `value`, the last of which may be missing, without pydantic's names of union members."""
    index = ""
    for item in location:
        if isinstance(item, int):
            index, value = f"{index}[{item}]", value[item] if item < len(value) else None
        elif isinstance(value, Mapping) and (item in value or item == location[-1]) and item != "[key]":
            index, value = f"{index}.{item}", value.get(item)
    return index


def _causes(error: ValidationError) -> list[Mapping[str, Any]]:
    """Without the lists that are too short only because an item of theirs was refused."""
    found = error.errors(include_url=False)
    parents = {details["loc"][:-1] for details in found if details["loc"]}
    return [details for details in found if details["type"] != "too_short" or details["loc"] not in parents]


def locate(location: Sequence[str | int], document: Mapping[str, Any], schema: Any = Recipe) -> Place:
    """Follow a pydantic location through the document and the schema together."""
    keys: list[str] = []
    siblings: list[Component] = []
    index = ""
    annotation: Any = schema
    value: Any = document
    tag_is_next = False
    for item in location:
        below = inside(annotation, value)
        if tag_is_next or (isinstance(item, str) and below is None):
            tag_is_next = False
        elif below is None:
            index += f"[{item}]"
        else:
            keys.append(str(item))
            siblings = variants(annotation)
            annotation = below.get(str(item))
            value = value.get(item) if isinstance(value, Mapping) else None
            tag_is_next = len(variants(annotation)) > 1
    return Place(keys=tuple(keys), index=index, annotation=annotation, siblings=siblings)


def _line(problems: Sequence[Problem], layers: Sequence[Layer], known: Sequence[str]) -> str:
    place, details = problems[0]
    kind = details["type"]
    if kind == "value_error":
        return str(details["ctx"]["error"])
    if kind in ("extra_forbidden", "invalid_key"):
        return _unknown(place, details["input"], layers, known)
    if kind in ("missing", "union_tag_not_found"):
        return f"`{place.dotted}` is missing; {_needed(place, layers)}"
    seen = details["ctx"]["tag"] if kind == "union_tag_invalid" else details["input"]
    allowed = " or ".join(dict.fromkeys(_allowed(each_place, each) for each_place, each in problems))
    text = f"`{place.dotted}` is {shown(seen)}{_origin(place.keys, layers)}; {allowed.replace(' or allowed: ', ' or ')}"
    near = get_close_matches(shown(seen).strip('"'), _choices(details), n=1)
    return f"{text}; did you mean {near[0]}?" if near else text


def _allowed(place: Place, details: Mapping[str, Any]) -> str:
    kind, message = details["type"], details["msg"]
    or_null = " or null" if NoneType in get_args(place.annotation) else ""
    if choices := _choices(details):
        return f"allowed: {', '.join(choices)}{or_null}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"it must be a mapping{_keys_inside(place)}{or_null}"
    if kind == "string_type" and isinstance(details["input"], int | float):
        return f"it must be text: write it in quotes, '\"{shown(details['input'])}\"' on the command line"
    if not message.startswith(("Input should ", "Tuple should ")):
        return str(message)
    demand = message.split(" should ", 1)[1].partition(", ")[0]
    return f"it must {demand.replace(' after validation', '').replace('tuple', 'list')}{or_null}"


def _needed(place: Place, layers: Sequence[Layer]) -> str:
    if place.index.endswith("]"):
        return "give the list more items"
    return f"give it a value, for example --{place.dotted} VALUE" if layers else "give it a value"


def _keys_inside(place: Place) -> str:
    """What a mapping would have to contain there."""
    possible = variants(place.annotation)
    if len(possible) > 1:
        return f" with `type` {', '.join(filter(None, map(type_of, possible)))}"
    return f" with keys {', '.join(fields_of(possible[0]))}" if possible else ""


def _choices(details: Mapping[str, Any]) -> list[str]:
    context = details.get("ctx", {})
    listed = context.get("expected_tags") or (context.get("expected") if details["type"] == "literal_error" else None)
    return [part.strip(" '") for part in listed.replace(" or ", ", ").split(", ")] if listed else []


def _unknown(place: Place, value: Any, layers: Sequence[Layer], known: Sequence[str]) -> str:
    """The unknown key with its nearest relative; `--trian.steps 5` makes a chain that is followed down."""
    keys = place.keys
    while isinstance(value, Mapping) and len(value) == 1:
        key, value = next(iter(value.items()))
        keys = (*keys, str(key))
    dotted, parent = ".".join(keys), ".".join(place.keys[:-1])
    siblings = [key.rpartition(".")[2] for key in known if key.rpartition(".")[0] == parent]
    text = f"unknown key `{dotted}`"
    if name := _written(place):
        text += f"; did you mean `{parent}.{name}`?"
    elif owner := _other_variant(place):
        text += f"; it belongs to `{parent}.type` {owner}"
    elif near := nearest(dotted, known):
        text += f"; did you mean {' or '.join(f'`{key}`' for key in near)}?"
    where = f"keys of `{parent}`" if parent else "top-level keys"
    return f"{text} (value {shown(value)}{_origin(keys, layers, ' from {}')}; {where}: {', '.join(siblings)})"


def _written(place: Place) -> str | None:
    """The key that a recipe writes for what Python calls by the last of the place's keys."""
    fields = [one.model_fields[place.keys[-1]] for one in place.siblings if place.keys[-1] in one.model_fields]
    return fields[0].alias if fields else None


def _other_variant(place: Place) -> str | None:
    """The `type` of a sibling variant that has this key."""
    owners = [variant for variant in place.siblings if place.keys[-1] in fields_of(variant)]
    return type_of(owners[0]) if owners else None


def nearest(dotted: str, known: Sequence[str]) -> list[str]:
    """Known keys the user may have meant: a similar one beside it, or the same name elsewhere."""
    parent, _, leaf = dotted.rpartition(".")
    beside = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == parent}
    found = [beside[name] for name in get_close_matches(leaf, beside, n=1)]
    elsewhere = [key for key in known if key.rpartition(".")[2] == leaf]
    found += sorted(elsewhere, key=lambda key: SequenceMatcher(None, dotted, key).ratio())[-1:]
    if not found and not beside:
        as_deep = [key for key in known if key.count(".") == dotted.count(".")]
        found = get_close_matches(dotted, as_deep, n=1, cutoff=0.8)
    return list(dict.fromkeys(found))


def shown(value: Any) -> str:
    """A value as YAML's users write it, cut to a readable length; what lies behind the cut is never written out."""
    encoder = json.JSONEncoder(default=lambda other: f"<{type(other).__name__}>", ensure_ascii=False, skipkeys=True)
    text = ""
    for piece in encoder.iterencode(value):
        text += visible(piece)
        if len(text) > 60:
            return text[:57] + "..."
    return text


def _origin(keys: Iterable[str], layers: Sequence[Layer], form: str = " (from {})") -> str:
    """Which source set a key: the last that mentions it."""
    for layer in reversed(layers):
        value: Any = layer.content
        for key in keys:
            value = value.get(key, layers) if isinstance(value, Mapping) else layers
        if value is not layers:
            return form.format(layer.label)
    return ""
