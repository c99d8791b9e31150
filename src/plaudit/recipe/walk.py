"""What the schema knows about a document: which keys a place has, which component describes it, what its defaults are.

An annotation is what pydantic keeps of a field's type: a component, a union of components told apart by `type`, a table
`dict[str, component]`, or a leaf.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from plaudit.recipe.schema import Recipe

Component = type[BaseModel]
MOST_NAMES = 50  # of a table, when a key is looked for that may have been meant


def variants(annotation: Any) -> list[Component]:
    """The components that may describe a place: none for a leaf, several for a union told apart by `type`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType, Annotated) else ()
    return [variant for member in members for variant in variants(member)]


def fields_of(component: Component) -> dict[str, FieldInfo]:
    """Fields by the key that a recipe writes, which for a word that Python reserves is not the attribute's name."""
    return {field.alias or name: field for name, field in component.model_fields.items()}


def types_of(component: Component) -> tuple[str, ...]:
    """The values of `type` that pick this variant of a union."""
    field = component.model_fields.get("type")
    return get_args(field.annotation) if field and get_origin(field.annotation) is Literal else ()


def type_of(component: Component) -> str | None:
    return next(iter(types_of(component)), None)


def component_of(annotation: Any, value: Any) -> Component | None:
    """The component that describes `value`, if its `type` is known."""
    possible = variants(annotation)
    if len(possible) > 1:
        chosen = value.get("type") if isinstance(value, Mapping) else None
        possible = [variant for variant in possible if chosen in types_of(variant)]
    return possible[0] if possible else None


def inside(annotation: Any, value: Any) -> dict[str, Any] | None:
    """Annotations of the keys at a place; None for a leaf."""
    if get_origin(annotation) is dict and variants(get_args(annotation)[1]):
        return dict.fromkeys(value, get_args(annotation)[1]) if isinstance(value, Mapping) else {}
    component = component_of(annotation, value)
    return {key: field.annotation for key, field in fields_of(component).items()} if component else None


def known_keys(document: Any, annotation: Any = Recipe, prefix: str = "") -> Iterator[str]:
    """Every dotted key that this document could have, given the variants it has chosen; of a table, those of its first names."""
    keys = (inside(annotation, document) or {}).items()
    for key, below in islice(keys, MOST_NAMES if get_origin(annotation) is dict else None):
        yield prefix + key
        yield from known_keys(document.get(key) if isinstance(document, Mapping) else None, below, f"{prefix}{key}.")


def filled(document: Mapping[str, Any], annotation: Any = Recipe, default_type: str | None = None) -> dict[str, Any]:
    """The document with every absent key at its default, so that an overlay sees what the recipe resolves to.

    What the schema does not know stays as it is, for validation to name.
    """
    if default_type is not None:
        document = {"type": default_type, **document}
    component = component_of(annotation, document)
    complete = dict(document)
    for key, field in fields_of(component).items() if component else ():
        default = field.get_default(call_default_factory=True)
        if key in document:
            complete[key] = _filled_value(document[key], field.annotation, getattr(default, "type", None))
        elif not field.is_required():
            complete[key] = _plain(default)
    return complete


def _filled_value(value: Any, annotation: Any, default_type: str | None) -> Any:
    if not isinstance(value, Mapping):
        return value
    if variants(annotation):
        return filled(value, annotation, default_type)
    if below := inside(annotation, value):
        return {key: _filled_value(entry, below[key], None) for key, entry in value.items()}
    return value


def _plain(default: Any) -> Any:
    """A default as mappings."""
    if isinstance(default, BaseModel):
        return default.model_dump()
    if isinstance(default, dict):
        return {key: _plain(value) for key, value in default.items()}
    return default
