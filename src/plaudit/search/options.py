"""From a method's name and options to the method."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from plaudit.dotted import import_dotted
from plaudit.errors import RecipeError
from plaudit.recipe.text import parse
from plaudit.search.base import Method
from plaudit.search.table import METHODS


def find_method(name: str, options: Mapping[str, Any], family: str) -> Method:
    """The method of the table, or at a dotted path, with these options."""
    if not isinstance(name, str):
        raise RecipeError(f"method: {name!r} is not a name; allowed: {', '.join(METHODS)}, or `package.module:Class`")
    if name not in METHODS and ":" not in name:
        near = get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise RecipeError(
            f"method {name!r} is not known; {hint}allowed: {', '.join(METHODS)}, or a dotted path `package.module:Class`"
        )
    if name in METHODS and family not in METHODS[name].families:
        fitting = [other for other, entry in METHODS.items() if family in entry.families]
        raise RecipeError(f"method {name} does not search {family} models; allowed: {', '.join(fitting)}")
    kind = import_dotted(METHODS[name].path if name in METHODS else name, "method")
    if not dataclasses.is_dataclass(kind) or not hasattr(kind, "run"):
        raise RecipeError(f"method: {name!r} is not a dataclass of options with a `run(task)`")
    return _made(name, kind, options)


def _made(name: str, kind: type, options: Mapping[str, Any]) -> Method:
    allowed = {field.name: field for field in dataclasses.fields(kind)}
    for key in options:
        if key not in allowed:
            near = get_close_matches(key, allowed, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise RecipeError(f"method {name} has no option {key!r}; {hint}allowed: {', '.join(allowed) or 'none'}")
    return kind(**{key: _checked(name, kind, key, value) for key, value in options.items()})


def _checked(name: str, kind: type, key: str, value: Any) -> Any:
    """The value as the field's type wants it."""
    from typing import get_type_hints

    hint = get_type_hints(kind)[key]
    config = None if dataclasses.is_dataclass(hint) else ConfigDict(arbitrary_types_allowed=True)
    try:
        return TypeAdapter(hint, config=config).validate_python(value)
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise RecipeError(f"method {name}, option {key}: {value!r}: {problem[0].lower()}{problem[1:]}") from None


def read_options(texts: Sequence[str]) -> dict[str, Any]:
    """`key=value` with the value as YAML: `width=4`, `temperature=0.5`, `steps=[2, 6]`."""
    options: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise RecipeError(f"--option {text!r}: expected KEY=VALUE, for example candidates=8")
        if key in options:
            raise RecipeError(f"--option {key} is given twice; give it once")
        options[key] = parse(value, f"--option {text!r}")
    return options


def options_of(method: Method) -> dict[str, Any]:
    """All options as they are, for the record."""
    return {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}  # type: ignore[arg-type]
