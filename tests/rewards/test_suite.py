"""Rewards of a recipe: found, brought to one scale, combined; what stops a run; what they remember."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import sys
import types

import numpy as np
import pytest
import torch

from plaudit.data.prompt import Prompt
from plaudit.errors import RecipeError, RewardError
from plaudit.recipe.load import dump, load
from plaudit.recipe.rewards import EVALUATION, Missing, RewardConfig
from plaudit.recipe.schema import Recipe
from plaudit.recipe.text import parse as parse_yaml
from plaudit.rewards.base import Card, Score, Status
from plaudit.rewards.calling.call import Caller
from plaudit.rewards.calling.request import make_request
from plaudit.rewards.catalogue import entries, entry
from plaudit.rewards.compose.formula import parse, weighted_sum_formula
from plaudit.rewards.load import Reward, find_reward, load_reward
from plaudit.rewards.rules.code import UnitTests
from plaudit.rewards.suite import ScoredBatch, Suite, enforce_missing, load_suite, recipe_suite
from plaudit.rewards.table import BUILT_IN

PROMPTS = [Prompt(id=f"p{i}", text=f"text {i}") for i in range(3)]
PICTURES = torch.arange(3 * 3 * 2 * 2, dtype=torch.float32).reshape(3, 3, 2, 2) / 36


class Callable:
    def __init__(self, offset: float = 0.0) -> None:
        self.offset = offset

    def __call__(self, prompts, outputs) -> list[float]:
        return [self.offset + i for i in range(len(prompts))]


def with_extra(prompts, outputs, factor: float = 1.0) -> list[float]:
    return [factor * i for i in range(len(prompts))]


# --- resolving -------------------------------------------------------------------------------------------------------


@pytest.fixture
def my_rewards(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A user's module `my_rewards`."""
    module = types.ModuleType("my_rewards")
    module.Callable, module.with_extra, module.number = Callable, with_extra, 3.0  # type: ignore[attr-defined]

    class Carded(Callable):
        card = Card(summary="", low=0, high=2)

    class Nested:
        inner = staticmethod(with_extra)

    class raises:
        def __init__(self) -> None:
            raise ValueError("no weights")

    def makes(factor: float = 1.0):
        return lambda prompts, outputs: with_extra(prompts, outputs, factor)

    module.Carded, module.Nested = Carded, Nested  # type: ignore[attr-defined]
    module.raises, module.leaves, module.makes, module.makes_a_number = raises, lambda: sys.exit(1), makes, lambda: 1.0  # type: ignore[attr-defined]
    module.single, module.noargs = lambda prompt, output: 1.0, lambda: 1  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_rewards", module)
    return module


def resolve(path: str, **arguments) -> Reward:
    return load_reward("mine", RewardConfig(type=path, arguments=arguments))


def test_dotted_paths_resolve_to_functions_and_classes(my_rewards) -> None:
    assert resolve("my_rewards:with_extra")(PROMPTS, PICTURES)[2].value == 2
    assert resolve("my_rewards:with_extra", factor=5)(PROMPTS, PICTURES)[2].value == 10
    assert resolve("my_rewards:Callable")(PROMPTS, PICTURES)[0].value == 0
    assert resolve("my_rewards:Callable", offset=7)(PROMPTS, PICTURES)[0].value == 7
    assert resolve("my_rewards:makes", factor=3)(PROMPTS, PICTURES)[2].value == 6, "what makes a reward is called"
    assert resolve("my_rewards:makes")(PROMPTS, PICTURES)[2].value == 2
    assert resolve("my_rewards:Nested.inner")(PROMPTS, PICTURES)[1].value == 1
    assert resolve("my_rewards:Carded").card == Card(summary="", low=0, high=2)
    assert load_reward("mine", RewardConfig(type="my_rewards:with_extra", weight=-2)).weight == -2


def test_the_reward_of_evaluations_is_called_by_its_key(my_rewards) -> None:
    with pytest.raises(RecipeError, match=r"^evaluate.reward.arguments: .*ofset"):
        load_reward(EVALUATION, RewardConfig(type="my_rewards:Callable", arguments={"ofset": 1}))
    with pytest.raises(RewardError, match=r"^evaluate.reward needs the column 'answer'"):
        load_reward(EVALUATION, RewardConfig(type="boxed_answer"))(PROMPTS, ["1"] * len(PROMPTS))


@pytest.mark.parametrize(
    ("path", "arguments", "message"),
    [
        ("scene_exactly", {}, r"rewards.mine.type: 'scene_exactly' is not a dotted path .*did you mean scene_exact\?"),
        ("xyzzy", {}, r"rewards.mine.type: 'xyzzy' is not a dotted path .*`plaudit rewards list`"),
        ("my_rewards:absent", {}, r"rewards.mine.type: cannot import 'my_rewards:absent'.*check the path"),
        ("no_such_package:thing", {}, r"rewards.mine.type: cannot import 'no_such_package:thing'"),
        (
            "my_rewards:number",
            {},
            r"rewards.mine.type: 'my_rewards:number' is an object of type float, which cannot be called",
        ),
        ("my_rewards:Callable", {"ofset": 1}, r"rewards.mine.arguments: .*ofset"),
        ("my_rewards:raises", {}, r"^rewards.mine: making 'my_rewards:raises' raised ValueError: no weights$"),
        (
            "my_rewards:makes_a_number",
            {},
            r"rewards.mine.type: 'my_rewards:makes_a_number' gives an object of type float",
        ),
        (
            "my_rewards:single",
            {},
            r"mine.type: 'my_rewards:single' has the arguments prompt, output; a reward takes `prompts`",
        ),
        (
            "my_rewards:noargs",
            {},
            r"mine.type: .* gives an object of type int.*; it has no arguments; a reward takes `prom",
        ),
        ("my_rewards:leaves", {}, r"^rewards.mine: making 'my_rewards:leaves' raised SystemExit: 1$"),
        ("math:hypot", {}, r"rewards.mine.type: .*a reward has named arguments"),
        ("my_rewards_that_leave:thing", {}, r"^rewards.mine.type: reading my_rewards_that_leave raised SystemExit: 3"),
    ],
)
def test_what_does_not_resolve_is_explained(
    my_rewards, path: str, arguments: dict, message: str, tmp_path, monkeypatch
) -> None:
    (tmp_path / "my_rewards_that_leave.py").write_text("import sys\nsys.exit(3)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RecipeError, match=message):
        resolve(path, **arguments)


def test_verdicts_are_told_by_these_and_no_other() -> None:
    answers = {"boxed_answer", "choice_answer", "exact_answer", "math_equal", "number_answer", "states_answer"}
    formats = {"boxed_format", "plot_runs", "regex_format", "svg_renders", "tags_strict", "tex_renders"}
    found = {entry.name for entry in entries() if entry.card.verdict}
    assert found == answers | formats | {
        "scene_exact",
        "edit_exact",
        "edit_execution",
        "sum_answer",
        "sum_correct",
        "sum_format",
    }
    assert [UnitTests(all_or_nothing=whole).card.verdict for whole in (False, True)] == [False, True]


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_rewards_resolve_and_have_a_card(name: str) -> None:
    card = entry(name).card
    assert card.low < card.high and card.summary and "\n" not in card.summary


def test_functions_and_classes_are_named_where_they_can_be_imported_again() -> None:
    """Plain and in a mapping; what cannot be imported goes along as an object, and its name says so."""
    own = lambda prompts, outputs: [2.0] * len(outputs)  # noqa: E731
    handed = {"f": with_extra, "g": {"type": with_extra, "arguments": {"factor": 2}}, "c": Callable}
    handed |= {
        "own": own,
        "object": Callable(5),
        "part": functools.partial(with_extra, factor=3),
        "m": Callable(7).__call__,
    }
    recipe = load({"rewards": {"match": None, **handed}, "combine": "rank_sum(f, g, c, own, object, part, m)"})
    types = {name: config.type for name, config in recipe.rewards.items()}
    here = f"handed over from Python ({{}} of {__name__})"
    assert types == {
        "f": f"{__name__}:with_extra",
        "g": f"{__name__}:with_extra",
        "c": f"{__name__}:Callable",
        "own": here.format(
            f"{test_functions_and_classes_are_named_where_they_can_be_imported_again.__name__}.<locals>.<lambda>"
        ),
        "object": here.format("Callable"),
        "part": "handed over from Python (partial of functools)",
        "m": here.format("Callable.__call__"),
    }
    again = Recipe.model_validate(recipe.model_dump())
    for each in (recipe, again):
        suite = load_suite(each.rewards, each.combine)
        found = {name: values.tolist()[1] for name, values in suite(PROMPTS, PICTURES).parts.items()}
        assert found == {"f": 1, "g": 2, "c": 1, "own": 2, "object": 6, "part": 3, "m": 8}
    with pytest.raises(RecipeError, match=r"^rewards.f.cache: handed over from Python"):
        load_suite({"f": RewardConfig(type=own, cache=True)})
    with pytest.raises(
        RecipeError, match=r"^rewards.\w+.type: the reward was handed over from Python \(.*hand it over again"
    ):
        load_suite(load(parse_yaml(dump(recipe), "recipe.yaml")).rewards)


def test_mixing_scales_is_refused(my_rewards) -> None:
    """Pitfall 34: scale dominates a weighted sum."""
    exact, graded = RewardConfig(type="scene_exact"), RewardConfig(type="scene_graded")
    wide, plain = RewardConfig(type="my_rewards:Carded"), RewardConfig(type="my_rewards:with_extra")
    assert load_suite({"a": exact, "b": graded}).formula.text == "a + b"
    with pytest.raises(RecipeError, match=r"a is in 0..1, b is in 0..2\); give each its `calibrate: {type: zscore}`"):
        load_suite({"a": exact, "b": wide})
    with pytest.raises(RecipeError, match="b is of unknown range"):
        load_suite({"a": exact, "b": plain})
    assert load_suite({"b": plain}).rewards[0].card is None
    assert load_suite({"a": exact, "b": wide}, "a * b").formula.text == "a * b", "a product needs no common scale"
    both = {"a": exact, "b": wide}
    each = Recipe.model_validate(
        {"rewards": {n: c.model_dump() for n, c in both.items()}, "shaping": {"normalise": "each"}}
    )
    assert recipe_suite(each).formula.text == "a + b", "what is normalised by itself needs no common scale"
    scaled = {"calibrate": {"type": "minmax"}}
    assert load_suite({n: RewardConfig(type=c.type, **scaled) for n, c in (("a", exact), ("b", plain))}).uncalibrated


def test_weights_and_a_formula_exclude_each_other(my_rewards) -> None:
    exact, heavy = RewardConfig(type="scene_exact"), RewardConfig(type="scene_graded", weight=0.5)
    with pytest.raises(RecipeError, match=r"rewards.b.weight: with `combine` the weights stand in the formula"):
        load_suite({"a": exact, "b": heavy}, "a + b")
    watched = RewardConfig(type="scene_graded", weight=0.0)
    with pytest.raises(RecipeError, match=r"rewards.b.weight: 0 means to watch it"):
        load_suite({"a": exact, "b": watched}, "a + b")
    assert load_suite({"a": exact, "b": watched}, "a").formula.names == ("a",)
    with pytest.raises(RecipeError, match="does not use the reward b"):
        load_suite({"a": exact, "b": RewardConfig(type="scene_graded")}, "a")


# --- batches and missing scores --------------------------------------------------------------------------------------


def fixed(name: str, numbers: list[float | None], weight: float = 1.0, card: Card | None = None) -> Reward:
    def function(prompts, outputs):
        return numbers

    function.card = card
    return Reward(name=name, caller=Caller(name, function), weight=weight)


def suite(*rewards: Reward, combine: str | None = None) -> Suite:
    formula = (
        parse(combine, [r.name for r in rewards])
        if combine
        else weighted_sum_formula({r.name: r.weight for r in rewards})
    )
    return Suite(rewards=rewards, formula=formula)


def test_the_total_is_the_weighted_sum_and_missing_where_any_part_is() -> None:
    """Pitfall 22: a partially missing reward is not 0 in the sum."""
    batch = suite(fixed("a", [1.0, 2.0, None], 2.0), fixed("b", [10.0, math.nan, 5.0], -1.0))(PROMPTS, PICTURES)
    assert batch.total[0].item() == pytest.approx(2 - 10)
    assert torch.isnan(batch.total[1:]).all()
    assert batch.total.dtype == torch.float64 and batch.calls == 6
    assert batch.parts["a"].tolist()[:2] == [1, 2] and set(batch.scores) == {"a", "b"}
    assert sum(values[0].item() for values in batch.terms.values()) == pytest.approx(batch.total[0].item())


def test_a_reward_of_weight_0_is_watched_and_harms_nothing() -> None:
    batch = suite(fixed("a", [1.0, 2.0, 3.0]), fixed("b", [None, 5.0, None], 0.0))(PROMPTS, PICTURES)
    assert batch.total.tolist() == [1, 2, 3] and batch.parts["b"][1] == 5


def test_group_operators_see_the_groups_of_the_batch() -> None:
    batch = suite(fixed("a", [3.0, 1.0, 2.0]), combine="rank(a)")(PROMPTS[:1] * 2 + PROMPTS[1:2], PICTURES)
    assert batch.total[0] > batch.total[1] and batch.total[2].isnan() is not None


class Memory:
    """Each score is how often its prompt has been seen."""

    card = Card(summary="", low=0, high=9, kind="text", batch_invariant=False)

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}

    def __call__(self, prompts, outputs, ids):
        for i in ids:
            self.seen[i] = self.seen.get(i, 0) + 1
        return [float(self.seen[i]) for i in ids]

    def state(self):
        return dict(self.seen)

    def load_state(self, state):
        self.seen = dict(state)


def test_measuring_is_not_learning_and_memory_survives_json() -> None:
    """Pitfall 45: reward state and running statistics come back with a checkpoint."""

    def fresh() -> Suite:
        memory = Memory()
        return suite(Reward(name="m", caller=Caller("m", memory)), combine="running_zscore(m)")

    def learn(it: Suite) -> list[float]:
        return it.score(make_request(PROMPTS, ["x"] * 3), learn=True).total.tolist()

    one = fresh()
    learn(one)
    state = json.loads(json.dumps(one.state()))
    assert one(PROMPTS, ["x"] * 3).parts["m"].tolist() == [2, 2, 2], "what it would say now"
    assert one.state() == state, "and nothing has changed by asking"
    two = fresh()
    two.load_state(state)
    assert learn(one) == learn(two) and one.state() == two.state() != state


class Asking:
    """Right where the reward that it asks says so."""

    card = Card(summary="", low=0, high=9, kind="text", batch_invariant=False)

    def __init__(self, inner: Caller) -> None:
        self.inner_rewards = (inner,)

    def __call__(self, prompts, outputs, request):
        return self.inner_rewards[0](request)


def test_a_reward_that_another_one_asks_is_bound_and_remembered() -> None:
    class Bound(Memory):
        given = None

        def bind(self, policy, sampler):
            self.given = (policy, sampler)

    def fresh() -> tuple[Suite, Bound]:
        memory = Bound()
        return suite(Reward(name="m", caller=Caller("m", Asking(Caller("m.inner", memory))))), memory

    one, memory = fresh()
    one.rewards[0].caller.bind("the policy", "the sampler")
    assert memory.given == ("the policy", "the sampler")
    assert one(PROMPTS, ["x"] * 3).total.tolist() == [1, 1, 1] and memory.seen == {}, "measuring is not learning"
    one.score(make_request(PROMPTS, ["x"] * 3), learn=True)
    two, other = fresh()
    two.load_state(json.loads(json.dumps(one.state())))
    assert other.seen == memory.seen == dict.fromkeys((prompt.id for prompt in PROMPTS), 1)


def test_rewards_around_others_name_them() -> None:
    around = find_reward("r", "correct_within", {"correct": {"type": f"{__name__}:Memory"}})
    assert [type(function) for _, function in Caller("r", around).functions()] == [type(around), Memory]


def test_scales_are_measured_once_and_asked_for_before_use() -> None:
    config = RewardConfig(type="x", calibrate={"type": "zscore"})
    reward = fixed("a", [float(i) for i in range(9)])
    it = suite(dataclasses.replace(reward, config=config))
    nine = [Prompt(id=str(i), text="") for i in range(9)]
    with pytest.raises(RewardError, match=r"rewards.a is to be calibrated and has not been"):
        it(nine, ["x"] * 9)
    it.calibrate(nine, ["x"] * 9)
    assert it(nine, ["x"] * 9).total.mean().item() == pytest.approx(0) and not it.uncalibrated
    again = suite(dataclasses.replace(reward, config=config))
    again.load_calibration(json.loads(json.dumps(it.calibration())))
    assert torch.equal(again(nine, ["x"] * 9).total, it(nine, ["x"] * 9).total)


def test_rewards_that_wait_are_called_while_the_batch_is_still_being_drawn() -> None:
    events: list = []

    async def far(prompts, outputs):
        events.append(("far", list(outputs)))
        return [float(o) for o in outputs]

    def near(prompts, outputs):
        events.append(("near", list(outputs)))
        return [1.0] * len(outputs)

    it = suite(*(Reward(name=f.__name__, caller=Caller(f.__name__, f)) for f in (far, near)))
    whole = make_request([*PROMPTS, *PROMPTS], list("012345"), [0, 0, 0, 1, 1, 1])
    with it.pending() as pending:
        for at in (0, 3):
            pending.add(whole.rows(range(at, at + 3)))
        found = pending.finish(whole, learn=True)
    assert [e for e in events if e[0] == "near"] == [("near", list("012345"))]
    assert sorted(e for e in events if e[0] == "far") == [("far", list("012")), ("far", list("345"))]
    assert torch.equal(found.total, it(whole.prompts, whole.outputs, group=torch.tensor(whole.group)).total)


def test_an_error_in_a_piece_reaches_the_run() -> None:
    async def far(prompts, outputs):
        raise RewardError("the judge says no")

    it = suite(Reward(name="far", caller=Caller("far", far)))
    whole = make_request(PROMPTS, list("012"))
    with pytest.raises(RewardError, match="the judge says no"), it.pending() as pending:
        pending.add(whole)
        pending.finish(whole, learn=True)


def missing(absent: int, of: int) -> ScoredBatch:
    prompts = [Prompt(id=str(i), text="x") for i in range(of)]
    return suite(fixed("judge", [None] * absent + [1.0] * (of - absent)))(prompts, torch.zeros(of, 3, 1, 1))


@pytest.mark.parametrize(
    ("absent", "of", "limit", "stops"),
    [
        (0, 20, 0.05, False),
        (1, 20, 0.05, False),
        (2, 20, 0.05, True),
        (20, 20, 0.99, True),
        (20, 20, 1.0, False),
        (1, 20, 0.0, True),
    ],
)
def test_too_many_missing_scores_stop_the_run(absent: int, of: int, limit: float, stops: bool) -> None:
    batch, config = missing(absent, of), Missing(max_missing_fraction=limit)
    if not stops:
        assert enforce_missing(batch, config) is batch
        return
    with pytest.raises(
        RewardError, match=rf"rewards.judge: {absent} of {of} scores are missing.*first: not_applicable"
    ):
        enforce_missing(batch, config)


def test_totals_that_are_missing_count_too(my_rewards) -> None:
    ones, zeros = fixed("a", [1.0, 1.0, 1.0]), fixed("b", [0.0, 0.0, 1.0])
    batch = suite(ones, zeros, combine="a / b")(PROMPTS, PICTURES)
    with pytest.raises(RewardError, match=r"combine: 2 of 3 totals are missing, .*\(first: output 0\)"):
        enforce_missing(batch, Missing())


def test_what_does_not_apply_is_no_failure_where_the_formula_does_without_it() -> None:
    rule, model = fixed("rule", [None, 1.0, None]), fixed("model", [0.5, 0.5, 0.5])
    batch = suite(rule, model, combine="fallback(rule, model)")(PROMPTS, PICTURES)
    assert enforce_missing(batch, Missing(on_missing="fail")).total.tolist() == [0.5, 1, 0.5]
    down = Score(value=math.nan, status=Status.ERRORED, note="down")
    batch = suite(fixed("rule", [down, 1.0, 1.0]), model, combine="fallback(rule, model)")(PROMPTS, PICTURES)
    with pytest.raises(RewardError, match=r"rewards.rule: 1 of 3 .*first: errored: down"):
        enforce_missing(batch, Missing())


def test_more_of_what_is_better_when_less_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"rewards.g.weight: 1 asks for more .* give it weight: -1"):
        load_suite({"g": RewardConfig(type="grid_energy")})
    assert load_suite({"g": RewardConfig(type="grid_energy", weight=-1)}).formula.text == "-g"


def test_measuring_leaves_no_metrics_behind() -> None:
    def reports(prompts, outputs, log_metric):
        log_metric("size", len(outputs))
        return [1.0] * len(outputs)

    it = suite(Reward(name="r", caller=Caller("r", reports)))
    it.score(make_request(PROMPTS, list("012")), learn=True)
    it(PROMPTS * 5, list("0" * 15))
    assert it.rewards[0].caller.meter.take_metrics() == {"size": 3}


def test_on_missing_fail_stops_at_the_first() -> None:
    with pytest.raises(RewardError, match="1 of 100"):
        enforce_missing(missing(1, 100), Missing(on_missing="fail"))
    enforce_missing(missing(0, 100), Missing(on_missing="fail"))


def test_imputed_totals_are_the_number_that_the_recipe_gives() -> None:
    filled = enforce_missing(missing(1, 20), Missing(on_missing="impute", impute=-3.0))
    assert filled.total[0] == -3 and filled.total[1] == 1 and filled.parts["judge"][0].isnan()
    for wrong in ({"on_missing": "impute"}, {"impute": 0.0}):
        with pytest.raises(ValueError, match=r"missing.impute"):
            Missing(**wrong)


def test_the_first_reason_is_shown() -> None:
    said = Score(value=math.nan, status=Status.PARSE_FAILED, note="said 'maybe'")
    with pytest.raises(RewardError, match="first: parse_failed: said 'maybe'"):
        enforce_missing(suite(fixed("judge", [1.0, said, 1.0]))(PROMPTS, PICTURES), Missing())


@pytest.mark.parametrize("name", ("scene_exact", "scene_graded", "scene_match", "brightness"))
def test_built_in_rules_follow_their_prompts_and_ignore_their_company(name: str) -> None:
    """Pitfall 20: permuting pairs permutes scores; one by one gives the same."""
    from plaudit.lab.scenes.grammar import evaluation_prompts
    from plaudit.lab.scenes.render import rasterise, sample_scenes

    prompts = evaluation_prompts("train", 12)
    pictures = rasterise(sample_scenes(prompts, np.random.default_rng(0)))
    pictures[3:5] = pictures[5:7].clone()  # wrong pictures among the right ones
    reward = resolve(name)
    whole = [s.value for s in reward(prompts, pictures)]
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1)).tolist()
    moved = [s.value for s in reward([prompts[i] for i in order], pictures[order])]
    assert moved == [whole[i] for i in order]
    assert [reward(prompts[i : i + 1], pictures[i : i + 1])[0].value for i in range(12)] == whole
    assert len(set(whole)) > 1
    if name == "brightness":
        assert whole == pytest.approx([p.mean().item() for p in pictures], rel=1e-6)
    else:
        assert sum(whole) > 9 and whole[3] < 1


def test_a_constant_reward_gives_no_advantage() -> None:
    from plaudit.shaping.credit import group_advantage

    batch = suite(fixed("constant", [0.3] * 3))(PROMPTS, PICTURES)
    found = group_advantage(batch.total, torch.zeros(3, dtype=torch.long))
    assert torch.equal(found.value, torch.zeros(3, dtype=torch.float64)) and found.constant_groups == 1
