from __future__ import annotations

import threading
from fractions import Fraction

import pytest

from plaudit.data.prompt import Prompt
from plaudit.errors import RewardError
from plaudit.rewards.base import Score, Status
from plaudit.rewards.calling.call import Handling, call_reward
from plaudit.rewards.rules import answers
from plaudit.rewards.rules.answers import boxed, find_answer, letter_of, normalised
from plaudit.rewards.rules.bounded import Helper, HelperError
from plaudit.rewards.rules.numbers import number_of


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
        ("y=5", "x=5", 0),
        ("x=5", "x = 5", 1),
        ("3/10", "3 tenths", 0),
        ("3", "3 tenths", 0),
        ("100", "10²", 1),
        ("102", "10²", 0),
        ("10", "10^2", 0),
        ("3", r"3\pi", 0),
        (r"3\pi", "3π", 1),
        ("7", "7 million", 0),
        ("7000000", "7 million", 1),
        ("5", "5i", 0),
        ("5", "5!", 0),
        ("120", "5!", 1),
        ("5", "-5", 0),
        ("5", "5 or 6", 0),
        ("5", "5, 6", 0),
        ("12", "1 2", 0),
        ("12", "1  2", 0),
        ("12", "1\t\t2", 0),
        ("x^{12}", "x^{1  2}", 0),
        ("1 2", "1 2", 1),
        ("23", "2 3", 0),
        ("0.5", "50%", 1),
        ("1000", "1,000", 1),
        ("5", "5,000", 0),
        ("1/3", "0.333", 0),
        ("3/2", "1 1/2", 1),
        ("11/2", r"1\frac12", 0),
        ("5 dollars", r"\$5", 1),
        ("x^2", "x**2", 1),
        ("x=5", "5", 1),
        ("x>5", "5<x", 1),
        ("x>5", "x>=5", 0),
        ("[0,1)", "(0,1)", 0),
        ("4", "2+2=5", 0),
        (r"90^\circ", "90", 1),
        ("5", "|-5|", 1),
        ("x", "y", 0),
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
    helper = Helper("algebra", seconds=60)
    assert helper("equal", "4", "2+2") is True
    child, helper.seconds = helper.child, 0.5
    with pytest.raises(TimeoutError, match=r"within 0\.5 s"):
        helper("equal", "5", "9^{9^{9^{9}}}")
    assert child is not None and not child.alive
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
        ("10^2", 100), ("10²", 100), ("10^{2}", 100), ("10**2", 100), ("2^10", 1024), ("10^-2", Fraction(1, 100)),
        ("10⁻²", Fraction(1, 100)), ("-2^2", -4), ("3π", None), (r"3\pi", None), ("3 pi", None),
        ("7 million", 7000000), ("7 million dollars", 7000000), ("1.5 billion", 1500000000), ("$5 million", 5000000),
        ("2 dozen eggs", 24), ("5 hundred", 500), ("5i", None), ("5x", None), ("5 x", None), ("5!", None),
        ("5e", None), ("5 e", None), ("5j", None), ("1 1/2", Fraction(3, 2)), ("½", Fraction(1, 2)),
        ("1½", Fraction(3, 2)), (r"\frac{1}{2}", Fraction(1, 2)), (r"\frac12", Fraction(1, 2)),
        (r"-\frac{3}{4}", Fraction(-3, 4)), (r"1\frac{1}{2}", Fraction(3, 2)), ("3 × 10^8", 300000000),
        (r"3\times10^8", 300000000), (r"3\times 10^{-2}", Fraction(3, 100)), ("3x10^2", 300),
        ("2e-3", Fraction(1, 500)), ("1,234,567", 1234567), ("1{,}234", 1234), ("1 234", 1234), ("1,23,456", 123456),
        ("1,23", None), ("12,34,5", None), ("12 13", None), ("x = 5", 5), ("x5", None), ("x 5", None), ("= 5", 5),
        ("≈5", 5), ("±5", None),
        ("+-5", None), ("(5", None), ("5:30", None), ("3-5", None), ("5 or 6", None), ("5 or more", None),
        ("7 squared", None), ("5 and a half", None), ("5 m", 5), ("5 m^2", 5), ("5 m²", 5), ("12 cm²", 12),
        ("5 km/h", 5), ("5 kg m/s", 5), ("5 N", 5), ("300 K", 300), ("5k", None), ("5M", None), ("$5M", None),
        ("50%", 50), (r"50\%", 50), ("5°", 5), ("5 °C", 5), ("5 degrees", 5), ("5 dollars and 3 cents", None),
        ("-5", -5), ("−5", -5), ("–5", -5), ("--5", None), ("5.", 5), (".5", Fraction(1, 2)), ("5.0.1", None),
        ("0x10", None), ("1_000", None), ("1/0", None), ("0^0", None), ("3/4 cup", Fraction(3, 4)),
        ("2/3", Fraction(2, 3)), ("5 out of 10", None), ("twelve", None), ("", None), ("√5", None), ("2√3", None),
        ("5*3", None), ("5 + 3", None), ("5^2^2", None), ("10^9999", None), ("9^999", None), ("**7**", 7), ("$7$", 7),
        ("$-7$", -7), (r"\(7\)", 7), (r"\boxed{7}", 7), ("£5.50", Fraction(11, 2)), ("5 €", 5), ("5$", 5),
        ("-$5", -5), ("$-5", -5), ("5 apples.", 5), ("5 green apples", 5), ("5 per hour", 5), ("NaN", None),
        ("inf", None), ("5 to 6", None), ("5 times 3", None), ("5 times", None), ("５", 5), ("1e400", 1 * 10**400),
        ("5 1/2 cups", Fraction(11, 2)), ("5 1/0", None), ("1 1/2 1/2", None), ("10²³", 1 * 10**23),
        ("5 minus 3", None), (r"12\text{ apples}", 12), ("5 factorial", None), ("6.02×10²³", 602 * 10**21),
        ("2 thirds", None), ("3 tenths", None), ("3 quarters", None), ("5 hundredths", None), ("5 bn", None),
        ("5 B", None),
        ("3 mil", None), ("5 lakh", None), ("101 base two", None), ("5 negative", None), ("3rd", None), ("5 pm", None),
        ("5 at most", None), ("5 months", 5), ("5 clothes", 5), ("5 sqrt", None), ("100 200", 100200),
        ("7 million to 8 million", None),
        ("5xy", None), ("5sinx", None), ("5 sinx", None), ("5 below zero", None), ("5 point five", None), ("5 doubled", None),
        ("5 halved", None), ("5 per mille", None), ("5 out of ten", None), ("5 vs seven", None), ("5 thousand five", None),
        ("2 gross", None), ("2ab", None), ("2 ab", None), ("3 theta", None), ("3 θ", None), ("3 πr", None), ("5百万", None),
        (r"\frac{1}{2}3", None), ("½3", None), ("7 Million", 7000000), ("2 DOZEN", 24), ("5km", 5), ("5kΩ", 5), ("5 μm", 5),
        ("5公里", 5), ("12cm²", 12), ("½ cup", Fraction(1, 2)), ("5 cups of tea", 5), ("5 per cent", 5), ("5 tanks", 5),
        ("1\n234", None), ("1  234", None), ("5    cups", 5), ("101₂", None), ("2ⁿ", None), ("5" * 201, None),
        ("about 5", None), ("5 is wrong", None), ("5 if x", None),
    ],
)  # fmt: skip
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
        ("B", "B"), ("(B)", "B"), ("b.", "B"), ("B) 12 apples", "B"), ("B: foo", "B"), (r"\text{B}", "B"),
        ("**B**", "B"), ("option B", "B"), ("Answer: C", "C"), ("(B) a dog", "B"), ("A dog", None), ("A or B", None),
        ("(A) or (B)", None), ("A, B", None), ("AB", None), ("Because", None), ("E", None), ("", None),
        ("The answer is B", "B"), ("the correct answer is (C).", "C"), ("The correct option is: D", "D"),
        (r"\boxed{B}", "B"), (r"\boxed{\text{B}}", "B"), ("Ｂ", "B"), ("A: B", None), ("A. B. C. D.", None),
        ("A. (B)", None), ("A/B", None), ("A & B", None), ("A. A dog", "A"), ("B. A cat", "B"),
        ("(B) A red square", "B"), ("The answer is B. A red square", "B"),
        ("B. a cat and a dog", "B"), ("A. a dog, a cat", "A"), ("D. Both A and B", "D"), ("C. Vitamins B and C", "C"),
        ("A) 5 B) 6", None), ("A. foo B. bar", None), ("(A) (B) (C)", None), ("B. Blood type A", "B"),
        ("not B", None), ("the answer is not B", None),
        ("B, not C", "B"), ("B. Vitamin C", "B"), ("B) or C)", None), ("(A)(B)", None), ("B.\nbecause of A.", "B"),
        ("A and D", None), ("A; B", None), ("A, or B", None), ("B because A is wrong", None), ("Choice (D)", "D"),
        ("$B$", "B"), ("B.", "B"), ("B)", "B"), ("B:", "B"), ("Neither A nor B", None), ("D) all of the above", "D"),
        ("A: yes\nB: yes\nC: yes\nD: yes", None), ("A. maybe. B. maybe. C. maybe", None), ("A: 5; B: 3; C: 4", None),
        ("A. plus B", None), ("A. No wait, it is B.", None), ("A. The answer is B", None), ("a.b.c.d", None),
        ("C.E.O.", None), ("A, a dog", "A"), ("A. No wait, a dog", "A"), ("The  answer\tis  B", "B"),
        ("I choose B", None), ("a", "A"), ("a dog", None), ("A. a dog", "A"),
    ],
)  # fmt: skip
def test_letters(text: str, letter: str | None) -> None:
    assert letter_of(text, "ABCD") == letter


@pytest.mark.parametrize(
    "text, digit",
    [("1.9", None), ("1,000", None), ("1:30", None), ("1", "1"), ("1.", "1"), ("1. Nine", "1"), ("2) 5", "2")],
)
def test_letters_that_are_digits(text: str, digit: str | None) -> None:
    assert letter_of(text, "1234") == digit


@pytest.mark.parametrize(
    "text, reference, same",
    [
        ("-5", "5", False), ("C#", "C", False), ("C++", "C", False), ("10²", "102", False), ("10²", "10^2", True),
        ("5!", "5", False), ("5%", "5", False), (".5", "5", False), ("5.", "5", True), ("Paris.", "paris", True),
        ("\"Paris\"", "Paris", True), ("(Paris)", "Paris", True), ("[0,1)", "(0,1]", False),
        ("[0,1)", "[0,1]", False), ("[1]", "1", False), ("{1}", "1", False), ("f'", "f", False), ("x²", "x2", False),
        ("H₂O", "H2O", True), ("½", "1/2", True), ("1½", "11/2", False), ("−5", "-5", True),
        ("well–known", "well-known", True), ("Straße", "STRASSE", True), ("yes!", "yes", True),
        ("Yes, please", "yes please", False), ("U.S.A.", "U.S.A", True), ("the hague", "The  ＨＡＧＵＥ!", True),
        ("**bold**", "bold", True), ("a*", "a", False), ("*a*", "a", True), ("$5", "5", False), ("5°", "5", False),
        ("@a", "a", False), ("#1", "1", False), ("~5", "5", False), ("5'", "5", False), ("+5", "5", False),
        ("5/", "5", False), ("\u200bParis", "Paris", True), ("¿qué?", "qué", True), ("f(x)", "f(x", False),
        ("A (or B)", "A or B", False), ("'tis", "tis", False), ("C♯", "C", False), ("1,000", "1000", False),
        ("...", "x", False), ("‘a’", "a", True), ("(a)(b)", "a)(b", False), ("a_b", "ab", False), ("5¹", "51", False),
        ("x^-1", "x⁻¹", True), ("__init__", "init", False), ("n!", "n", False), ("(n+1)!", "n+1", False),
        ("5!!", "5!", False), ("5!.", "5!", True), ("2ⁿ", "2n", False), ("2ⁿ", "2^n", True), ("e⁻ˣ", "e-x", False),
        ("e⁻ˣ", "e^-x", True), ("101₂", "1012", False), ("101₂", "101_2", True), ("log₂8", "log28", False),
        (",5", "5", False), (":5", "5", False), (": 5", "5", True), ("Ca(OH)₂", "Ca(OH)2", True),
        ("Fe₂(SO₄)₃", "fe2(so4)3", True), ("(yes)!", "yes", True), ("No!", "no", True), ('"Paris"!', "paris", True),
        ("是！", "是", True), ("Yes?!", "yes", True), ("5", "5 ", True), ("", "?!", False),
    ],
)  # fmt: skip
def test_words(text: str, reference: str, same: bool) -> None:
    assert (normalised(text) == normalised(reference) != "") == same
