"""Which steps are stochastic: one window per group, never the last step, zero outside."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference.toys import keys, prompts

from plaudit.models.flow import shifted_times
from plaudit.recipe.sampling import Sampler, Window
from plaudit.sampling.noise import SampleKey
from plaudit.sampling.plan import SamplingPlan, deterministic_plan, noise_levels, stochastic_plan, window_start
from plaudit.train.collect import expand_groups


def plan_of(sampler: Sampler, groups: int = 5, size: int = 3, step: int = 0) -> SamplingPlan:
    _, _, sample_keys = expand_groups(prompts(groups), size, 0, step)
    first = [sample_keys[i - i % size] for i in range(len(sample_keys))]
    return stochastic_plan(sampler, shifted_times(sampler.steps, 1.0), sample_keys, first)


def windowed(size: int, low: int, high: int, steps: int = 10, **rest) -> Sampler:
    return Sampler(kernel="flow_sde", steps=steps, window=Window(size=size, start=(low, high)), **rest)


def test_without_a_window_every_step_but_the_last_is_stochastic() -> None:
    plan = plan_of(Sampler(kernel="flow_sde", level=0.7, steps=6))
    assert plan.decisions == 5 and plan.steps == 6
    assert torch.equal(plan.levels, torch.tensor([0.7] * 5 + [0.0]).expand(15, 6))
    assert plan.first.tolist() == [0] * 15


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_windows_stay_inside_their_bounds_and_are_zero_outside(data: st.DataObject) -> None:
    steps = data.draw(st.integers(2, 12))
    size = data.draw(st.integers(1, steps - 1))
    high = data.draw(st.integers(0, steps - 1 - size))
    low = data.draw(st.integers(0, high))
    plan = plan_of(windowed(size, low, high, steps, level=0.9), step=data.draw(st.integers(0, 50)))
    assert plan.decisions == size
    for row in range(15):
        inside = (plan.levels[row] > 0).nonzero()[:, 0].tolist()
        start = int(plan.first[row])
        assert inside == list(range(start, start + size)) and low <= start <= high
        assert plan.levels[row, -1] == 0
        assert all(level in (0.0, pytest.approx(0.9)) for level in plan.levels[row].tolist())


def test_a_group_shares_its_window() -> None:
    """Pitfall 16: a window per request gave four times the reward's deviation."""
    starts = []
    for step in range(6):
        first = plan_of(windowed(2, 0, 7), step=step).first.reshape(5, 3)
        assert (first == first[:, :1]).all()
        starts.append(first[:, 0])
    assert torch.stack(starts).unique().numel() > 3
    assert len({tuple(s.tolist()) for s in starts}) > 3, "windows must change between steps"
    assert any(s.unique().numel() > 1 for s in starts), "and between groups"


def test_every_start_is_drawn_about_equally_often() -> None:
    sampler = windowed(2, 2, 5)
    starts = [window_start(sampler, SampleKey(seed=0, step=step, prompt="p", index=0)) for step in range(2000)]
    counts = torch.bincount(torch.tensor(starts), minlength=6)
    assert counts[:2].sum() == 0
    assert (counts[2:] - 500).abs().max() < 5 * math.sqrt(500 * 0.75)


def test_the_window_does_not_depend_on_the_member_it_is_asked_for() -> None:
    assert len({window_start(windowed(2, 0, 7), k) for k in keys(20)}) == 1


def test_the_cosine_schedule_starts_at_level_and_ends_at_level_min() -> None:
    levels = noise_levels(Sampler(kernel="flow_sde", steps=9, level=0.8, level_min=0.2, level_schedule="cosine"))
    assert levels[0].item() == pytest.approx(0.8) and levels[-1].item() == pytest.approx(0.2)
    assert levels[4].item() == pytest.approx(0.5)
    assert (levels[1:] < levels[:-1]).all()
    expected = [0.2 + 0.3 * (1 + math.cos(math.pi * k / 8)) for k in range(9)]
    assert levels.tolist() == pytest.approx(expected, abs=1e-6)


def test_the_cosine_schedule_of_one_step_is_finite() -> None:
    assert noise_levels(Sampler(steps=1, level=0.8, level_schedule="cosine")).tolist() == [pytest.approx(0.8)]


def test_the_schedule_is_applied_by_step_not_by_position_in_the_window() -> None:
    sampler = windowed(2, 3, 3, steps=9, level=0.8, level_schedule="cosine")
    plan = plan_of(sampler)
    torch.testing.assert_close(plan.levels[0, 3:5], noise_levels(sampler)[3:5])


def test_the_ode_kernel_has_no_decisions() -> None:
    plan = plan_of(Sampler(kernel="ode", steps=4))
    assert plan.decisions == 0 and torch.equal(plan.levels, torch.zeros(15, 4))


def test_a_deterministic_plan_keeps_its_solver() -> None:
    assert deterministic_plan(shifted_times(4, 1.0), 2, "heun").solver == "heun"


@pytest.mark.parametrize("shift", (0.5, 1.0, 3.0))
def test_times_run_from_one_to_zero(shift: float) -> None:
    times = shifted_times(7, shift)
    assert times[0] == 1 and times[-1] == 0 and (times[1:] < times[:-1]).all()
    t = 1 - 3 / 7
    assert times[3].item() == pytest.approx(shift * t / (1 + (shift - 1) * t), rel=1e-5)
