"""Particles against targets known in closed form, against sampling written out, and their ledger."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from tests.reference.enumerated import Gaussian, GaussianModel, sampled_gaussian, total_variation
from tests.reference.kernels import KERNELS, GaussianFlow
from tests.reference.toys import prompts
from tests.search.test_guidance import Slow
from tests.search.test_ledger import Clock
from tests.search.toys import CountingModel, Green, make_task
from torch import Tensor

from plaudit.errors import RecipeError
from plaudit.search.flow.lookouts import Preview
from plaudit.search.flow.particles import Particles, final_log_weights, finish, particle_work, steer
from plaudit.search.flow.task import FlowTask
from plaudit.search.run import run_search
from plaudit.search.weights import POTENTIALS, normalised

STEPS, LEVEL, MEAN, STD = 8, 0.8, 0.5, 1.2
EDGE = 1.0


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def above(prompts: list[str], outputs: Tensor) -> Tensor:
    """1 for numbers above the edge, else 0."""
    return (outputs[:, 0, 0, 0] > EDGE).double()


def itself(prompts: list[str], outputs: Tensor) -> Tensor:
    return outputs[:, 0, 0, 0].double()


def gaussian_task(reward, runs: int, kernel: str = "flow_sde", **rest) -> FlowTask:
    """`runs` prompts are as many independent runs."""
    rest = {"budget": "99999nfe", "steps": STEPS, "level": LEVEL, "tile": 100_000} | rest
    return make_task(GaussianModel(MEAN, STD), reward, asked=prompts(runs), kernel=kernel, **rest)


def sampler(task: FlowTask, kernel: str = "flow_sde", level: float = LEVEL) -> Gaussian:
    """What the task's stochastic sampler draws, in closed form."""
    flow = GaussianFlow(mean=MEAN, std=STD)

    def step(x: float, t: float, s: float) -> tuple[float, float]:
        at = np.array([x])
        moved = KERNELS[kernel](at, flow.velocity(at, t), t, s, level) if s > 0 else None
        if moved is None:
            return x - (t - s) * float(flow.velocity(at, t)[0]), 0.0
        return float(moved.mean[0]), moved.std

    return sampled_gaussian(step, task.times.double().tolist())


def weighted(task: FlowTask, options: Particles, count: int) -> tuple[Tensor, Tensor]:
    """Numbers and weights `[P, N]` of the finished particles."""
    cloud = steer(task, options, options._plan(task), Preview(), count)
    parts = list(finish(task, cloud))
    score, x = torch.cat([part.score for part in parts]), torch.cat([part.latents for part in parts])
    log_w = final_log_weights(options.alpha, cloud, score)
    return x.reshape(log_w.shape).double(), normalised(log_w)


def share_above(x: Tensor, weights: Tensor) -> Tensor:
    return ((x > EDGE) * weights).sum(1)


# --- the target ------------------------------------------------------------------------------------------------------

EXACT = {
    "difference": Particles(alpha=2.0),
    "max": Particles(alpha=2.0, potential="max"),
    "sum": Particles(alpha=1.0, potential="sum"),
    "each step, multinomial": Particles(alpha=2.0, every=1, points="multinomial", threshold=1.0),
    "weighted proposals": Particles(alpha=2.0, proposals=3, choose="weighted"),
    "weighted proposals in all steps": Particles(alpha=2.0, proposals=2, choose="weighted", share=1.0, every=1),
    # At alpha 1 their sum tilts by up to exp(21) on the way, and 256 particles are far too few.
    "weighted proposals, sum": Particles(
        alpha=0.3, potential="sum", proposals=2, choose="weighted", share=1.0, every=1
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_total_variation_to_the_target_falls_with_the_number_of_particles(name: str) -> None:
    options, errors = EXACT[name], []
    for count in (4, 32, 256):
        task = gaussian_task(above, runs=30, seed=count)
        plain = sampler(task).chance([EDGE])
        up = math.exp(options.alpha) * plain[1]
        target = [plain[0] / (plain[0] + up), up / (plain[0] + up)]
        assert total_variation(target, plain) > 0.06
        share = share_above(*weighted(task, options, count))
        errors.append((share - target[1]).abs().mean().item())
    assert errors[2] < errors[1] / 1.7 < errors[0] / 3  # like 1 / sqrt(N) would be 2.8 and 8
    assert errors[2] < 0.05


@pytest.mark.parametrize("kernel", ("flow_sde", "cps", "ddim_eta"))
@pytest.mark.parametrize("options", (Particles(alpha=0.7), Particles(alpha=0.7, proposals=3, choose="weighted")))
def test_a_linear_reward_moves_the_gaussian_by_alpha_variances(kernel: str, options: Particles) -> None:
    task = gaussian_task(itself, runs=40, kernel=kernel)
    target = sampler(task, kernel).tilted_by(0.7)
    x, weights = weighted(task, options, 250)
    mean = (x * weights).sum(1)
    spread = ((x - target.mean).square() * weights).sum(1).sqrt()
    assert abs(mean.mean().item() - target.mean) < 4 * mean.std().item() / 40**0.5 < 0.1
    assert spread.mean().item() == pytest.approx(target.std, rel=0.05)
    assert target.mean - sampler(task, kernel).mean > 0.5


def test_the_best_of_several_proposals_tilts_further_and_also_without_alpha() -> None:
    """So the published choice has no known target; ours with weights has."""
    task = gaussian_task(itself, runs=60)
    target = sampler(task)
    means = {}
    for choose in ("best", "weighted"):
        x, weights = weighted(task, Particles(alpha=0.0, proposals=4, choose=choose), 50)
        means[choose] = (x * weights).sum(1).mean().item()
    assert means["weighted"] == pytest.approx(target.mean, abs=0.1)
    assert means["best"] > target.mean + 0.5


def test_one_drawn_particle_is_a_sample_of_the_target() -> None:
    task = gaussian_task(above, runs=400)
    plain = sampler(task).chance([EDGE])[1]
    target = math.exp(2) * plain / (1 - plain + math.exp(2) * plain)
    result = run_search(task, Particles(alpha=2.0, particles=32, output="sampled"), keep_all=True)
    found = [one.score for one in result.candidates if one.candidate > 0]
    assert len(found) == 400
    error = (target * (1 - target) / 400) ** 0.5
    assert abs(np.mean(found) - target) < 4 * error + 0.01 and target > plain + 0.2


# --- sampling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("potential", POTENTIALS)
def test_alpha_zero_is_sampling_from_the_kernel(potential: str) -> None:
    task = make_task(None, Green(), "999nfe")
    cloud = steer(task, options := Particles(alpha=0.0, potential=potential), options._plan(task), Preview(), 6)
    found = torch.cat([part.latents for part in finish(task, cloud)])
    again = make_task(None, Green(), "999nfe")
    rows = again.start(torch.arange(3).repeat_interleave(6), 1 + torch.arange(6).repeat(3))
    for k in range(again.steps):
        t, t_next = again.times[k], again.times[k + 1]
        rows = again.move(rows, again.transition(rows, again.velocity(rows, t), t, t_next), k)
    assert torch.equal(found, rows.x)
    assert (cloud.log_w == 0).all() and task.ledger.total.reward_calls == 18


def test_copies_part_from_each_other() -> None:
    """With nearly all weight on one particle after the last judged step, its copies still end apart."""
    task = make_task(None, Green(), "999nfe")
    options = Particles(alpha=1e5, every=3)
    cloud = steer(task, options, options._plan(task), Preview(), 6)
    for p in range(3):
        x = torch.cat([part.latents for part in finish(task, cloud)]).reshape(3, 6, -1)[p]
        assert len({tuple(row) for row in x.tolist()}) == 6
        assert (x.std(0) > 0).all()


@pytest.mark.parametrize(
    "options",
    (
        Particles(alpha=50.0, every=1, particles=6),
        Particles(alpha=50.0, proposals=3, particles=5, choose="weighted"),
        Particles(alpha=50.0, proposals=2, particles=5, output="sampled"),
    ),
)
def test_the_result_does_not_depend_on_the_tile(options: Particles) -> None:
    wide, narrow = (run_search(make_task(None, Green(), "999nfe", tile=tile), options) for tile in (64, 4))
    assert len(wide.candidates) == len(narrow.candidates)
    for one, other in zip(wide.candidates, narrow.candidates, strict=True):
        assert (one.prompt, one.candidate) == (other.prompt, other.candidate)
        assert one.score == pytest.approx(other.score, abs=1e-6)


def test_alpha_pays() -> None:
    task = make_task(None, Green(), "9999nfe", count=8, steps=10)
    scores = {}
    for alpha in (0.0, 300.0):
        x = list(finish(task, steer(task, o := Particles(alpha=alpha, every=1), o._plan(task), Preview(), 16)))
        scores[alpha] = torch.cat([part.score for part in x]).mean().item()
    assert scores[300.0] > scores[0.0] + 0.01


# --- missing scores --------------------------------------------------------------------------------------------------


def test_missing_previews_change_no_weight_and_missing_rewards_are_never_drawn() -> None:
    task = gaussian_task(
        lambda prompts, outputs: torch.where(outputs[:, 0, 0, 0] > 0.5, math.nan, itself(prompts, outputs)), 30
    )
    x, weights = weighted(task, Particles(alpha=1.0, every=1), 32)
    assert (weights[x > 0.5] == 0).all() and (weights[x < 0.5] > 0).any()
    task = gaussian_task(lambda prompts, outputs: itself(prompts, outputs) * math.nan, 4)
    found = list(Particles(particles=5).run(task))
    assert all(batch.score.isnan().all() for batch in found) and found[0].candidate.tolist() == [0] * 4


# --- budget ----------------------------------------------------------------------------------------------------------

WORK = (
    Particles(),
    Particles(every=1),
    Particles(proposals=3),
    Particles(proposals=2, choose="weighted", share=1.0, every=2),
    Particles(alpha=0.0, output="sampled"),
    Particles(proposals=2, share=0.0),
)


@pytest.mark.parametrize("options", WORK)
@pytest.mark.parametrize("guidance", (1.0, 2.5))
@pytest.mark.parametrize("budget", ("200nfe", "77rewards", "300nfe,50decodes"))
def test_as_many_particles_as_the_budget_pays_for(options: Particles, guidance: float, budget: str) -> None:
    model, reward = CountingModel(), Green()
    task = make_task(model, reward, budget, guidance=guidance)
    each = particle_work(task, options._plan(task), Preview(), options.proposals)
    result = run_search(task, options)
    for p in range(3):
        spent = task.ledger.spent(p)
        room = [(limit - getattr(spent, kind)) / getattr(each, kind) for kind, limit in task.budget.limits().items()]
        assert 0 <= min(room) < 1
    total = task.ledger.total
    assert total.network_calls == sum(model.rows) and total.reward_calls == sum(reward.seen)
    assert total.decodes == sum(model.decoded) and result.stopped == "finished"


def test_candidates_are_the_plain_sample_and_the_particles() -> None:
    result = run_search(make_task(None, Green(), "999nfe"), Particles(particles=5))
    assert Counter((one.prompt, one.candidate) for one in result.candidates) == Counter(
        (p, c) for p in range(3) for c in range(6)
    )
    assert (result.scores >= result.plain_scores).all()


def test_where_only_time_is_limited_rounds_follow_each_other() -> None:
    clock = Clock()
    result = run_search(make_task(None, Slow(clock), "300s", clock=clock, tile=4), Particles())
    numbers = [one.candidate for one in result.candidates if one.prompt == 0]
    assert numbers == list(range(len(numbers))) and len(numbers) > 22  # a round is of 21 particles at most
    assert 0.7 * 900 < clock.now < 900 + 4
    assert len(run_search(make_task(None, Green(), "9s"), Particles(particles=2)).candidates) == 9


@pytest.mark.parametrize(
    ("options", "message"),
    (
        ({"particles": 0}, "particles 0; give 1 or more"),
        ({"proposals": 0}, "proposals 0"),
        ({"alpha": -1.0}, "alpha -1.0"),
        ({"share": 1.5}, "share 1.5"),
        ({"particles": 99}, "does not pay for 99"),
        ({"value": "tweedie"}, "value 'tweedie' is not known"),
    ),
)
def test_options_that_make_no_sense_are_refused(options: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        run_search(make_task(None, Green(), "50nfe"), Particles(**options))


def test_without_noise_there_is_no_search() -> None:
    with pytest.raises(RecipeError, match="level 0 draws no noise"):
        run_search(make_task(None, Green(), "50nfe", level=0.0), Particles())
