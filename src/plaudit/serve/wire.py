"""What travels between a reward service and its clients: JSON, and media without loss. Nothing is ever unpickled.

A request is `{"reward": NAME, "items": [{"prompt": {"id", "text", "facts", "inputs"}, "output": PART, "group": 0}],
"step": 0, "columns": [], "deadline_ms": 5000}`; the values of `inputs` are parts too; `columns` names facts and inputs
that other items of a batch have, of which this request is a part. A part is one of
`{"kind": "text", "text": ...}`                                  a text
`{"kind": "json", "value": ...}`                                 messages, numbers, lists
`{"kind": "tensor", "dtype": "float32", "shape": [3, 32, 32], "data": BASE64}`  little-endian, row-major
`{"kind": "png", "data": BASE64}`                                a picture of 8 bits, read to float32 [3, H, W] in 0..1
`"data:image/png;base64,..."`, any other text                    short for `png` and for `text`
`{"kind": "part", "name": "outputs", "row": 3}`                  a tensor of the safetensors file, or a row of it
`{"kind": "hash", "sha256": HEX}`                                a tensor that the service was given before
A tensor or part that brings its `sha256` is kept by the service under that name. The body is either this JSON
(`application/json`) or a safetensors file (`application/vnd.safetensors`) with the JSON as metadata `request`. A body of
`image/png` is one picture; what else there is to say (`reward`, `prompt`, a text) stands in the query of the address.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import safetensors
import torch
from pydantic import ValidationError
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.rewards.calling.request import Request
from plaudit.serve.schema import MAX_RANK, REQUEST, HashPart, Item, JsonPart, PngPart, RowPart, TensorPart, TextPart

JSON, SAFETENSORS, PNG = "application/json", "application/vnd.safetensors", "image/png"
FROM_SAFETENSORS = {
    "F32": torch.float32,
    "F64": torch.float64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "BOOL": torch.bool,
}
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FROM_SAFETENSORS.values()}
MAX_SIZE = 2**48  # of a shape's sizes other than zero, multiplied: what torch can count in bytes
PNG_DEPTH_AT = 24  # of the header, which comes first: signature, length, name, width, height, depth

if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("the wire format is little-endian, and so must the machine be")


class WireError(Exception):
    """A request that is not what it should be; `where` names the field."""

    def __init__(self, where: str, problem: str, status: int = 422) -> None:
        super().__init__(f"{where}: {problem}" if where else problem)
        self.where, self.status = where, status


class UnknownMedia(Exception):
    """Hashes that name media which the service does not hold (any more)."""

    def __init__(self, hashes: Sequence[str]) -> None:
        super().__init__(f"{len(hashes)} media are not known by their hash")
        self.hashes = list(hashes)


# --- the service's side ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bytes of decoded media and outputs in one request."""

    media_bytes: int
    items: int


@dataclass(kw_only=True)
class Decoded:
    """A request ready to be scored. `seen` are the tensors to be kept, by hash."""

    reward: str
    request: Request
    deadline_ms: float | None
    seen: dict[str, Tensor] = field(default_factory=dict)


def strict_json(data: bytes | str) -> Any:
    """JSON by its standard: NaN and Infinity are refused."""

    def refuse(token: str) -> None:
        raise ValueError(f"{token} is not JSON")

    try:
        return json.loads(data, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise WireError("", f"the body is not JSON: {error}") from None


def decode_request(
    body: bytes,
    content_type: str,
    limits: Limits,
    find: Callable[[str], Tensor | None],
    query: Mapping[str, str] = MappingProxyType({}),
) -> Decoded:
    """`find` looks a tensor up by its hash; `query` is the address's, which goes with a body that is a picture."""
    parts: dict[str, Tensor] = {}
    if content_type == SAFETENSORS:
        document, parts = _read_safetensors(body, limits)
    elif content_type == JSON:
        document = strict_json(body)
    elif content_type == PNG:
        document = _of_picture(body, query)
    else:
        raise WireError("Content-Type", f"{content_type!r}; allowed: {JSON}, {SAFETENSORS}, {PNG}", 415)
    try:
        wanted = REQUEST.validate_python(document)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)[0]
        raise WireError(".".join(map(str, details["loc"])), details["msg"]) from None
    if len(wanted.items) > limits.items:
        raise WireError("items", f"{len(wanted.items)} items; at most {limits.items} in one request", 413)
    reader = _Reader(parts, limits.media_bytes, find)
    prompts = [
        Prompt(
            id=item.prompt.id,
            text=item.prompt.text,
            facts=item.prompt.facts,
            inputs={
                name: reader.read(part, f"items.{i}.prompt.inputs.{name}") for name, part in item.prompt.inputs.items()
            },
        )
        for i, item in enumerate(wanted.items)
    ]
    outputs = [item.output for item in wanted.items]
    whole = reader.whole(outputs)
    values = whole if whole is not None else [reader.read(part, f"items.{i}.output") for i, part in enumerate(outputs)]
    if reader.unknown:
        raise UnknownMedia(list(dict.fromkeys(reader.unknown)))
    request = Request(
        prompts=prompts,
        outputs=values,
        group=_groups(wanted.items, prompts),
        step=wanted.step,
        columns=frozenset(wanted.columns),
    )
    return Decoded(reward=wanted.reward, request=request, deadline_ms=wanted.deadline_ms, seen=reader.seen)


def _of_picture(body: bytes, query: Mapping[str, str]) -> Any:
    """The request that one picture and an address are."""
    if unknown := sorted(set(query) - {"reward", "prompt"}):
        raise WireError(f"?{unknown[0]}", "is not known; allowed: reward, prompt")
    output = {"kind": "png", "data": base64.b64encode(body).decode()}
    items = [{"prompt": {"text": query.get("prompt", "")}, "output": output}]
    return {"items": items} | {key: value for key, value in query.items() if key == "reward"}


def _groups(items: Sequence[Item], prompts: Sequence[Prompt]) -> list[int]:
    """Groups as given; where none is, outputs of the same prompt belong together."""
    given = [item.group is not None for item in items]
    if all(given):
        return [item.group for item in items if item.group is not None]
    if any(given):
        raise WireError(f"items.{given.index(False)}.group", "is missing, while other items have one")
    known: dict[str, int] = {}
    return [known.setdefault(prompt.key, len(known)) for prompt in prompts]


def _read_safetensors(body: bytes, limits: Limits) -> tuple[Any, dict[str, Tensor]]:
    if len(body) > limits.media_bytes + (limits.media_bytes >> 2):
        raise WireError("", f"more than {limits.media_bytes} bytes of media", 413)
    try:
        entries = safetensors.deserialize(body)
        header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise WireError("", f"the body is not a safetensors file: {error}") from None
    metadata = header.get("__metadata__")
    request = metadata.get("request") if isinstance(metadata, Mapping) else None
    if request is None:
        raise WireError("metadata.request", "is missing from the safetensors file")
    return strict_json(request), {name: _from_entry(name, entry) for name, entry in entries}


def _from_entry(name: str, entry: Mapping[str, Any]) -> Tensor:
    dtype = FROM_SAFETENSORS.get(entry["dtype"])
    if dtype is None or len(entry["shape"]) > MAX_RANK:
        raise WireError(f"tensors.{name}", f"{entry['dtype']} of shape {entry['shape']} is not taken")
    return make_tensor(entry["data"], dtype, entry["shape"], f"tensors.{name}")


def make_tensor(data: bytes | bytearray, dtype: torch.dtype, shape: Sequence[int], where: str) -> Tensor:
    if math.prod(size or 1 for size in shape) > MAX_SIZE:
        raise WireError(where, f"the sizes of shape {list(shape)} are too large")
    needed = math.prod(shape) * dtype.itemsize
    if len(data) != needed:
        raise WireError(where, f"{len(data)} bytes for {dtype} of shape {list(shape)}, which takes {needed}")
    if not needed:
        return torch.empty(list(shape), dtype=dtype)
    flat = torch.frombuffer(data if isinstance(data, bytearray) else bytearray(data), dtype=torch.uint8)
    if dtype is torch.bool and bool((flat > 1).any()):
        raise WireError(where, "a bool must be 0 or 1")
    return flat.view(dtype).view(list(shape))


class _Reader:
    """Parts to values, within `budget` bytes: a row named twice counts twice, for rewards are given a copy of each."""

    def __init__(self, parts: Mapping[str, Tensor], budget: int, find: Callable[[str], Tensor | None]) -> None:
        self.parts, self.budget, self.find = parts, budget, find
        self.seen: dict[str, Tensor] = {}
        self.unknown: list[str] = []

    def whole(self, outputs: Sequence[Any]) -> Tensor | None:
        """The stack that the outputs are, row by row: nothing needs to be copied."""
        first = outputs[0]
        stack = self.parts.get(first.name) if isinstance(first, RowPart) else None
        if stack is None or not stack.ndim or len(stack) != len(outputs):
            return None
        for i, part in enumerate(outputs):
            if not isinstance(part, RowPart) or part.name != first.name or part.row != i or part.sha256:
                return None
        self._charge(stack.nbytes, "items")
        return stack

    def read(self, part: Any, where: str) -> Any:
        match part:
            case TextPart():
                return part.text
            case JsonPart():
                return part.value
            case PngPart():
                return self._png(part, where)
            case HashPart():
                return self._known(part, where)
        tensor = self._base64(part, where) if isinstance(part, TensorPart) else self._row(part, where)
        if part.sha256 is not None:
            if tensor_hash(tensor) != part.sha256:
                raise WireError(f"{where}.sha256", "is not the hash of this tensor")
            self.seen[part.sha256] = tensor
        return tensor

    def _charge(self, size: int, where: str) -> None:
        self.budget -= size
        if self.budget < 0:
            raise WireError(where, "the media of this request are too large when decoded", 413)

    def _base64(self, part: TensorPart, where: str) -> Tensor:
        dtype = DTYPES.get(part.dtype)
        if dtype is None:
            raise WireError(f"{where}.dtype", f"{part.dtype!r}; allowed: {', '.join(DTYPES)}")
        self._charge(math.prod(part.shape) * dtype.itemsize, f"{where}.shape")
        return make_tensor(from_base64(part.data, where), dtype, part.shape, f"{where}.data")

    def _row(self, part: RowPart, where: str) -> Tensor:
        if part.name not in self.parts:
            raise WireError(f"{where}.name", f"{part.name!r} is not in the safetensors file")
        tensor = self.parts[part.name]
        if part.row is not None:
            if not tensor.ndim or part.row >= len(tensor):
                raise WireError(f"{where}.row", f"{part.row} of a tensor of shape {list(tensor.shape)}")
            tensor = tensor[part.row]
        self._charge(tensor.nbytes, where)
        return tensor

    def _known(self, part: HashPart, where: str) -> Tensor | None:
        tensor = self.seen.get(part.sha256, self.find(part.sha256))
        if tensor is None:
            self.unknown.append(part.sha256)
        else:
            self._charge(tensor.nbytes, where)
        return tensor

    def _png(self, part: PngPart, where: str) -> Tensor:
        import numpy as np
        from PIL import Image

        data = from_base64(part.data, where)
        if data[12:16] != b"IHDR":
            raise WireError(where, "not a PNG: its header does not come first")
        try:
            picture = Image.open(io.BytesIO(data), formats=("PNG",))
            self._charge(picture.width * picture.height * 3 * 4, where)  # before a pixel is unpacked
            depth = data[PNG_DEPTH_AT]  # Pillow calls a colour of 16 bits RGB too
            if picture.mode not in ("RGB", "L", "P", "1") or depth > 8 or "transparency" in picture.info:
                raise WireError(
                    where, f"a PNG of mode {picture.mode}, {depth} bit would lose something; send RGB or grey, 8 bit"
                )
            if getattr(picture, "n_frames", 1) > 1:
                raise WireError(where, "an animated PNG would lose something; send one picture")
            pixels = np.asarray(picture.convert("RGB"))
        except WireError:
            raise
        except Exception as error:  # Pillow raises what its decoders raise
            raise WireError(where, f"not a PNG: {error}") from None
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


def from_base64(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise WireError(f"{where}.data", f"not base64: {error}") from None


def tensor_hash(tensor: Tensor) -> str:
    """SHA-256 of `DTYPE AxBxC`, a newline, and the bytes."""
    shape = "x".join(map(str, tensor.shape))
    digest = hashlib.sha256(f"{str(tensor.dtype).removeprefix('torch.')} {shape}\n".encode())
    digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def tensor_part(tensor: Tensor) -> dict[str, Any]:
    return {
        "kind": "tensor",
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "data": base64.b64encode(tensor_bytes(tensor)).decode(),
    }
