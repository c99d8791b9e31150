"""Finished outputs to be scored: a folder of pictures, or a JSONL of texts or pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from plaudit.data.prompt import Prompt, is_conversation, text_of
from plaudit.data.sources import identify
from plaudit.errors import DataError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
OUTPUT_KEYS = ("output", "completion", "response", "image")
METADATA = "metadata.jsonl"


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """Outputs with their prompts, in order. Pictures stay on disk until they are asked for."""

    names: Sequence[str]
    prompts: Sequence[Prompt]
    sources: Sequence[Path | Any]

    def __len__(self) -> int:
        return len(self.names)

    def outputs(self, rows: Sequence[int]) -> list[Any]:
        return [read_picture(s) if isinstance(s := self.sources[i], Path) else s for i in rows]


def gather(path: Path, prompt: str | None = None) -> Gathered:
    """What lies at `path`. `prompt` is what all outputs answer that carry none of their own."""
    if path.is_dir():
        return _from_folder(path, prompt)
    if path.suffix == ".jsonl" and path.is_file():
        return _from_rows(path, prompt)
    if path.suffix.lower() in PICTURES and path.is_file():
        return Gathered(names=[path.name], prompts=[_named_prompt(path, {}, prompt)], sources=[path])
    raise DataError(
        f"{path}: nothing to score there; give a folder of pictures ({', '.join(PICTURES)}), a .jsonl file with `prompt` and "
        "`output` (or `completion`, `response`, `image`, `messages`), or the folder of a run"
    )


def read_picture(path: Path) -> Tensor:
    try:
        with Image.open(path) as image:
            return pixels_of(image)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError) as error:
        raise DataError(f"{path} cannot be read as a picture: {error}") from error


def pixels_of(image: Image.Image) -> Tensor:
    """Red, green and blue `[3, H, W]` in 0..1, turned as its camera says; what is transparent is shown on white."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits of grey, which a conversion would cut off at 255
        grey = torch.from_numpy(np.asarray(image).astype(np.float32)) / 65535
        return grey.clamp(0, 1).expand(3, -1, -1).clone()
    return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1).float() / 255


def with_pictures(inputs: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Inputs in which `{"image": PATH}` stands for the picture at that path, as in `{"reference": {"image": "a.png"}}`."""
    return {
        name: read_picture(folder / value["image"]) if isinstance(value, dict) and set(value) == {"image"} else value
        for name, value in inputs.items()
    }


def _from_folder(folder: Path, prompt: str | None) -> Gathered:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in PICTURES)
    if not files:
        raise DataError(f"{folder} holds no picture ({', '.join(PICTURES)}) and is no run folder")
    about = (
        {row.pop("file_name", None): row for row in _rows(folder / METADATA)} if (folder / METADATA).exists() else {}
    )
    strangers = set(about) - {file.name for file in files}
    if strangers:
        raise DataError(
            f"{folder / METADATA} names files that are not there: {', '.join(map(str, sorted(strangers, key=str)))}"
        )
    prompts = [_named_prompt(file, about.get(file.name, {}), prompt) for file in files]
    return Gathered(names=[file.name for file in files], prompts=prompts, sources=files)


def _named_prompt(file: Path, row: Mapping[str, Any], prompt: str | None) -> Prompt:
    """A picture's prompt: its row in the metadata, the text file beside it, or the one given for all."""
    beside = file.with_suffix(".txt")
    row = dict(row)
    text = row.pop("text", None) or row.pop("prompt", None)
    if text is None and beside.is_file():
        text = beside.read_text(encoding="utf-8").strip()
    text = text if text is not None else prompt or ""
    facts = row.pop("facts", {})
    return Prompt(
        id=str(row.pop("id", identify(text))),
        text=text,
        inputs=with_pictures(row.pop("inputs", {}), file.parent),
        facts={**row, **facts},
    )


def _from_rows(path: Path, prompt: str | None) -> Gathered:
    rows = _rows(path)
    parsed = [_parse(path, number, dict(row), prompt) for number, row in enumerate(rows, start=1)]
    return Gathered(
        names=[name for name, _, _ in parsed],
        prompts=[p for _, p, _ in parsed],
        sources=[source for _, _, source in parsed],
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path} line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{path} line {number}: expected an object, got {line[:80]}")
        rows.append(row)
    if not rows:
        raise DataError(f"{path} is empty; write one object a line")
    return rows


def _parse(path: Path, number: int, row: dict[str, Any], default: str | None) -> tuple[str, Prompt, Any]:
    """One row; whatever is not prompt or output is a fact that rewards may ask for by name."""

    def refuse(what: str) -> DataError:
        return DataError(f"{path} line {number}: {what}")

    messages = row.pop("messages", None)
    if messages is not None:
        if not is_conversation(messages):
            raise refuse(f"`messages` is {str(messages)[:80]}; expected a list of objects with `role` and `content`")
        row |= {"prompt": messages[:-1], "output": [messages[-1]]}
    given = [key for key in OUTPUT_KEYS if key in row]
    if len(given) != 1:
        found = " and ".join(given) or f"the keys {sorted(row)}"
        raise refuse(f"expected exactly one of {', '.join(OUTPUT_KEYS)} or messages, found {found}")
    output = row.pop(given[0])
    if not isinstance(output, str) and not (given[0] != "image" and is_conversation(output)):
        raise refuse(f"`{given[0]}` is {str(output)[:80]}; expected a text{' (a path)' if given[0] == 'image' else ''}")
    facts, inputs = row.pop("facts", {}), row.pop("inputs", {})
    if not isinstance(facts, dict) or not isinstance(inputs, dict):
        raise refuse("`facts` and `inputs` must be objects")
    inputs = with_pictures(inputs, path.parent)
    asked = row.pop("prompt", None) or row.pop("text", None) or default or ""
    if not isinstance(asked, str):
        if not is_conversation(asked):
            raise refuse(f"`prompt` is {str(asked)[:80]}; expected a text or a list of messages")
        inputs, asked = {**inputs, "messages": asked}, text_of(asked)
    name = str(row.pop("id", number))
    prompt = Prompt(id=identify(asked), text=asked, facts={**row, **facts}, inputs=inputs)
    return name, prompt, path.parent / output if given[0] == "image" else output
