"""What a reward may be, is handed and may return, what happens when it fails, and that it influences nothing but its scores."""

from __future__ import annotations

import array
import asyncio
import collections
import concurrent.futures
import functools
import importlib
import itertools
import math
import random
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.errors import RewardError
from plaudit.rewards.base import Card, Score, Status, card, missing
from plaudit.rewards.calling import call as call_module
from plaudit.rewards.calling.cache import ScoreCache
from plaudit.rewards.calling.call import Cached, Caller, Handling, _is_users, call_reward
from plaudit.rewards.calling.request import make_request

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
    given: dict = {}
    scores(lambda prompts, **everything: given.update(everything) or [0.0] * 3)
    assert set(given) == {
        *("outputs", "ids", "facts", "inputs", "group", "step", "trainer_state", "log_metric", "log_extra"),
        *("objects", "image"),
    }


def test_facts_and_inputs_are_columns_by_name() -> None:
    """As a data set's columns are in TRL; what a prompt lacks is None."""
    mixed = [Prompt(id="a", text="", facts={"answer": 3}), Prompt(id="b", text="", inputs={"image": 7})]
    seen: dict = {}

    def reward(prompts, outputs, answer, image, unit="cm"):
        seen.update(answer=answer, image=image, unit=unit)
        return [0.0] * 2

    scores(reward, prompts=mixed, outputs=["x", "y"])
    assert seen == {"answer": [3, None], "image": [None, 7], "unit": "cm"}


def test_a_column_that_no_prompt_carries_is_named() -> None:
    with pytest.raises(
        RewardError, match=r"rewards.mine needs the column 'answer'.* prompts carry image, objects; add"
    ):
        scores(lambda prompts, outputs, answer: [0.0] * 3)


def test_a_column_is_known_to_parts_of_the_batch_that_lack_it() -> None:
    """Chunk by chunk, and one by one after a failure."""
    mixed = [Prompt(id="a", text="", facts={"answer": 3}), Prompt(id="b", text="")]
    request = make_request(mixed, ["x", "y"])
    assert [
        s.value for s in caller(lambda prompts, outputs, answer: [float(a is None) for a in answer], batch=1)(request)
    ] == [
        0,
        1,
    ]

    def fails_together(prompts, outputs, answer):
        if len(outputs) > 1:
            raise ValueError
        return [float(answer[0] is None)]

    assert [s.value for s in caller(fails_together)(request)] == [0, 1]


def test_a_reward_may_take_the_whole_request_to_ask_another_the_same() -> None:
    """Columns of the larger batch and all, so that the other is not refused a column that this part lacks."""

    def other(prompts, outputs, answer):
        return [float(a is None) for a in answer]

    def wrapper(prompts, outputs, request):
        for prompt in request.prompts:
            prompt.facts["written"] = True
        return Caller("other", other)(request)

    mixed = [Prompt(id="a", text="", facts={"answer": 3}), Prompt(id="b", text="", facts={})]
    found = caller(wrapper, batch=1)(make_request(mixed, ["x", "y"]))
    assert [s.value for s in found] == [0, 1]
    assert all("written" not in prompt.facts for prompt in mixed), "a stranger's request is a copy"


def test_an_argument_of_the_recipe_is_not_overridden_by_a_fact() -> None:
    prompts = [Prompt(id="a", text="", facts={"place": "from the prompt"})]
    seen: list = []
    bound = functools.partial(lambda prompts, outputs, place: seen.append(place) or [0.0], place="from the recipe")
    scores(bound, prompts=prompts, outputs=["x"])
    assert seen == ["from the recipe"]


def test_groups_and_step_arrive() -> None:
    seen: dict = {}

    def reward(prompts, outputs, group, step, trainer_state):
        seen.update(group=group, step=step, global_step=trainer_state.global_step)
        return [0.0] * 3

    call_reward("mine", reward, PROMPTS, PICTURES, step=7)
    assert seen == {"group": [0, 1, 2], "step": 7, "global_step": 7}
    call_reward("mine", reward, [PROMPTS[0], PROMPTS[0], PROMPTS[1]], PICTURES)
    assert seen["group"] == [0, 0, 1], "outputs of one prompt belong together"
    call_reward("mine", reward, PROMPTS, PICTURES, group=torch.tensor([4, 4, 9]))
    assert seen["group"] == [4, 4, 9]


def test_conversations_reach_plain_functions_whole_and_carded_ones_as_text() -> None:
    prompts = [Prompt(id="a", text="two?", inputs={"messages": [{"role": "user", "content": "two?"}]})]
    outputs = [[{"role": "assistant", "content": "2"}]]
    seen: list = []

    def plain(prompts, completions):
        seen.append((prompts, completions))
        return [1.0]

    scores(plain, prompts=prompts, outputs=outputs)
    scores(card(kind="text")(lambda prompts, outputs: seen.append((prompts, outputs)) or [1.0]), prompts, outputs)
    assert seen == [([prompts[0].inputs["messages"]], outputs), (["two?"], ["2"])]


def test_pictures_of_unlike_sizes_are_called_size_by_size() -> None:
    pictures = [torch.full((3, size, size), size / 10) for size in (2, 4, 2)]
    shapes: list = []

    @card(kind="image")
    def mean(prompts, outputs):
        """Mean."""
        shapes.append(tuple(outputs.shape))
        return outputs.mean(dim=(1, 2, 3))

    assert values(mean, outputs=pictures) == pytest.approx([0.2, 0.4, 0.2]) and shapes == [(2, 3, 2, 2), (1, 3, 4, 4)]


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
        array.array("d", [1, 2.5, 1]),
        collections.deque([1, 2.5, 1]),
        (value for value in (1, 2.5, 1)),
    ],
    ids=["list", "tuple", "tensor", "tensor with gradient", "array", "mixed", "array of Python", "deque", "generator"],
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


@pytest.mark.parametrize("kept", (False, True))
@pytest.mark.parametrize(
    ("given", "expected"),
    (
        ({"components": {"a": "x"}}, r"components={'a': 'x'}; it is None or numbers by name"),
        ({"components": {"a": "1"}}, "components="),
        ({"components": {3: 1.0}}, "components="),
        ({"components": [1.0]}, "components="),
        ({"dense": "x"}, "dense='x'; it is None or a tensor"),
        ({"dense": torch.zeros(2, device="meta")}, "dense="),
        ({"dense": torch.zeros(2, dtype=torch.complex64)}, "dense="),
        ({"dense": torch.ones(2).to_sparse()}, "dense="),
        ({"sigma": "x"}, "sigma='x'; it is None or a number"),
        ({"sigma": 10**400}, "sigma=1000"),
        ({"note": 5}, "note=5; it is a text"),
        ({"value": math.nan, "status": "late"}, "status='late'; it is one of ok, "),
        ({"value": torch.tensor(1.0)}, Score(value=1.0)),
        ({"value": True}, Score(value=1.0)),
        ({"value": np.float32(0.5), "sigma": torch.tensor(2)}, Score(value=0.5, sigma=2.0)),
        ({"components": {"a": np.float32(0.25), "b": 1}}, Score(value=1.0, components={"a": 0.25, "b": 1.0})),
    ),
    ids=str,
)
def test_what_a_score_carries_is_plain_or_an_error(
    given: dict, expected: Score | str, kept: bool, tmp_path: Path
) -> None:
    """Of that output alone, with a cache or without."""
    made = Score(**{"value": 1.0} | given)
    cache = Cached(store=ScoreCache(tmp_path), identity="it") if kept else None
    for _ in range(2):
        caller = Caller("mine", lambda prompts, outputs: [made if o == "odd" else 2.0 for o in outputs], cache=cache)
        found, other = caller(make_request([Prompt(id="a", text="a")] * 2, ["odd", "even"]))
        assert other == Score(value=2.0)
        if isinstance(expected, Score):
            assert found == expected
            numbers = [found.value, found.sigma or 0.0, *(found.components or {}).values()]
            assert {type(number) for number in numbers} == {float}
        else:
            assert found.status is Status.ERRORED and re.search(f"returned a Score with .*{expected}", found.note)


def test_a_component_that_is_none_is_missing() -> None:
    (found,) = call_reward(
        "mine", lambda prompts, outputs: [Score(value=1.0, components={"a": None})], [Prompt(id="a", text="a")], ["x"]
    )
    assert math.isnan(found.components["a"])


@pytest.mark.parametrize("status", [s for s in Status if s is not Status.OK])
def test_a_failed_score_cannot_carry_a_number(status: Status) -> None:
    """Pitfall 21: errors never become numbers."""
    with pytest.raises(ValueError, match="only ok scores have a value"):
        Score(value=0.0, status=status)
    assert math.isnan(Score(value=math.nan, status=status).value)


@pytest.mark.parametrize("value", (math.nan, math.inf))
def test_an_ok_score_must_be_finite(value: float) -> None:
    with pytest.raises(ValueError, match="only ok scores"):
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
        ("123", "returned '123'; return a list"),
        ({"a": 1, "b": 2, "c": 3}, "returned {.*}; return a list"),
        (["1", "2", "3"], "returned '1'; a score is a number"),
        (torch.tensor(0.5), r"returned tensor.* return a list"),
        ([1.0, "good", 2.0], "returned 'good'; a score is a number, None or a plaudit.Score"),
        (torch.zeros(3, 1), r"returned \[0.0\]; a score is a number"),
        ([[1.0], [2.0], [3.0]], r"returned \[1.0\]; a score is a number"),
        ({1.0, 2.0, 3.0}, "returned {1.0, 2.0, 3.0}; return a list with one score per output"),
        (frozenset({1.0, 2.0, 3.0}), "returned frozenset.*; return a list"),
        ({1.0: "a", 2.0: "b", 3.0: "c"}.keys(), r"returned dict_keys\(.*; return a list"),
        ({"a": 1.0, "b": 2.0, "c": 3.0}.values(), r"returned dict_values\(.*; return a list"),
        (b"123", "returned b'123'; return a list"),
        (bytearray(b"123"), r"returned bytearray\(b'123'\); return a list"),
        (memoryview(b"123"), "returned <memory at .*; return a list"),
        ([1.0, bytearray(b"1"), 2.0], r"returned bytearray\(b'1'\); a score is a number"),
        ([1.0, memoryview(b"1"), 2.0], "returned <memory at .*; a score is a number"),
        ([10**400] * 3, r"returned 1000.*\.\.\.; a score is a number"),
        ((1.0 for _ in range(2)), "returned 2 scores for 3"),
        (itertools.repeat(1.0), "returned more than 3 scores for 3 outputs"),
    ],
)
def test_anything_else_is_an_error_that_names_the_reward(returned, message: str) -> None:
    with pytest.raises(RewardError, match=f"^rewards.mine {message}"):
        scores(lambda prompts, outputs: returned)


def test_an_exception_becomes_a_status_that_says_what_it_was() -> None:
    def broken(prompts, outputs):
        raise ZeroDivisionError("no quotes in this prompt")

    async def broken_later(prompts, outputs):
        raise KeyError("score")

    for function, note in ((broken, "ZeroDivisionError: no quotes"), (broken_later, "KeyError: 'score'")):
        found = scores(function)
        assert all(s.status is Status.ERRORED and math.isnan(s.value) and s.note.startswith(note) for s in found)


class Untold(Exception):
    """Whoever asks what it says is ended."""

    def __str__(self) -> str:
        raise SystemExit(0)


@pytest.mark.parametrize(
    ("error", "note"),
    [
        (SystemExit(0), "SystemExit: 0"),
        (GeneratorExit(), "GeneratorExit"),
        (asyncio.CancelledError("gone"), "CancelledError: gone"),
        (concurrent.futures.CancelledError(), "CancelledError"),
        (StopIteration(), "StopIteration"),
        (type("Own", (BaseException,), {})("x"), "Own: x"),
        (Untold(), "Untold"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("handling", ({}, {"deadline_s": 30.0}, {"batch": 1, "concurrency": 2}), ids=str)
@pytest.mark.parametrize("asynchronous", (False, True))
def test_whatever_a_reward_raises_is_its_failure_for_the_guilty_outputs(error, note, handling, asynchronous) -> None:
    """The loop of async rewards survives it too."""

    def raises(prompts, outputs):
        if "1" in outputs:
            raise error
        return [1.0] * len(outputs)

    async def raises_later(prompts, outputs):
        await asyncio.sleep(0)
        return raises(prompts, outputs)

    if asynchronous and isinstance(error, StopIteration):
        note = "RuntimeError: coroutine raised StopIteration"  # as Python has it
    for _ in range(2):
        found = caller(raises_later if asynchronous else raises, **handling)(many(3))
        assert [s.status for s in found] == [Status.OK, Status.ERRORED, Status.OK]
        assert found[1].note.startswith(note)


@pytest.mark.parametrize("deadline_s", (None, 30.0))
def test_ctrl_c_passes_through_a_reward(deadline_s: float | None) -> None:
    def interrupted(prompts, outputs):
        raise KeyboardInterrupt

    async def interrupted_later(prompts, outputs):
        raise KeyboardInterrupt

    for function in (interrupted, interrupted_later):
        with pytest.raises(KeyboardInterrupt):
            caller(function, deadline_s=deadline_s)(many(2))


def test_a_generator_is_read_within_the_deadline() -> None:
    done = threading.Event()

    def hangs(prompts, outputs):
        yield 1.0
        done.wait(60)

    try:
        found = caller(hangs, deadline_s=0.1)(many(3))
    finally:
        done.set()
    assert [s.status for s in found] == [Status.TIMED_OUT] * 3


def test_an_async_reward_returns_a_list() -> None:
    async def lazy(prompts, outputs):
        return (1.0 for _ in outputs)

    async def yielding(prompts, outputs):
        for _ in outputs:
            yield 1.0

    with pytest.raises(RewardError, match="an async reward returns a list, no iterator"):
        scores(lazy)
    with pytest.raises(RewardError, match=r"returned <async_generator .*; return a list"):
        scores(yielding)


def test_one_bad_output_never_harms_its_batch() -> None:
    """Pitfall 21, item by item."""

    def reward(prompts, outputs, ids):
        if "p1" in ids:
            raise ValueError("p1 is bad")
        return [float(i[1:]) for i in ids]

    found = scores(reward)
    assert [s.status for s in found] == [Status.OK, Status.ERRORED, Status.OK]
    assert found[0].value == 0 and found[2].value == 2 and "p1 is bad" in found[1].note


def test_a_reward_that_compares_outputs_is_not_asked_about_one_alone() -> None:
    sizes: list = []

    @card(batch_invariant=False)
    def ranks(prompts, outputs):
        """Ranks."""
        sizes.append(len(outputs))
        raise ValueError("no")

    assert all(s.status is Status.ERRORED for s in scores(ranks)) and sizes == [3]


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


def test_outputs_of_the_wrong_kind_are_refused() -> None:
    pictures = card(kind="image")(lambda prompts, outputs: [1.0] * len(outputs))
    texts = card(kind="text")(lambda prompts, outputs: [1.0] * len(outputs))
    with pytest.raises(RewardError, match=r"rewards.mine looks at pictures, and these outputs are texts"):
        scores(pictures, outputs=["a", "b", "c"])
    with pytest.raises(RewardError, match=r"looks at texts, and these outputs are pictures; .*--kind image"):
        scores(texts)


def test_no_gradient_is_recorded() -> None:
    pictures = PICTURES.clone().requires_grad_()
    recorded: list = []
    scores(lambda prompts, outputs: recorded.append((outputs * 2).requires_grad) or [1.0] * 3, outputs=pictures)
    assert recorded == [False]


# --- chunks, deadlines, retries --------------------------------------------------------------------------------------


def caller(function, **handling) -> Caller:
    return Caller("mine", function, Handling(backoff_s=0.0, **handling))


def many(count: int):
    return make_request([Prompt(id=f"p{i}", text=str(i)) for i in range(count)], [str(i) for i in range(count)])


@pytest.mark.parametrize(("batch", "sizes"), [(None, [10]), (4, [4, 4, 2]), (1, [1] * 10), (99, [10])])
def test_batches_are_chunks_in_order(batch: int | None, sizes: list[int]) -> None:
    seen: list = []
    mine = caller(lambda prompts, outputs: seen.append(len(outputs)) or [float(o) for o in outputs], batch=batch)
    assert [s.value for s in mine(many(10))] == list(range(10)) and seen == sizes
    assert (
        mine.meter.calls == len(sizes) and mine.meter.outputs == 10 and len(mine.meter.take_latencies()) == len(sizes)
    )
    assert mine.meter.take_latencies() == []


def test_as_many_calls_at_a_time_as_allowed_and_no_more() -> None:
    now, most, lock, together = [0], [0], threading.Lock(), threading.Barrier(3)

    def reward(prompts, outputs):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        together.wait(60)
        with lock:
            now[0] -= 1
        return [float(o) for o in outputs]

    assert [s.value for s in caller(reward, batch=1, concurrency=3)(many(12))] == list(range(12)) and most[0] == 3


@pytest.fixture
def slow():
    """A reward that hangs at the output "1" until the test is over."""
    over = threading.Event()

    def slow(prompts, outputs):
        over.wait(60 if "1" in outputs else 0)
        return [1.0] * len(outputs)

    yield slow
    over.set()


async def slow_later(prompts, outputs):
    await asyncio.sleep(60 if "1" in outputs else 0)
    return [1.0] * len(outputs)


@pytest.mark.parametrize("asynchronous", (False, True))
def test_what_comes_too_late_is_missing(asynchronous: bool, slow) -> None:
    found = caller(slow_later if asynchronous else slow, batch=1, deadline_s=1.0)(many(3))
    assert [s.status for s in found] == [Status.OK, Status.TIMED_OUT, Status.OK] and "1 s" in found[1].note


def test_a_slow_output_is_found_out_by_trying_again_alone(slow) -> None:
    found = caller(slow, deadline_s=1.0, retries=1, retry_budget=1.0)(many(3))
    assert [s.status for s in found] == [Status.OK, Status.TIMED_OUT, Status.OK]


def test_retries_repeat_only_what_failed() -> None:
    seen: list = []

    def flaky(prompts, outputs):
        seen.append(list(outputs))
        return [missing(Status.ERRORED) if o == "2" and len(seen) < 3 else float(o) for o in outputs]

    mine = caller(flaky, retries=5, retry_budget=1.0)
    assert [s.value for s in mine(many(4))] == [0, 1, 2, 3] and seen == [["0", "1", "2", "3"], ["2"], ["2"]]
    assert mine.meter.repeats == 2


def test_the_retry_budget_bounds_repeats_over_the_run() -> None:
    calls: list = []

    def down(prompts, outputs):
        calls.extend(outputs)
        return [missing(Status.ERRORED, "down")] * len(outputs)

    mine = caller(down, retries=10, retry_budget=0.5)
    for _ in range(4):
        assert all(s.status is Status.ERRORED for s in mine(many(10)))
    assert mine.meter.repeats <= 0.5 * mine.meter.outputs and len(calls) == 40 + mine.meter.repeats


def test_what_is_scored_again_was_not_seen_before() -> None:
    class Counting:
        card = Card(summary="", kind="text", batch_invariant=False)
        seen = 0

        def __call__(self, prompts, outputs):
            Counting.calls += 1
            self.seen += len(outputs)
            return [missing(Status.ERRORED) if Counting.calls == 1 else float(self.seen)] * len(outputs)

        def state(self):
            return {"seen": self.seen}

        def load_state(self, state):
            self.seen = state["seen"]

    Counting.calls = 0
    assert [s.value for s in caller(Counting(), retries=2, retry_budget=1.0)(many(3))] == [3, 3, 3]


def test_an_output_that_makes_the_reward_time_out_harms_no_other() -> None:
    """The reward's own TimeoutError, not the deadline's."""

    def reward(prompts, outputs):
        if "1" in outputs:
            raise TimeoutError("socket")
        return [1.0] * len(outputs)

    async def later(prompts, outputs):
        return reward(prompts, outputs)

    for function in (reward, later):
        for handling in ({}, {"deadline_s": 5.0}):
            found = caller(function, **handling)(many(3))
            assert [s.status for s in found] == [Status.OK, Status.TIMED_OUT, Status.OK] and "socket" in found[1].note


def test_an_impossible_score_harms_no_other() -> None:
    def reward(prompts, outputs):
        return [Score(value=math.inf if output == "1" else 0.0) for output in outputs]

    assert [s.status for s in caller(reward)(many(3))] == [Status.OK, Status.ERRORED, Status.OK]


def test_part_of_what_failed_is_tried_again_when_the_budget_has_no_room_for_all() -> None:
    down = caller(lambda prompts, outputs: [missing(Status.ERRORED)] * len(outputs), retries=1, retry_budget=0.2)
    down(many(10))
    assert down.meter.repeats == 2


def test_a_plain_function_that_asks_for_groups_sees_the_whole_batch() -> None:
    sizes: list = []

    def ranks(prompts, outputs, group):
        sizes.append(len(outputs))
        return [0.0] * len(outputs)

    caller(ranks, batch=2)(many(5))
    assert sizes == [5] and caller(ranks).whole_batch


def test_strangers_get_copies_also_of_pictures_of_unlike_sizes() -> None:
    @card(batch_invariant=False)
    def vandal(prompts, outputs):
        for output in outputs:
            output.zero_()
        return [0.0] * len(outputs)

    pictures = [torch.ones(3, 2, 2), torch.ones(3, 4, 4)]
    scores(vandal, prompts=PROMPTS[:2], outputs=pictures)
    assert all((picture == 1).all() for picture in pictures)


def test_rewards_at_the_same_time_do_not_put_each_others_generators_back() -> None:
    started, drawn, done = threading.Event(), threading.Event(), threading.Event()
    numbers: list = []

    def short(prompts, outputs):
        started.set()
        drawn.wait(5)
        return [0.0] * len(outputs)

    def long(prompts, outputs):
        numbers.append(torch.rand(3).tolist())
        drawn.set()
        done.wait(5)
        numbers.append(torch.rand(3).tolist())
        return [0.0] * len(outputs)

    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    thread = threading.Thread(target=lambda: (scores(short), done.set()))
    thread.start()
    started.wait(5)
    scores(long)
    thread.join()
    assert numbers[0] != numbers[1]
    assert torch.equal(torch.get_rng_state(), before[0]) and np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]


@pytest.mark.parametrize("draw", (lambda: torch.rand(1).item(), np.random.rand, random.random))
def test_random_numbers_go_on_from_call_to_call(draw) -> None:
    """Put back alone, the generators would give every call the same numbers."""
    found = [values(lambda prompts, outputs: [draw() for _ in outputs]) for _ in range(3)]
    assert len({number for numbers in found for number in numbers}) == 9


def test_verdicts_are_final() -> None:
    calls: list = []

    def refuses(prompts, outputs):
        calls.append(1)
        return [missing(Status.REFUSED), missing(Status.PARSE_FAILED), None]

    assert [s.status for s in caller(refuses, retries=3, retry_budget=1.0)(many(3))] == [
        Status.REFUSED,
        Status.PARSE_FAILED,
        Status.NOT_APPLICABLE,
    ]
    assert len(calls) == 1


def test_a_reward_may_report_numbers_as_in_trl() -> None:
    def reward(prompts, outputs, log_metric, log_extra):
        log_metric("length", 2.0)
        log_extra("seen", outputs)
        return [1.0] * len(outputs)

    mine = caller(reward, batch=2)
    mine(many(4))
    assert mine.meter.take_metrics() == {"length": 2.0} and mine.meter.take_metrics() == {}
    assert mine.meter.extra == {"seen": ["2", "3"]}


def test_async_rewards_share_one_loop() -> None:
    """A client that keeps connections open stays usable from call to call."""
    loops: list = []

    async def reward(prompts, outputs):
        loops.append(asyncio.get_running_loop())
        return [1.0] * len(outputs)

    mine = caller(reward, batch=1)
    mine(many(3))
    assert len(set(map(id, loops))) == 1 and len(loops) == 3


def test_nothing_is_called_for_nothing() -> None:
    assert caller(lambda prompts, outputs: 1 / 0)(many(0)) == []
    with pytest.raises(RewardError, match="2 prompts for 1 outputs"):
        make_request(PROMPTS[:2], ["x"])


def test_a_card_says_whether_scores_may_be_added() -> None:
    assert Card(summary="", low=0, high=2).unit == (0, 2)
    assert Card(summary="", low=0).unit is None and Card(summary="").unit is None


def test_the_note_of_an_exception_says_where_in_the_reward_it_was_raised(tmp_path, monkeypatch) -> None:
    """The innermost line of the user's own, also when a library raised; one line."""
    text = "import json\ndef deep(text):\n    return json.loads(text)\n"
    text += "def mine(prompts, outputs):\n    return [deep(p) for p in prompts]\n"
    (tmp_path / "mine_that_raises.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    mine = importlib.import_module("mine_that_raises").mine
    (note,) = {score.note for score in scores(mine)}
    assert note.startswith("JSONDecodeError: ") and note.endswith(" (mine_that_raises.py:3)") and "\n" not in note
    (late,) = {s.note for s in Caller("mine", mine, Handling(deadline_s=30))(make_request(PROMPTS, PICTURES))}
    assert late == note


def test_places_are_those_of_the_user_alone() -> None:
    assert _is_users(__file__)
    assert not any(_is_users(file) for file in (call_module.__file__, asyncio.__file__, torch.__file__, "<string>"))
