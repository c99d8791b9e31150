"""The table of texts in the report."""

from __future__ import annotations

import json

import pytest

from plaudit.audit.report import write_report
from plaudit.errors import DataError
from plaudit.runs.record import read_run

ROW = {
    "prompt": "1+1=",
    "output": "2#2 <b>",
    "truth": 1.0,
    "rewards": {"correct": 1.0, "brief": None},
    "notes": {"brief": "no answer"},
    "extra": {"steps": 3},
}


def written(tmp_path, **tables):
    (tmp_path / "samples").mkdir()
    for name, rows in tables.items():
        (tmp_path / "samples" / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    return tmp_path


def test_a_table_has_a_column_for_every_reward_and_for_what_rewards_added(tmp_path):
    folder = written(tmp_path, before=[ROW], after=[ROW | {"output": "2#2 later", "truth": None}])
    page = write_report(folder).read_text(encoding="utf-8")
    for cell in ("correct", "brief", "steps", "no answer", "2#2 &lt;b&gt;", "2#2 later"):
        assert cell in page
    assert "<b>" not in page.split("Before and after")[1].split("</table>")[0]
    assert "samples/before.png is absent" not in page


def test_steps_between_are_folded_in_and_a_missing_side_is_a_note(tmp_path):
    record = read_run(written(tmp_path, before=[ROW], step_000020=[ROW]))
    assert list(record.texts) == ["before", "step_000020"]
    assert "samples/after.json is absent" in record.notes
    assert "step 20" in write_report(tmp_path).read_text(encoding="utf-8")


def test_a_row_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match=r"before\.json, row 1: output"):
        read_run(written(tmp_path, before=[{"prompt": "a"}]))


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (
            {"looks_at_outputs": False},
            "The truth (pair_accuracy) judges the answers that stand in the data of a prompt",
        ),
        ({"of_the_data": ["prefers"]}, "prefers judges the answers"),
        (
            {"looks_at_outputs": False, "of_the_data": ["prefers"]},
            "The truth (pair_accuracy) and prefers judge the answers",
        ),
        ({}, None),
    ],
)
def test_what_did_not_look_at_the_texts_is_named(entry, said, tmp_path):
    line = {
        "step": 0,
        "split": "heldout",
        "label": "before",
        "reward": "pair_accuracy",
        "mean": 0.5,
        "count": 1,
    } | entry
    folder = written(tmp_path, before=[ROW])
    (folder / "evaluations.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    page = write_report(folder).read_text(encoding="utf-8")
    assert (said or "only the weights differ.</p>") in page
    assert ("stand in the data of a prompt" in page) is (said is not None)
