"""Beam search: the published count, the slow version, its limits, and what a budget buys."""

from __future__ import annotations

import pytest
import torch
from tests.reference.search import Walk, slow_beam
from tests.reference.toys import ExactFlow, prompts
from tests.search.test_ledger import Clock
from tests.search.test_prune import rounded
from tests.search.toys import CountingModel, Green, make_task

from plaudit.errors import RecipeError
from plaudit.search.budget import Cost
from plaudit.search.flow.beam import Beam, Width, _looked_at, beam_calls, beam_work
from plaudit.search.flow.steps import judge_previews
from plaudit.search.rows import Rows
from plaudit.search.run import run_search


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


# --- cost ------------------------------------------------------------------------------------------------------------


def test_the_papers_count() -> None:
    assert beam_calls(50, Width(beams=4, children=2, lookahead=6)) == 2552
    assert beam_calls(10, Width(beams=3, children=1, lookahead=1), searched=0) == 30


@pytest.mark.parametrize("guidance", (1.0, 2.5))
@pytest.mark.parametrize("window", (None, (1, 3), (0, 0), (2, 5)))
def test_the_ledger_agrees_with_the_model_and_with_the_count(window, guidance) -> None:
    model, reward, width = CountingModel(), Green(), Width(beams=3, children=2, lookahead=2)
    task = make_task(model, reward, "9999nfe", steps=5, guidance=guidance, tile=7)
    run_search(task, Beam(beams=3, children=2, lookahead=2, window=window))
    total = task.ledger.total
    assert total == Cost(network_calls=sum(model.rows), decodes=sum(model.decoded), reward_calls=sum(reward.seen))
    searched = {None: 4, (1, 3): 2, (0, 0): 0, (2, 5): 2}[window]
    work = beam_work(task, width, searched)
    assert all(task.ledger.spent(p) == work + task.sample_cost for p in range(3))
    each = 2 if guidance != 1 else 1
    assert work == Cost(
        network_calls=each * (15 + searched * 12), decodes=3 + 6 * searched, reward_calls=3 + 6 * searched
    )
    if window is None:
        assert work.network_calls == each * beam_calls(5, width)


# --- the search ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", (1, 5, 64))
@pytest.mark.parametrize("reward", (Green, rounded, lambda: rounded(0.55)), ids=("plain", "ties", "missing"))
@pytest.mark.parametrize(
    ("beams", "children", "lookahead", "window"),
    ((3, 2, 2, None), (1, 4, 1, None), (2, 3, 3, (1, 3)), (2, 1, 1, None)),
    ids=("beam", "greedy", "window", "one child"),
)
def test_against_a_slow_version(beams, children, lookahead, window, reward, tile) -> None:
    model, asked = CountingModel(), prompts(3)
    task = make_task(model, reward(), "9999nfe", asked=asked, kernel="flow_sde", level=0.7, tile=tile)
    result = run_search(task, Beam(beams=beams, children=children, lookahead=lookahead, window=window))
    judge = reward()
    for p, prompt in enumerate(asked):
        walk = Walk(model, prompt, lambda one: judge([""], one[None])[0].item(), 5)
        expected = slow_beam(walk, beams, children, lookahead, range(*(window or (0, 4))))
        found = {one.candidate: one.score for one in result.candidates if one.prompt == p and one.candidate}
        assert found == pytest.approx(expected, abs=1e-5, nan_ok=True)


def test_one_beam_with_one_child_and_no_noise_is_plain_sampling() -> None:
    task = make_task(None, Green(), "9999nfe", level=0.0)
    found = run_search(task, Beam(beams=1, children=1), keep_all=True)
    plain = make_task(None, Green(), "9999nfe").sample(torch.arange(3), torch.ones(3, dtype=torch.long))
    beams = torch.stack([kept.latent for p, kept in found.kept if kept.candidate == 1])
    torch.testing.assert_close(beams, plain.latents, rtol=0, atol=1e-6)


def test_looking_one_step_ahead_is_the_posterior_mean() -> None:
    task = make_task(None, Green(), "9999nfe", tile=4)
    rows = task.start(torch.arange(3).repeat_interleave(3), torch.arange(9) % 3)
    t = task.times[2]
    expected = judge_previews(task, rows, task.velocity(rows, t), 2)
    torch.testing.assert_close(_looked_at(task, rows, t, 1), expected, rtol=0, atol=1e-6)
    assert (_looked_at(task, rows, t, 3) - expected).abs().max() > 1e-3


def test_looking_further_ahead_comes_to_where_the_ode_ends() -> None:
    """Data N(0, 1/4): from time t the ODE ends at x_t / 2 / std_t, while the posterior mean is closer to 0."""

    def velocity(x, t):
        t = t.reshape(-1, 1)
        variance = (1 - t) ** 2 / 4 + t**2
        return (t - (1 - t) / 4) / variance * x

    class Gaussian(ExactFlow):
        encode, schedule = CountingModel.encode, CountingModel.schedule

        def decode(self, x0):
            return x0[:, :, None, None].expand(-1, 3, 2, 2)

    task = make_task(Gaussian(velocity), lambda prompts, outputs: outputs[:, 1, 0, 0], "9999nfe", count=1)
    x, zeros = torch.tensor([[-1.0], [0.3], [2.0]]), torch.zeros(3, dtype=torch.long)
    rows, t = Rows(x=x, prompt=zeros, candidate=torch.arange(3)), torch.tensor(0.7)
    end = (x[:, 0] / 2 / (0.3**2 / 4 + 0.7**2) ** 0.5).double()
    errors = [(_looked_at(task, rows, t, ahead) - end).abs().max().item() for ahead in (1, 4, 16, 200)]
    assert errors == sorted(errors, reverse=True) and errors[0] > 0.5 and errors[-1] < 0.01


def test_prompts_do_not_look_at_each_other_and_a_run_repeats() -> None:
    asked = prompts(3)
    first, again = (run_search(make_task(None, Green(), "120nfe", asked=asked), Beam()) for _ in range(2))
    assert torch.equal(first.scores, again.scores)
    for p, prompt in enumerate(asked):
        alone = run_search(make_task(None, Green(), "120nfe", asked=[prompt]), Beam())
        assert alone.best[0].score == pytest.approx(first.best[p].score, abs=1e-6)


# --- budget ----------------------------------------------------------------------------------------------------------


def test_a_budget_buys_four_beams_then_lookahead_then_more_beams() -> None:
    """With 5 steps a plain sample is 5 calls, and B beams with 2 children B (5 + 8 T')."""
    for calls, beams, ahead in ((17, 0, 1), (18, 1, 1), (57, 4, 1), (89, 4, 2), (217, 4, 6), (5 + 53 * 6, 6, 6)):
        task = make_task(None, Green(), f"{calls}nfe", count=2)
        result = run_search(task, Beam())
        assert len(result.candidates) == 2 * (1 + beams)
        expected = beam_work(task, Width(beams=beams, children=2, lookahead=ahead), 4)
        assert task.ledger.spent(0) == expected + task.sample_cost


@pytest.mark.parametrize("method", (Beam(), Beam(children=5), Beam(window=(1, 3)), Beam(lookahead=3)))
def test_odd_budgets_are_kept(method: Beam) -> None:
    for budget in [*(f"{n}nfe" for n in range(9, 400, 13)), "400nfe,19rewards", "31rewards", "400nfe,23decodes"]:
        task = make_task(CountingModel(), Green(), budget, count=2, guidance=1.0)
        result = run_search(task, method)
        assert result.stopped == "finished"
        assert all((task.ledger.counts[kind] <= limit).all() for kind, limit in task.budget.limits().items())
    assert len(result.candidates) > 2


def test_with_nothing_but_time_searches_have_noise_of_their_own() -> None:
    clock = Clock()

    class Slow(Green):
        def __call__(self, prompts, outputs):
            clock.now += len(outputs)
            return super().__call__(prompts, outputs)

    result = run_search(make_task(None, Slow(), "150s", count=2, clock=clock), Beam(lookahead=1), keep_all=True)
    assert result.stopped == "finished" and 210 < clock.now <= 300
    numbers = [(c.prompt, c.candidate) for c in result.candidates]
    assert len(set(numbers)) == len(numbers) and max(c for _, c in numbers) > 4
    latents = [tuple(kept.latent.flatten().tolist()) for _, kept in result.kept]
    assert len(set(latents)) == len(latents)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (Beam(children=0), "children 0"),
        (Beam(lookahead=0), "lookahead 0"),
        (Beam(beams=0), "beams 0"),
        (Beam(window=(3, 1)), r"window \[3, 1\]"),
        (Beam(beams=9), "does not pay for 9"),
    ],
)
def test_senseless_options_are_refused(method: Beam, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        run_search(make_task(None, Green(), "60nfe"), method)
