"""Every layout says who won in its own way; the record says it in one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plaudit.data.preference import LAYOUTS, Preference, counted, read_preferences
from plaudit.errors import DataError

ASKED, GOOD, BAD = [{"role": "user", "content": "Why?"}], "Because it is.", "No."


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def answers(content: str) -> dict[str, Any]:
    return {"model": content, "response_content": [["image", f"images/{content}.png"], ["text", "there"]]}


def judged(verdict: str) -> dict[str, Any]:
    question = {"from": "human", "value": "Compare. Image 1 is better, or not.\nText Caption: [a red [big] dog]"}
    return {"conversations": [question, {"from": "gpt", "value": verdict}], "images": ["a.png", "b.png"]}


PICTURES = {"caption": "a dog", "jpg_0": "a.png", "jpg_1": "b.png"}
EDIT = {"prompt": "a cat", "path_src": "s.png", "path1": "a.png", "path2": "b.png"}
TWO = {"prompt": "x", "image_path": ["a.png", "b.png"]}
BOTH = {
    "prompt_content": [["image", "in.png"], ["text", "Turn it"]],
    "response_a": answers("a"),
    "response_b": answers("b"),
}

FIRST, SECOND = "a", "b"
ROWS: list[tuple[str, dict[str, Any], str | None]] = [
    ("trl", {"prompt": "Why?", "chosen": "a", "rejected": "b"}, FIRST),
    ("trl", {"prompt": ASKED, "chosen": said("a"), "rejected": said("b")}, FIRST),
    ("trl", {"chosen": ASKED + said("a"), "rejected": ASKED + said("b")}, FIRST),
    ("trl", {"prompt": "Why?", "chosen": "same", "rejected": "same"}, None),
    (
        "trl",
        {"id": 7, "prompt": "Why?", "chosen": "a", "rejected": "b", "chosen_model": "m", "rejected_model": "n"},
        FIRST,
    ),
    ("pick_a_pic", PICTURES | {"label_0": 1, "label_1": 0, "has_label": True}, FIRST),
    ("pick_a_pic", PICTURES | {"label_0": 0.0, "label_1": 1.0}, SECOND),
    ("pick_a_pic", PICTURES | {"label_0": 0.5, "label_1": 0.5}, None),
    ("pick_a_pic", PICTURES | {"label_0": 1, "label_1": 0, "has_label": False}, None),
    ("pick_a_pic", PICTURES | {"label_0": 1}, FIRST),
    ("hpdv2", TWO | {"human_preference": [1, 0]}, FIRST),
    ("hpdv2", TWO | {"human_preference": [0, 1]}, SECOND),
    ("hpdv2", TWO | {"rank": [1, 0]}, SECOND),
    ("vl_rewardbench", {"query": "x", "response": ["a", "b"], "human_ranking": [0, 1]}, FIRST),
    ("vl_rewardbench", {"query": "x", "response": ["a", "b"], "human_ranking": [1, 0]}, SECOND),
    ("hpdv3", {"prompt": "x", "path1": "a.png", "path2": "b.png", "confidence": 0.9, "choice_dist": [12, 7]}, FIRST),
    ("edit_reward", EDIT | {"model1_overall_score": 7, "model2_overall_score": 6, "tie_case": False}, FIRST),
    ("edit_reward", EDIT | {"model1_overall_score": 6, "model2_overall_score": 6, "tie_case": True}, None),
    ("mmrb2", BOTH | {"id": "t1", "chosen": "A"}, FIRST),
    ("mmrb2", BOTH | {"pair_id": "t1", "human_preference": "B"}, SECOND),
    ("unified_reward", judged("Image 2 is sharper than Image 1.\nImage 1 is better."), FIRST),
    ("unified_reward", judged("Image 2 is better."), SECOND),
    ("unified_reward", judged("Both images are equally good."), None),
]


def written(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def name_of(output: Any) -> str:
    one = output[0] if isinstance(output, tuple) else output
    return one.stem if isinstance(one, Path) else str(one)


def winners(records: list[Preference]) -> list[str | None]:
    return [name_of(r.outputs[r.pairs()[0][0]]) if r.pairs() else None for r in records]


@pytest.mark.parametrize(("layout", "row", "winner"), ROWS)
@pytest.mark.parametrize("seed", (0, 1, 2))
def test_who_won_is_read_as_the_layout_means_it(
    tmp_path: Path, layout: str, row: dict[str, Any], winner: str | None, seed: int
) -> None:
    record = read_preferences(written(tmp_path, [row]), seed=seed)[0]
    assert record.source == layout and winners([record]) == [winner]
    assert len(record.outputs) == len(record.ranks) == 2
    assert record.prompt.text in ("Why?", "a dog", "x", "a cat", "Turn it", "a red [big] dog")


def test_every_layout_has_rows() -> None:
    assert {layout for layout, _, _ in ROWS} == set(LAYOUTS)


@pytest.mark.parametrize("layout", [name for name, layout in LAYOUTS.items() if layout.winner_first])
def test_a_winner_with_a_fixed_place_is_laid_out_by_chance(tmp_path: Path, layout: str) -> None:
    row = next(row for name, row, winner in ROWS if name == layout and winner)
    rows = [row | {"id": str(i)} for i in range(200)]
    read = [read_preferences(written(tmp_path, rows), seed=seed) for seed in (0, 0, 1)]
    assert read[0] == read[1] != read[2] and winners(read[0]) == [FIRST] * 200
    places = [record.pairs()[0][0] for record in read[0]]
    assert 70 < sum(places) < 130
    assert [record.shown[place] for record, place in zip(read[0], places, strict=True)] == [0] * 200
    if (models := read[0][0].models) is not None:
        assert len(set(models)) == 2


def test_scores_and_models_keep_to_their_outputs(tmp_path: Path) -> None:
    row = {
        "prompt": "x",
        "chosen": "a.png",
        "rejected": "b.png",
        "score_chosen": 0.9,
        "score_rejected": 0.2,
        "margin": 0.7,
    }
    for record in read_preferences(written(tmp_path, [row | {"id": i} for i in range(20)])):
        assert record.scores is not None and record.margin == 0.7
        assert dict(zip(map(name_of, record.outputs), record.scores, strict=True)) == {"a": 0.9, "b": 0.2}
        assert record.outputs[0] in (tmp_path / "a.png", tmp_path / "b.png")


def test_a_ranking_has_all_its_pairs_and_counts_say_what_there_is(tmp_path: Path) -> None:
    ranked = {"prompt": "x", "image_path": ["a.png", "b.png", "c.png", "d.png"], "rank": [2, 0, 1, 1]}
    records = read_preferences(written(tmp_path, [ranked, TWO | {"human_preference": [0.5, 0.5]}]))
    assert records[0].pairs() == [(1, 0), (2, 0), (3, 0), (1, 2), (1, 3)]
    assert counted(records) == {"records": 2, "ordered": 1, "tie": 1, "pairs": 5}


def test_json_files_are_lists_or_have_pairs_and_encoded_pictures_are_kept(tmp_path: Path) -> None:
    pairs = tmp_path / "t2i.json"
    pairs.write_text(json.dumps({"pairs": [BOTH | {"id": "t", "chosen": "B"}]}), encoding="utf-8")
    record = read_preferences(pairs)[0]
    assert record.id == "t" and record.outputs[1] == (tmp_path / "images/b.png", "there")
    assert record.prompt.inputs == {"image_1": tmp_path / "in.png"}
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    row = {"caption": "a", "jpg_0": b"one", "jpg_1": b"two", "label_0": 0.0, "label_1": 1.0, "user_id": 3}
    parquet.write_table(arrow.Table.from_pylist([row]), tmp_path / "pick.parquet")
    record = read_preferences(tmp_path / "pick.parquet")[0]
    assert record.outputs == (b"one", b"two") and record.pairs() == [(1, 0)]
    assert record.annotator is not None and record.annotator != "3"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"a": 1}, "no layout of preferences; known: pick_a_pic"),
        (PICTURES | {"label_0": 0.7}, "`label_0` is 0.7; expected 1, 0, or 0.5"),
        (PICTURES | {"label_0": 1, "label_1": 1}, "do not add up to 1"),
        (TWO | {"human_preference": [1]}, "expected a number for each of 2"),
        (BOTH | {"chosen": "C"}, "`chosen` is C; expected A or B"),
        (judged("Image 1 is better than expected, Image 2 is better too."), "no single verdict"),
        ({"chosen": "a", "rejected": "b"}, "has no `prompt`"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "its prompt is 3"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_its_place(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError) as raised:
        read_preferences(written(tmp_path, [row]))
    assert words in str(raised.value) and "rows.jsonl" in str(raised.value) and "\n" not in str(raised.value)
