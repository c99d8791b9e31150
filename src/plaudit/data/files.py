"""Rows of prompts and outputs from files: one boundary for whatever may be wrong with them."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plaudit.errors import DataError

JSON_ROWS, TABLES = (".jsonl", ".ndjson"), (".csv", ".tsv", ".parquet")
DEEPEST = 64  # levels of a row; code that walks through it would meet Python's own limit
DATASET = "dataset_info.json"  # in every folder of `Dataset.save_to_disk`

Row = tuple[str, dict[str, Any]]  # where it stands, and what it says


def has_rows(path: Path) -> bool:
    """Whether the name says that there are rows in it."""
    return path.suffix.lower() in (*JSON_ROWS, *TABLES) or is_dataset(path)


def is_dataset(path: Path) -> bool:
    """Whether `path` is a folder that `datasets` wrote with `save_to_disk`."""
    return os.path.isfile(path / DATASET) or os.path.isfile(path / "dataset_dict.json")


def is_no_file(path: Path) -> bool:
    """Whether something else lies there: a folder, or a named pipe, which would be waited for without end."""
    return os.path.exists(path) and not os.path.isfile(path)


def read_rows(path: Path, key: str = "", media: bool = False) -> list[Row]:
    """Objects of a JSON-lines file, a CSV, a parquet file or a folder of `datasets`; each has only what JSON has, and
    with `media` encoded pictures."""
    said = f"{key}: {brief(path)}" if key else brief(path)
    if is_dataset(path):
        rows = _dataset_rows(path, said)
    elif is_no_file(path):
        raise DataError(f"{said} is no file; give a file with rows, or a folder of datasets")
    elif path.suffix.lower() == ".parquet":
        rows = _parquet_rows(path, said)
    elif path.suffix.lower() in TABLES:
        rows = _csv_rows(path, said)
    else:
        rows = _json_rows(path, said)
    found = [_checked(where, row, media) for where, row in rows]
    if not found:
        raise DataError(f"{said} is empty; write one object a line")
    return found


def read_text(path: Path, said: str | None = None) -> str:
    """UTF-8, without the mark that some editors put before it."""
    with reading(said or brief(path)):
        return path.read_text(encoding="utf-8-sig")


def brief(value: object) -> str:
    return text if len(text := str(value)) <= 200 else f"{text[:100]}... ({len(text)} characters)"


@contextmanager
def reading(said: str) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"{said} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except (OSError, ValueError) as error:  # absent, a folder, forbidden, too long a name, NUL in a name
        why = getattr(error, "strerror", None) or error
        raise DataError(f"{said} cannot be read: {why}; check the path") from error


def _json_rows(path: Path, said: str) -> Iterator[Row]:
    for number, line in enumerate(read_text(path, said).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{said} line {number}"
        try:
            yield where, json.loads(line)
        except (ValueError, RecursionError) as error:  # no JSON, a number of thousands of digits, thousands of brackets
            raise DataError(f"{where} is not JSON: {brief(error)}; write one object a line") from error


def _csv_rows(path: Path, said: str) -> Iterator[Row]:
    text = io.StringIO(read_text(path, said), newline="")
    table = csv.DictReader(text, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
    try:
        if not {"prompt", "text"} & set(table.fieldnames or ()):
            raise DataError(
                f"{said} has the columns {brief(table.fieldnames)}; name one of them prompt or text in its first line"
            )
        for row in table:
            where = f"{said} line {table.line_num}"
            if None in row or None in row.values():
                raise DataError(
                    f"{where} has not the {len(table.fieldnames or ())} fields of the first line; quote commas"
                )
            yield where, dict(row)
    except csv.Error as error:
        raise DataError(f"{said} line {table.line_num} is no CSV: {error}; quote fields with double quotes") from error


def _parquet_rows(path: Path, said: str) -> Iterator[Row]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"{said} is read with pyarrow; run `pip install pyarrow`, or write JSON lines") from error
    try:
        rows = parquet.read_table(path).to_pylist()
    except Exception as error:  # whatever arrow raises, and Python for dates and time zones that it does not have
        raise DataError(
            f"{said} is no parquet file that loads: {brief(error)}; write it again, or JSON lines"
        ) from error
    return ((f"{said} row {number}", row) for number, row in enumerate(rows, start=1))


def _dataset_rows(path: Path, said: str) -> Iterator[Row]:
    if not os.path.isfile(path / DATASET):
        splits = sorted(found.name for found in path.iterdir() if is_dataset(found))
        raise DataError(f"{said} is a dataset of several splits; give one of its folders: {', '.join(splits)}")
    try:
        from datasets import load_from_disk
    except ImportError as error:
        raise DataError(f"{said} is read with datasets; run `pip install datasets`, or write JSON lines") from error
    try:
        rows = list(load_from_disk(str(path)))
    except Exception as error:  # damaged folders: whatever arrow, json and datasets raise
        raise DataError(
            f"{said} is no dataset that loads: {brief(error)}; save it again, or write JSON lines"
        ) from error
    return ((f"{said} row {number}", row) for number, row in enumerate(rows, start=1))


def _checked(where: str, row: Any, media: bool) -> Row:
    """An object of texts, numbers, lists and objects that can be written again."""
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object, got {brief(row)[:80]}")
    for name, value in row.items():
        if _depth(value) > DEEPEST:
            raise DataError(f"{where}: `{brief(name)}` is nested more than {DEEPEST} levels deep; flatten it")
        try:
            json.dumps({name: value}, ensure_ascii=False, default=_media if media else None).encode()
        except TypeError as error:
            what = type(value).__name__
            raise DataError(
                f"{where}: `{brief(name)}` holds a {what}; expected what JSON has ({brief(error)})"
            ) from error
        except ValueError as error:  # half of a surrogate pair
            raise DataError(
                f"{where}: `{brief(name)!r}` holds what is no text: {brief(error)}; mend it".encode(
                    "ascii", "backslashreplace"
                ).decode()
            ) from error
    return where, row


def _media(value: Any) -> str:
    if isinstance(value, bytes):
        return ""
    raise TypeError(f"{type(value).__name__} is not what JSON has")


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level and depth <= DEEPEST:
        level = [i for v in level if isinstance(v, dict | list) for i in (v.values() if isinstance(v, dict) else v)]
        depth += 1
    return depth
