"""Pruning: the published cost, the slow version, and what is spent."""

from __future__ import annotations

import pytest
import torch
from tests.reference.search import Walk, slow_prune
from tests.reference.toys import prompts
from tests.search.test_ledger import Clock
from tests.search.toys import CountingModel, Green, make_task, suite_of

from plaudit.errors import RecipeError
from plaudit.rewards.base import Card
from plaudit.search.best_of_n import BestOfN
from plaudit.search.budget import Cost
from plaudit.search.flow.prune import Plan, Prune, default_plan, pruning_cost, pruning_work, survivors
from plaudit.search.run import run_search


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def rounded(lost: float = 2.0) -> Green:
    """Scores with many ties, missing above `lost`."""

    class Rounded(Green):
        def __call__(self, prompts, outputs):
            value = super().__call__(prompts, outputs)
            return ((value * 12).round() / 12).masked_fill(value > lost, torch.nan)

    return Rounded()


# --- cost ------------------------------------------------------------------------------------------------------------


def counted(steps: int, plan: Plan, seeds: int) -> tuple[int, int]:
    """Network calls and judged pictures, seed by seed and step by step."""
    ends = survivors(seeds, plan.keep)
    calls = judged = 0
    for seed in range(seeds):
        for s in range(steps):
            calls += 1
            if s in plan.at:
                judged += 1
                if seed >= ends[plan.at.index(s) + 1]:
                    break
        else:
            judged += 1
    return calls, judged


@pytest.mark.parametrize(
    ("steps", "at", "keep"),
    [
        (20, (2, 6, 11), (0.4, 0.4, 0.5)),
        (20, (0, 18), (0.5, 0.1)),
        (10, (4,), (0.3,)),
        (7, (1, 2, 3), (1.0, 0.5, 0.2)),
        (5, (), ()),
    ],
)
def test_the_published_cost_counts_every_call(steps, at, keep) -> None:
    plan, seeds = Plan(at=at, keep=keep), 1000
    calls, judged = counted(steps, plan, seeds)
    for network, preview in ((1.0, 0.0), (0.0, 1.0), (2.5, 0.7)):
        expected = (network * calls + preview * judged) / seeds
        assert pruning_cost(steps, plan, network=network, preview=preview) == pytest.approx(expected, rel=1e-12)


def test_the_papers_example_by_hand() -> None:
    plan = default_plan(20)
    assert plan == Plan(at=(2, 6, 11), keep=(0.4, 0.4, 0.5))
    assert pruning_cost(20, plan, network=1, preview=0) == pytest.approx(3 + 0.4 * 4 + 0.16 * 5 + 0.08 * 8)
    assert pruning_cost(20, plan, network=0, preview=1) == pytest.approx(1 + 0.4 + 0.16 + 0.08)
    assert pruning_cost(20, Plan(at=(), keep=()), network=3, preview=5) == 65


@pytest.mark.parametrize("tile", (3, 64))
@pytest.mark.parametrize(("guidance", "solver"), ((1.0, "euler"), (2.5, "euler"), (2.5, "heun")))
def test_the_ledger_agrees_with_the_model_and_with_the_formula(guidance, solver, tile) -> None:
    model, reward, plan = CountingModel(), Green(), Plan(at=(1, 3), keep=(0.5, 0.4))
    task = make_task(model, suite_of(reward, reward), "9999nfe", steps=6, guidance=guidance, solver=solver, tile=tile)
    run_search(task, Prune(seeds=20, at=plan.at, keep=plan.keep))
    total = task.ledger.total
    assert total == Cost(network_calls=sum(model.rows), decodes=sum(model.decoded), reward_calls=sum(reward.seen))
    work = pruning_work(task, plan, 20, task.calls_per_score) + task.sample_cost
    assert all(task.ledger.spent(p) == work for p in range(3))
    if solver == "euler":
        each = 2 if guidance != 1 else 1
        calls, judged = (pruning_cost(6, plan, network=n, preview=1 - n) * 20 for n in (1, 0))
        assert total.network_calls == pytest.approx(3 * each * (calls + 6))
        assert total.decodes == pytest.approx(3 * (judged + 1)) and total.reward_calls == 2 * total.decodes


def test_the_share_of_survivors_is_rounded_and_never_nothing() -> None:
    assert survivors(38, (0.4, 0.4, 0.5)) == [38, 15, 6, 3]
    assert survivors(1, (0.1, 0.1)) == [1, 1, 1] and survivors(0, (0.4,)) == [0, 0]


@pytest.mark.parametrize("steps", (1, 2, 3, 4, 5, 10, 20, 50))
def test_the_default_plan_scales(steps: int) -> None:
    plan = default_plan(steps)
    assert all(0 < s < steps - 1 for s in plan.at) and list(plan.at) == sorted(set(plan.at))
    if steps == 10:
        assert plan.at == (1, 3, 6)
    if steps == 4:
        assert plan.at == (1, 2) and plan.keep == pytest.approx((0.16, 0.5))


# --- the search ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", (1, 5, 64))
@pytest.mark.parametrize("reward", (Green, rounded, lambda: rounded(0.55)), ids=("plain", "ties", "missing"))
@pytest.mark.parametrize(("at", "keep"), (((1, 3), (0.5, 0.5)), ((0,), (0.3,)), ((2, 3, 4), (0.8, 0.4, 0.5))))
def test_against_a_slow_version(reward, at, keep, tile) -> None:
    model, asked = CountingModel(), prompts(3)
    task = make_task(model, reward(), "9999nfe", asked=asked, steps=6, tile=tile)
    result = run_search(task, Prune(seeds=11, at=at, keep=keep))
    judge = reward()
    for p, prompt in enumerate(asked):
        expected = slow_prune(Walk(model, prompt, lambda one: judge([""], one[None])[0].item(), 6), 11, at, keep)
        found = {one.candidate: one.score for one in result.candidates if one.prompt == p and one.candidate}
        assert found == pytest.approx(expected, abs=1e-5, nan_ok=True)
    assert any(one.candidate for one in result.best)


def test_keeping_all_is_best_of_n() -> None:
    everything = run_search(make_task(None, Green(), "9999nfe"), BestOfN(candidates=9))
    kept = run_search(make_task(None, Green(), "9999nfe"), Prune(seeds=8, at=(1, 2), keep=(1.0, 1.0)))
    assert {(c.prompt, c.candidate) for c in kept.candidates} == {
        (c.prompt, c.candidate) for c in everything.candidates
    }
    torch.testing.assert_close(kept.scores, everything.scores, rtol=0, atol=1e-6)


def test_prompts_do_not_look_at_each_other_and_a_run_repeats() -> None:
    asked = prompts(3)
    first, again = (run_search(make_task(None, Green(), "90nfe", asked=asked), Prune()) for _ in range(2))
    assert [(c.prompt, c.candidate, c.score) for c in first.candidates] == [
        (c.prompt, c.candidate, c.score) for c in again.candidates
    ]
    for p, prompt in enumerate(asked):
        alone = run_search(make_task(None, Green(), "90nfe", asked=[prompt]), Prune())
        assert alone.best[0].candidate == first.best[p].candidate
        assert alone.best[0].score == pytest.approx(first.best[p].score, abs=1e-6)


@pytest.mark.parametrize("guidance", (1.0, 2.5))
@pytest.mark.parametrize("solver", ("euler", "heun"))
def test_odd_budgets_are_kept_and_used(guidance: float, solver: str) -> None:
    """Never more than the budget, and one seed more would have been too many."""
    plan = Plan(at=(1, 3), keep=(0.4, 0.5))
    for budget in [*(f"{n}nfe" for n in range(21, 200, 7)), "200nfe,9rewards", "400nfe,13decodes", "31rewards"]:
        task = make_task(CountingModel(), Green(), budget, count=2, guidance=guidance, solver=solver)
        assert run_search(task, Prune(at=plan.at, keep=plan.keep)).stopped == "finished"
        spent = [task.sample_cost + pruning_work(task, plan, n, 1) for n in range(90)]
        drawn = spent.index(task.ledger.spent(0))
        assert task.budget.times(spent[drawn]) == 1 and task.budget.times(spent[drawn + 1]) == 0


def test_more_than_the_budget_pays_for_is_refused() -> None:
    with pytest.raises(
        RecipeError, match="prune: seeds: besides the plain sample the budget 40nfe does not pay for 99"
    ):
        run_search(make_task(None, Green(), "40nfe"), Prune(seeds=99))


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (Prune(at=(1,)), "`at` names 1 steps and `keep` 0 shares"),
        (Prune(at=(4,), keep=(0.5,)), "rising numbers from 0 to 3"),
        (Prune(at=(2, 1), keep=(0.5, 0.5)), "rising numbers"),
        (Prune(at=(1,), keep=(0.0,)), "above 0 and at most 1"),
        (Prune(seeds=-1), "-1 seeds"),
        (Prune(rank="ranks", previews="slots"), "give one of the two"),
    ],
)
def test_senseless_options_are_refused(method: Prune, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        run_search(make_task(None, Green(), "60nfe"), method)


def test_with_nothing_but_time_rounds_follow_each_other() -> None:
    clock = Clock()

    class Slow(Green):
        def __call__(self, prompts, outputs):
            clock.now += len(outputs)
            return super().__call__(prompts, outputs)

    result = run_search(make_task(None, Slow(), "60s", count=3, tile=12, clock=clock), Prune())
    assert result.stopped == "finished" and 126 < clock.now <= 180
    numbers = [(c.prompt, c.candidate) for c in result.candidates]
    assert len(set(numbers)) == len(numbers) and max(c for _, c in numbers) > 13


# --- several rewards -------------------------------------------------------------------------------------------------


class Red:
    card = Card(summary="red, less is better", low=0, high=1, higher_is_better=False)

    def __call__(self, prompts, outputs):
        return outputs[:, 0].mean((1, 2))


def test_ranks_of_several_rewards_add_up() -> None:
    """Green up and red down, by places among the prompt's eleven seeds. The sum of values would choose others."""
    model, asked = CountingModel(), prompts(3)

    def run(rank: str):
        suite = suite_of(Green(), Red(), combine="20 * r0 - r1")
        return run_search(
            make_task(model, suite, "9999nfe", asked=asked, steps=6), Prune(seeds=11, at=(2,), keep=(0.4,), rank=rank)
        )

    ranked, total = run("ranks"), run("total")
    for p, prompt in enumerate(asked):
        walk = Walk(model, prompt, lambda one: 0.0, 6)
        seen = []
        for c in range(1, 12):
            x = walk.walk(walk.noise(c, "initial"), 0, 2)
            picture = model.decode(x - walk.time(2) * walk.velocity(x, walk.time(2)))[0]
            seen.append((picture[1].mean().item(), -picture[0].mean().item()))
        place = [sum(other[r] < one[r] for other in seen) for one in seen for r in (0, 1)]
        sums = [place[2 * i] + place[2 * i + 1] for i in range(11)]
        expected = sorted(range(11), key=lambda i: -sums[i])[:4]
        found = {one.candidate for one in ranked.candidates if one.prompt == p and one.candidate}
        assert found == {i + 1 for i in expected}
    assert {(c.prompt, c.candidate) for c in ranked.candidates} != {(c.prompt, c.candidate) for c in total.candidates}
