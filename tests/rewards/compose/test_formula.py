from __future__ import annotations

import ast
import json
import math

import pytest
import torch
from hypothesis import strategies as st
from tests.rewards.compose.batches import NAN, groups, law, same, tensor

from plaudit.errors import RecipeError, RewardError
from plaudit.rewards.compose import groups as gr
from plaudit.rewards.compose import operators as op
from plaudit.rewards.compose import pairwise, pareto, running, shapers, trust
from plaudit.rewards.compose.expression import R, call
from plaudit.rewards.compose.formula import Evaluated, parse, weighted_sum_formula
from plaudit.rewards.compose.table import OPERATORS

NAMES = ["match", "bright"]
MATCH, BRIGHT, GROUP = tensor(0.2, 0.9, NAN, 0.5), tensor(1.4, -0.3, 0.5, 0.6), groups(0, 0, 1, 1)


def evaluate(text: str, step: int = 0, **rest) -> Evaluated:
    formula = parse(text, NAMES, unweighted=NAMES)
    return formula.evaluate({"match": MATCH, "bright": BRIGHT}, GROUP, step, prompts=["p"] * len(GROUP), **rest)


def refusal(text: str, rewards=NAMES) -> str:
    with pytest.raises(RecipeError) as caught:
        parse(text, rewards, unweighted=rewards)
    assert str(caught.value).startswith("combine: ") and "\n" not in str(caught.value)
    return str(caught.value)


# --- values ----------------------------------------------------------------------------------------------------------


def test_the_example_of_the_recipe() -> None:
    result = evaluate("0.7 * match + 0.3 * clip(bright, 0, 1)")
    clipped = tensor(1, 0, 0.5, 0.6)
    assert same(result.total, 0.7 * MATCH + 0.3 * clipped) and result.total.dtype == torch.float64
    assert list(result.parts) == ["match", "bright", "clip(bright, 0, 1)"]
    assert same(result.parts["clip(bright, 0, 1)"], clipped)
    assert list(result.terms) == ["0.7 * match", "0.3 * clip(bright, 0, 1)"]


EXPRESSIONS = st.recursive(
    st.sampled_from(["match", "bright", "2", "0.5"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        inner.map(lambda e: f"(-{e})"),
        inner.map(lambda e: f"clip(match - {e}, -1, 1)"),
        inner.map(lambda e: f"min(bright, {e})"),
    ),
    max_leaves=8,
)


def by_python(text: str, match: float, bright: float) -> float:
    """The meaning of an expression, by Python itself."""
    names = {"match": match, "bright": bright, "min": lambda a, b: NAN if a != a or b != b else min(a, b)}
    names["clip"] = lambda x, low, high: min(max(x, low), high) if x == x else x
    try:
        value = eval(
            compile(ast.parse(text, mode="eval"), "", "eval"), {"__builtins__": {}}, names
        )  # of this test's making
    except ZeroDivisionError:
        return NAN
    return value


@law(text=EXPRESSIONS.filter(lambda t: "match" in t or "bright" in t))
def test_arithmetic_is_pythons(text) -> None:
    try:
        result = evaluate(text)
    except RecipeError as error:
        assert "division by 0" in str(error) or "uses no reward" in str(error)
        return
    expected = [by_python(text, m, b) for m, b in zip(MATCH.tolist(), BRIGHT.tolist(), strict=True)]
    assert same(result.total, tensor(*expected))
    assert same(torch.stack(list(result.terms.values())).sum(0), result.total)


CALLS = {
    "weighted_sum(match, bright, weights='2, -1')": lambda: 2 * MATCH - BRIGHT,
    "mean(match, bright)": lambda: op.mean([MATCH, BRIGHT]),
    "min(match, 0.5)": lambda: op.minimum([MATCH, torch.full_like(MATCH, 0.5)]),
    "max(match, bright, 0)": lambda: op.maximum([MATCH, BRIGHT, torch.zeros_like(MATCH)]),
    "product(match, bright, floor=0.05)": lambda: op.product([MATCH, BRIGHT], floor=0.05),
    "geometric_mean(match, bright)": lambda: op.geometric_mean([MATCH, BRIGHT]),
    "harmonic_mean(match, bright, floor=0.1)": lambda: op.harmonic_mean([MATCH, BRIGHT], floor=0.1),
    "lambda_harmonic(match, bright, 0.3)": lambda: op.lambda_harmonic(MATCH, BRIGHT, balance=0.3),
    "base_bonus(match, bright, base=0.2)": lambda: op.base_bonus(MATCH, BRIGHT, base=0.2),
    "cme(match, bright)": lambda: MATCH * (0.6 + 0.4 * BRIGHT),
    "qma(match, bright)": lambda: MATCH * (0.4 + 0.6 * BRIGHT),
    "outcome_gate(match, bright, alpha=0.4, anneal=linear(0, 1, 10))": lambda: op.outcome_gate(
        MATCH, BRIGHT, group=GROUP, alpha=0.4, anneal=0.5
    ),
    "fallback(match, bright)": lambda: op.fallback([MATCH, BRIGHT]),
    "rule_first(match, bright)": lambda: op.rule_first(MATCH, BRIGHT),
    "centre(match)": lambda: gr.centre(MATCH, group=GROUP),
    "minmax(bright, floor=0.2)": lambda: gr.group_minmax(BRIGHT, GROUP, floor=0.2),
    "rank(bright)": lambda: gr.rank(BRIGHT, group=GROUP),
    "rank_sum(match, bright)": lambda: gr.rank_sum([MATCH, BRIGHT], group=GROUP),
    "win_rate(bright, margin=0.2)": lambda: pairwise.win_rate(BRIGHT, group=GROUP, margin=0.2),
    "log_taming(match, bright, weights='2, 1')": lambda: gr.log_taming([MATCH, BRIGHT], group=GROUP, weights=(2, 1)),
    "pareto(match, bright, within='group')": lambda: pareto.pareto([MATCH, BRIGHT], group=GROUP, within="group"),
    "chain(match, bright, shortest=2)": lambda: pareto.chain_advantage([MATCH, BRIGHT], group=GROUP, shortest=2),
    "clip(bright, high=1)": lambda: BRIGHT.clamp(max=1),
    "rescale(bright, -1, 2)": lambda: (BRIGHT + 1) / 3,
    "sigmoid(bright, slope=2, at=0.5)": lambda: torch.sigmoid(2 * (BRIGHT - 0.5)),
    "tanh(bright - match)": lambda: torch.tanh(BRIGHT - MATCH),
    "par(match, bright, 0.5, slope=2)": lambda: shapers.par(MATCH, [BRIGHT, torch.full_like(MATCH, 0.5)], slope=2),
    "par_tanh(match, bright)": lambda: torch.tanh(MATCH - BRIGHT),
    "centred_on(match, bright, 1)": lambda: MATCH - (BRIGHT + 1) / 2,
    "lsc(match, bright)": lambda: shapers.lsc(MATCH, [BRIGHT]),
    "overlength(match, 100 * bright, limit=50, rate=0.01)": lambda: MATCH - (BRIGHT - 0.5).clamp(min=0),
    "dead_zone(match, low=staged('3', '0.1, 0.3'), high=0.8)": lambda: shapers.dead_zone(MATCH, low=0.3, high=0.8),
    "tiers(match, thresholds='0.5', values='0, 3')": lambda: shapers.tiers(MATCH, thresholds=(0.5,), values=(0, 3)),
    "tiered(match, bright, alpha=0.1)": lambda: shapers.tiered(MATCH, BRIGHT, alpha=0.1),
    "lifted(match, bright, weight=0.2)": lambda: shapers.calibrated(MATCH, BRIGHT, weight=0.2),
    "flipped(match, probability=1)": lambda: 1 - MATCH,
    "linear(0, 1, 10) * match": lambda: 0.5 * MATCH,
    "cosine(0, 1, 15) * match": lambda: 0.25 * MATCH,
    "warmup(20) * match": lambda: 0.25 * MATCH,
    "staged(at='5, 9', values='1, 2, 3') * match": lambda: 2 * MATCH,
    "running_zscore(bright, floor=0.1)": lambda: running.RunningZScore(floor=0.1)(BRIGHT),
    "running_clip(bright, width=0.5)": lambda: running.RunningClip(width=0.5)(BRIGHT),
    "running_minmax(bright)": lambda: running.RunningMinMax()(BRIGHT),
    "constrained(match, bright, limit=0.5, rate=1, start=2)": lambda: MATCH - 2 * (BRIGHT - 0.5),
    "wrong_and_long(match, bright, longest=2)": lambda: running.WrongAndLong(longest=2)(MATCH, BRIGHT, group=GROUP),
    "lower(match, bright, k=2)": lambda: trust.lower([MATCH, BRIGHT], k=2),
    "uwo(match, bright)": lambda: trust.uwo([MATCH, BRIGHT]),
    "spread(match, bright)": lambda: trust.spread([MATCH, BRIGHT]),
    "discounted(match, bright, rate=2)": lambda: trust.discounted(MATCH, BRIGHT, rate=2),
}


@pytest.mark.parametrize("text", CALLS)
def test_calls_are_the_operators(text) -> None:
    result = evaluate(text, step=5)
    assert same(result.total, CALLS[text]()) and result.total.isfinite().any()


def test_every_operator_is_called_above_and_documented() -> None:
    called = {node.func.id for text in CALLS for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)}
    assert called == set(OPERATORS)
    for name, operator in OPERATORS.items():
        assert operator.meaning.endswith(".") and len(operator.meaning) > 20, name
        assert operator.usage.startswith(f"{name}(") and (operator.parts or operator.more or operator.is_schedule)


def test_what_the_table_says_of_an_operator() -> None:
    assert OPERATORS["clip"].usage == "clip(scores, low=-inf, high=inf)"
    assert OPERATORS["par"].parts == ("scores",) and OPERATORS["par"].more == 1
    assert OPERATORS["pareto"].usage == 'pareto(..., within="batch")' and OPERATORS["pareto"].needs == ("group",)
    constrained = OPERATORS["constrained"]
    assert constrained.has_memory and constrained.parts == ("scores", "watched")
    assert [(o.name, o.kind, o.required) for o in constrained.options[:3]] == [
        ("limit", "number", True),
        ("rate", "number", True),
        ("sense", "word", False),
    ]


def test_missing_in_missing_out_and_a_division_by_zero_is_missing() -> None:
    assert evaluate("match + bright").total.isnan().tolist() == [False, False, True, False]
    assert evaluate("match / (bright - 0.6)").total.isnan().tolist() == [False, False, True, True]
    assert same(evaluate("0 * match").total, tensor(0, 0, NAN, 0))


def test_an_infinite_total_stops_the_run() -> None:
    with pytest.raises(RewardError, match="infinite for output 1"):
        parse("1e308 * match + 1e308 * match", ["match"]).evaluate({"match": tensor(0, 3)}, groups(0, 0))


def test_a_schedule_that_goes_wrong_later_names_the_step() -> None:
    formula = parse("clip(match, 0, linear(1, -1, 10))", ["match"])
    formula.evaluate({"match": tensor(0.5)}, groups(0), step=5)
    with pytest.raises(RecipeError, match="at step 9: low 0 is above high"):
        formula.evaluate({"match": tensor(0.5)}, groups(0), step=9)


def test_gradients_reach_the_parts_and_not_from_missing_totals() -> None:
    match, bright = tensor(0.2, 0.4, 0.9).requires_grad_(), tensor(0.5, NAN, 0.5)
    total = (
        parse("match * bright + 2 * match", NAMES).evaluate({"match": match, "bright": bright}, groups(0, 0, 0)).total
    )
    total[~total.isnan()].sum().backward()
    assert same(match.grad, tensor(2.5, 0, 2.5))


# --- memory ----------------------------------------------------------------------------------------------------------


def test_memories_learn_only_when_told_and_survive_a_checkpoint() -> None:
    text = "running_zscore(match) - running_zscore(bright) + 0 * constrained(match, bright, limit=0, rate=0.5)"
    kept, loaded = parse(text, NAMES), parse(text, NAMES)
    first, second = {"match": MATCH, "bright": BRIGHT}, {"match": BRIGHT, "bright": MATCH}
    untouched = kept.state()
    kept.evaluate(first, GROUP)
    assert kept.state() == untouched
    kept.evaluate(first, GROUP, learn=True)
    state = json.loads(json.dumps(kept.state(), allow_nan=False))
    assert [memory.get("count") for memory in state["memories"]] == [3, 4, None]
    loaded.load_state(state)
    a, b = (f.evaluate(second, GROUP, learn=True) for f in (kept, loaded))
    assert torch.equal(a.total.nan_to_num(), b.total.nan_to_num()) and kept.state() == loaded.state()
    assert not same(a.total, parse(text, NAMES).evaluate(second, GROUP, learn=True).total)


def test_a_memory_of_another_formula_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"written with .*match\)"):
        parse("match", ["match"]).load_state(parse("running_zscore(match)", ["match"]).state())


# --- what is refused -------------------------------------------------------------------------------------------------

NOT_ALLOWED = [
    "match ** 2", "match.real", "match[0]", "[match]", "{'a': match}", "(match, bright)", "lambda: match", "f'{match}'",
    "match if 1 else bright", "match and bright", "match < bright", "not match", "match @ bright", "match // 2", "~match",
    "(lambda: 1)()", "match.clip(0, 1)", "[m for m in match]", "(m := match)", "True * match", "None", "1j * match",
    "'a' + match", "clip(match, low=(0, 1))", "+match", "...", "b'a' * match",
]  # fmt: skip


@pytest.mark.parametrize("text", NOT_ALLOWED)
def test_only_the_whitelist_is_a_formula(text) -> None:
    message = refusal(text)
    assert "not allowed" in message and "+ - * /" in message


@pytest.mark.parametrize(
    "text", ["match +", "import os", "match = 1", "match; bright", "(match", "match bright", "0x", "a\0b"]
)
def test_what_python_cannot_read_is_refused(text) -> None:
    assert "cannot be read" in refusal(text)


REFUSED = {
    "": "leave `combine` out",
    "  \n": "leave `combine` out",
    "brigth + match": "(did you mean bright?); its rewards are match, bright",
    "clp(match, 0, 1)": "(did you mean clip?)",
    "__import__('os')": "no operator",
    "eval(match)": "no operator",
    "clip + match": "clip is an operator; call it on rewards: clip(scores",
    "match(bright)": "write match * (...)",
    "1 + linear(0, 1, 5)": "uses no reward",
    "match + min(1, 2)": "uses no reward",
    "cme(match)": "has 1 of the at least 2 parts; write cme(execution, consistency)",
    "mean(match)": "has 1 of the at least 2",
    "clip(match, 0, 1, 2)": "more than there are",
    "clip(match, lo=0)": "did you mean low?",
    "clip(match, 0, low=1)": "low twice",
    "clip(match, low=0, low=1)": "low twice",
    "clip(scores=match)": "has 0 of the at least 1",
    "min(*match)": "unpacks nothing",
    "clip(match, **bright)": "unpacks nothing",
    "dead_zone(match, low=0.5)": "lacks high",
    "clip(match, '0', 1)": "must be a number",
    "clip(match, bright, 1)": "not a reward's scores",
    "running_zscore(match, floor=linear(1, 2, 3))": "options are plain numbers",
    "tiers(match, values='1, x')": "numbers in quotes",
    "tiers(match, values='1, nan')": "numbers in quotes",
    "tiers(match, values=1)": "numbers in quotes",
    "pareto(match, bright, within='all')": "one of 'batch', 'group'",
    "chain(match, bright, shortest=2.5)": "whole number",
    "chain(match, bright, shortest=True)": "whole number",
    "match # + bright": "no comments",
    "1e999 * match": "too large a number",
    "1" * 400 + " * match": "too large a number",
    "match / 0": "division by 0",
    "match / (1 - 1)": "division by 0",
    "clip(match, 1, 0)": "low 1 is above high 0",
    "clip(match, -1, -2)": "low -1 is above high -2",
    "running_zscore(match, floor=-1)": "floor -1 is not above 0",
    "dead_zone(match, low=0.9, high=0.5)": "low <= high",
    "linear(0, 1, 0) * match": "steps 0 is not above 0",
    "match + " * 300 + "match": "more than",
    "(" * 150 + "match" + ")" * 150 + "+" + "-" * 60 + "bright": "nested deeper",
    "-" * 1900 + "match": "combine",
    "(" * 900 + "match" + ")" * 900: "cannot be read",
    "m" * 3000: "more than 2000",
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: text[:40] or "empty")
def test_refusals_say_what_to_write(text) -> None:
    assert REFUSED[text] in refusal(text)


@law(text=st.text(max_size=30) | st.text(alphabet="match brigt()+-*/.,0123'_=[]:", max_size=30))
def test_any_text_is_a_formula_or_a_recipe_error(text) -> None:
    try:
        parse(text, NAMES, unweighted=NAMES)
    except RecipeError as error:
        assert str(error).startswith("combine: ")


def test_a_reward_that_is_not_used_is_refused_unless_watched() -> None:
    with pytest.raises(RecipeError, match=r"does not use the reward bright; .*rewards\.bright\.weight: 0"):
        parse("match", NAMES)
    assert parse("match", NAMES, unweighted=["bright"]).names == ("match",)


def test_a_reward_name_that_cannot_be_written_is_named() -> None:
    assert "'clip-score' cannot stand in a formula" in refusal("match + clip-score", ["match", "clip-score"])
    assert "'lambda' cannot stand in a formula" in refusal("lambda + 1", ["lambda"])


def test_yaml_line_breaks_and_a_reward_called_like_an_operator() -> None:
    assert parse("  0.5 * min\n   + min(match,\n bright)\n", ["min", *NAMES]).text == "0.5 * min + min(match, bright)"


# --- units -----------------------------------------------------------------------------------------------------------

UNITS = {
    "a": (0.0, 1.0),
    "b": (0.0, 1.0),
    "grade": (1.0, 5.0),
    "signed": (-1.0, 1.0),
    "open": None,
    "open2": None,
    "z": "zscore",
}


def check(text: str) -> None:
    parse(text, list(UNITS), unweighted=list(UNITS)).check_units(UNITS)


@pytest.mark.parametrize(
    "text",
    [
        "a", "open", "0.7 * a + 0.3 * b", "1 - a", "a / 2 - b", "-a + b", "mean(a, b)", "linear(0, 1, 9) * a + b",
        "z + running_zscore(open)", "running_zscore(open) + running_zscore(grade)", "rank(open) + rank(grade)",
        "win_rate(open) + a", "minmax(-open) + minmax(grade)", "clip(open, 0, 1) + a", "clip(a, 0, 5) + b",
        "sigmoid(open) * a + b", "product(a, grade)", "a * b + a", "a * open", "a * z + z", "geometric_mean(a, grade)",
        "rescale(grade, 1, 5) + a", "cme(rescale(grade, 1, 5), a) + b", "qma(a, b)", "par(open, open) + a",
        "constrained(a, open, limit=3, rate=0.1) + b", "overlength(a, open, limit=3, rate=0.1) + b", "pareto(open, z) * open2",
        "fallback(a, b)", "lower(z, z)", "log_taming(a, grade)", "chain(open, z, grade)", "open + 3", "min(open, 5)",
        "rank_sum(open, z) - rank(a)", "discounted(a, open) + b", "clip(z, -3, 3) + z", "tanh(open) + signed",
        "rule_first(a, open) + b", "wrong_and_long(a, open, longest=3) + b", "harmonic_mean(a, b)", "tiers(signed) + a",
        "centre(a) + b", "a / grade", "product(a, signed)",
    ],
)  # fmt: skip
def test_units_that_go_together(text) -> None:
    check(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a + grade", ["a is in 0..1", "grade is in 1..5", "`calibrate: {type: zscore}`", "`rank(a) + 0.2 * rank(b)`"]),
        ("0.1 * grade - a", ["0.1 * grade is in 1..5"]),
        ("a + open", ["open is of unknown range"]),
        ("open + open2", ["unknown range"]),
        ("open + open", ["unknown range"]),
        ("a + z", ["z is in zscore units"]),
        ("mean(a, grade)", ["mean(a, grade)"]),
        ("min(a, 2 * b, grade)", ["one unit"]),
        ("weighted_sum(a, z, weights='1, 1')", ["one unit"]),
        ("rank(a) + a", ["rank(a) is in ranks"]),
        ("open * open2", ["both be negative", "sigmoid(x)"]),
        ("product(z, signed)", ["two bad ones make a good one"]),
        ("geometric_mean(a, signed)", ["cannot be negative"]),
        ("geometric_mean(a, open)", ["cannot be negative"]),
        ("harmonic_mean(a, grade)", ["one unit"]),
        ("cme(grade, a)", ["needs parts in 0..1", "rescale(x, 1, 5)"]),
        ("cme(rescale(grade, 0, 5), a)", ["rescale(grade, 0, 5) is in 0.2..1"]),
        ("qma(a, open)", ["needs parts in 0..1"]),
        ("outcome_gate(grade, a)", ["needs parts in 0..1"]),
        ("lambda_harmonic(signed, a)", ["needs parts in 0..1"]),
        ("par(a, grade)", ["references of another unit", "from one reward"]),
        ("fallback(a, grade)", ["one unit"]),
        ("lower(a, grade)", ["one unit"]),
        ("log_taming(a, open)", ["cannot be negative"]),
        ("discounted(signed, a)", ["cannot be negative"]),
        ("tiers(open)", ["unknown range"]),
        ("clip(open, 0) + a", ["clip(open, 0) is of unknown range"]),
        ("a / grade + a", ["a / grade is of unknown range"]),
        ("product(a, grade) + a", ["product(a, grade) is in 0..5"]),
    ],
)
def test_units_that_do_not(text, words) -> None:
    with pytest.raises(RecipeError) as caught:
        check(text)
    assert str(caught.value).startswith('combine: "') and all(word in str(caught.value) for word in words)


# --- made otherwise --------------------------------------------------------------------------------------------------


def test_the_default_is_the_weighted_sum() -> None:
    formula = weighted_sum_formula({"match": 0.7, "bright": -2, "watched": 0, "clip-score": 1})
    assert formula.text == "0.7 * match - 2 * bright + clip-score" and formula.names == (
        "match",
        "bright",
        "clip-score",
    )
    result = formula.evaluate({"match": MATCH, "bright": BRIGHT, "clip-score": MATCH}, GROUP)
    assert same(result.total, 1.7 * MATCH - 2 * BRIGHT)
    assert weighted_sum_formula({"match": -1}).text == "-match"
    assert same(weighted_sum_formula({"match": -3}).evaluate({"match": MATCH}, GROUP).total, -3 * MATCH)
    assert parse("0.7 * match - 2 * bright", NAMES).root == weighted_sum_formula({"match": 0.7, "bright": -2.0}).root
    formula.check_units({"match": (0, 1), "bright": (0, 1), "clip-score": (0, 1)})
    with pytest.raises(RecipeError, match="zscore"):
        formula.check_units({"match": (0, 1), "bright": None, "clip-score": (0, 1)})
    with pytest.raises(RecipeError, match="all weights are 0"):
        weighted_sum_formula({"match": 0})


def test_formulas_written_in_python() -> None:
    match, bright = R("match"), R("bright")
    made = 1 - match * 0.7 + call("clip", bright, 0, high=1) / 2 - (0.1 + 2 * -match) * bright
    assert parse(made.text, NAMES).text == "1 - match * 0.7 + clip(bright, 0, high=1) / 2 - (0.1 + -match * 2) * bright"
    expected = 1 - MATCH * 0.7 + BRIGHT.clamp(0, 1) / 2 - (0.1 + 2 * -MATCH) * BRIGHT
    assert same(evaluate(made.text).total, expected)
    assert call("tiers", match, values="0, 1").text == "tiers(match, values='0, 1')"


def test_whole_group_missing() -> None:
    nothing = torch.full((4,), math.nan, dtype=torch.float64)
    for text in CALLS:
        formula = parse(text, NAMES, unweighted=NAMES)
        given = {name: nothing for name in NAMES}
        assert formula.evaluate(given, GROUP, prompts=["p"] * len(GROUP), learn=True).total.isnan().all(), text
