"""Encoders by name; each is loaded once per process."""

from __future__ import annotations

import functools

from plaudit.dotted import import_dotted
from plaudit.errors import RecipeError
from plaudit.rewards.encoders.base import Encoder

BUILT_IN = {
    "lab": "plaudit.rewards.encoders.lab:LabEncoder",
    "minilm": "plaudit.rewards.encoders.minilm:MiniLm",
    "picture": "plaudit.rewards.encoders.picture:PictureEncoder",
    "clip": "plaudit.rewards.encoders.clip:ClipEncoder",
}


@functools.cache
def load_encoder(name: str) -> Encoder:
    """`lab`, `minilm`, `picture`, `clip:NAME-OR-FOLDER`, or `package.module:Class` of your own."""
    kind, _, rest = name.partition(":")
    if kind == "clip":
        if not rest:
            raise RecipeError("encoder: 'clip' needs a model; write clip:NAME or clip:FOLDER")
        return import_dotted(BUILT_IN[kind], "encoder")(rest)
    made = import_dotted(BUILT_IN.get(name, name), "encoder", built_in=BUILT_IN)()
    if not isinstance(made, Encoder):
        raise RecipeError(f"encoder: {name!r} is a {type(made).__name__}, not a plaudit.rewards.encoders.base.Encoder")
    return made
