"""Prune and re-noise: the forward process between two times, the slow version, and what is spent."""

from __future__ import annotations

import pytest
import torch
from tests.reference.search import Walk, slow_renoise
from tests.reference.toys import prompts
from tests.search.test_ledger import Clock
from tests.search.test_prune import rounded
from tests.search.toys import CountingModel, Green, make_task
from torch import Tensor

from plaudit.errors import RecipeError
from plaudit.search.best_of_n import BestOfN
from plaudit.search.budget import Cost
from plaudit.search.flow.renoise import Checkpoint, Renoise, checkpoints, renoise_calls, renoise_work, renoised
from plaudit.search.run import run_search


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


# --- the forward process ---------------------------------------------------------------------------------------------

DRAWS = 200_000


def normal(seed: int) -> Tensor:
    return torch.randn(DRAWS, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(found: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Mean and covariance of draws `[N, 2]`, within five standard errors of what they should be."""
    spread = covariance.diagonal().sqrt()
    assert ((found.mean(0) - mean).abs() < 5 * spread / DRAWS**0.5).all()
    assert ((found.T.cov() - covariance).abs() < 5 * 1.5 * spread[:, None] * spread[None] / DRAWS**0.5).all()


@pytest.mark.parametrize(("t", "t_noisier"), ((0.1, 0.9), (0.5, 0.7), (0.6, 0.6), (0.0, 0.4), (0.3, 1.0)))
def test_renoised_states_are_distributed_as_the_forward_process(t: float, t_noisier: float) -> None:
    """For one clean state, and for clean states of a correlated Gaussian."""
    clean = torch.tensor([1.5, -0.7], dtype=torch.float64)
    factor = torch.tensor([[0.8, 0.0], [0.5, 0.3]], dtype=torch.float64)
    one = torch.ones(DRAWS, dtype=torch.float64)
    for x0, covariance in (
        (clean.expand(DRAWS, 2), torch.zeros(2, 2)),
        (clean + normal(1) @ factor.T, factor @ factor.T),
    ):
        x = (1 - t) * x0 + t * normal(2)
        again = renoised(x, normal(3), t * one, t_noisier * one)
        expected = (1 - t_noisier) ** 2 * covariance + t_noisier**2 * torch.eye(2)
        close(again, (1 - t_noisier) * clean, expected.double())
    if t == t_noisier:
        assert torch.equal(again, x)


def test_a_renoised_preview_would_be_too_narrow() -> None:
    """Which is why the state is re-noised: E[x_0 | x_t] of Gaussian data with variance 1 has variance less than 1."""
    t, t_noisier = 0.6, 0.7
    one = torch.ones(DRAWS, dtype=torch.float64)
    x = (1 - t) * normal(1) + t * normal(2)
    preview = x * (1 - t) / ((1 - t) ** 2 + t**2)
    wanted = (1 - t_noisier) ** 2 + t_noisier**2
    assert ((1 - t_noisier) * preview + t_noisier * normal(3)).var() < 0.95 * wanted
    assert renoised(x, normal(3), t * one, t_noisier * one).var() == pytest.approx(wanted, rel=0.01)


def test_two_renoisings_are_one() -> None:
    """The factors multiply and the variances add up."""
    x, zero, unit = torch.ones(1, 1), torch.zeros(1, 1), torch.ones(1, 1)
    t, u, w = (torch.tensor([value]) for value in (0.2, 0.5, 0.8))
    torch.testing.assert_close(renoised(renoised(x, zero, t, u), zero, u, w), renoised(x, zero, t, w))
    first, second = renoised(zero, unit, t, u), renoised(zero, unit, u, w)
    through = renoised(first, zero, u, w).square() + second.square()
    torch.testing.assert_close(through, renoised(zero, unit, t, w).square())


# --- the search ------------------------------------------------------------------------------------------------------


def test_checkpoints() -> None:
    assert checkpoints(10, 3, 2) == [Checkpoint(at=3, to=1), Checkpoint(at=6, to=4)]
    assert checkpoints(4, 1, 5) == [Checkpoint(at=2, to=1)]
    assert checkpoints(3, 1, 2) == [] and checkpoints(1, 1, 1) == []


@pytest.mark.parametrize("tile", (1, 5, 64))
@pytest.mark.parametrize("reward", (Green, rounded, lambda: rounded(0.55)), ids=("plain", "ties", "missing"))
@pytest.mark.parametrize(("every", "back", "keep"), ((2, 1, 0.25), (3, 3, 0.3), (2, 2, 1.0)))
def test_against_a_slow_version(every, back, keep, reward, tile) -> None:
    model, asked, steps = CountingModel(), prompts(3), 6
    task = make_task(model, reward(), "9999nfe", asked=asked, steps=steps, tile=tile)
    result = run_search(task, Renoise(candidates=8, every=every, back=back, keep=keep))
    judge = reward()
    points = [(s, max(1, s - back)) for s in range(every, steps - 1, every)]
    for p, prompt in enumerate(asked):
        walk = Walk(model, prompt, lambda one: judge([""], one[None])[0].item(), steps)
        expected = slow_renoise(walk, 8, round(8 * keep), points)
        found = {one.candidate: one.score for one in result.candidates if one.prompt == p and one.candidate}
        assert found == pytest.approx(expected, abs=1e-5, nan_ok=True)


def test_keeping_all_is_best_of_n() -> None:
    everything = run_search(make_task(None, Green(), "9999nfe"), BestOfN(candidates=9))
    kept = run_search(make_task(None, Green(), "9999nfe"), Renoise(candidates=8, keep=1.0))
    torch.testing.assert_close(kept.scores, everything.scores, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("guidance", "solver"), ((1.0, "euler"), (2.5, "euler"), (2.5, "heun")))
def test_the_ledger_agrees_with_the_model_and_with_the_count(guidance: float, solver: str) -> None:
    model, reward = CountingModel(), Green()
    task = make_task(model, reward, "9999nfe", steps=10, guidance=guidance, solver=solver)
    run_search(task, Renoise(candidates=8, every=3, back=2))
    total, points = task.ledger.total, checkpoints(10, 3, 2)
    assert total == Cost(network_calls=sum(model.rows), decodes=sum(model.decoded), reward_calls=sum(reward.seen))
    work = renoise_work(task, points, 8, 2)
    assert all(task.ledger.spent(p) == work + task.sample_cost for p in range(3))
    assert work.decodes == work.reward_calls == 24
    if solver == "euler":
        assert renoise_calls(10, points, 8, 2) == 8 * 10 + 2 * 6 * 3
        assert work.network_calls == renoise_calls(10, points, 8, 2) * (2 if guidance != 1 else 1)


@pytest.mark.parametrize("solver", ("euler", "heun"))
def test_odd_budgets_are_kept_and_used(solver: str) -> None:
    for budget in [*(f"{n}nfe" for n in range(9, 200, 7)), "200nfe,9rewards", "31rewards"]:
        task = make_task(CountingModel(), Green(), budget, count=2, solver=solver)
        method = Renoise(every=2)
        assert run_search(task, method).stopped == "finished"
        points = checkpoints(5, 2, 2)
        spent = [task.sample_cost + renoise_work(task, points, n, method._kept(n)) for n in range(60)]
        spent[0] = task.sample_cost
        drawn = spent.index(task.ledger.spent(0))
        assert task.budget.times(spent[drawn]) > 0 and task.budget.times(spent[drawn + 1]) == 0


def test_prompts_do_not_look_at_each_other_and_a_run_repeats() -> None:
    asked = prompts(3)
    first, again = (run_search(make_task(None, Green(), "120nfe", asked=asked), Renoise()) for _ in range(2))
    assert torch.equal(first.scores, again.scores)
    for p, prompt in enumerate(asked):
        alone = run_search(make_task(None, Green(), "120nfe", asked=[prompt]), Renoise())
        assert alone.best[0].score == pytest.approx(first.best[p].score, abs=1e-6)


def test_with_nothing_but_time_rounds_have_noise_of_their_own() -> None:
    clock = Clock()

    class Slow(Green):
        def __call__(self, prompts, outputs):
            clock.now += len(outputs)
            return super().__call__(prompts, outputs)

    result = run_search(make_task(None, Slow(), "40s", count=2, tile=8, clock=clock), Renoise(every=2), keep_all=True)
    assert result.stopped == "finished" and 56 < clock.now <= 80
    numbers = [(c.prompt, c.candidate) for c in result.candidates]
    assert len(set(numbers)) == len(numbers) and max(c for _, c in numbers) > 8
    latents = [tuple(kept.latent.flatten().tolist()) for _, kept in result.kept]
    assert len(set(latents)) == len(latents)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (Renoise(keep=0.0), "keep 0.0"),
        (Renoise(back=0), "back 0"),
        (Renoise(every=0), "every 0"),
        (Renoise(candidates=-1), "-1 candidates"),
        (Renoise(candidates=99), "does not pay for 99"),
    ],
)
def test_senseless_options_are_refused(method: Renoise, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        run_search(make_task(None, Green(), "60nfe"), method)
