"""Finished outputs to be scored: a folder of pictures, or rows of texts or pictures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plaudit.data.files import JSON_ROWS, Row, brief, has_rows, is_dataset, read_rows, read_text
from plaudit.data.pictures import PICTURES, read_picture
from plaudit.data.prompt import Prompt, is_conversation, must_be_text, text_of
from plaudit.data.sources import id_of, identify, objects_of
from plaudit.errors import DataError

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
    if os.path.isdir(path) and not is_dataset(path):
        return _from_folder(path, prompt)
    if has_rows(path) and os.path.exists(path):
        return _from_rows(path, prompt)
    if path.suffix.lower() in PICTURES and os.path.isfile(path):
        return Gathered(names=[path.name], prompts=[_named_prompt(path, str(path), {}, prompt)], sources=[path])
    raise DataError(
        f"{brief(path)}: nothing to score there; give a folder of pictures ({', '.join(PICTURES)}), a {JSON_ROWS[0]}, .csv or "
        ".parquet file with `prompt` and `output` (or `completion`, `response`, `image`, `messages`), or the folder of a run"
    )


def with_pictures(inputs: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Inputs in which `{"image": PATH}` stands for the picture at that path, as in `{"reference": {"image": "a.png"}}`."""
    return {
        name: read_picture(folder / str(value["image"]))
        if isinstance(value, dict) and set(value) == {"image"}
        else value
        for name, value in inputs.items()
    }


def _from_folder(folder: Path, prompt: str | None) -> Gathered:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in PICTURES)
    if not files:
        raise DataError(f"{folder} holds no picture ({', '.join(PICTURES)}) and is no run folder")
    about = _about(folder / METADATA) if (folder / METADATA).exists() else {}
    if strangers := sorted(set(about) - {file.name for file in files}):
        raise DataError(f"{folder / METADATA} names files that are not there: {brief(', '.join(strangers))}")
    prompts = [_named_prompt(file, *about.get(file.name, (str(file), {})), prompt) for file in files]
    _one_text_for_an_id(files, prompts)
    return Gathered(names=[file.name for file in files], prompts=prompts, sources=files)


def _about(path: Path) -> dict[str, Row]:
    """Rows of the metadata by the file that each is about."""
    about: dict[str, Row] = {}
    for where, row in read_rows(path):
        name = row.pop("file_name", None)
        if not isinstance(name, str):
            raise DataError(f"{where}: `file_name` is {brief(name)}; expected the name of a picture beside it")
        if name in about:
            raise DataError(f"{where}: {brief(name)} has a row already ({about[name][0]}); leave one of them out")
        about[name] = where, row
    return about


def _one_text_for_an_id(files: Sequence[Path], prompts: Sequence[Prompt]) -> None:
    first: dict[str, tuple[Path, str]] = {}
    for file, prompt in zip(files, prompts, strict=True):
        other, text = first.setdefault(prompt.id, (file, prompt.text))
        if text != prompt.text:
            raise DataError(
                f"{file}: its prompt has the id {brief(prompt.id)} of another prompt ({other}); give it its own"
            )


def _named_prompt(file: Path, where: str, row: Mapping[str, Any], prompt: str | None) -> Prompt:
    """A picture's prompt: its row in the metadata, the text file beside it, or the one given for all."""
    beside = file.with_suffix(".txt")
    row = dict(row)
    text = row.pop("text", None) or row.pop("prompt", None)
    if text is None and beside.is_file():
        text = read_text(beside).strip()
    text = text if text is not None else prompt or ""
    if not isinstance(text, str):
        raise DataError(f"{where}: `text` is {brief(text)[:80]}; expected a text")
    facts, inputs = objects_of(where, row)
    name = id_of(where, row) or identify(text)
    return Prompt(id=name, text=text, inputs=with_pictures(inputs, file.parent), facts={**row, **facts})


def _from_rows(path: Path, prompt: str | None) -> Gathered:
    parsed = [
        _parse(path, number, where, dict(row), prompt) for number, (where, row) in enumerate(read_rows(path), start=1)
    ]
    return Gathered(
        names=[name for name, _, _ in parsed],
        prompts=[p for _, p, _ in parsed],
        sources=[source for _, _, source in parsed],
    )


def _parse(path: Path, number: int, where: str, row: dict[str, Any], default: str | None) -> tuple[str, Prompt, Any]:
    """One row; whatever is not prompt or output is a fact that rewards may ask for by name."""

    def refuse(what: str) -> DataError:
        return DataError(f"{where}: {what}")

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
    if not isinstance(output, str):
        must_be_text(output, where)
    facts, inputs = objects_of(where, row)
    inputs = with_pictures(inputs, path.parent)
    asked = row.pop("prompt", None) or row.pop("text", None) or default or ""
    if not isinstance(asked, str):
        if not is_conversation(asked):
            raise refuse(f"`prompt` is {str(asked)[:80]}; expected a text or a list of messages")
        must_be_text(asked, where)
        inputs, asked = {**inputs, "messages": asked}, text_of(asked)
    name = id_of(where, row) or str(number)
    prompt = Prompt(id=identify(asked), text=asked, facts={**row, **facts}, inputs=inputs)
    return name, prompt, path.parent / output if given[0] == "image" else output
