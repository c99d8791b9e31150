"""Recipes as YAML text, by the rules of YAML 1.2: `1e-4` is a number, `on` and `12:30` are text, no key twice.

Of YAML only what JSON has: no aliases, anchors or tags, with which a line can stand for a gigabyte or for itself. Whatever else
cannot be a recipe (too long, too deep, NUL in a text) is a RecipeError here, so that nobody behind this boundary meets it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from plaudit.errors import RecipeError

LARGEST = 2**16  # bytes of a file
MOST = 5_000  # keys and values of a document
DEEPEST = 64  # keys and lists inside each other
TOO_DEEP = f"more than {DEEPEST} keys and lists inside each other"
TOO_MANY = f"more than {MOST:,} keys and values; a recipe names data, it does not contain any"
NO_TEXT = re.compile("[\0\ud800-\udfff]")  # cannot be a path, or cannot be written
KEYS = (str, int, float, bool, type(None))
HELD = (str, int, float, Mapping, list, tuple, BaseModel)  # and from Python what can be called
FLOAT = re.compile(
    r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$|[-+]?[0-9]+[eE][-+]?[0-9]+$"
    r"|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)
PLAIN_SCALARS = (
    ("null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", re.compile(r"[-+]?(?:0|[1-9][0-9]*)$|0x[0-9a-fA-F]+$"), list("-+0123456789")),
    ("float", FLOAT, list("-+0123456789.")),
)


class Loader(yaml.SafeLoader):
    """SafeLoader that takes plain scalars by YAML 1.2 and refuses what only YAML has, and a key written twice."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}
    depth = nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if event.anchor is not None or getattr(event, "tag", None) is not None:
            problem = "recipes have no anchors, aliases or tags (&name, *name, !name): quote text, repeat values"
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        self.depth += 1
        self.nodes += 1
        if self.depth > DEEPEST or self.nodes > MOST:
            problem = TOO_DEEP if self.depth > DEEPEST else TOO_MANY
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                line = key_node.start_mark.line + 1
                if key_node.value in seen:
                    problem = f"key `{key_node.value}` is already on line {seen[key_node.value]}"
                    raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
                seen[key_node.value] = line
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


class Dumper(yaml.SafeDumper):
    """SafeDumper that writes what `Loader` reads: no aliases, numbers of YAML 1.2 that are text in quotes, lists in a line."""

    yaml_representers = {
        kind: yaml.SafeDumper.yaml_representers[kind] for kind in (type(None), str, bool, int, float, list, tuple, dict)
    } | {None: yaml.SafeDumper.yaml_representers[None]}

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: Dumper, text: str) -> yaml.ScalarNode:
    # PyYAML folds Unicode's line breaks into spaces in every style but the double-quoted one.
    style = '"' if any(mark in text for mark in "\x85\u2028\u2029\ufeff") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


for kind, pattern, first_characters in PLAIN_SCALARS:
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", pattern, first_characters)
Dumper.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789."))
Dumper.add_representer(str, _represent_text)
Dumper.add_multi_representer(str, _represent_text)  # a name that carries the object it stands for
for sequence in (list, tuple):
    Dumper.add_representer(
        sequence, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
    )


def read(path: Path) -> Any:
    """The one document in a file."""
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST + 1).decode("utf-8")
    except (OSError, ValueError) as error:
        raise RecipeError(f"{visible(str(path))} cannot be read: {error}; it must be a UTF-8 text file") from error
    return parse(text, str(path))


def parse(text: str, label: str) -> Any:
    """The one document in `text`; `label` says in errors where the text is from."""
    label = visible(label)
    if len(text) > LARGEST:
        raise RecipeError(f"{label}: more than {LARGEST // 2**10} KiB; a recipe names data, it does not contain any")
    try:
        return possible(yaml.load(text, Loader), label)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise RecipeError(f"{label}{place}: {visible(error.problem or error.context)}; mend the YAML there") from error
    except yaml.reader.ReaderError as error:
        raise RecipeError(f"{label}: not YAML text: {error.reason} (character {error.position + 1})") from error
    except (ValueError, OverflowError) as error:  # of int() and chr(), which PyYAML calls on what is written
        raise RecipeError(f"{label}: it has a number or an escape that is out of range ({error})") from error


def possible(value: Any, label: str) -> Any:
    """`value`, unless a recipe cannot hold it."""
    level, count = [value], 0
    for _ in range(DEEPEST + 1):
        inner: list[Any] = []
        for entry in level:
            _possible_alone(entry, label)
            if isinstance(entry, Mapping | list | tuple):
                count += 2 * len(entry) if isinstance(entry, Mapping) else len(entry)
                if count > MOST:
                    raise RecipeError(f"{label}: {TOO_MANY}")
                inner += [*entry, *entry.values()] if isinstance(entry, Mapping) else entry
        if not inner:
            return value
        level = inner
    raise RecipeError(f"{label}: {TOO_DEEP}")


def _possible_alone(value: Any, label: str) -> None:
    if isinstance(value, str) and (found := NO_TEXT.search(value)):
        raise RecipeError(f"{label}: the text {value[:40]!r} has the character {visible(found[0])}; leave it out")
    if isinstance(value, int) and abs(value) >= 2**64:
        raise RecipeError(f"{label}: an integer of {value.bit_length()} bits; the largest have 64")
    for key in value if isinstance(value, Mapping) else ():
        if type(key) not in KEYS:
            raise RecipeError(f"{label}: a key is of type {type(key).__name__}; keys are text")
    if not (value is None or isinstance(value, HELD) or callable(value)):
        raise RecipeError(f"{label}: {_no_yaml(value)}")


def _no_yaml(value: Any) -> str:
    return f"a value of type {type(value).__name__} cannot be written in a recipe; use text, numbers, lists or keys"


def visible(text: str) -> str:
    """On one line, with escapes for what a terminal would act on, cut to a length that somebody reads."""
    text = text if len(text) <= 2_000 else f"{text[:2_000]}..."
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in text)


def visible_lines(text: str) -> str:
    return "\n".join(map(visible, text.split("\n")))


def render(document: Any) -> str:
    """YAML text that `parse` reads back to the same document."""
    try:
        possible(document, "the recipe")
        text: str = yaml.dump(document, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)
    except yaml.representer.RepresenterError as error:
        raise RecipeError(_no_yaml(error.args[1])) from error
    return text
