"""Finished outputs read from disk: which prompt belongs to which output, and what is said of files that are not what they
should be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from plaudit.data import pictures
from plaudit.data.outputs import gather
from plaudit.data.pictures import read_picture
from plaudit.errors import DataError


def picture(path: Path, value: int = 200, size: int = 4) -> Path:
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(path)
    return path


def test_pictures_find_their_prompts(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "c.png", "notes.md"):
        picture(tmp_path / name) if name != "notes.md" else (tmp_path / name).write_text("x")
    (tmp_path / "a.txt").write_text(" a red circle\n")
    rows = [{"file_name": "c.png", "text": "two", "answer": 2, "facts": {"deep": 1}, "id": "mine"}]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = gather(tmp_path, prompt="for all")
    assert found.names == ["a.jpg", "b.png", "c.png"]
    assert [p.text for p in found.prompts] == ["a red circle", "for all", "two"]
    assert found.prompts[2].id == "mine" and dict(found.prompts[2].facts) == {"answer": 2, "deep": 1}
    assert [tuple(o.shape) for o in found.outputs([2, 0])] == [(3, 4, 4)] * 2
    alone = gather(tmp_path / "a.jpg")
    assert (alone.names, alone.prompts[0].text, alone.outputs([0])[0].shape) == (["a.jpg"], "a red circle", (3, 4, 4))


def test_pixels_are_exact_and_what_is_transparent_is_white(tmp_path: Path) -> None:
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (10, 20, 30, 255)
    Image.fromarray(rgba).save(tmp_path / "x.png")
    found = read_picture(tmp_path / "x.png")
    assert torch.equal(found[:, 0, 0], torch.tensor([10.0, 20, 30]) / 255) and (found[:, 1, 1] == 1).all()


def test_rows_of_texts_messages_and_pictures(tmp_path: Path) -> None:
    picture(tmp_path / "p.png")
    rows = [
        {"prompt": "1+1", "completion": "2", "answer": "2", "id": "first"},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"prompt": [{"role": "user", "content": "r"}], "response": "s", "facts": {"k": 1}, "inputs": {"z": 2}},
        {"text": "a picture", "image": "p.png"},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    found = gather(tmp_path / "rows.jsonl")
    assert found.names == ["first", "2", "3", "4"] and [p.text for p in found.prompts] == ["1+1", "q", "r", "a picture"]
    texts = found.outputs([0, 1, 2])
    assert texts == ["2", [{"role": "assistant", "content": "a"}], "s"]
    assert dict(found.prompts[0].facts) == {"answer": "2"} and dict(found.prompts[2].facts) == {"k": 1}
    assert found.prompts[1].inputs["messages"] == [{"role": "user", "content": "q"}]
    assert found.prompts[2].inputs["z"] == 2 and found.outputs([3])[0].shape == (3, 4, 4)


def test_pixels_of_sixteen_bits_and_of_turned_photographs(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 20_000, np.uint16)).save(tmp_path / "deep.png")
    assert read_picture(tmp_path / "deep.png")[0, 0, 0].item() == pytest.approx(20_000 / 65_535)
    turned = Image.new("RGB", (8, 4), "red")
    turned.getexif()[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=turned.getexif())
    assert read_picture(tmp_path / "turned.jpg").shape == (3, 8, 4)


def test_a_line_ends_only_where_json_lines_end(tmp_path: Path) -> None:
    row = {"prompt": "p", "output": "one\u2028two"}
    (tmp_path / "x.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert gather(tmp_path / "x.jsonl").outputs([0]) == ["one\u2028two"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", '{"messages": []}', r"line 1: `messages` is \[\]; expected a list of objects"),
        ("x.jsonl", '{"prompt": "p", "image": 3}', r"`image` is 3; expected a text \(a path\)"),
        ("x.jsonl", '{"prompt": "p", "output": "x", "facts": null}', "`facts` and `inputs` must be objects"),
        ("x.jsonl", '{"prompt": 3, "output": "x"}', "`prompt` is 3; expected a text or a list of messages"),
        (
            "x.jsonl",
            '{"prompt": "a"}',
            r"x.jsonl line 1: expected exactly one of output, .* found the keys \['prompt'\]",
        ),
        ("x.jsonl", '{"output": "a", "response": "b"}', "found output and response"),
        ("x.jsonl", "{", "line 1 is not JSON"),
        ("x.jsonl", "[1]", r"line 1: expected an object, got \[1\]"),
        ("x.jsonl", "\n", "is empty; write one object a line"),
        ("x.csv", "a,b", r"has the columns \['a', 'b'\]; name one of them prompt or text"),
        ("x.md", "a,b", "nothing to score there; give a folder of pictures"),
        ("x.jsonl", '{"prompt": "p", "output": "x", "id": []}', r"line 1: `id` is \[\]; expected a text or a number"),
        (
            "x.jsonl",
            '{"prompt": [{"content": [{"type": "image"}]}], "output": "x"}',
            "line 1: message 1 has a part 'image'",
        ),
        ("x.jsonl", '{"prompt": "p", "output": [{"content": 3}]}', r"`output` is \[.*; expected a text"),
    ],
)
def test_what_is_not_understood_is_named(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        gather(tmp_path / name)


def test_folders_that_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no picture"):
        gather(tmp_path)
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "b.png", "text": "x"}')
    with pytest.raises(DataError, match=r"names files that are not there: b.png"):
        gather(tmp_path)
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    with pytest.raises(DataError, match=r"a.png cannot be read as a picture"):
        gather(tmp_path).outputs([0])


def test_a_picture_that_is_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(pictures, "MOST_PIXELS", 4_000)
    with pytest.raises(
        DataError, match=r"big.png cannot be read as a picture: it has 64 x 64 pixels; at most 4,000 are read"
    ):
        read_picture(picture(tmp_path / "big.png", size=64))
    assert read_picture(picture(tmp_path / "small.png", size=63)).shape == (3, 63, 63)


def test_float_pictures_are_scaled_or_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2), 0.25, np.float32)).save(tmp_path / "x.tif")
    assert (read_picture(tmp_path / "x.tif") == 0.25).all()
    for name, value in (("large", 200.0), ("nan", np.nan), ("below", -0.5)):
        Image.fromarray(np.full((2, 2), value, np.float32)).save(tmp_path / f"{name}.tif")
        with pytest.raises(DataError, match=rf"{name}.tif cannot be read as a picture: its grey is float32 from"):
            read_picture(tmp_path / f"{name}.tif")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"file_name": "a.png"}, {"file_name": "a.png"}], r"line 2: a.png has a row already \(.*line 1\)"),
        ([{"text": "x"}], "line 1: `file_name` is None; expected the name of a picture"),
        ([{"file_name": "a.png", "facts": 3}], "line 1: `facts` and `inputs` must be objects, got 3"),
        ([{"file_name": "a.png", "text": 3}], "line 1: `text` is 3; expected a text"),
        (
            [{"file_name": "a.png", "id": 1, "text": "x"}, {"file_name": "b.png", "id": 1, "text": "y"}],
            "b.png: its prompt has the id 1 of another prompt",
        ),
    ],
)
def test_wrong_metadata_is_named(rows: list, message: str, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        picture(tmp_path / name)
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=message):
        gather(tmp_path)
