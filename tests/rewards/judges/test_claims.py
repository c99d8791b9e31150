from __future__ import annotations

import json
import math

import pytest

from plaudit.data.prompt import Prompt
from plaudit.errors import RecipeError
from plaudit.lab.scenes.grammar import evaluation_prompts
from plaudit.rewards.base import Score, Status
from plaudit.rewards.calling.call import call_reward
from plaudit.rewards.judges.claims import (
    CaptionBalance,
    ClaimDifference,
    ClaimVerification,
    Comparison,
    Difference,
    actor_reward,
    hedge_factor,
    judgment_reward,
    parse_balance,
    parse_comparison,
    parse_verifications,
    relative_reward,
    severity,
)
from plaudit.rewards.judges.lab import assess_caption, compare_claims, verify_claims
from plaudit.rewards.load import find_reward


def compared(*severities: tuple[int, int], verdicts: str = "", winner: str = "tie") -> Comparison:
    judgments = verdicts or "a" * len(severities)
    rows = zip(severities, judgments, strict=True)
    found = [Difference(aspect="", judgment=verdict, severity_a=a, severity_b=b) for (a, b), verdict in rows]
    return Comparison(differences=tuple(found), winner=winner)


# --- formulas --------------------------------------------------------------------------------------------------------


def test_relative_by_hand() -> None:
    assert relative_reward(compared((3, 0), (0, 2))) == pytest.approx(0.5 - 0.5 * (1.6 - 1.25) / 3.2)
    assert relative_reward(compared((3, 0))) == 0 and relative_reward(compared((0, 3))) == 1
    assert relative_reward(compared((3, 3), (1, 1))) == 0.5
    assert relative_reward(compared((1, 0), (0, 0)), {1: 1.0, 2: 1.0, 3: 1.0}) == 0.25


def test_actor_only_by_hand() -> None:
    plain = {1: 1.0, 2: 1.0, 3: 1.0}
    ten = compared(*[(1, 0)] * 5, *[(0, 0)] * 5)
    assert actor_reward(ten, plain) == pytest.approx((0.05 + 0.95 * 0.25) * math.exp(-5 / 4))  # ln 11 / ln 11 = 1
    assert actor_reward(compared((0, 3)), plain) == pytest.approx(0.7 + 0.3 * math.log(2) / math.log(11))
    assert actor_reward(compared((3, 0))) == pytest.approx(actor_reward(compared((1, 0)), plain))
    assert actor_reward(compared((1, 0))) > actor_reward(compared((2, 0))) > actor_reward(compared((3, 0)))


def test_judgment_by_hand() -> None:
    sides = [(0, 1)] * 4
    assert judgment_reward(compared(*sides, verdicts="aaab", winner="a")) == pytest.approx(0.5 + 0.5 * (0.5 + 0.1))
    assert judgment_reward(compared(*sides, verdicts="aaaa", winner="a")) == 1  # clipped
    assert judgment_reward(compared(*sides, verdicts="bbbb", winner="b")) == 0
    assert judgment_reward(compared(*sides, verdicts="aabb", winner="b")) == pytest.approx(0.45)


def test_no_difference_is_the_best_but_for_the_judgment_form() -> None:
    assert [form(compared()) for form in (relative_reward, actor_reward, judgment_reward)] == [1, 1, 0.5]


def test_swapping_the_captions_mirrors_the_symmetric_forms() -> None:
    one = compared((3, 0), (0, 1), (2, 2), verdicts="bab", winner="b")
    two = compared((0, 3), (1, 0), (2, 2), verdicts="aba", winner="a")
    for form in (relative_reward, judgment_reward):
        assert form(one) + form(two) == pytest.approx(1)


def test_hedges() -> None:
    assert hedge_factor("a red circle") == 1
    assert hedge_factor("a red or blue circle") == pytest.approx(math.exp(-0.1 * (1 - 5 / 90)))
    assert hedge_factor("red/blue and/or possibly green") == pytest.approx(math.exp(-0.1 * (3 - 4 / 90)))
    assert hedge_factor("orange " * 90 + "or") == pytest.approx(1)  # one hedge in about ninety words is free


@pytest.mark.parametrize(
    "error, level, grade",
    [
        ("color_hallucination", "", 3), ("count_mismatch", "NA", 3), ("detail_omission", "", 2), ("relation_error", "", 2),
        ("style_misinterpretation", "", 1), ("odd", "", 2), ("color_hallucination", "1", 1), ("odd", "7", 2),
        ("NONE", "3", 0), ("na", "", 0),
    ],
)  # fmt: skip
def test_severities(error: str, level: str, grade: int) -> None:
    assert severity(error, level) == grade


# --- reading the judge -----------------------------------------------------------------------------------------------

BLOCK = """[DIFFERENCE 1]
ASPECT: colour
CAPTION_A_CLAIM: red: bright
CAPTION_B_CLAIM: blue
JUDGMENT: Both wrong

CAPTION_A_ERROR:
ERROR_TYPE: color_hallucination
ERROR_DETAIL: B is better, A is wrong
SEVERITY_LEVEL: 2

CAPTION_B_ERROR:
ERROR_TYPE: style_error
ERROR_DETAIL: none
"""
WINNER = "[OVERALL_WINNER]\nTie"


def test_a_comparison_is_read() -> None:
    found = parse_comparison(f"<think>[DIFFERENCE 9]</think>{BLOCK}\n{WINNER}\n")
    assert found == Comparison(
        differences=(Difference(aspect="colour", judgment="both_wrong", severity_a=2, severity_b=2),), winner="tie"
    )


@pytest.mark.parametrize(
    "text",
    [
        "", "A is better.", BLOCK, f"{WINNER} or A\n", f"{WINNER}\nA",
        f"{BLOCK}\n{BLOCK}\n{WINNER}", BLOCK.replace("1]", "2]") + WINNER, f"{WINNER[:-3]}Both",
        f"{WINNER}\n{BLOCK}", f"[SUMMARY]\nx\n{WINNER}",
        BLOCK.replace("Both wrong", "A or B") + WINNER, BLOCK.replace("ERROR_TYPE: style_error\n", "") + WINNER,
    ],
)  # fmt: skip
def test_an_unreadable_judge_is_missing_not_perfect(text: str) -> None:
    """The released parser reads no block in an empty answer, and no difference is the best reward."""
    assert parse_comparison(text) is None
    reward = ClaimDifference(judge=lambda: text)
    prompts = [Prompt(id="p", text="", facts={"reference": "a"})]
    assert call_reward("c", reward, prompts, ["a"])[0].status is Status.PARSE_FAILED


def test_verifications() -> None:
    block = "[DIFFERENCE {}]\nTYPE: {}\nCONTENT: x\nVERIFICATION: {}\n"
    rows = [
        ("contradiction", "false"),
        ("extra_info", "verified"),
        ("extra_info", "ambiguous"),
        ("missing_fact", "missing"),
    ]
    text = "".join(block.format(i, *row) for i, row in enumerate(rows, 1))
    assert parse_verifications(text) == ["false", "verified", "ambiguous", "missing"]
    reward = ClaimVerification(judge=lambda: text)
    prompts = [Prompt(id="p", text="", facts={"reference": "a"})]
    assert call_reward("c", reward, prompts, ["a"])[0].value == pytest.approx(1 - 2 / 4)
    assert parse_verifications("[NO_DIFFERENCES]") == []
    for bad in ("", "no differences", block.format(1, "missing_fact", "false"), block.format(1, "other", "false")):
        assert parse_verifications(bad) is None


def test_an_unknown_form_is_named() -> None:
    with pytest.raises(RecipeError, match=r"arguments.form` is .absolute.; allowed: actor, relative, judgment"):
        find_reward("c", "claim_difference", {"judge": compare_claims, "form": "absolute"})


# --- precision, coverage, language -----------------------------------------------------------------------------------


def assessed(words: int, **changes: object) -> Score | None:
    answer = {
        "assertions": [{"true": True, "pointable": True}, {"true": True, "pointable": False}],
        "units": [{"covered": True}, {"covered": False}, {"covered": False}, {"covered": False}],
        "clarity": 1.0,
        "fluency": 0.5,
        "coherence": 0.6,
    } | changes
    fields = {"output": "w " * words, "reference": "r " * 10}
    return CaptionBalance(judge=assess_caption).score(json.dumps(answer), fields)


def test_the_three_parts_and_their_harmonic_mean() -> None:
    score = assessed(10)
    assert score is not None and score.components == {
        "precision": 0.5,
        "coverage": 0.25,
        "language": pytest.approx(0.7),
    }
    assert score.value == pytest.approx(3 / (2 + 4 + 1 / 0.7))


@pytest.mark.parametrize("words, language", [(4, 0), (5, 0.7), (10, 0.7), (20, 0.7), (21, 0)])
def test_the_length_gate_has_two_sides(words: int, language: float) -> None:
    score = assessed(words)
    assert score is not None and score.components is not None
    assert score.components["language"] == pytest.approx(language)
    assert score.components["precision"] == 0.5  # the gate closes language alone


def test_unreadable_assessments() -> None:
    for changes in (
        {"clarity": 7},
        {"fluency": None},
        {"units": []},
        {"assertions": ["x"]},
        {"units": [{"covered": "yes"}]},
    ):
        assert assessed(10, **changes) is None
    assert parse_balance("lovely", "a", "a") is None
    empty = assessed(10, assertions=[])
    assert empty is not None and empty.value == 0


# --- the lab's judges ------------------------------------------------------------------------------------------------


def test_on_the_lab_the_truth_is_the_best_caption() -> None:
    truths = evaluation_prompts("heldout", 24)
    prompts = [Prompt(id=one.id, text="", facts={**one.facts, "reference": one.text}) for one in truths]
    texts = [one.text for one in truths]
    shifted = texts[1:] + texts[:1]  # each caption for the next picture
    rewards = [ClaimDifference(compare_claims), ClaimVerification(verify_claims), CaptionBalance(assess_caption)]
    for reward in rewards:
        right = [one.value for one in call_reward("r", reward, prompts, texts)]
        wrong = [one.value for one in call_reward("r", reward, prompts, shifted)]
        assert right == [1.0] * 24, reward
        assert max(wrong) < 0.9 and sum(wrong) / 24 < 0.4, reward


def test_a_true_claim_that_the_reference_lacks_is_no_error() -> None:
    facts = {
        "objects": [{"count": 1, "color": "red", "shape": "circle"}, {"count": 2, "color": "blue", "shape": "square"}]
    }
    said, anchor = "a red circle and two blue squares", "a red circle"
    found = parse_comparison(compare_claims(said, anchor, facts))
    assert found is not None and found.winner == "a"
    assert [(one.severity_a, one.severity_b, one.judgment) for one in found.differences] == [(0, 2, "a")]
    assert parse_verifications(verify_claims(said, anchor, facts)) == ["verified"]
