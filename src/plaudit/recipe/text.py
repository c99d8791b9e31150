"""Recipes as YAML text, read by the rules of YAML 1.2: `1e-4` is a number, `on` and `12:30` are text, no key twice."""

from __future__ import annotations

import re
from typing import Any

import yaml

from plaudit.errors import RecipeError

FLOAT = re.compile(
    r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$|[-+]?[0-9]+[eE][-+]?[0-9]+$"
    r"|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)
PLAIN_SCALARS = (
    ("null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", re.compile(r"[-+]?(?:0|[1-9][0-9]*)$|0x[0-9a-fA-F]+$"), list("-+0123456789")),
    ("float", FLOAT, list("-+0123456789.")),
    ("merge", re.compile(r"<<$"), ["<"]),
)


class Loader(yaml.SafeLoader):
    """SafeLoader that takes plain scalars by YAML 1.2 and refuses a key written twice."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        # Before merge keys are expanded: `<<` may bring a key that the mapping then overrides.
        seen: dict[Any, int] = {}
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key_node, yaml.ScalarNode) and not key_node.tag.endswith(":merge"):
                line = key_node.start_mark.line + 1
                if key_node.value in seen:
                    problem = f"key `{key_node.value}` is already on line {seen[key_node.value]}"
                    raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
                seen[key_node.value] = line
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


class Dumper(yaml.SafeDumper):
    """SafeDumper that also quotes what only YAML 1.2 takes for a number, and keeps lists on one line."""


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


def parse(text: str, label: str) -> Any:
    """The one document in `text`; `label` says in errors where the text is from."""
    try:
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise RecipeError(f"{label}{place}: {error.problem or error.context}; mend the YAML there") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{label}: not YAML text: {error}") from error


def render(document: Any) -> str:
    """YAML text that `parse` reads back to the same document."""
    try:
        text: str = yaml.dump(document, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)
    except yaml.representer.RepresenterError as error:
        raise RecipeError(
            f"{error.args[1]!r} cannot be written in a recipe; use text, numbers, lists or keys"
        ) from error
    return text
