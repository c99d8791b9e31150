"""Guidance against the one case that is known in closed form, against finite differences, and its ledger."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from tests.reference.enumerated import GaussianModel
from tests.reference.toys import prompts
from tests.search.test_ledger import Clock
from tests.search.toys import CountingModel, Green, make_task
from torch import Tensor

from plaudit.errors import RecipeError
from plaudit.rewards.base import Card
from plaudit.search.budget import Cost
from plaudit.search.flow.guidance import Guidance, correction
from plaudit.search.flow.lookouts import Preview, Worth
from plaudit.search.flow.task import FlowTask
from plaudit.search.rows import Rows
from plaudit.search.run import run_search

NEARLY_ONE = 1 - 2.0**-12


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def number(prompts: list[str], outputs: Tensor) -> Tensor:
    """The number that a picture of `GaussianModel` shows."""
    return outputs[:, 0, 0, 0]


class ExactNoisy:
    """Of r(x_0) = x_0 for N(0, 1) data: log E[exp(x_0) | x_t], up to a constant, is (1 - t) x / ((1 - t)^2 + t^2)."""

    needs_velocity = False

    def check(self, task: FlowTask) -> None: ...

    def cost(self, task: FlowTask) -> Cost:
        return Cost(reward_calls=1)

    def worth(self, task: FlowTask, rows: Rows, t: Tensor) -> Worth:
        t = torch.as_tensor(t).double()
        with task.spending("reward_calls", rows.prompt):
            return Worth(value=((1 - t) / ((1 - t) ** 2 + t**2) * rows.x.double())[:, 0], v=None)


class Slow(Green):
    """Takes a second of a made-up clock per output."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def __call__(self, prompts: list[str], outputs: Tensor) -> Tensor:
        self.clock.now += len(outputs)
        return super().__call__(prompts, outputs)


EXACT = f"{__name__}:ExactNoisy"


def gaussian_task(steps: int, **rest) -> FlowTask:
    rest = {"budget": "9999nfe"} | rest
    return make_task(GaussianModel(), number, asked=prompts(3), steps=steps, **rest)


def latents(task: FlowTask, method: Guidance) -> Tensor:
    """Numbers `[P, C]` of the candidates that are not plain."""
    result = run_search(task, method, keep_all=True)
    kept = sorted(((p, one.candidate, one.latent.item()) for p, one in result.kept if one.candidate))
    return torch.tensor([x for _, _, x in kept]).reshape(len(task.prompts), -1)


# --- the exact case --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", (1, 4, 10, 50))
@pytest.mark.parametrize("w", (1.0, -2.0, 0.25))
@pytest.mark.parametrize("solver", ("euler", "heun"))
def test_with_the_exact_noisy_reward_a_standard_normal_is_shifted_by_w(steps: int, w: float, solver: str) -> None:
    """Sample by sample, and at any number of steps: the mean w (1 - t) moves at constant speed. Up to the cap's 2^-12."""
    guided = Guidance(strengths=(w,), value=EXACT, candidates=5, latest=NEARLY_ONE, clip=None)
    plain = Guidance(strengths=(0.0,), candidates=5)
    shift = latents(gaussian_task(steps, solver=solver), guided) - latents(gaussian_task(steps, solver=solver), plain)
    tolerance = 5e-4 if solver == "euler" else 5e-4 + 2 / steps**2
    torch.testing.assert_close(shift, torch.full_like(shift, w), rtol=0, atol=abs(w) * tolerance)


def slow_shift(steps: int, w: float, latest: float, value: str) -> float:
    """How far guidance takes a sample of N(0, 1), in plain arithmetic: everything is linear in x."""
    shift, dt = 0.0, 1 / steps
    for k in range(steps):
        t = 1 - k * dt
        capped = min(t, latest)
        at = t if value == "preview" else capped
        gradient = (1 - at) / ((1 - at) ** 2 + at**2)
        v = (2 * t - 1) / ((1 - t) ** 2 + t**2) * shift
        shift -= dt * (v - w * capped / (1 - capped) * gradient)
    return shift


@pytest.mark.parametrize("value", ("preview", EXACT))
@pytest.mark.parametrize("latest", (0.95, 0.7))
def test_the_cap_costs_what_it_should(value: str, latest: float) -> None:
    """DPS is exact for a linear reward too, but for the first step, whose preview does not depend on the state."""
    guided = Guidance(strengths=(1.5,), value=value, candidates=4, latest=latest, clip=None)
    shift = latents(gaussian_task(12), guided) - latents(gaussian_task(12), Guidance(strengths=(0.0,), candidates=4))
    expected = slow_shift(12, 1.5, latest, value)
    torch.testing.assert_close(shift, torch.full_like(shift, expected), rtol=0, atol=2e-5)
    assert 0.3 < expected < 1.6


def test_shift_tends_to_w_as_the_cap_and_the_steps_do() -> None:
    errors = [abs(slow_shift(steps, 1.0, 1 - 1 / steps, "preview") - 1.0) for steps in (4, 16, 64, 256)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.02


def test_constant_scale_is_the_gradient_itself() -> None:
    guided = Guidance(strengths=(0.5,), value=EXACT, candidates=1, scale="constant", clip=None, window=(9, 10))
    plain = Guidance(strengths=(0.0,), candidates=1)
    shift = latents(gaussian_task(10), guided) - latents(gaussian_task(10), plain)
    t = 0.1  # the last step's
    expected = 0.1 * 0.5 * (1 - t) / ((1 - t) ** 2 + t**2)
    torch.testing.assert_close(shift, torch.full_like(shift, expected), rtol=1e-4, atol=0)


# --- no guidance -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ("euler", "heun"))
@pytest.mark.parametrize("guidance", (1.0, 2.5))
@pytest.mark.parametrize("method", (Guidance(strengths=(0.0,), candidates=4), Guidance(window=(2, 2), candidates=4)))
def test_strength_zero_and_an_empty_window_are_plain_sampling_bit_for_bit(solver, guidance, method) -> None:
    task = make_task(None, Green(), "999nfe", guidance=guidance, solver=solver)
    result = run_search(task, method, keep_all=True)
    again = make_task(None, Green(), "999nfe", guidance=guidance, solver=solver)
    assert torch.equal(torch.stack([one.latent for one in result.plain]), again.plain().latents)
    whole = again.sample(torch.arange(12) % 3, 1 + torch.arange(12) // 3)
    kept = {(p, one.candidate): one.latent for p, one in result.kept}
    for p, c, latent in zip(whole.prompt.tolist(), whole.candidate.tolist(), whole.latents, strict=True):
        assert torch.equal(kept[p, c], latent)
    assert task.ledger.total.gradient_calls == 0


def test_candidate_zero_stays_plain_and_strengths_take_turns() -> None:
    task = make_task(None, Green(), "9999nfe", count=2)
    result = run_search(task, Guidance(strengths=(0.0, 30.0, -30.0), candidates=6, clip=None), keep_all=True)
    plain = make_task(None, Green(), "9999nfe", count=2)
    for p in range(2):
        scores = {one.candidate: one.score for one in result.candidates if one.prompt == p}
        own = plain.sample(torch.full((7,), p), torch.arange(7)).score.tolist()
        assert scores[0] == pytest.approx(own[0]) and scores[1] == pytest.approx(own[1])
        assert scores[4] == pytest.approx(own[4])
        assert scores[2] > own[2] + 1e-3 and scores[5] > own[5] + 1e-3
        assert scores[3] < own[3] - 1e-3 and scores[6] < own[6] - 1e-3


# --- the gradient ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", (1.0, 2.5))
def test_the_correction_is_the_slope_of_the_previews_reward_by_finite_differences(guidance: float) -> None:
    task = make_task(None, Green(), "99999nfe", guidance=guidance, tile=5)
    rows = task.start(torch.tensor([0, 1, 2, 2, 0, 1]), torch.arange(6))
    t, w = torch.tensor(0.6), torch.tensor([1.0, 2.0, -1.0, 0.5, 3.0, 1.0])
    method = Guidance(clip=None)
    plain = task.velocity(rows, t)
    found = plain - method.velocity(task, Preview(), rows, t, w)
    flat, eps = rows.x.flatten(1), 1e-2
    numeric = torch.zeros_like(flat)
    for d in range(flat.shape[1]):
        there = []
        for sign in (1, -1):
            moved = flat.clone()
            moved[:, d] += sign * eps
            at = rows.at(moved.reshape(rows.x.shape))
            there.append(task.score(task.preview(at, task.velocity(at, t), t), rows.prompt))
        numeric[:, d] = ((there[0] - there[1]) / (2 * eps)).float()
    expected = (w * 0.6 / 0.4)[:, None] * numeric
    torch.testing.assert_close(found.flatten(1), expected, rtol=2e-2, atol=2e-5)
    assert expected.abs().max() > 1e-2


def test_the_correction_is_clipped_by_the_velocity_and_missing_ones_are_none() -> None:
    gradient = torch.tensor([[3.0, 4.0], [0.3, 0.4], [math.nan, 1.0], [0.0, 0.0], [math.inf, 0.0]])
    v = torch.tensor([[0.0, 2.0]]).expand(5, 2)
    strength = torch.tensor([1.0, -1.0, 1.0, 1.0, 1.0])
    clipped = correction(gradient, v, strength, 0.5)
    torch.testing.assert_close(clipped, torch.tensor([[0.6, 0.8], [-0.3, -0.4], [0, 0], [0, 0], [0, 0]]))
    torch.testing.assert_close(correction(gradient, v, strength, None)[0], gradient[0])


@torch.no_grad()
def test_a_candidate_without_a_reward_on_the_way_takes_plain_steps() -> None:
    lost = Green(lost=lambda value: value > -1)
    found = list(Guidance(candidates=2).run(make_task(None, lost, "999nfe")))
    plain = list(Guidance(candidates=2, strengths=(0.0,)).run(make_task(None, Green(), "999nfe")))
    for one, other in zip(found, plain, strict=True):
        assert torch.equal(one.prompt, other.prompt) and torch.equal(one.candidate, other.candidate)
        assert one.score.isnan().all() and other.score.isfinite().all()
        torch.testing.assert_close(one.latents, other.latents, rtol=0, atol=1e-6)


def test_everything_is_finite_at_the_noise_end() -> None:
    result = run_search(make_task(None, Green(), "999nfe"), Guidance(latest=1 - 1e-6, strengths=(1e6,), candidates=3))
    assert all(math.isfinite(one.score) for one in result.candidates)


def test_guidance_pays_and_the_more_the_stronger() -> None:
    means = []
    for w in (0.0, 3.0, 30.0):
        result = run_search(make_task(None, Green(), "999nfe", count=6), Guidance(strengths=(w,), candidates=4))
        means.append(sum(one.score for one in result.candidates if one.candidate) / 24)
    assert means[0] + 1e-3 < means[1] < means[2] - 1e-3


# --- budget ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    (Guidance(), Guidance(strengths=(1.0, 0.0)), Guidance(window=(1, 3)), Guidance(value=EXACT, strengths=(1.0, 2.0))),
)
@pytest.mark.parametrize("solver", ("euler", "heun"))
@pytest.mark.parametrize("budget", ("200nfe", "61rewards", "999nfe,43gradients", "300nfe,50decodes"))
def test_as_many_candidates_as_the_budget_pays_for(method: Guidance, solver: str, budget: str) -> None:
    model, reward = CountingModel(), Green()
    if method.value == EXACT:
        task = gaussian_task(5, budget=budget, solver=solver)
        model = task.model
    else:
        task = make_task(model, reward, budget, guidance=2.5, solver=solver, tile=7)
    result = run_search(task, method)
    total, lookout = task.ledger.total, ExactNoisy() if method.value == EXACT else Preview()
    count = len(result.candidates) // 3
    paid = method.work(task, method._guided(task.steps), lookout, range(1, count))
    assert task.ledger.spent(0) == task.sample_cost + paid
    more = method.work(task, method._guided(task.steps), lookout, range(1, count + 1))
    limits = task.budget.limits()
    assert any(getattr(task.sample_cost + more, kind) > limit for kind, limit in limits.items())
    assert total.network_calls == sum(model.rows)
    if method.value != EXACT:
        assert total.reward_calls == sum(reward.seen) and total.decodes == sum(model.decoded)
    assert Counter(one.candidate for one in result.candidates) == Counter({c: 3 for c in range(count)})


def test_gradient_calls_are_one_for_every_guided_velocity() -> None:
    task = make_task(None, Green(), "999nfe", solver="heun")
    run_search(task, Guidance(candidates=2, window=(1, 5)))
    assert task.ledger.spent(1).gradient_calls == 2 * (3 * 2 + 1)
    assert task.ledger.spent(1).network_calls == 3 * 9  # none besides those of the sampler


def test_where_only_time_is_limited_rounds_follow_each_other() -> None:
    clock = Clock()
    result = run_search(make_task(None, Slow(clock), "300s", clock=clock, tile=4), Guidance())
    numbers = [one.candidate for one in result.candidates if one.prompt == 0]
    assert numbers == list(range(len(numbers))) and len(numbers) > 22  # a round is of 21 candidates at most
    assert 0.7 * 900 < clock.now < 900 + 4


def test_the_first_round_under_a_clock_is_one_candidate_which_shows_what_a_gradient_takes() -> None:
    """A gradient here takes a hundred times what a velocity does; with rounds planned without it none would finish."""
    clock = Clock()

    class Steep(Green):
        def __call__(self, prompts: list[str], outputs: Tensor) -> Tensor:
            clock.now += (1.0 if outputs.requires_grad else 0.01) * len(outputs)
            return super().__call__(prompts, outputs)

    task = make_task(None, Steep(), "40s", count=2, clock=clock)
    result = run_search(task, Guidance())
    assert [one.candidate for one in result.candidates[:4]] == [0, 0, 1, 1]
    assert {one.candidate for one in result.candidates} >= {0, 1, 2, 3, 4, 5} and clock.now < 80


def test_over_several_rounds_strengths_go_on_in_turn_and_the_counts_hold() -> None:
    method = Guidance(strengths=(1.0, 0.0, 0.0))
    for limit in range(20, 45):
        task = make_task(None, Green(), f"99s,{limit}rewards", count=2)
        run_search(task, method)
        assert task.ledger.spent(0).reward_calls <= limit


@pytest.mark.parametrize(
    ("options", "message"),
    (
        ({"candidates": 0}, "0 candidates"),
        ({"candidates": 50}, "does not pay for 50"),
        ({"strengths": ()}, "no strengths"),
        ({"latest": 1.0}, "latest 1.0"),
        ({"clip": 0.0}, "clip 0.0"),
        ({"window": (3, 9)}, r"window \[3, 9\]"),
    ),
)
def test_options_that_make_no_sense_are_refused(options: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        run_search(make_task(None, Green(), "50nfe"), Guidance(**options))


def test_a_reward_without_gradient_is_refused() -> None:
    class Blind(Green):
        card = Card(summary="green", low=0, high=1)

    with pytest.raises(RecipeError, match="has no gradient"):
        run_search(make_task(None, Blind(), "50nfe"), Guidance())
