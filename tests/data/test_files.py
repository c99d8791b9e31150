"""Files of prompts and outputs that are not what they should be: one line, or the right rows, and nothing else."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from plaudit.data.outputs import gather
from plaudit.data.sources import identify, read_prompts
from plaudit.errors import DataError

PICTURED = [
    {"role": "user", "content": [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": "a.png"}]}
]
ANSWER = [{"role": "assistant", "content": "x"}]


def read(path: Path) -> list:
    return read_prompts(str(path), "prompts.train")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"caf\xe9", r"x.txt is not UTF-8 \(byte 3\)"),
        ("x.jsonl", b'{"text": "\xff"}', "is not UTF-8"),
        ("x.jsonl", b'{"text": "a", "facts": 3}', "line 1: `facts` and `inputs` must be objects, got 3"),
        ("x.jsonl", b'{"prompt": "a", "inputs": [1]}', "must be objects"),
        ("x.jsonl", b'{"text": "a", "id": {}}', r"`id` is \{\}; expected a text or a number"),
        ("x.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("x.jsonl", b'{"text": ' + b"9" * 5_000 + b"}", "line 1 is not JSON"),
        ("x.jsonl", b'{"text": "a", "facts": {"b": ' + b"[" * 90 + b"]" * 90 + b"}}", "more than 64 levels deep"),
        ("x.jsonl", b'{"text": "\\ud800"}', "`text` holds what is no text|`'text'` holds what is no text"),
        (
            "x.jsonl",
            b'{"prompt": [{"role": "user", "content": 3}]}',
            "`prompt` is .*; expected a text or a list of messages",
        ),
        ("x.jsonl", b'{"prompt": "a", "completion": 3}', "`completion` is 3; expected a text or a list of messages"),
        ("x.jsonl", json.dumps({"prompt": PICTURED}).encode(), "line 1: message 1 has a part 'image_url'"),
        (
            "x.jsonl",
            json.dumps({"messages": [*PICTURED, *ANSWER]}).encode(),
            "line 1: message 1 has a part 'image_url'",
        ),
        ("x.jsonl", json.dumps({"text": "a", "inputs": {"messages": PICTURED}}).encode(), "has a part 'image_url'"),
        ("x.jsonl", json.dumps({"prompt": "a", "completion": PICTURED}).encode(), "has a part 'image_url'"),
        ("x.jsonl", b'{"text": "a", "id": 1}\n{"text": "b", "id": 1}', "line 2: the id 1 is taken by .*line 1"),
        (
            "x.json",
            b'[{"text": "a"}]',
            "x.json is no kind of file that prompts are read from; give one of .txt, .jsonl",
        ),
        ("x.csv", b"a,b\n1,2\n", r"x.csv has the columns \['a', 'b'\]; name one of them prompt or text"),
        ("x.csv", b"prompt,answer\na,b,c\n", "line 2 has not the 2 fields of the first line"),
        ("x.csv", b'prompt\n"a\n', "is no CSV"),
        ("x.parquet", b"PAR1 and no more", "x.parquet is no parquet file"),
        ("x.txt", b"\xef\xbb\xbf\n", "is empty; write one prompt a line"),
    ],
)
def test_what_is_wrong_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as found:
        read(tmp_path / name)
    assert "\n" not in str(found.value) and len(str(found.value)) < 1_000 + len(str(tmp_path))


@pytest.mark.parametrize("path", ["a" * 5_000, "a\0b", "absent.txt", "absent.parquet", "a" * 5_000 + ".jsonl", "."])
def test_paths_that_lead_nowhere(path: str) -> None:
    with pytest.raises(DataError) as found:
        read_prompts(path, "prompts.train")
    assert str(found.value).startswith("prompts.train: ") and len(str(found.value)) < 400
    with pytest.raises(DataError):
        gather(Path(path if path != "." else "absent"))


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.parquet", "metadata.jsonl", "a.png"])
def test_a_pipe_is_not_waited_for(name: str, tmp_path: Path) -> None:
    if name == "metadata.jsonl":
        (tmp_path / "b.png").write_bytes(b"")
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=f"{name}.* is no file"):
        found = gather(tmp_path if name in ("metadata.jsonl", "a.png") else tmp_path / name)
        found.outputs([0])
    if name != "a.png":
        with pytest.raises(DataError, match=f"{name}.* is no file"):
            read(tmp_path / name)


@pytest.mark.parametrize("kind", ["date64", "duration", "timestamp"])
def test_times_that_python_does_not_have(kind: str, tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    type_ = {
        "date64": arrow.date64(),
        "duration": arrow.duration("s"),
        "timestamp": arrow.timestamp("s", tz="Nowhere/X"),
    }[kind]
    value = 5 if kind == "timestamp" else 86_400_000 * 10**10
    column = arrow.array([value], arrow.int64()).cast(type_, safe=False)
    parquet.write_table(arrow.table({"prompt": ["a"], "when": column}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"is no parquet file that loads: .*; write it again, or JSON lines$"):
        read(tmp_path / "x.parquet")


def test_a_mark_before_the_first_prompt_is_no_part_of_it(tmp_path: Path) -> None:
    for name, text in (("x.txt", "a cat"), ("x.jsonl", '{"text": "a cat"}'), ("x.csv", "prompt\na cat")):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert [p.text for p in read(tmp_path / name)] == ["a cat"]


def test_a_prompt_that_comes_twice_has_noise_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("a\nb\na\n")
    assert [p.id for p in read(tmp_path / "x.txt")] == [identify("a"), identify("b"), identify("a") + "-2"]


def test_tables_are_read_as_rows(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('text,answer\n"a, b",4\nc,5\n')
    (tmp_path / "x.tsv").write_text("prompt\tanswer\na, b\t4\nc\t5\n")
    for name in ("x.csv", "x.tsv"):
        assert [(p.text, p.facts) for p in read(tmp_path / name)] == [("a, b", {"answer": "4"}), ("c", {"answer": "5"})]
    (tmp_path / "y.csv").write_text("prompt,output\na,b\n")
    assert gather(tmp_path / "y.csv").outputs([0]) == ["b"]


def test_what_datasets_writes_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"prompt": ["a", "b"], "answer": [1, 2]})
    rows.to_parquet(tmp_path / "x.parquet")
    rows.save_to_disk(tmp_path / "one")
    for path in (tmp_path / "x.parquet", tmp_path / "one"):
        assert [(p.text, p.facts) for p in read(path)] == [("a", {"answer": 1}), ("b", {"answer": 2})]
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "both")
    with pytest.raises(DataError, match="several splits; give one of its folders: test, train"):
        read(tmp_path / "both")
    (tmp_path / "one" / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match="no dataset that loads"):
        read(tmp_path / "one")


GOOD = [
    {"text": "a cat", "facts": {"n": 1}, "inputs": {"image": {"image": "a.png"}}, "id": "x"},
    {"prompt": ANSWER, "chosen": "b", "rejected": ANSWER},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}, *ANSWER]},
    {"prompt": "a", "output": "b", "answer": None},
]
ODD = [
    None,
    True,
    -1,
    1e400,
    "",
    "\ud800",
    [],
    {},
    [[]],
    [None],
    {"": {}},
    "a" * 5_000,
    [{"content": None}],
    {"image": 3},
]


def mutated(rng: random.Random) -> bytes:
    """Rows in which values, keys and bytes are replaced."""
    rows = [dict(rng.choice(GOOD)) for _ in range(rng.randint(1, 3))]
    for row in rows:
        for name in rng.sample(sorted(row), rng.randint(0, 1)):
            row[name] = rng.choice(ODD)
        if rng.random() < 0.3:
            row[rng.choice(["id", "facts", "inputs", "messages", "file_name", "image", "text", "\ud800"])] = rng.choice(
                ODD
            )
    content = bytearray("\n".join(map(json.dumps, rows)).encode())
    for _ in range(rng.choice([0, 0, 1, 4])):
        content[rng.randrange(len(content))] = rng.choice(b'\x00\xff{}[]",:\n9e')
    return bytes(content)


@pytest.mark.parametrize("name", ["x.jsonl", "x.txt", "x.csv", "metadata.jsonl"])
def test_mutated_files_are_read_or_refused(name: str, tmp_path: Path) -> None:
    rng = random.Random(name)
    (tmp_path / "a.png").write_bytes(b"no picture")
    ended = {"read": 0, "refused": 0}
    for _ in range(300):
        (tmp_path / name).write_bytes(mutated(rng))
        for reader in (read, lambda path: gather(path.parent if name == "metadata.jsonl" else path)):
            try:
                reader(tmp_path / name)
                ended["read"] += 1
            except DataError as error:
                str(error).encode()
                ended["refused"] += 1
    assert ended["refused"] and (ended["read"] or name != "x.jsonl"), ended
