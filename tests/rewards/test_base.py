"""What a reward may be and return, what stops a run, and that a reward influences nothing but its scores."""

from __future__ import annotations

import asyncio
import functools
import math
import random
import sys
import types

import numpy as np
import pytest
import torch
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.errors import RecipeError, RewardError
from plaudit.recipe.schema import Missing, RewardConfig
from plaudit.rewards.base import (
    BUILT_IN,
    Card,
    Reward,
    Score,
    ScoredBatch,
    Status,
    call_reward,
    enforce_missing,
    load_reward,
    load_rewards,
    score_batch,
)

PROMPTS = [Prompt(id=f"p{i}", text=f"text {i}", facts={"objects": [i]}, inputs={"image": i}) for i in range(3)]
PICTURES = torch.arange(3 * 3 * 2 * 2, dtype=torch.float32).reshape(3, 3, 2, 2) / 36


def scores(function, prompts=PROMPTS, outputs=PICTURES) -> list[Score]:
    return call_reward("mine", function, prompts, outputs)


def values(function, **rest) -> list[float]:
    return [score.value for score in scores(function, **rest)]


# --- signatures ------------------------------------------------------------------------------------------------------


def test_texts_and_pictures_arrive_in_order() -> None:
    seen = {}

    def reward(prompts, outputs, ids, facts, inputs):
        seen.update(prompts=prompts, outputs=outputs, ids=ids, facts=facts, inputs=inputs)
        return [1.0, 2.0, 3.0]

    assert values(reward) == [1, 2, 3]
    assert seen["prompts"] == ["text 0", "text 1", "text 2"] and seen["ids"] == ["p0", "p1", "p2"]
    assert seen["facts"] == [{"objects": [i]} for i in range(3)] and seen["inputs"] == [{"image": i} for i in range(3)]
    assert torch.equal(seen["outputs"], PICTURES)


@pytest.mark.parametrize("name", ("outputs", "completions", "images"))
def test_a_trl_reward_works_unchanged(name: str) -> None:
    """`def reward(prompts, completions, **kwargs)`; the extra columns arrive in kwargs."""
    space: dict = {}
    exec(
        f"def reward(prompts, {name}, **kwargs):\n"
        f"    return [len(p) + float({name}[i].sum()) * 0 + len(kwargs['facts'][i]['objects']) for i, p in enumerate(prompts)]",
        space,
    )
    assert values(space["reward"]) == [7, 7, 7]


def test_columns_are_given_only_to_those_who_ask() -> None:
    assert values(lambda prompts, outputs: [0.5] * len(prompts)) == [0.5] * 3
    assert values(lambda prompts, outputs, ids: [float(i[1:]) for i in ids]) == [0, 1, 2]
    assert values(lambda prompts, **everything: [float(len(everything))] * 3) == [4] * 3


class Callable:
    def __init__(self, offset: float = 0.0) -> None:
        self.offset = offset

    def __call__(self, prompts, outputs) -> list[float]:
        return [self.offset + i for i in range(len(prompts))]


def with_extra(prompts, outputs, factor: float = 1.0) -> list[float]:
    return [factor * i for i in range(len(prompts))]


def test_callable_objects_methods_and_partials_are_rewards() -> None:
    """Pitfall 28."""
    assert values(Callable(10)) == [10, 11, 12]
    assert values(Callable(10).__call__) == [10, 11, 12]
    assert values(functools.partial(with_extra, factor=2.0)) == [0, 2, 4]


def test_async_rewards_are_awaited_also_inside_a_running_loop() -> None:
    async def reward(prompts, outputs) -> list[float]:
        await asyncio.sleep(0)
        return [float(len(p)) for p in prompts]

    async def notebook() -> list[float]:
        return values(reward)

    assert values(reward) == [6, 6, 6]
    assert asyncio.run(notebook()) == [6, 6, 6]


# --- what comes back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "returned",
    [
        [1, 2.5, True],
        (1, 2.5, 1),
        torch.tensor([1, 2.5, 1]),
        torch.tensor([1, 2.5, 1], requires_grad=True),
        np.array([1, 2.5, 1]),
        [torch.tensor(1.0), np.float32(2.5), Score(value=1.0)],
    ],
    ids=["list", "tuple", "tensor", "tensor with gradient", "array", "mixed"],
)
def test_numbers_of_any_kind_become_scores(returned) -> None:
    found = scores(lambda prompts, outputs: returned)
    assert [s.value for s in found] == [1, 2.5, 1] and all(s.status is Status.OK for s in found)


def test_none_and_nan_and_infinity_are_missing_not_numbers() -> None:
    found = scores(lambda prompts, outputs: [None, math.nan, math.inf])
    assert all(math.isnan(s.value) for s in found)
    assert [s.status for s in found] == [Status.NOT_APPLICABLE, Status.ERRORED, Status.ERRORED]
    assert "inf" in found[2].note


def test_a_score_passes_through_with_all_it_carries() -> None:
    given = [
        Score(value=0.5, components={"a": 1.0}, sigma=0.1, note="fine"),
        Score(value=math.nan, status=Status.TIMED_OUT, note="30 s"),
        Score(value=math.nan, status=Status.REFUSED),
    ]
    assert all(a is b for a, b in zip(scores(lambda prompts, outputs: given), given, strict=True))


@pytest.mark.parametrize("status", [s for s in Status if s is not Status.OK])
def test_a_failed_score_cannot_carry_a_number(status: Status) -> None:
    """Pitfall 21: errors never become numbers."""
    with pytest.raises(RewardError, match="only ok scores have a value"):
        Score(value=0.0, status=status)
    assert math.isnan(Score(value=math.nan, status=status).value)


@pytest.mark.parametrize("value", (math.nan, math.inf))
def test_an_ok_score_must_be_finite(value: float) -> None:
    with pytest.raises(RewardError, match="only ok scores"):
        Score(value=value)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], "returned 1 scores for 3 outputs; return one per output, None where there is none"),
        ([1.0] * 4, "returned 4 scores for 3"),
        (torch.zeros(2), "returned 2 scores for 3"),
        ([], "returned 0 scores"),
        (0.5, "returned 0.5; return a list"),
        (None, "returned None; return a list"),
        (torch.tensor(0.5), r"returned tensor.* return a list"),
        ([1.0, "good", 2.0], "returned 'good'; a score is a number, None or a plaudit.Score"),
        (torch.zeros(3, 1), r"returned \[0.0\]; a score is a number"),
        ([[1.0], [2.0], [3.0]], r"returned \[1.0\]; a score is a number"),
    ],
)
def test_anything_else_is_an_error_that_names_the_reward(returned, message: str) -> None:
    with pytest.raises(RewardError, match=f"^rewards.mine {message}"):
        scores(lambda prompts, outputs: returned)


def test_an_exception_stops_the_run_and_says_whose_it_was() -> None:
    def broken(prompts, outputs):
        raise ZeroDivisionError("no quotes in this prompt")

    async def broken_later(prompts, outputs):
        raise TimeoutError("30 s")

    with pytest.raises(RewardError, match=r"rewards.mine raised ZeroDivisionError: no quotes in this prompt") as caught:
        scores(broken)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(RewardError, match=r"rewards.mine raised TimeoutError: 30 s"):
        scores(broken_later)


def test_a_reward_error_keeps_its_own_message() -> None:
    def reward(prompts, outputs):
        raise RewardError("the judge answered 12 on a scale of 0 to 10")

    with pytest.raises(RewardError, match=r"^the judge answered 12"):
        scores(reward)


# --- no influence but the scores -------------------------------------------------------------------------------------


def test_a_reward_that_draws_random_numbers_does_not_move_the_generator() -> None:
    """Pitfall 17, also when it raises."""
    torch.manual_seed(0)
    state = torch.get_rng_state()

    def draws(prompts, outputs):
        torch.manual_seed(77)
        return torch.rand(3)

    def draws_and_fails(prompts, outputs):
        torch.rand(3)
        raise ValueError

    scores(draws)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(RewardError):
        scores(draws_and_fails)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_reward_that_writes_into_what_it_gets_changes_nothing() -> None:
    def vandal(prompts, outputs, ids, facts, inputs):
        outputs.zero_()
        prompts.clear(), ids.reverse()
        for fact, given in zip(facts, inputs, strict=True):
            fact["objects"].append("more")
            given["image"] = None
        return [1.0] * 3

    before = PICTURES.clone()
    scores(vandal)
    assert torch.equal(PICTURES, before)
    assert [p.text for p in PROMPTS] == ["text 0", "text 1", "text 2"]
    assert [p.facts["objects"] for p in PROMPTS] == [[0], [1], [2]] and PROMPTS[1].inputs["image"] == 1
    assert values(lambda prompts, outputs, facts: [len(f["objects"]) for f in facts]) == [1, 1, 1]


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

    module.Carded, module.Nested = Carded, Nested  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_rewards", module)
    return module


def resolve(path: str, **arguments) -> Reward:
    return load_reward("mine", RewardConfig(type=path, arguments=arguments))


def test_dotted_paths_resolve_to_functions_and_classes(my_rewards) -> None:
    assert resolve("my_rewards:with_extra")(PROMPTS, PICTURES)[2].value == 2
    assert resolve("my_rewards:with_extra", factor=5)(PROMPTS, PICTURES)[2].value == 10
    assert resolve("my_rewards:Callable")(PROMPTS, PICTURES)[0].value == 0
    assert resolve("my_rewards:Callable", offset=7)(PROMPTS, PICTURES)[0].value == 7
    assert resolve("my_rewards:Nested.inner")(PROMPTS, PICTURES)[1].value == 1
    assert resolve("my_rewards:Carded").card == Card(summary="", low=0, high=2)
    assert load_reward("mine", RewardConfig(type="my_rewards:with_extra", weight=-2)).weight == -2


@pytest.mark.parametrize(
    ("path", "arguments", "message"),
    [
        ("scene_exactly", {}, r"rewards.mine.type: 'scene_exactly' is not a dotted path .*built in: .*scene_exact"),
        ("my_rewards:absent", {}, r"rewards.mine.type: cannot import 'my_rewards:absent'.*check the path"),
        ("no_such_package:thing", {}, r"rewards.mine.type: cannot import 'no_such_package:thing'"),
        ("my_rewards:number", {}, r"rewards.mine.type: 'my_rewards:number' is a float, which cannot be called"),
        ("my_rewards:Callable", {"ofset": 1}, r"rewards.mine.arguments: .*ofset"),
    ],
)
def test_what_does_not_resolve_is_explained(my_rewards, path: str, arguments: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        resolve(path, **arguments)


@pytest.mark.parametrize("name", [n for n, path in BUILT_IN.items() if "rules" in path])
def test_built_in_rules_resolve_and_have_a_card(name: str) -> None:
    reward = resolve(name)
    assert reward.card is not None and reward.card.low < reward.card.high and reward.card.summary


def test_mixing_scales_is_refused(my_rewards) -> None:
    """Pitfall 34: scale dominates a weighted sum."""
    exact, graded = RewardConfig(type="scene_exact"), RewardConfig(type="scene_graded")
    assert len(load_rewards({"a": exact, "b": graded})) == 2
    with pytest.raises(RecipeError, match=r"one common range, found a \(0, 1\), b \(0, 2\)"):
        load_rewards({"a": exact, "b": RewardConfig(type="my_rewards:Carded")})
    with pytest.raises(RecipeError, match="b has no card"):
        load_rewards({"a": exact, "b": RewardConfig(type="my_rewards:with_extra")})
    assert load_rewards({"b": RewardConfig(type="my_rewards:with_extra")})[0].card is None


# --- batches and missing scores --------------------------------------------------------------------------------------


def fixed(name: str, numbers: list[float | None], weight: float = 1.0) -> Reward:
    return Reward(name=name, function=lambda prompts, outputs: numbers, weight=weight)


def test_the_total_is_the_weighted_sum_and_missing_where_any_part_is() -> None:
    """Pitfall 22: a partially missing reward is not 0 in the sum."""
    batch = score_batch([fixed("a", [1.0, 2.0, None], 2.0), fixed("b", [10.0, math.nan, 5.0], -1.0)], PROMPTS, PICTURES)
    assert batch.total[0].item() == pytest.approx(2 - 10)
    assert torch.isnan(batch.total[1:]).all()
    assert batch.total.dtype == torch.float64 and batch.calls == 6
    assert batch.parts["a"].tolist()[:2] == [1, 2] and set(batch.scores) == {"a", "b"}


def missing(absent: int, of: int) -> ScoredBatch:
    prompts = [Prompt(id=str(i), text="x") for i in range(of)]
    return score_batch([fixed("judge", [None] * absent + [1.0] * (of - absent))], prompts, torch.zeros(of, 3, 1, 1))


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
        return enforce_missing(batch, config)
    with pytest.raises(
        RewardError, match=rf"rewards.judge: {absent} of {of} scores are missing.*first: not_applicable"
    ):
        enforce_missing(batch, config)


def test_on_missing_fail_stops_at_the_first() -> None:
    with pytest.raises(RewardError, match="1 of 100"):
        enforce_missing(missing(1, 100), Missing(on_missing="fail"))
    enforce_missing(missing(0, 100), Missing(on_missing="fail"))


def test_the_first_reason_is_shown() -> None:
    reward = Reward(
        name="judge",
        function=lambda prompts, outputs: [
            1.0,
            Score(value=math.nan, status=Status.PARSE_FAILED, note="said 'maybe'"),
            1.0,
        ],
    )
    with pytest.raises(RewardError, match="first: parse_failed: said 'maybe'"):
        enforce_missing(score_batch([reward], PROMPTS, PICTURES), Missing())


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
    from plaudit.shaping.advantages import group_advantage

    batch = score_batch([fixed("constant", [0.3] * 3)], PROMPTS, PICTURES)
    found = group_advantage(batch.total, torch.zeros(3, dtype=torch.long))
    assert torch.equal(found.value, torch.zeros(3, dtype=torch.float64)) and found.constant_groups == 1


def test_random_generators_of_other_libraries_are_not_relied_on() -> None:
    """A reward may reseed them; nothing in a run reads them."""

    def reseeds(prompts, outputs):
        np.random.seed(0), random.seed(0)
        return [1.0] * 3

    from tests.reference.toys import keys

    from plaudit.sampling.noise import gaussian

    before = gaussian(keys(2), "initial", (3,))
    scores(reseeds)
    assert torch.equal(gaussian(keys(2), "initial", (3,)), before)


def test_outputs_keep_their_type() -> None:
    seen: list[Tensor] = []
    scores(lambda prompts, outputs: seen.append(outputs) or [1.0] * 3)
    assert seen[0].dtype == torch.float32 and seen[0].data_ptr() != PICTURES.data_ptr()
