"""Drawing and replaying: the same samples for any split, and a ratio of 1 as long as nothing has changed."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from tests.reference.kernels import GaussianFlow, euler_path
from tests.reference.toys import ExactFlow, ToyFlowModel, conditioning, keys, perturb, prompts
from torch import Tensor

from plaudit.lab.scenes.grammar import evaluation_prompts
from plaudit.models.conditioning import PromptEncoder
from plaudit.models.flow import Condition, Conditioning, shifted_times
from plaudit.models.lab import LabFlowModel
from plaudit.recipe.sampling import Sampler, Window
from plaudit.sampling.kernels import log_density, transition
from plaudit.sampling.noise import gaussian
from plaudit.sampling.plan import deterministic_plan, stochastic_plan
from plaudit.sampling.rollout import FlowSamples, Trace, draw, replay, replay_log_prob, tiled_velocity
from plaudit.train.collect import expand_groups

STOCHASTIC = ("flow_sde", "constant_eta", "cps", "ddim_eta")
WHOLE, NARROW = Window(), Window(size=2, start=(0, 4))


@pytest.fixture(scope="module")
def slots() -> LabFlowModel:
    return LabFlowModel("slots")


def roll(model, sampler: Sampler, groups: int = 3, size: int = 4, asked=None) -> tuple[Conditioning, FlowSamples]:
    members, _, sample_keys = expand_groups(asked or prompts(groups), size, 0, 0)
    first = [sample_keys[i - i % size] for i in range(len(sample_keys))]
    plan = stochastic_plan(sampler, model.schedule(sampler.steps, sampler.shift), sample_keys, first)
    condition = PromptEncoder(model)(members, sampler.guidance)
    return condition, draw(model, condition, plan, sample_keys, tile=sampler.tile)


@torch.no_grad()
def deviation(model, condition: Conditioning, trace: Trace, micro_batch: int = 5) -> Tensor:
    """|ratio - 1| of every drawn decision, replayed in micro-batches."""
    parts = []
    for rows in torch.arange(len(trace.states)).split(micro_batch):
        part = trace.select(rows)
        again = replay_log_prob(part, replay(model, condition.select(rows), part), part.density)
        parts.append(((again - part.log_prob).exp() - 1).abs()[part.mask])
    return torch.cat(parts)


# --- the same samples ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", (1, 2, 5, 7, 12, 64))
@pytest.mark.parametrize("guidance", (1.0, 2.5))
def test_samples_do_not_depend_on_the_tile(tile: int, guidance: float) -> None:
    sampler = Sampler(kernel="flow_sde", steps=5, guidance=guidance, window=Window(size=2, start=(0, 2)), tile=64)
    _, whole = roll(ToyFlowModel(), sampler)
    _, tiled = roll(ToyFlowModel(), sampler.model_copy(update={"tile": tile}))
    torch.testing.assert_close(tiled.latents, whole.latents, rtol=0, atol=1e-5)
    torch.testing.assert_close(tiled.trace.states, whole.trace.states, rtol=0, atol=1e-5)
    assert tiled.network_calls == whole.network_calls


def test_slots_samples_do_not_depend_on_batch_or_company(slots: LabFlowModel) -> None:
    asked = evaluation_prompts("train", 4)
    sampler = Sampler(kernel="flow_sde", steps=6, window=Window(size=2, start=(0, 3)))
    _, together = roll(slots, sampler, size=3, asked=asked)
    for g in range(4):
        _, alone = roll(slots, sampler, size=3, asked=asked[g : g + 1])
        torch.testing.assert_close(alone.latents, together.latents[3 * g : 3 * g + 3], rtol=0, atol=1e-4)


def test_tiles_are_equally_large() -> None:
    """Matrix products of a few rows round differently, so a remainder of one sample would show in the ratio."""
    model = ToyFlowModel()
    x, t = torch.randn(65, 3, 2, 2), torch.full((65,), 0.5)
    v = tiled_velocity(model, x, t, conditioning(model, prompts(65)), 64)
    assert sorted(model.rows) == [32, 33] and v.shape == x.shape
    model.rows.clear()
    tiled_velocity(model, x[:23], t[:23], conditioning(model, prompts(23)), 5)
    assert max(model.rows) <= 5 and min(model.rows) >= 4 and sum(model.rows) == 23


def test_shared_initial_noise_is_the_groups_and_the_paths_still_differ() -> None:
    model, size = ToyFlowModel(), 4
    members, _, sample_keys = expand_groups(prompts(2), size, 0, 0)
    first = [sample_keys[i - i % size] for i in range(8)]
    plan = stochastic_plan(Sampler(kernel="flow_sde", steps=4), shifted_times(4, 1.0), sample_keys, first)
    drawn = draw(model, conditioning(model, members), plan, sample_keys, tile=9, initial_keys=first)
    start = drawn.trace.states[:, 0].reshape(2, size, -1)
    assert (start == start[:, :1]).all() and not torch.equal(start[0, 0], start[1, 0])
    assert torch.unique(drawn.latents.flatten(1), dim=0).shape[0] == 8


# --- the trace -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", STOCHASTIC)
@pytest.mark.parametrize("window", (WHOLE, NARROW))
def test_the_trace_holds_what_was_drawn(kernel: str, window: Window) -> None:
    """Every recorded step, drawn again by hand from the recorded state with the sample's own noise."""
    model, sampler = ToyFlowModel(), Sampler(kernel=kernel, steps=7, level=0.6, window=window, level_schedule="cosine")
    condition, drawn = roll(model, sampler)
    trace = drawn.trace
    _members, _, sample_keys = expand_groups(prompts(3), 4, 0, 0)
    plan = stochastic_plan(sampler, shifted_times(7, 1.0), sample_keys, [sample_keys[i - i % 4] for i in range(12)])
    B, D = trace.levels.shape
    assert (6 if window.size is None else 2) == D and trace.states.shape == (B, D + 1, 3, 2, 2) and trace.mask.all()
    for row in range(B):
        for d in range(D):
            k = int(plan.first[row]) + d
            assert trace.times[row, d] == plan.times[k] and trace.times[row, d + 1] == plan.times[k + 1]
            assert trace.levels[row, d] == plan.levels[row, k] > 0
            x, one = trace.states[row : row + 1, d], torch.tensor([row])
            with torch.no_grad():
                v = model.velocity(x, trace.times[row : row + 1, d], condition.select(one).condition)
            step = transition(kernel, x, v, trace.times[one, d], trace.times[one, d + 1], trace.levels[one, d])
            noise = gaussian([sample_keys[row]], "transition", (3, 2, 2), k)
            by_hand = step.mean + step.std * noise
            torch.testing.assert_close(trace.states[row : row + 1, d + 1], by_hand, rtol=0, atol=1e-5)
            assert trace.log_prob[row, d].item() == pytest.approx(log_density(by_hand, step).item(), rel=1e-4, abs=1e-3)


def test_steps_outside_the_window_are_the_stock_sampler() -> None:
    """From the last recorded state on, the path is Euler's."""
    model, sampler = ToyFlowModel(), Sampler(kernel="flow_sde", steps=6, window=Window(size=1, start=(1, 1)))
    condition, drawn = roll(model, sampler)
    x, times = drawn.trace.states[:, -1], shifted_times(6, 1.0)[2:]
    with torch.no_grad():
        for t, s in itertools.pairwise(times):
            x = x + (s - t) * model.velocity(x, t.expand(12), condition.condition)
    torch.testing.assert_close(drawn.latents, x, rtol=0, atol=1e-5)
    noise = gaussian(keys(4, prompt="p0"), "initial", (3, 2, 2))
    with torch.no_grad():
        after_one = noise + (5 / 6 - 1) * model.velocity(
            noise, torch.ones(4), condition.select(torch.arange(4)).condition
        )
    torch.testing.assert_close(drawn.trace.states[:4, 0], after_one, rtol=0, atol=1e-5)


def test_selecting_rows_of_a_trace_selects_all_of_it() -> None:
    _, drawn = roll(ToyFlowModel(), Sampler(kernel="cps", steps=4))
    rows = torch.tensor([7, 2])
    part = drawn.trace.select(rows)
    for name in ("states", "times", "levels", "mask", "log_prob"):
        assert torch.equal(getattr(part, name), getattr(drawn.trace, name)[rows])
    assert (part.kernel, part.density) == ("cps", "exact")


def test_level_zero_rollouts_of_every_kernel_are_the_stock_sampler(slots: LabFlowModel) -> None:
    members, _, sample_keys = expand_groups(evaluation_prompts("train", 2), 3, 0, 0)
    condition = PromptEncoder(slots)(members, 1.0)
    plan = deterministic_plan(slots.schedule(6, None), 6)
    stock = draw(slots, condition, plan, sample_keys, tile=64).latents
    x = gaussian(sample_keys, "initial", slots.latent_shape)
    with torch.no_grad():
        euler = euler_path(
            lambda y, t: slots.velocity(y, torch.full((6,), t), condition.condition),
            x,
            slots.schedule(6, None).tolist(),
        )
    torch.testing.assert_close(stock, euler, rtol=0, atol=1e-5)
    for kernel in STOCHASTIC:
        same = draw(slots, condition, dataclasses.replace(plan, kernel=kernel), sample_keys, tile=64).latents
        torch.testing.assert_close(same, stock, rtol=0, atol=1e-5)


# --- the ratio -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", (WHOLE, NARROW), ids=("whole", "window"))
@pytest.mark.parametrize("guidance", (1.0, 2.0))
@pytest.mark.parametrize("kernel", STOCHASTIC)
def test_the_ratio_is_one_before_any_update(slots: LabFlowModel, kernel: str, guidance: float, window: Window) -> None:
    """1e-6 per decision, and no bias to either side (pitfall 8), for tiles and micro-batches that do not match."""
    sampler = Sampler(kernel=kernel, steps=7, level=0.7, guidance=guidance, window=window, tile=13)
    condition, drawn = roll(slots, sampler, size=5, asked=evaluation_prompts("train", 6))
    assert drawn.trace.mask.all()
    assert deviation(slots, condition, drawn.trace, micro_batch=11).max() <= 1e-6


@pytest.mark.parametrize("density", ("exact", "mean", "flow_grpo", "cps"))
def test_the_ratio_is_one_in_every_density(density: str) -> None:
    model = ToyFlowModel()
    members, _, sample_keys = expand_groups(prompts(3), 4, 0, 0)
    plan = stochastic_plan(Sampler(kernel="cps", steps=5), shifted_times(5, 1.0), sample_keys, sample_keys)
    condition = conditioning(model, members)
    drawn = draw(model, condition, plan, sample_keys, tile=12, density=density)
    assert drawn.trace.density == density
    assert deviation(model, condition, drawn.trace).max() <= 1e-6
    perturb(model)
    assert deviation(model, condition, drawn.trace).max() > 1e-6


def shifted(trace: Trace, shift: float) -> Trace:
    return dataclasses.replace(trace, times=shift * trace.times / (1 + (shift - 1) * trace.times))


def with_guidance(condition: Conditioning, guidance: float) -> Conditioning:
    return dataclasses.replace(condition, guidance=guidance)


@pytest.mark.parametrize("kernel", STOCHASTIC)
def test_whatever_changes_after_the_rollout_breaks_the_ratio(kernel: str) -> None:
    """Pitfall 10: guidance, shift, level, condition, negative prompt, weights, precision."""
    model = ToyFlowModel()
    condition, drawn = roll(model, Sampler(kernel=kernel, steps=5, guidance=2.0))
    trace = drawn.trace
    other_empty = Condition(tensors={"caption": torch.tensor([3])})
    changed = {
        "guidance": (with_guidance(condition, 2.01), trace),
        "no guidance": (with_guidance(condition, 1.0), trace),
        "negative prompt": (dataclasses.replace(condition, unconditional=other_empty), trace),
        "conditions of other prompts": (condition.select(torch.arange(12).roll(4)), trace),
        "shift": (condition, shifted(trace, 1.01)),
        "level": (condition, dataclasses.replace(trace, levels=trace.levels * 1.01)),
        "states in bfloat16": (condition, dataclasses.replace(trace, states=trace.states.bfloat16().float())),
        "another kernel": (condition, dataclasses.replace(trace, kernel="cps" if kernel != "cps" else "flow_sde")),
    }
    assert deviation(model, condition, trace).max() <= 1e-6
    for what, (other_condition, other_trace) in changed.items():
        assert deviation(model, other_condition, other_trace).max() > 1e-4, what
    perturb(model, 1e-3)
    assert deviation(model, condition, trace).max() > 1e-4


def test_replayed_decisions_carry_gradients_of_their_own_rows_only() -> None:
    model = ToyFlowModel()
    condition, drawn = roll(model, Sampler(kernel="flow_sde", steps=4))
    states = drawn.trace.states.clone().requires_grad_()
    trace = dataclasses.replace(drawn.trace, states=states)
    log_prob = replay_log_prob(trace, replay(model, condition, trace), "exact")
    log_prob[5, 1].backward()
    touched = states.grad.flatten(2).abs().sum(2) > 0
    expected = torch.zeros(12, 4, dtype=torch.bool)
    expected[5, 1:3] = True
    assert torch.equal(touched, expected)


# --- solvers and their cost ------------------------------------------------------------------------------------------


def test_heun_is_closer_to_the_exact_path_than_euler() -> None:
    """Against a thousand small steps of a known flow, at the same number of steps and at the same number of calls."""
    flow = GaussianFlow(mean=0.7, std=0.4)
    model = ExactFlow(lambda x, t: flow.velocity(x, t[0].item()))
    none = Conditioning(condition=Condition(tensors={"n": torch.zeros(50)}))
    exact = euler_path(flow.velocity, gaussian(keys(50), "initial", (1,)), torch.linspace(1, 0, 2001).tolist())

    def error(solver: str, steps: int) -> float:
        plan = deterministic_plan(shifted_times(steps, 1.0), 50, solver)
        return (draw(model, none, plan, keys(50), tile=64).latents - exact).abs().max().item()

    assert error("heun", 10) < 0.3 * error("euler", 10)
    assert error("heun", 8) < error("euler", 15)


@pytest.mark.parametrize("guidance", (1.0, 2.0))
@pytest.mark.parametrize(("solver", "per_sample"), (("euler", 5), ("heun", 9)))
@pytest.mark.parametrize("tile", (4, 64))
def test_network_calls_are_what_the_network_saw(solver: str, per_sample: int, guidance: float, tile: int) -> None:
    model = ToyFlowModel()
    plan = deterministic_plan(shifted_times(5, 1.0), 6, solver)
    drawn = draw(model, conditioning(model, prompts(6), guidance), plan, keys(6), tile=tile)
    assert drawn.network_calls == sum(model.rows) == 6 * per_sample * (1 if guidance == 1 else 2)


def test_guidance_extrapolates_from_the_empty_prompt() -> None:
    model, asked = ToyFlowModel(), prompts(3)
    x, t = torch.randn(3, 3, 2, 2), torch.full((3,), 0.4)
    with torch.no_grad():
        empty = model.velocity(x, t, Condition(tensors={"caption": torch.zeros(3, dtype=torch.long)}))
        full = model.velocity(x, t, model.encode(asked))
        for guidance in (0.0, 0.5, 3.0):
            guided = tiled_velocity(model, x, t, conditioning(model, asked, guidance), 8)
            torch.testing.assert_close(guided, empty + guidance * (full - empty), rtol=0, atol=1e-5)


def test_a_schedule_that_begins_below_one_begins_with_that_times_variance() -> None:
    """A variance-preserving table ends at a state of unit variance in its own coordinates, sqrt((1 - t)^2 + t^2) in ours."""
    none = Conditioning(condition=Condition(tensors={"n": torch.zeros(3)}))
    model, noise = ExactFlow(lambda x, t: torch.zeros_like(x), (4,)), gaussian(keys(3), "initial", (4,))
    for first, scale in ((1.0, 1.0), (0.9, 0.82**0.5)):
        plan = deterministic_plan(torch.tensor([first, 0.5, 0.0]), 3)
        torch.testing.assert_close(draw(model, none, plan, keys(3), tile=8).latents, scale * noise)


def test_drawing_builds_no_graph_and_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    _, drawn = roll(ToyFlowModel(), Sampler(kernel="flow_sde", steps=3))
    assert not drawn.latents.requires_grad and not drawn.trace.states.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
