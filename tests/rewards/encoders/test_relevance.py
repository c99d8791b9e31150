"""R3: its factors by hand, its router, and the hack that it removes."""

from __future__ import annotations

import math

import pytest
from tests.rewards.encoders.toy import TOY

from plaudit.data.prompt import Prompt
from plaudit.errors import RecipeError
from plaudit.rewards.base import Score, Status
from plaudit.rewards.calling.call import call_reward
from plaudit.rewards.encoders.relevance import (
    RegularizedRelevance,
    central_range,
    length_incentive,
    matched_range,
    query_type,
    trigram_diversity,
)


def score(reward: RegularizedRelevance, prompt: str, outputs: list[str], **facts: object) -> list[Score]:
    return call_reward("r3", reward, [Prompt(id="", text=prompt, facts=facts)] * len(outputs), outputs)


def test_factors() -> None:
    assert length_incentive("word " * 50) == 0.5
    assert length_incentive("word " * 500) == 3.0
    assert length_incentive("") == 0.0
    assert trigram_diversity("a b c a b c") == 3 / 4  # abc, bca, cab, abc
    assert trigram_diversity("A b c a B C") == 3 / 4
    assert [trigram_diversity(text) for text in ("", "a", "a b", "a b c")] == [1.0] * 4


def test_open_questions_multiply_three_factors() -> None:
    """cos(cat dog, cat bird ...) by counting words: 1 of 2 shared, lengths sqrt 2 and sqrt 5."""
    found = score(RegularizedRelevance(encoder=TOY), "cat dog", ["cat bird bird"])[0]
    cosine = 1 / math.sqrt(2) / math.sqrt(5)
    assert found.value == pytest.approx(cosine * 0.03 * 1.0)
    assert found.components == pytest.approx({"relevance": cosine, "length": 0.03, "diversity": 1.0})


def test_closed_questions_look_at_the_reference_and_not_at_length() -> None:
    reward = RegularizedRelevance(encoder=TOY)
    short, long = score(reward, "Who is it?", ["Ann Lee", "Ann Lee Ann Lee Ann Lee"], reference="Ann Lee")
    assert short.value == pytest.approx(1.0)
    assert long.value == pytest.approx(0.5), "2 distinct of 4 trigrams, the same direction"
    assert score(reward, "Who is it?", ["Ann"])[0].status is Status.NOT_APPLICABLE
    assert score(reward, "Who is it?", [""], reference="Ann")[0].value == 0.0


def test_ranges_are_matched_linearly_and_clipped() -> None:
    assert [matched_range(v, (0.2, 0.6), (0.1, 0.5)) for v in (0.0, 0.2, 0.4, 0.6, 0.9)] == pytest.approx(
        [0.1, 0.1, 0.3, 0.5, 0.5]
    )
    assert central_range(range(101)) == pytest.approx([5.0, 95.0])
    reward = RegularizedRelevance(encoder=TOY, closed_range=[0.5, 1.0], open_range=[0.0, 0.4])
    found = score(reward, "Who is it?", ["Ann Lee", "Ann Poe", "Max Moe"], reference="Ann Lee")
    assert [s.value for s in found] == pytest.approx([0.4, 0.0, 0.0], abs=1e-6)
    assert found[1].components == pytest.approx({"relevance": 0.5, "length": 0.02, "diversity": 1.0})


@pytest.mark.parametrize(
    ("prompt", "kind"),
    [
        ("Who wrote Hamlet?", "closed"),
        ("How many legs has a spider?", "closed"),
        ("What is the capital of Peru?", "closed"),
        ("Is water wet?", "closed"),
        ("Read this.\nWhen did it happen?", "closed"),
        ("Write a poem about rain.", "open"),
        ("How do I bake bread?", "open"),
        ("What is love?", "open"),
        ("", "open"),
    ],
)
def test_router(prompt: str, kind: str) -> None:
    assert query_type(prompt) == kind


def test_a_column_overrides_the_router() -> None:
    reward = RegularizedRelevance(encoder=TOY)
    assert score(reward, "Who?", ["Who knows"], query_type="open")[0].value == pytest.approx(0.02 / math.sqrt(2))
    assert score(reward, "Tell", ["x"], query_type="closed", reference="x")[0].value == pytest.approx(1.0)
    assert score(reward, "Tell", ["x"], query_type="strange")[0].status is Status.NOT_APPLICABLE


def test_copying_the_question_no_longer_pays() -> None:
    """Relevance alone is highest for a copy; the paper's factors make an answer of some length win."""
    question = "explain why tea is hot"
    answer = "tea is hot why " + " ".join(f"word{i}" for i in range(30))
    copy, looped, answered = score(
        RegularizedRelevance(encoder=TOY), question, [question, question + " tea is hot" * 30, answer]
    )
    assert copy.components is not None and answered.components is not None
    assert copy.components["relevance"] > answered.components["relevance"]
    assert answered.value > max(copy.value, looped.value)


@pytest.mark.parametrize(
    "options",
    [
        {"closed_range": [0, 1]},
        {"closed_range": [1, 0], "open_range": [0, 1]},
    ],
)
def test_wrong_ranges(options: dict) -> None:
    with pytest.raises(RecipeError, match="range"):
        RegularizedRelevance(encoder=TOY, **options)
