"""What a reward's options may be: what the annotations of its maker say, such as `Literal["line", "page"]` or `Fraction`.

They are checked where a reward is found by name, yours as well as ours.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import SchemaError

from plaudit.errors import RecipeError
from plaudit.recipe.explain import of_one_value


def checked(key: str, maker: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as the annotations want them. A name that the maker does not know is left for the call to refuse."""
    known = _annotations(maker)
    return {
        name: _checked(f"{key}.{name}", known[name], value) if name in known else value
        for name, value in arguments.items()
    }


def _annotations(maker: Callable[..., Any]) -> dict[str, Any]:
    """Of the named parameters. One that names what only type checkers import cannot be read, and none beside it."""
    try:
        parameters = inspect.signature(maker, eval_str=True).parameters.values()
    except (NameError, ValueError):
        return {}
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {one.name: one.annotation for one in parameters if one.kind in named and one.annotation is not one.empty}


def _checked(key: str, annotation: Any, value: Any) -> Any:
    adapter = _adapter(annotation)
    if adapter is None:
        return value
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise RecipeError(of_one_value(key, value, error)) from None


def _adapter(annotation: Any) -> TypeAdapter[Any] | None:
    """None for a type that says nothing of values, such as a protocol."""
    try:
        return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except SchemaError:
        return None
    except PydanticUserError as error:
        return TypeAdapter(annotation) if error.code == "type-adapter-config-unused" else None  # it brings its own
