"""What a request to a reward service may say: the schema of its JSON, which wire.py describes and reads."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter

MAX_RANK = 8
DATA_URL = re.compile(r"data:image/(?P<kind>[\w.+-]*)(?P<rest>[^,]{0,100}),")
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class TextPart(Model):
    kind: Literal["text"]
    text: str


class JsonPart(Model):
    kind: Literal["json"]
    value: Any


class TensorPart(Model):
    kind: Literal["tensor"]
    dtype: str
    shape: list[Annotated[int, Field(ge=0)]] = Field(max_length=MAX_RANK)
    data: str
    sha256: Hash | None = None


class PngPart(Model):
    kind: Literal["png"]
    data: str


class RowPart(Model):
    kind: Literal["part"]
    name: str
    row: Annotated[int, Field(ge=0)] | None = None
    sha256: Hash | None = None


class HashPart(Model):
    kind: Literal["hash"]
    sha256: Hash


def _in_full(part: Any) -> Any:
    """A picture's data URL, or a text, as the part that it is short for."""
    if not isinstance(part, str):
        return part
    url = DATA_URL.match(part)
    if url is None:
        return {"kind": "text", "text": part}
    if url["kind"].lower() != "png" or url["rest"] != ";base64":
        raise ValueError("a picture's URL must be data:image/png;base64,...: other formats would lose something")
    return {"kind": "png", "data": part[url.end() :]}


Part = Annotated[
    TextPart | JsonPart | TensorPart | PngPart | RowPart | HashPart,
    Field(discriminator="kind"),
    BeforeValidator(_in_full),
]


class PromptModel(Model):
    id: str = ""
    text: str = ""
    facts: dict[str, Any] = {}
    inputs: dict[str, Part] = {}


class Item(Model):
    prompt: PromptModel = PromptModel()
    output: Part
    group: int | None = None


class ScoreRequest(Model):
    reward: str
    items: list[Item] = Field(min_length=1)
    step: Annotated[int, Field(ge=0)] = 0
    columns: list[str] = []
    deadline_ms: Annotated[float, Field(gt=0)] | None = None


REQUEST = TypeAdapter(ScoreRequest)
