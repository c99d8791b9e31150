"""From a batch in memory to a request on the wire: the client's half of wire.py."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from safetensors.torch import save
from torch import Tensor

from plaudit.rewards.calling.request import Request
from plaudit.serve.schema import MAX_RANK
from plaudit.serve.wire import DTYPES, JSON, SAFETENSORS, tensor_hash


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A body and its content type. `hashes` are those that it names without bringing the media."""

    body: bytes
    content_type: str
    hashes: frozenset[str] = frozenset()


class Unsendable(Exception):
    """Something of a prompt or an output that has no place on the wire."""


class Packer:
    """Packs one batch, again and again as the service lacks more of what was only named by hash."""

    def __init__(self, reward: str, request: Request, *, by_hash: Literal["none", "inputs", "all"] = "inputs") -> None:
        self.reward, self.request, self.by_hash = reward, request, by_hash
        self.hashes: dict[int, str] = {}  # by id of the tensor, which the request keeps alive

    def pack(self, missing: frozenset[str] | None = None) -> Packed:
        """`missing` are the hashes whose media must be sent; None sends everything."""
        tensors: dict[str, Tensor] = {}
        named: set[str] = set()
        outputs = self._outputs(tensors, named, missing)
        items = []
        for i, prompt in enumerate(self.request.prompts):
            inputs = {
                name: self._part(value, tensors, named, missing, f"inputs.{name}", hashed=self.by_hash != "none")
                for name, value in prompt.inputs.items()
            }
            content = {"id": prompt.id, "text": prompt.text, "facts": dict(prompt.facts), "inputs": inputs}
            items.append({"prompt": content, "output": outputs[i], "group": int(self.request.group[i])})
        columns = sorted(self.request.columns)
        document = {"reward": self.reward, "items": items, "step": int(self.request.step), "columns": columns}
        try:
            text = json.dumps(document, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise Unsendable(f"facts and inputs must be JSON or tensors: {error}") from None
        for prompt in {id(each): each for each in self.request.prompts}.values():
            _check_keys(dict(prompt.facts), "facts")
            _check_keys(dict(prompt.inputs), "inputs")
        if not isinstance(self.request.outputs, Tensor):
            _check_keys(list(self.request.outputs), "outputs")
        if not tensors:
            return Packed(body=text.encode(), content_type=JSON, hashes=frozenset(named))
        return Packed(body=save(tensors, {"request": text}), content_type=SAFETENSORS, hashes=frozenset(named))

    def _outputs(self, tensors: dict[str, Tensor], named: set[str], missing: frozenset[str] | None) -> list[Any]:
        outputs = self.request.outputs
        if isinstance(outputs, Tensor) and self.by_hash != "all":
            tensors["outputs"] = _sendable(outputs, "outputs")
            return [{"kind": "part", "name": "outputs", "row": i} for i in range(len(outputs))]
        rows = self._rows
        return [self._part(row, tensors, named, missing, "outputs", hashed=self.by_hash == "all") for row in rows]

    @property
    def _rows(self) -> list[Any]:
        if not hasattr(self, "_kept_rows"):
            self._kept_rows = list(self.request.outputs)
        return self._kept_rows

    def _part(
        self,
        value: Any,
        tensors: dict[str, Tensor],
        named: set[str],
        missing: frozenset[str] | None,
        where: str,
        *,
        hashed: bool,
    ) -> dict[str, Any]:
        if isinstance(value, str):
            return {"kind": "text", "text": value}
        if not isinstance(value, Tensor):
            return {"kind": "json", "value": value}
        tensor = _sendable(value, where)
        if not hashed:
            name = f"{where}.{len(tensors)}"
            tensors[name] = tensor
            return {"kind": "part", "name": name}
        if id(value) not in self.hashes:
            self.hashes[id(value)] = tensor_hash(tensor)
        sha256 = self.hashes[id(value)]
        if missing is not None and sha256 not in missing:
            named.add(sha256)
            return {"kind": "hash", "sha256": sha256}
        tensors.setdefault(sha256, tensor)  # sent once, however many items name it
        return {"kind": "part", "name": sha256, "sha256": sha256}


def _check_keys(value: Any, where: str) -> None:
    """JSON would turn the key 1 into "1", and the reward would not find it."""
    if isinstance(value, dict):
        for key, content in value.items():
            if not isinstance(key, str):
                raise Unsendable(f"{where} has the key {key!r}; only keys that are text can be sent")
            _check_keys(content, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for content in value:
            _check_keys(content, where)


def _sendable(tensor: Tensor, where: str) -> Tensor:
    if tensor.dtype not in DTYPES.values() or tensor.ndim > MAX_RANK:
        raise Unsendable(f"{where}: a tensor of {tensor.dtype} and shape {list(tensor.shape)} cannot be sent")
    return tensor.detach().cpu().contiguous()
