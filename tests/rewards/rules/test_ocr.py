"""Reading text in pictures: the distance, the normal form, the reader, and what it cannot judge."""

from __future__ import annotations

import functools
import random

import pytest
import torch

from plaudit.data.prompt import Prompt
from plaudit.errors import RewardError
from plaudit.rewards.base import Score, Status
from plaudit.rewards.calling.call import call_reward
from plaudit.rewards.pinned.media import make
from plaudit.rewards.rules.ocr import OcrAccuracy, edit_distance, normalised, quoted_text, text_similarity

pytest.importorskip("rapidocr")


# --- texts -----------------------------------------------------------------------------------------------------------


def slow_distance(one: str, other: str) -> int:
    @functools.cache
    def rest(i: int, j: int) -> int:
        if i == len(one) or j == len(other):
            return len(one) - i + len(other) - j
        return min(rest(i + 1, j) + 1, rest(i, j + 1) + 1, rest(i + 1, j + 1) + (one[i] != other[j]))

    return rest(0, 0)


def test_distance_equals_a_slow_one_and_a_library() -> None:
    draw = random.Random(0)
    for _ in range(200):
        one, other = ("".join(draw.choices("abcß中", k=draw.randrange(9))) for _ in range(2))
        assert edit_distance(one, other) == slow_distance(one, other), (one, other)
    library = pytest.importorskip("rapidfuzz.distance").Levenshtein
    for _ in range(50):
        one, other = ("".join(draw.choices("abcdef ", k=draw.randrange(60))) for _ in range(2))
        assert edit_distance(one, other) == library.distance(one, other)


@pytest.mark.parametrize(
    ("target", "reading", "value"),
    [
        ("", "", 1),
        ("", "abc", 0),
        ("abc", "", 0),
        ("abc", "abd", 2 / 3),
        ("ab", "abcd", 0.5),
        ("kitten", "sitting", 4 / 7),
    ],
)
def test_similarity_by_hand(target: str, reading: str, value: float) -> None:
    assert text_similarity(target, reading) == pytest.approx(value) == text_similarity(reading, target)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ＯＰＥＮ", "open"),  # full width
        ("ﬁne", "FINE"),  # a ligature
        ("Grüße", "GRÜSSE"),
        ("cafe\u0301", "café"),  # a combining accent
        ("it’s “fine”", 'it\'s "fine"'),
        ("2019–2024", "2019-2024"),
        ("  two\n words ", "two words"),
    ],
)
def test_texts_that_read_the_same_are_the_same(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


def test_options_of_the_normal_form() -> None:
    assert normalised("Open Now", ignore_case=False) == "Open Now"
    assert normalised("Open Now", ignore_spaces=True) == "opennow"
    assert normalised("é") != normalised("e")


@pytest.mark.parametrize(
    ("prompt", "quoted"),
    [
        ('a sign that says "STOP"', "STOP"),
        ("“one” and “two”", "one two"),
        ("a poster with «salut»", "salut"),
        ("it's a dog's life", None),
        ('an empty "" frame', ""),
        ("an unclosed “quote", None),
    ],
)
def test_quotations(prompt: str, quoted: str | None) -> None:
    assert quoted_text(prompt) == quoted


# --- reading ---------------------------------------------------------------------------------------------------------


def scored(lines: list[str], targets: list[str | None], *, prompts: list[str] | None = None, **options) -> list[Score]:
    texts = prompts or [""] * len(lines)
    facts = [{"text": target} for target in targets]
    asked = [Prompt(id=str(i), text=text, facts=fact) for i, (text, fact) in enumerate(zip(texts, facts, strict=True))]
    pictures = torch.stack([make({"line": line}) for line in lines])
    return call_reward("mine", OcrAccuracy(**options), asked, pictures)


def test_lines_are_read_and_each_is_held_against_its_own_target() -> None:
    lines = ["EXIT", "Hello World", "No. 42", "Grüße", '"quoted"', "fifteen", "sixteen"]  # more than one internal batch
    assert [score.value for score in scored(lines, lines)] == [1] * len(lines)
    assert all(score.value < 0.5 for score in scored(lines, lines[::-1]) if score.note != "read 'Grüße'")


def test_case_and_spaces_can_count() -> None:
    assert scored(["HELLO"], ["hello"])[0].value == 1
    assert scored(["HELLO"], ["hello"], ignore_case=False)[0].value == 0
    assert scored(["Hello World"], ["HelloWorld"])[0].value == 1
    assert scored(["Hello World"], ["HelloWorld"], ignore_spaces=False)[0].value == pytest.approx(1 - 1 / 11)


def test_red_writing_is_read_as_well_as_blue() -> None:
    """In any colour, but the right way round: a mirrored line is not that line."""
    line = make({"line": "Hello World"})
    red, blue = line.clone(), line.clone()
    red[0], blue[2] = 1, 1
    asked = [Prompt(id="", text="", facts={"text": "Hello World"})] * 3
    scores = call_reward("mine", OcrAccuracy(), asked, torch.stack([red, blue, line.flip(2)]))
    assert scores[0].value == scores[1].value == 1 and scores[2].value < 0.5


def test_without_a_text_the_quotation_is_the_target() -> None:
    scores = scored(["OPEN"] * 3, [None] * 3, prompts=['the word "open"', 'the word "shut"', "a dog"])
    assert scores[0].value == 1 and scores[1].value < 0.5 and scores[2].status is Status.NOT_APPLICABLE


def test_prompts_without_the_column_are_judged_by_their_quotations() -> None:
    score = call_reward("mine", OcrAccuracy(), [Prompt(id="", text='"OPEN"')], make({"line": "OPEN"})[None])[0]
    assert score.value == 1


def test_letters_that_the_reader_does_not_know_are_missing_not_zero() -> None:
    """Its alphabet has no Cyrillic: a perfect picture would be read as nothing."""
    scores = scored(["привет", "hello"], ["привет", "hello"])
    assert scores[0].status is Status.NOT_APPLICABLE and "cannot read" in scores[0].note
    assert scores[1].value == 1
    reward = OcrAccuracy()
    assert all(
        isinstance(reward._target("", text), str) for text in ("中文", "日本語", "ｆｕｌｌ", "straße", "100 %", "")
    )


def test_illegible_writing_is_no_writing() -> None:
    noisy = make({"line": "hello", "noise": 1.0})
    score = call_reward("mine", OcrAccuracy(), [Prompt(id="", text="", facts={"text": "hello"})], noisy[None])[0]
    assert score.value == 0


@pytest.mark.parametrize("mode", ("line", "page"))
def test_lines_read_without_confidence_are_not_there(mode: str) -> None:
    certain, strict = (scored(["hello"], ["hello"], mode=mode, min_confidence=c)[0] for c in (0.5, 1.0))
    assert certain.value == 1 and strict.value == 0 and strict.note == "read ''"


def test_a_page_is_read_from_top_to_bottom() -> None:
    page = torch.cat([make({"line": line}) for line in ("FIRST LINE", "second line", "third")], dim=1)
    asked = [Prompt(id="", text="", facts={"text": "first line second line third"})]
    reward = OcrAccuracy(mode="page", limit_side_len=96)
    assert call_reward("mine", reward, asked, page[None])[0].value == 1
    assert call_reward("mine", reward, asked, torch.ones_like(page)[None])[0].value == 0
    assert call_reward("mine", OcrAccuracy(), asked, page[None])[0].value < 0.9, "three lines are not one"


def test_bad_targets_are_refused() -> None:
    with pytest.raises(RewardError, match="`text` is 42; it must be text"):
        scored(["42"], [42])
