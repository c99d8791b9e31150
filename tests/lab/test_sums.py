"""The `sums` world: its problems, the planted solutions and the exact checker."""

from __future__ import annotations

import numpy as np
import pytest

from plaudit.errors import DataError
from plaudit.lab.sums.check import read, tens
from plaudit.lab.sums.grammar import (
    CATEGORIES,
    DIGITS,
    END_ID,
    MAX_COMPLETION,
    MAX_PROMPT,
    PAD_ID,
    SPLITS,
    VOCABULARY,
    decode,
    encode,
    evaluation_prompts,
    find_prompt,
    make_prompt,
    sample_prompts,
    split_of,
)
from plaudit.lab.sums.traces import ENDINGS, ERRORS, KEPT, STYLES, overflow, sample_trace, style_of, walk, write

NUM_TRACES = 6_000


@pytest.fixture(scope="module")
def made() -> list:
    """Problems of both splits with a planted solution each."""
    rng = np.random.default_rng(5)
    prompts = [p for split in SPLITS for p in sample_prompts(split, NUM_TRACES // 2, rng)]
    return [(prompt, sample_trace(prompt, rng)) for prompt in prompts]


# --- problems --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_the_fixed_problems_are_distinct_and_their_facts_are_true(split: str) -> None:
    prompts = evaluation_prompts(split, 402)
    assert len(prompts) == len({p.text for p in prompts}) == 402
    assert [p.facts["category"] for p in prompts[:5]] == [*CATEGORIES, CATEGORIES[0]]
    for prompt in prompts:
        assert prompt.facts["answer"] == str(eval(prompt.text.removesuffix("=")))  # digits and signs only
        assert sum(prompt.facts["operands"]) == int(prompt.facts["answer"]) >= 0
        assert tuple(len(str(abs(n))) for n in prompt.facts["operands"]) == DIGITS[prompt.facts["category"]]
        assert split_of(prompt) == split
        assert find_prompt(prompt.text) == prompt
        assert len(prompt.text) <= MAX_PROMPT and decode(encode(prompt.text)) == prompt.text


def test_no_problem_is_in_both_splits() -> None:
    rng = np.random.default_rng(0)
    train, heldout = ({p.text for p in sample_prompts(split, 2_000, rng, ("pair",))} for split in SPLITS)
    assert not train & heldout
    share = np.mean([split_of(make_prompt([a, b])) == "heldout" for a in range(50, 100) for b in range(10, 50)])
    assert 0.09 < share < 0.16  # one in eight


def test_sampling_follows_its_generator_and_its_categories() -> None:
    first, again, other = (sample_prompts("train", 200, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == again != other
    counts = [sum(p.facts["category"] == category for p in first) for category in CATEGORIES]
    assert min(counts) > 30
    assert {p.facts["category"] for p in sample_prompts("train", 20, np.random.default_rng(0), ("pair",))} == {"pair"}


@pytest.mark.parametrize("text", ("37+85", "3+5=", "10-20=", "37+05=", "37+85+2=", "", "37+85=122", "-37+85="))
def test_other_texts_are_no_problems(text: str) -> None:
    assert find_prompt(text) is None


def test_wrong_arguments_say_what_is_allowed() -> None:
    with pytest.raises(DataError, match=r"'test'; allowed: train, heldout"):
        evaluation_prompts("test", 3)
    with pytest.raises(DataError, match=r"'pears'; allowed: digits, pair"):
        sample_prompts("train", 3, np.random.default_rng(0), ("pears",))
    with pytest.raises(DataError, match=r"'x'.*allowed characters: 0123456789\+-=:;\?#"):
        encode("3x5")
    with pytest.raises(DataError, match="no running total is negative"):
        make_prompt([10, -20])
    with pytest.raises(DataError, match="fewer than"):
        evaluation_prompts("heldout", 2_000, ("pair",))


def test_the_vocabulary_is_small_and_its_specials_are_not_text() -> None:
    assert len(VOCABULARY) == 20 - 1 <= 40
    assert sorted(VOCABULARY.values()) == list(range(len(VOCABULARY)))
    assert decode([*encode("1#"), END_ID, PAD_ID]) == "1#"


# --- the checker -----------------------------------------------------------------------------------------------------


def test_the_checker_finds_how_every_trace_was_made(made: list) -> None:
    for prompt, trace in made:
        reading = read(trace.text, prompt.facts["operands"])
        boxed, right = trace.ending == "boxed", str(trace.value) == prompt.facts["answer"]
        assert reading.well_formed == boxed
        assert reading.answer == (str(trace.value) if boxed else None)
        assert reading.correct == (boxed and right)
        assert reading.necessary == trace.derived
        assert reading.length == len(trace.text) == len(reading.marks)


def test_it_counts_the_false_steps_of_every_trace(made: list) -> None:
    for prompt, trace in made:
        if trace.ending == "cut" or trace.style not in ("plain", "recheck"):
            continue
        assert sum(not step.holds for step in read(trace.text, prompt.facts["operands"]).steps) == trace.errors


def test_solutions_of_other_problems_are_wrong(made: list) -> None:
    """Their answers coincide now and then; a derivation never survives another problem's operands."""
    moved = [(made[i][0], made[i - 1][1]) for i in range(len(made)) if made[i][0].text != made[i - 1][0].text]
    readings = [(p, t, read(t.text, p.facts["operands"])) for p, t in moved]
    for prompt, trace, reading in readings:
        assert reading.correct == (trace.ending == "boxed" and str(trace.value) == prompt.facts["answer"])
    own = np.mean([read(t.text, p.facts["operands"]).correct for p, t in made])
    assert np.mean([reading.correct for *_, reading in readings]) < 0.02 < 0.5 < own


@pytest.mark.parametrize(
    ("text", "right", "marks"),
    (
        ("37+80=117;117+5=122#122", True, "n" * 19 + "a" * 4),
        ("37+80=117;117+5=122;37+85=122#122", True, "n" * 19 + "r" * 10 + "a" * 4),
        ("37+80=117;117+5=122?37+80=117#122", True, "n" * 19 + "r" * 10 + "a" * 4),
        ("37+80=117;117+5=112?122#122", True, "n" * 23 + "a" * 4),
        ("122#122", True, "nnnaaaa"),
        ("#122", True, "aaaa"),
        ("37+85:#122", True, "nnnnnnaaaa"),
        ("37+85=122;", False, "nnnnnnnnnr"),  # stated, but not marked as the answer
        ("122#112", False, "nnnaaaa"),
        ("37+80=117#117", False, "." * 13),
        ("122#122#122", False, "nnnrrrrrrrr"),
        ("122#", False, "nnnr"),
        ("", False, ""),
        ("122=#122", True, "nnnnaaaa"),  # an unfinished statement states nothing
        ("122#0122", False, "nnnrrrrr"),
        ("122#١٢٢", False, "nnnrrrr"),  # digits, but not ours
    ),
)
def test_readings_of_37_and_85(text: str, right: bool, marks: str) -> None:
    reading = read(text, [37, 85])
    assert (reading.correct, reading.marks) == (right, marks)
    assert reading.redundant == (None if "." in marks or not marks else marks.count("r"))


@pytest.mark.parametrize(
    ("text", "necessary"),
    (
        ("8+1=9;9+3=12;12-3=9;9+1=10;#10", 26),
        ("8+1=9;9+1=10;10-3=7;7+3=10#10", 29),  # the last operands out of order: only the answer states it
        ("9;12;9;10#10", 9),
        ("10#10", 5),  # the first of four totals, not the last
        ("10;10;10;10#10", 11),
        ("8+1=9;10;11;10#10", 14),
        ("8+1=9;5+5=10#10", 15),
        ("8+1+3-3+1=10#9", 12),
        ("8+1=9;9+3=12;12-3=10;10+1=10#10", 28),  # two errors that cancel
        ("8+1=9;9+3=11;11-3=8;8+1=9#9", None),
        ("8+1=9;8+3=12;12-3=9;9+1=10", None),  # the second step leaves the calculation
        ("8+1=9;8+3=12;12-3=9;9+1=10?9;12;9;10", 36),
    ),
)
def test_a_total_that_happens_to_be_the_answer_is_not_its_derivation(text: str, necessary: int | None) -> None:
    assert read(text, [8, 1, 3, -3, 1]).necessary == necessary


@pytest.mark.parametrize("text", ("1" * 5_000, "1" * 5_000 + "+1=2", "1+" + "1" * 5_000 + "=2"))
def test_endless_numbers_are_no_statements(text: str) -> None:
    reading = read(text + ";8+1=9#10", [8, 1, 1])
    assert reading.correct and [step.value for step in reading.steps] == [9]


def test_steps_have_their_place_and_their_own_truth() -> None:
    text = "60-1=69;69-10=59;59-7=52#52"
    steps = read(text, [60, -1, -17]).steps
    assert [text[s.start : s.end] for s in steps] == ["60-1=69", "69-10=59", "59-7=52"]
    assert [s.holds for s in steps] == [False, True, True]
    assert [s.holds for s in read("59;42;1", [60, -1, -17]).steps] == [True, True, False]


# --- planted solutions -----------------------------------------------------------------------------------------------


def test_moves_add_up_and_errors_carry_on() -> None:
    exact = walk([37, 85, -14], lambda *_: 0, split=True)
    assert [(m.before, m.part, m.value, m.closes) for m in exact] == [
        (37, 80, 117, False),
        (117, 5, 122, True),
        (122, -10, 112, False),
        (112, -4, 108, True),
    ]
    late = walk([37, 85, -14], lambda place, *_: -10 if place == 1 else 0, split=True)
    assert [m.value for m in late] == [117, 112, 102, 98]
    assert [m.wrong for m in late] == [False, True, False, False]
    assert [m.value for m in walk([37, 85, -14], lambda *_: 0, split=False)] == [122, 108]


@pytest.mark.parametrize(("total", "part", "over"), ((37, 5, 1), (37, 2, 0), (52, -7, -1), (57, -7, 0), (117, -10, 0)))
def test_carries_and_borrows(total: int, part: int, over: int) -> None:
    assert overflow(total, part) == over
    forgotten = total + part - 10 * over
    assert forgotten // 10 * 10 == (total + tens(part)) // 10 * 10  # the tens are left alone


def test_the_planted_rates_are_those_of_the_tables(made: list) -> None:
    traces = [trace for _, trace in made]
    for style, share in STYLES.items():
        assert abs(np.mean([t.style == style for t in traces]) - share) < 0.02
    assert abs(np.mean([t.ending == "boxed" for t in traces]) - ENDINGS["boxed"]) < 0.02
    forgotten, kept = [], []
    for prompt, trace in made:
        if trace.style in ("plain", "recheck") and trace.ending != "cut":
            first, _, second = trace.text.partition("#")[0].partition("?")
            steps = [s for s in read(first, prompt.facts["operands"]).steps if "-" in first[s.start : s.end]]
            borrows = [s for s in steps if _borrows(first[s.start : s.end])]
            forgotten += [_is_off_by_ten(first[s.start : s.end]) for s in borrows]
            if second and prompt.facts["category"] == "pair" and sum(not s.holds for s in borrows) == 1:
                kept.append(any(not s.holds for s in read(second, prompt.facts["operands"]).steps))
    assert abs(np.mean(forgotten) - ERRORS["plain"].borrow) < 0.04
    assert abs(np.mean(kept) - KEPT) < 0.1


def _is_off_by_ten(equation: str) -> bool:
    left, _, value = equation.partition("=")
    return int(value) == eval(left) + 10  # digits and signs only


def _borrows(equation: str) -> bool:
    before, _, part = equation.partition("=")[0].partition("-")
    return int(before) % 10 < int(part) % 10


def test_length_has_a_price_and_a_value(made: list) -> None:
    lengths, right = {}, {}
    for style in STYLES:
        own = [(p, t) for p, t in made if t.style == style]
        right[style] = np.mean([str(t.value) == p.facts["answer"] for p, t in own])
        lengths[style] = np.mean([len(t.text) for p, t in own if read(t.text, p.facts["operands"]).correct])
    assert right["short"] < right["plain"] < right["verbose"]
    assert right["plain"] + 0.08 < right["recheck"]
    assert 3 < lengths["verbose"] / lengths["short"] < 6
    assert 1.5 < lengths["recheck"] / lengths["plain"] < 2.5


def test_solutions_fit_and_are_written_in_the_vocabulary(made: list) -> None:
    assert max(len(encode(trace.text)) for _, trace in made) < MAX_COMPLETION - 1
    assert {style_of(t.text) for _, t in made if t.ending != "cut"} == set(STYLES)
    assert all(style_of(t.text) == t.style for _, t in made if t.ending != "cut")


@pytest.mark.parametrize(
    ("style", "text"),
    (
        ("short", "122;115#115"),
        ("plain", "37+80=117;117+5=122;122-7=115#115"),
        ("verbose", "37+85-7:37+80=117;117+5=122;122-7=115;37+85-7=115#115"),
        ("recheck", "37+80=117;117+5=122;122-7=115?37+80=117;117+5=122;122-7=115#115"),
    ),
)
def test_styles_without_errors(style: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ERRORS, style, type(ERRORS[style])(carry=0, borrow=0, slip=0))
    prompt = type(make_prompt([37, 85]))(id="x", text="37+85-7=", facts={"operands": [37, 85, -7]})
    assert write(prompt, np.random.default_rng(0), style, "boxed").text == text


def test_an_unfinished_solution_stops_behind_no_digit(made: list) -> None:
    cut = [t.text for _, t in made if t.ending == "cut"]
    assert len(cut) > 100 and not any(text[-1].isdigit() or "#" in text for text in cut)
