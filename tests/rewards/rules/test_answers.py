from __future__ import annotations

import threading
from fractions import Fraction

import pytest
from tests.rewards.ships import ships

from plaudit.data.prompt import Prompt
from plaudit.errors import RewardError
from plaudit.rewards.base import Score, Status
from plaudit.rewards.call import Handling, call_reward
from plaudit.rewards.rules import answers
from plaudit.rewards.rules.answers import boxed, find_answer, letter_of, normalised, number_of
from plaudit.rewards.rules.bounded import Helper, HelperError


@pytest.mark.parametrize("name", ["boxed_answer", "math_equal", "number_answer", "choice_answer", "exact_answer"])
def test_ships(name: str) -> None:
    ships(name)


def score(function, output: str, answer: object, **options: object) -> Score:
    prompts = [Prompt(id="q", text="?", facts={"answer": answer})]
    return call_reward(
        "r", lambda prompts, outputs, answer: function(prompts, outputs, answer, **options), prompts, [output]
    )[0]


# --- places ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, expected",
    [
        (r"\boxed{5}", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{1} and \boxed{2}", "2"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{1} then \boxed{2", None),
        (r"\fbox{3}", "3"),
        (r"boxed 5", None),
        ("", None),
    ],
)
def test_the_last_box_with_nested_and_escaped_braces(text: str, expected: str | None) -> None:
    assert boxed(text) == expected


@pytest.mark.parametrize(
    "text, place, expected",
    [
        ("<answer>1</answer> or <answer> 2 </answer>", "tag", "2"),
        ("<answer>1 <answer>2</answer>", "tag", "2"),
        ("<answer>1</answer> <answer>2", "tag", "1"),
        ("</answer>1<answer>", "tag", None),
        ("<answer> </answer>", "tag", None),
        ("<think><answer>1</answer></think>2", "tag", None),
        ("<think>still at it <answer>1</answer>", "tag", None),
        (r"<think>\boxed{1}</think> \boxed{2}", "boxed", "2"),
        ("a\n#### 1\n#### 2\nbye", "hash", "2"),
        ("a\nb\n\n", "line", "b"),
        (" é ", "whole", "é"),
        ("", "whole", None),
    ],
)
def test_answers_are_read_in_their_place(text: str, place: str, expected: str | None) -> None:
    assert find_answer(text, place) == expected


def test_an_unknown_place_is_named() -> None:
    with pytest.raises(RewardError, match="place 'end'; allowed: boxed"):
        find_answer("x", "end")


def test_naming_every_candidate_is_never_right() -> None:
    everything = "1 2 3 4 5 A B C D <answer>1 2 3 4 5 A B C D</answer>"
    for function, answer in ((answers.math_equal, "3"), (answers.number_answer, "3"), (answers.choice_answer, "B")):
        assert score(function, everything, answer).value == 0
    assert score(answers.exact_answer, everything, "B").value == 0


# --- mathematics -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "truth, answer, same",
    [
        ("1/2", r"\frac12", 1),
        ("0.5", "1/2", 1),
        ("x+1", "1 + x", 1),
        ("(1,2)", "(2,1)", 0),
        (r"\{1,2\}", r"\{2,1\}", 1),
        ("[0,1)", "[0,1]", 0),
        (r"\sqrt{8}", r"2\sqrt2", 1),
        ("7", "-7", 0),
        ("007", "7", 1),
        (12, "12", 1),
        ("x^2-1", "(x-1)(x+1)", 1),
        ("x^2-1", "(x-1)^2", 0),
        ("5", "五", 0),
    ],
)
def test_mathematical_equality(truth: object, answer: str, same: int) -> None:
    assert score(answers.boxed_answer, rf"so \boxed{{{answer}}}", truth).value == same


def test_equality_off_the_main_thread_and_within_a_deadline() -> None:
    """math-verify's own time limits raise an error outside the main thread."""
    prompts = [Prompt(id="q", text="?", facts={"answer": r"\frac{2}{4}"})] * 2
    outputs = [r"\boxed{0.5}", r"\boxed{x}"]
    found = call_reward("boxed", answers.boxed_answer, prompts, outputs, handling=Handling(deadline_s=30))
    assert [one.value for one in found] == [1, 0]


def test_a_tower_of_powers_is_stopped_and_the_next_answer_is_judged() -> None:
    """It would never end: that it is stopped at all says that it was stopped in time."""
    helper = Helper("algebra", seconds=60)
    assert helper("equal", "4", "2+2") is True
    helper.seconds = 0.5
    with pytest.raises(TimeoutError, match=r"within 0\.5 s"):
        helper("equal", "5", "9^{9^{9^{9}}}")
    helper.seconds = 60
    assert helper("equal", "4", "2+2") is True
    helper.stop()


def test_a_hanging_answer_is_missing_not_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    helper = Helper("algebra", seconds=0.3)
    monkeypatch.setattr(answers, "helper", lambda kind: helper)
    assert score(answers.boxed_answer, r"\boxed{9^{9^{9^{9}}}}", "5").status is Status.TIMED_OUT
    helper.stop()


def test_helpers_answer_threads_in_turn() -> None:
    helper, found = Helper("algebra"), {}

    def work(number: int) -> None:
        found[number] = helper("equal", str(number * 2), f"{number}+{number}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(8), True)
    with pytest.raises(HelperError, match="KeyError"):
        helper("divide", "1", "2")
    helper.stop()


def test_an_overlong_expression_is_wrong_unless_it_is_the_reference() -> None:
    long = "+".join(["x"] * 400)
    assert score(answers.boxed_answer, rf"\boxed{{{long}}}", "400x").value == 0
    assert score(answers.boxed_answer, rf"\boxed{{{long}}}", long).value == 1


def test_no_reference_is_missing_and_an_unreadable_one_an_error() -> None:
    assert score(answers.boxed_answer, r"\boxed{1}", None).status is Status.NOT_APPLICABLE
    assert score(answers.boxed_answer, r"\boxed{1}", "").status is Status.NOT_APPLICABLE
    assert score(answers.boxed_answer, r"\boxed{1}", "$").status is Status.ERRORED
    assert score(answers.choice_answer, "<answer>A</answer>", "E").status is Status.ERRORED


# --- numbers, letters, words -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, number",
    [
        ("1,234.5", Fraction(2469, 2)),
        ("-3/4", Fraction(-3, 4)),
        ("−3", Fraction(-3)),
        ("2e-3", Fraction(1, 500)),
        ("$5", Fraction(5)),
        (r"\$5.00", Fraction(5)),
        (r"12\text{ apples}", Fraction(12)),
        ("12 m^2", Fraction(12)),
        ("5 km/h", Fraction(5)),
        (r"50\%", Fraction(50)),
        ("**7**.", None),
        ("7.", Fraction(7)),
        ("1,23", None),
        ("12 or 13", None),
        ("3 to 4", None),
        ("1/0", None),
        ("12 13", None),
        ("", None),
        ("twelve", None),
    ],
)
def test_numbers(text: str, number: Fraction | None) -> None:
    assert number_of(text) == number


def test_tolerances_are_relative_or_absolute_whichever_is_wider() -> None:
    def close(output: str, truth: object, **options: float) -> float:
        return score(answers.number_answer, f"<answer>{output}</answer>", truth, **options).value

    assert close("101", 100, relative=0.01) == 1 and close("101.1", 100, relative=0.01) == 0
    assert close("-99", -100, relative=0.01) == 1
    assert close("0.009", 0, absolute=0.01) == 1 and close("0.009", 0, relative=0.5) == 0


@pytest.mark.parametrize(
    "text, letter",
    [
        ("B", "B"), ("(B)", "B"), ("b.", "B"), ("B) 12 apples", "B"), ("B: foo", "B"), (r"\text{B}", "B"), ("**B**", "B"),
        ("option B", "B"), ("Answer: C", "C"), ("(B) a dog", "B"), ("A dog", None), ("A or B", None), ("(A) or (B)", None),
        ("A, B", None), ("AB", None), ("Because", None), ("E", None), ("", None),
    ],
)  # fmt: skip
def test_letters(text: str, letter: str | None) -> None:
    assert letter_of(text, "ABCD") == letter


def test_normalised_text() -> None:
    assert normalised(' "The  ＨＡＧＵＥ!" ') == "the hague"
    assert normalised("Straße") == normalised("STRASSE")
    assert normalised("U.S.A.") == "u.s.a" and normalised("?!") == ""
