"""Noise optimisation against the published loop on one image, and its book-keeping."""

from __future__ import annotations

import math

import pytest
import torch
from tests.reference.toys import prompts
from tests.search.toys import CountingModel, Green, make_task, suite_of
from torch import Tensor

from plaudit.errors import RecipeError
from plaudit.models.lab import LabFlowModel
from plaudit.rewards.base import Card
from plaudit.rewards.learned.proxy import SceneProxy
from plaudit.search.budget import Cost
from plaudit.search.flow.optimise_noise import Noise
from plaudit.search.options import find_method
from plaudit.search.run import run_search


class Ticking:
    """A clock that moves on by one second whenever it is read."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


class Steep:
    """A reward with slopes of about one, so that clipping matters for some prompts and not for others."""

    card = Card(summary="steep", low=-99, high=99, differentiable=True)

    def __call__(self, prompts: list[str], outputs: Tensor) -> Tensor:
        scale = torch.tensor([1 + float(text.split()[-1]) for text in prompts])
        return scale * (3 * outputs.mean((2, 3))).sin().sum(1)


def published(task, p: int, method: Noise, iterations: int) -> list[tuple[float, Tensor]]:
    """Scores and pictures of the iterates: the paper's loop, one image at a time, with torch's optimiser."""
    model, condition = task.model, task.conditioning.condition.select(torch.tensor([p]))
    e = task.start(torch.tensor([p]), torch.tensor([0])).x.clone().requires_grad_()
    optimizer = torch.optim.SGD([e], lr=method.lr, momentum=method.momentum, nesterov=True)
    seen = []
    for _ in range(iterations):
        x = e
        for t, t_next in zip(task.times[:-1], task.times[1:], strict=True):
            x = x - (t - t_next) * model.velocity(x, t.expand(1), condition)
        picture = model.decode(x)
        reward = task.suite.rewards[0].caller.function([task.prompts[p].text], picture)
        norm = e.norm()
        loss = method.prior * (0.5 * norm**2 - (e.numel() - 1) * norm.log()) - reward.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([e], method.clip)
        optimizer.step()
        seen.append((reward.item(), picture.detach()[0]))
    return seen


@pytest.mark.parametrize("method", (Noise(lr=0.5, clip=0.1), Noise(lr=0.1, clip=0.5, prior=0.3, momentum=0.5)))
@pytest.mark.parametrize("tile", (2, 64))
def test_every_prompt_takes_the_published_path(method: Noise, tile: int) -> None:
    task = make_task(reward=Steep(), budget="24nfe", count=5, steps=2, tile=tile)
    result = run_search(task, method, keep_all=True)
    for p in range(5):
        ours = sorted((kept for owner, kept in result.kept if owner == p), key=lambda kept: kept.candidate)
        expected = published(task, p, method, 12)
        assert [kept.candidate for kept in ours] == list(range(12))
        for kept, (score, picture) in zip(ours, expected, strict=True):
            assert kept.score == pytest.approx(score, abs=1e-4)
            torch.testing.assert_close(kept.output, picture, atol=1e-4, rtol=0)
        assert max(score for score, _ in expected) == pytest.approx(result.best[p].score, abs=1e-4)
    assert (result.scores - result.plain_scores).mean() > 0.05


def test_iterate_zero_is_the_plain_sample_and_its_score_has_no_prior_in_it() -> None:
    task, again = (make_task(reward=Steep(), budget="20nfe", steps=2) for _ in range(2))
    result = run_search(task, Noise(prior=5.0))
    with torch.no_grad():
        plain = again.plain()
    torch.testing.assert_close(result.plain_scores, plain.score, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(torch.stack([kept.output for kept in result.plain]), plain.outputs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("budget", "iterates"), (("20nfe", 10), ("7decodes", 7), ("5rewards", 5), ("4gradients", 5), ("2nfe", 1))
)
def test_each_iterate_costs_a_sample_and_a_gradient_but_the_last_has_none(budget: str, iterates: int) -> None:
    model, reward = CountingModel(), Green()
    task = make_task(model, reward, budget, steps=2)
    result = run_search(task, Noise())
    each = task.sample_cost * iterates + task.cost(gradients=iterates - 1)
    assert [task.ledger.spent(p) for p in range(3)] == [each] * 3
    assert len(result.candidates) == 3 * iterates
    assert sum(model.rows) == 3 * 2 * iterates and sum(reward.seen) == sum(model.decoded) == 3 * iterates


def test_guidance_is_paid_for() -> None:
    task = make_task(reward=Green(), budget="40nfe", steps=2, guidance=2.0)
    run_search(task, Noise())
    assert task.ledger.spent(0) == Cost(network_calls=40, decodes=10, reward_calls=10, gradient_calls=9)


def test_more_iterations_than_the_budget_pays_for_are_refused() -> None:
    with pytest.raises(RecipeError, match="10 of 11"):
        run_search(make_task(reward=Green(), budget="20nfe", steps=2), Noise(iterations=11))
    with pytest.raises(RecipeError, match="at least 1"):
        run_search(make_task(reward=Green(), budget="20nfe", steps=2), Noise(iterations=0))
    task = make_task(reward=Green(), budget="20nfe", steps=2)
    assert len(run_search(task, Noise(iterations=4)).candidates) == 12


def test_a_missing_score_ends_one_prompt_and_no_other() -> None:
    class Partial(Steep):
        def __call__(self, prompts: list[str], outputs: Tensor) -> Tensor:
            lost = torch.tensor([text.endswith("1") for text in prompts])
            return super().__call__(prompts, outputs).masked_fill(lost, math.nan)

    task, whole = (make_task(reward=kind(), budget="20nfe", steps=2) for kind in (Partial, Steep))
    result, expected = run_search(task, Noise(lr=0.5)), run_search(whole, Noise(lr=0.5))
    assert task.ledger.spent(1) == task.sample_cost + task.cost(gradients=1)
    assert math.isnan(result.best[1].score) and result.best[1].candidate == 0
    torch.testing.assert_close(result.scores[[0, 2]], expected.scores[[0, 2]], rtol=1e-6, atol=1e-7)


def test_a_prompt_goes_its_way_in_any_company() -> None:
    together = run_search(make_task(reward=Steep(), budget="16nfe", steps=2, count=4), Noise(lr=0.5))
    for p in range(4):
        task = make_task(reward=Steep(), budget="16nfe", steps=2, asked=prompts(4)[p : p + 1])
        assert run_search(task, Noise(lr=0.5)).scores.item() == pytest.approx(together.scores[p].item(), abs=1e-5)


def test_when_only_time_is_limited_it_goes_on_until_that_is_up() -> None:
    task = make_task(reward=Green(), budget="40s", steps=2, clock=Ticking())
    result = run_search(task, Noise(lr=0.5))
    assert result.stopped == "time"
    assert len(result.candidates) > 3 and {one.candidate for one in result.candidates} >= {0, 1}


def test_without_the_prior_the_norm_drifts_and_with_a_strong_one_it_stays() -> None:
    """The reward pays for distance from the origin."""

    class Bright:
        card = Card(summary="bright", low=-99, high=99, differentiable=True)

        def __call__(self, prompts: list[str], outputs: Tensor) -> Tensor:
            return outputs.logit().square().sum((1, 2, 3))

    norms = {}
    for prior in (0.0, 50.0):
        task, seen = make_task(reward=Bright(), budget="60nfe", steps=1), []
        task.model.velocity = lambda x, t, condition: torch.zeros_like(x)
        for found in Noise(lr=0.5, prior=prior).run(task):
            seen.append(found.latents.flatten(1).norm(dim=1).mean().item())
        norms[prior] = seen
    assert norms[0.0][0] == norms[50.0][0]
    assert norms[0.0][-1] > norms[0.0][0] + 5
    assert abs(norms[50.0][-1] - 11**0.5) < 1


def test_the_command_line_finds_it_by_its_path() -> None:
    assert find_method("plaudit.search.flow.optimise_noise:Noise", {"lr": 1, "iterations": 3}, "flow") == Noise(
        lr=1.0, iterations=3
    )


def test_it_climbs_the_lab_proxy() -> None:
    from plaudit.lab.scenes.grammar import evaluation_prompts

    model = LabFlowModel("slots")
    task = make_task(model, suite_of(SceneProxy()), "24nfe", steps=4, asked=evaluation_prompts("heldout", 6))
    result = run_search(task, Noise(lr=0.3))
    assert (result.scores >= result.plain_scores).all()
    assert result.scores.mean() > result.plain_scores.mean()
