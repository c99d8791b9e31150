from __future__ import annotations

import itertools
import json
import statistics

import pytest
import torch
from hypothesis import strategies as st
from tests.rewards.compose.batches import NAN, groups, law, parts, same, tensor

from plaudit.rewards.compose.running import (
    Constrained,
    Moments,
    Multiplier,
    RunningClip,
    RunningMinMax,
    RunningZScore,
    WrongAndLong,
)

scores = st.lists(st.floats(-100, 100) | st.just(NAN), min_size=1, max_size=20)


@law(values=scores, cuts=st.lists(st.integers(0, 20), max_size=4), shift=st.sampled_from([0.0, 1e6]))
def test_moments_of_batches_are_those_of_all(values, cuts, shift) -> None:
    whole, split = tensor(*values) + shift, Moments()
    bounds = [0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]
    for start, stop in itertools.pairwise(bounds):
        split = split.merged(Moments.of(whole[start:stop]))
    present = whole[~whole.isnan()].tolist()
    assert split.count == len(present)
    if present:
        assert split.mean == pytest.approx(statistics.fmean(present), rel=1e-12, abs=1e-12)
        assert split.std == pytest.approx(statistics.pstdev(present), rel=1e-6, abs=1e-9)
        assert (split.low, split.high) == (min(present), max(present))


def test_a_large_mean_costs_no_precision() -> None:
    """E[x^2] - E[x]^2 loses this altogether."""
    noise = torch.randn(4096, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    running, total = RunningZScore(), Moments()
    for chunk in (noise * 1e-2 + 1e6).split(100):
        total = total.merged(Moments.of(chunk))
        running(chunk, learn=True)
    assert total.std == pytest.approx(1e-2 * noise.std(correction=0).item(), rel=1e-5)
    assert (running(noise * 1e-2 + 1e6) - (noise - noise.mean()) / noise.std(correction=0)).abs().max() < 1e-4


def test_zscore_by_hand() -> None:
    running = RunningZScore()
    assert same(running(tensor(1, 3, NAN), learn=True), tensor(-1, 1, NAN))
    assert same(running(tensor(2, 8)), tensor(0, 6))  # does not learn
    assert same(running(tensor(6, 6), learn=True), tensor(1, 1) * 2 / 4.5**0.5)  # of 1, 3, 6, 6


def test_a_constant_reward_is_exactly_zero_and_noise_on_it_small() -> None:
    running = RunningZScore(floor=1e-3)
    assert all(running(tensor(0.1, 0.1, 0.1), learn=True).tolist() == [0, 0, 0] for _ in range(5))
    assert running(tensor(0.1, 0.1 + 1e-7), learn=True).abs().max() < 1e-3


def test_before_learning_the_batch_is_the_history() -> None:
    running = RunningZScore()
    assert same(running(tensor(1, 3)), tensor(-1, 1))
    assert running.state() == {"count": 0}


def test_running_clip_and_minmax_by_hand() -> None:
    clip = RunningClip(width=0.5)
    assert same(clip(tensor(1, 3, NAN), learn=True), tensor(1.5, 2.5, NAN))
    assert same(clip(tensor(-9, 2, 9)), tensor(1.5, 2, 2.5))
    minmax = RunningMinMax()
    assert same(minmax(tensor(2, 2, NAN), learn=True), tensor(0.5, 0.5, NAN))
    assert same(minmax(tensor(0, 4), learn=True), tensor(0, 1))
    assert same(minmax(tensor(-5, 1, 9)), tensor(0, 0.25, 1))


def test_gradients_flow_through_the_score_and_not_the_history() -> None:
    values = tensor(1.0, 3.0, 5.0).requires_grad_()
    running = RunningZScore()
    running(values, learn=True).sum().backward()
    assert same(values.grad, torch.ones(3, dtype=torch.float64) / (8 / 3) ** 0.5)


MEMORIES = {
    "zscore": lambda: RunningZScore(),
    "clip": lambda: RunningClip(width=0.7),
    "minmax": lambda: RunningMinMax(),
    "constrained": lambda: Constrained(limit=0.5, rate=0.3),
    "wrong_and_long": lambda: WrongAndLong(longest=9.0),
}


@pytest.mark.parametrize("name", MEMORIES)
@law(first=parts(2, 0, 4), second=parts(2, 0, 4), third=parts(2, 0, 4))
def test_saved_and_loaded_has_the_same_future(name, first, second, third) -> None:
    def call(memory, batch, learn):
        if name == "wrong_and_long":
            return memory((batch[0] > 1).double(), batch[1], group=torch.zeros(len(batch[0])), learn=learn)
        return memory(*batch, learn=learn) if name == "constrained" else memory(batch[0], learn=learn)

    kept = MEMORIES[name]()
    call(kept, first, True)
    loaded = MEMORIES[name]()
    loaded.load_state(json.loads(json.dumps(kept.state(), allow_nan=False)))
    for batch, learn in ((second, False), (second, True), (third, True)):
        a, b = call(kept, batch, learn), call(loaded, batch, learn)
        assert torch.equal(a.nan_to_num(nan=-99), b.nan_to_num(nan=-99)) and kept.state() == loaded.state()


@pytest.mark.parametrize("name", MEMORIES)
def test_only_learning_changes_the_memory(name) -> None:
    memory = MEMORIES[name]()
    before = memory.state()
    batch = (tensor(1, 2), tensor(1, 2)) if name in ("constrained", "wrong_and_long") else (tensor(1, 2),)
    rest = {"group": groups(0, 0)} if name == "wrong_and_long" else {}
    memory(*batch, **rest)
    assert memory.state() == before
    memory(*batch, **rest, learn=True)
    assert memory.state() != before


# --- constraints -----------------------------------------------------------------------------------------------------


def test_constraint_by_hand() -> None:
    at_most = Constrained(limit=2, rate=0.5)
    assert same(at_most(tensor(1, 1), tensor(2, 6), learn=True), tensor(1, 1))  # multiplier 0, mean violation 2
    assert at_most.multiplier.value == 1.0
    assert same(at_most(tensor(1, 1, 1), tensor(2, 3, NAN)), tensor(1, 0, NAN))
    at_most(tensor(1, 1), tensor(-20, NAN), learn=True)
    assert at_most.multiplier.value == 0  # projected
    at_least = Constrained(limit=2, rate=0.5, sense="at_least", start=1)
    assert same(at_least(tensor(1, 1), tensor(2, 3)), tensor(1, 2))
    at_least(tensor(1, 1), tensor(0, 2), learn=True)
    assert at_least.multiplier.value == 1.5


@law(violations=st.lists(st.floats(-10, 10), max_size=30))
def test_a_multiplier_stays_in_its_bounds(violations) -> None:
    multiplier = Multiplier(rate=0.7, highest=3)
    for violation in violations:
        before = multiplier.value
        multiplier.update(violation)
        assert 0 <= multiplier.value <= 3 and (multiplier.value - before) * violation >= 0


def test_dual_ascent_meets_the_constraint() -> None:
    """max x - x^2 / 8 with x at most 1: the free optimum is 4, the multiplier of the constrained one 3/4."""
    constrained, x = Constrained(limit=1.0, rate=0.05), 0.0
    for _ in range(2000):
        gradient = 1 - x / 4 - constrained.multiplier.value
        x += 0.1 * gradient
        constrained(tensor(x - x**2 / 8), tensor(x), learn=True)
    assert x == pytest.approx(1.0, abs=1e-3) and constrained.multiplier.value == pytest.approx(0.75, abs=1e-3)


# --- S103 ------------------------------------------------------------------------------------------------------------


def test_wrong_and_long_by_hand() -> None:
    memory = WrongAndLong(longest=100, penalty=0.5, decay=0.5)
    outcome, length = tensor(1, 1, 0, 0, 0, NAN), tensor(10, 30, 60, 10, 500, 5)
    result = memory(outcome, length, group=groups(0, 0, 0, 0, 0, 0), learn=True)
    assert same(result, tensor(1, 1, -0.25, 0, -0.5, NAN))  # reference 20, span 80
    assert memory.average == 20
    result = memory(tensor(0, 0), tensor(60, 20), group=groups(3, 3))  # none right: the average stands in
    assert same(result, tensor(-0.25, 0))


def test_wrong_and_long_pays_nothing_before_a_right_answer_was_seen() -> None:
    result = WrongAndLong(longest=100)(tensor(0, 0), tensor(50, 100), group=groups(0, 0), learn=True)
    assert result.tolist() == [0, 0]


@pytest.mark.parametrize(
    "senseless",
    [
        lambda: RunningZScore(floor=0),
        lambda: RunningClip(width=0),
        lambda: Multiplier(rate=0),
        lambda: Multiplier(rate=1, value=-1),
        lambda: Constrained(limit=0, rate=1, start=5, highest=4),
        lambda: WrongAndLong(longest=1, decay=1),
    ],
)
def test_senseless_options_are_refused(senseless) -> None:
    with pytest.raises(ValueError):
        senseless()
