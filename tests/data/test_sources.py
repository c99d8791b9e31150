"""Prompts of runs: the lab's worlds, puzzles, and files in TRL's formats."""

from __future__ import annotations

import json

import pytest

from plaudit.data.sources import load_prompts, read_prompts
from plaudit.errors import DataError
from plaudit.lab.sums.check import read_facts
from plaudit.recipe.prompts import PuzzlePrompts, SumsPrompts


def sums(**keys):
    return load_prompts(SumsPrompts(type="sums", **keys))


def texts(prompts):
    return [prompt.text for prompt in prompts]


def test_a_fixed_set_of_problems_is_passed_over_without_repeats():
    source = sums(problems=12, categories=["pair"])
    first = texts(source.batch(0, 6, 0)) + texts(source.batch(1, 6, 0))
    assert len(set(first)) == 12 and {p.facts["category"] for p in source.batch(5, 8, 0)} == {"pair"}
    assert set(texts(source.batch(0, 12, 1))) == set(first) != texts(source.batch(0, 12, 1))


def test_pairs_are_right_and_wrong_and_noise_swaps_them():
    def chosen_are_right(noise):
        prompts = sums(answers="pairs", noise=noise).batch(0, 60, 0)
        pairs = [(p.inputs["chosen"], p.inputs["rejected"], p.facts) for p in prompts]
        assert all(read_facts(a, f).correct != read_facts(b, f).correct for a, b, f in pairs)
        return sum(read_facts(a, f).correct for a, _, f in pairs)

    assert chosen_are_right(0.0) == 60 and chosen_are_right(1.0) == 0 and 35 < chosen_are_right(0.25) < 57


def test_a_problem_has_the_same_solution_whenever_it_comes_up():
    source = sums(answers="demonstrations", problems=5)
    first, second = ({p.id: p.inputs["completion"] for p in source.batch(step, 5, 0)} for step in (0, 1))
    assert first == second and len(first) == 5


def test_unknown_categories_are_named():
    with pytest.raises(DataError, match=r"prompts\.categories: 'roots'; allowed: digits, pair"):
        sums(categories=["roots"])


def test_puzzles_have_facts_for_their_scorer_and_heldout_ones_of_their_own():
    pytest.importorskip("reasoning_gym")
    source = load_prompts(PuzzlePrompts(type="puzzles", task="chain_sum", train=30, heldout=10))
    heldout = source.evaluation(10)["heldout"]
    assert len(heldout) == 10 and {"task", "config", "entry"} <= set(heldout[0].facts)
    assert not {p.id for p in source.train} & {p.id for p in heldout}


def rows_of(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_prompts(str(path), "prompts.train")


def test_trl_rows_are_read(tmp_path):
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    prompt, pair, completed, conversation, spoken = rows_of(
        tmp_path,
        {"prompt": "2+2=", "answer": "4"},
        {"prompt": "Hi", "chosen": "Hello", "rejected": "No"},
        {"prompt": "Hi", "completion": "Hello"},
        {"messages": talk},
        {"prompt": talk[:1], "chosen": [talk[1]], "rejected": [{"role": "assistant", "content": "No"}]},
    )
    assert (prompt.text, prompt.facts, prompt.inputs) == ("2+2=", {"answer": "4"}, {})
    assert (pair.inputs["chosen"], pair.inputs["rejected"]) == ("Hello", "No")
    assert completed.inputs == {"completion": "Hello"}
    assert conversation.inputs == {"messages": talk[:1], "completion": "Hello"} and conversation.text == "Hi"
    assert spoken.inputs == {"messages": talk[:1], "chosen": "Hello", "rejected": "No"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": 3}, "`prompt` is 3; expected a text or a list of messages"),
        ({"prompt": "a", "chosen": "b"}, r"got \['chosen'\]"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "must be a conversation that ends with the assistant"),
        ({"question": "a"}, "expected an object with `text`"),
    ],
)
def test_wrong_rows_are_named(tmp_path, row, said):
    with pytest.raises(DataError, match=said):
        rows_of(tmp_path, row)
