"""A task's operations: the model's own arithmetic, every call counted, and nothing done that is not paid for."""

from __future__ import annotations

import pytest
import torch
from tests.reference.toys import ToyFlowModel, prompts
from tests.search.test_ledger import Clock
from tests.search.toys import CountingModel, Green, make_task, suite_of
from torch import Tensor

from plaudit.errors import RecipeError, RewardError
from plaudit.lab.scenes.grammar import evaluation_prompts
from plaudit.models.conditioning import PromptEncoder
from plaudit.models.flow import guided_velocity
from plaudit.models.lab import LabFlowModel
from plaudit.recipe.rewards import RewardConfig
from plaudit.recipe.sampling import EvaluationSampler, Sampler
from plaudit.rewards.calling.request import make_request
from plaudit.rewards.gradients import differentiable_total
from plaudit.rewards.suite import load_suite
from plaudit.sampling.drawers import generate, make_drawer
from plaudit.sampling.kernels import transition
from plaudit.sampling.noise import SampleKey, gaussian
from plaudit.sampling.plan import deterministic_plan
from plaudit.sampling.rollout import draw
from plaudit.search.base import PLAIN_STEP, REPEATED, Task, TimeUp
from plaudit.search.budget import Budget, BudgetExceeded, Cost
from plaudit.search.rows import Rows, best_rows, places


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def start(task, each: int = 4) -> Rows:
    P = len(task.prompts)
    return task.start(torch.arange(P).repeat_interleave(each), torch.arange(each).repeat(P))


# --- counting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", (1, 5, 64))
@pytest.mark.parametrize(("guidance", "solver", "velocities"), ((1.0, "euler", 5), (2.5, "euler", 5), (2.5, "heun", 9)))
def test_ledger_equals_what_the_model_and_the_reward_saw(tile, guidance, solver, velocities) -> None:
    model, reward = CountingModel(), Green()
    task = make_task(model, suite_of(reward, reward), "999nfe", guidance=guidance, solver=solver, tile=tile)
    assert task.sample_cost == task.cost(velocities=velocities, decodes=1, scores=1)
    task.sample(torch.tensor([0, 1, 1, 2, 2, 2, 2]), torch.arange(7))
    total = task.ledger.total
    assert total == Cost(network_calls=sum(model.rows), decodes=sum(model.decoded), reward_calls=sum(reward.seen))
    assert total == task.sample_cost * 7 and total.network_calls == 7 * velocities * (2 if guidance != 1 else 1)
    assert [task.ledger.spent(p) for p in range(3)] == [task.sample_cost * n for n in (1, 2, 4)]
    assert all(seconds > 0 for kind, seconds in task.ledger.total_seconds().items() if kind != "gradient_calls")


@pytest.mark.parametrize("budget", ("11nfe", "3decodes", "3rewards", "3gradients"))
def test_nothing_is_done_that_the_budget_does_not_pay_for(budget: str) -> None:
    model, reward = CountingModel(), Green()
    task = make_task(model, reward, budget, tile=2)
    rows = start(task)
    work = {
        "nfe": lambda: [task.velocity(rows, 1.0) for _ in range(3)],
        "decodes": lambda: task.decode(rows),
        "rewards": lambda: task.score(model.decode(rows.x), rows.prompt),
        "gradients": lambda: task.value_and_gradient(rows, lambda part: part.x.square().flatten(1).sum(1)),
    }[budget.lstrip("0123456789")]
    model.rows, before = [], len(reward.seen)
    with pytest.raises(BudgetExceeded):
        work()
    assert sum(model.rows) == (
        2 * 12 if "nfe" in budget else 0
    )  # the third velocity was refused whole, not after a tile
    assert len(reward.seen) == before
    assert task.ledger.total == Cost(network_calls=sum(model.rows))


def test_a_moment_after_the_deadline_no_work_begins_but_the_plain_samples_are_drawn() -> None:
    model, clock = CountingModel(), Clock()
    task = make_task(model, Green(), "9s", clock=clock)
    task.deadline = 1.0
    task.velocity(start(task), 1.0)
    clock.now = 1.0
    seen = sum(model.rows)
    with pytest.raises(TimeUp):
        task.velocity(start(task), 1.0)
    with pytest.raises(TimeUp):
        task.sample(torch.tensor([0]), torch.tensor([1]))
    assert sum(model.rows) == seen
    assert len(task.plain()) == 3 and task.deadline == 1.0


# --- the model's own arithmetic --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "guidance", "solver"), (("slots", 1.0, "euler"), ("slots", 3.0, "heun"), ("pixels", 1.0, "euler"))
)
def test_plain_samples_are_what_the_model_draws_bit_for_bit(name: str, guidance: float, solver: str) -> None:
    model, asked = LabFlowModel(name), evaluation_prompts("heldout", 5)
    sampler = EvaluationSampler(steps=4, guidance=guidance, solver=solver, tile=3)
    task = make_task(model, None, "9999nfe", asked=asked, steps=4, guidance=guidance, solver=solver, tile=3, seed=7)
    expected = generate(make_drawer(model, Sampler(), sampler), asked, 7)
    found = task.plain()
    assert torch.equal(found.outputs, expected.outputs)
    assert task.ledger.total.network_calls == expected.samples.network_calls
    assert found.score.isnan().all() and task.ledger.total.reward_calls == 0


def test_candidates_are_further_samples_of_the_same_prompt() -> None:
    """As `plaudit sample --count 4` draws them."""
    model, asked = ToyFlowModel(), prompts(2)
    task = make_task(model, Green(), "999nfe", asked=asked)
    found = task.sample(torch.tensor([1, 1, 1, 1]), torch.arange(4))
    keys = [SampleKey(seed=0, step=PLAIN_STEP, prompt=asked[1].id, index=i) for i in range(4)]
    plan = deterministic_plan(model.schedule(5, None), 4)
    drawn = draw(model, PromptEncoder(model)([asked[1]] * 4, 1.0), plan, keys, tile=64)
    assert torch.equal(found.latents, drawn.latents)
    assert torch.equal(found.outputs, model.decode(drawn.latents))


def test_a_prompt_that_is_asked_for_twice_is_drawn_anew() -> None:
    asked = [*prompts(2), *prompts(2)]
    task = make_task(None, Green(), "999nfe", asked=asked)
    found = task.plain()
    assert not torch.isclose(found.latents[:2], found.latents[2:]).any()
    assert [key.index for key in task.keys(torch.arange(4), torch.full((4,), 3))] == [3, 3, REPEATED + 3, REPEATED + 3]


@pytest.mark.parametrize("guidance", (1.0, 2.5))
def test_velocity_and_preview(guidance: float) -> None:
    model = ToyFlowModel()
    task = make_task(model, None, "999nfe", guidance=guidance, tile=5)
    rows, t = start(task), torch.linspace(0.2, 0.9, 12)
    v = task.velocity(rows, t)
    for i in range(12):
        one = guided_velocity(model, rows.x[i : i + 1], t[i : i + 1], task.conditioning.select(rows.prompt[i : i + 1]))
        torch.testing.assert_close(v[i : i + 1], one, rtol=0, atol=1e-6)
        expected = model.decode((rows.x[i] - t[i] * v[i])[None])
        torch.testing.assert_close(task.preview(rows, v, t)[i : i + 1], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kernel", ("flow_sde", "constant_eta", "cps", "ddim_eta"))
def test_moves_draw_the_kernel_with_the_rows_own_noise(kernel: str) -> None:
    task = make_task(None, None, "999nfe", kernel=kernel, level=0.6, seed=3)
    rows = start(task)
    v = task.velocity(rows, 0.8)
    step = task.transition(rows, v, 0.8, 0.6)
    B = torch.ones(len(rows))
    expected = transition(kernel, rows.x, v, 0.8 * B, 0.6 * B, 0.6 * B)
    torch.testing.assert_close(step.mean, expected.mean)
    moved = task.move(rows, step, 2)
    keys = [
        SampleKey(seed=3, step=PLAIN_STEP, prompt=f"p{p}", index=c)
        for p, c in zip(rows.prompt.tolist(), rows.candidate.tolist(), strict=True)
    ]
    noise = gaussian(keys, "transition", rows.x.shape[1:], 2)
    torch.testing.assert_close(moved.x, expected.mean + expected.std[:, None, None, None] * noise)
    assert not torch.equal(task.move(rows, step, 3).x, moved.x)
    still = task.move(rows, task.transition(rows, v, 0.8, 0.6, level=0.0), 2)
    torch.testing.assert_close(still.x, rows.x - 0.2 * v, rtol=0, atol=1e-6)


def test_finishing_later_is_the_rest_of_the_same_path() -> None:
    task = make_task(None, None, "999nfe")
    rows = start(task)
    v = task.velocity(rows, task.times[0])
    after_one = rows.at(rows.x - (task.times[0] - task.times[1]) * v)
    torch.testing.assert_close(task.finish(after_one, 1).x, task.finish(rows).x, rtol=0, atol=1e-6)
    assert torch.equal(task.finish(rows, task.steps).x, rows.x)
    assert task.velocities_to_finish(1) == 4


@pytest.mark.parametrize("tile", (1, 7, 64))
def test_rows_are_the_same_in_any_company(tile: int) -> None:
    asked = evaluation_prompts("heldout", 4)
    model = LabFlowModel("slots")
    whole = make_task(model, None, "9999nfe", asked=asked, kernel="flow_sde", tile=64)
    tiled = make_task(model, None, "9999nfe", asked=asked, kernel="flow_sde", tile=tile)

    def path(task, rows: Rows) -> Tensor:
        for k in range(2):
            t, t_next = task.times[k], task.times[k + 1]
            rows = task.move(rows, task.transition(rows, task.velocity(rows, t), t, t_next), k)
        return task.finish(rows, 2).x

    expected = path(whole, start(whole))
    torch.testing.assert_close(path(tiled, start(tiled)), expected, rtol=0, atol=1e-4)
    some = torch.tensor([13, 2, 7])
    torch.testing.assert_close(path(tiled, start(tiled).select(some)), expected[some], rtol=0, atol=1e-4)


# --- rows ------------------------------------------------------------------------------------------------------------


def test_children_are_numbered_anew_and_draw_their_own_noise() -> None:
    task = make_task(None, None, "999nfe", kernel="flow_sde")
    rows = start(task, 2).repeat(3)
    assert rows.prompt.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert rows.candidate.tolist() == [1, 2, 3, 4, 5, 6] * 3
    moved = task.move(rows, task.transition(rows, torch.zeros_like(rows.x), 0.8, 0.6), 0)
    assert len({tuple(row.flatten().tolist()) for row in moved.x}) == 18


def test_places_count_within_a_prompt() -> None:
    assert places(torch.tensor([2, 0, 2, 2, 1, 0])).tolist() == [0, 0, 1, 2, 0, 1]
    assert places(torch.zeros(0, dtype=torch.long)).tolist() == []


def test_best_rows_against_a_slow_version() -> None:
    draws = torch.Generator().manual_seed(3)
    for _ in range(30):
        prompt = torch.randint(0, 3, (17,), generator=draws)
        score = torch.randint(-2, 3, (17,), generator=draws).double()
        score[torch.rand(17, generator=draws) < 0.3] = torch.nan
        score[torch.rand(17, generator=draws) < 0.1] = -torch.inf
        expected = []
        for p in range(3):
            rows = [i for i in range(17) if prompt[i] == p]
            there = sorted((i for i in rows if not score[i].isnan()), key=lambda i: -score[i].item())
            expected += (there + [i for i in rows if score[i].isnan()])[:4]
        assert best_rows(score, prompt, 4).tolist() == expected


# --- reward ----------------------------------------------------------------------------------------------------------


def test_scores_are_the_suites_and_missing_ones_travel() -> None:
    model = ToyFlowModel()
    task = make_task(model, Green(lost=lambda value: value > value.median()), "99rewards")
    pictures, prompt = model.decode(start(task).x), start(task).prompt
    score = task.score(pictures, prompt)
    green = pictures[:, 1].mean((1, 2))
    assert score.isnan().tolist() == (green > green.median()).tolist() and 0 < score.isnan().sum() < len(score)
    torch.testing.assert_close(score[~score.isnan()].float(), green[~score.isnan()])


SMOOTH = load_suite(
    {"brightness": RewardConfig(type="brightness"), "contrast": RewardConfig(type="contrast")},
    "brightness - 3 * rescale(contrast, 0, 0.5)",
)


def test_differentiable_score_has_the_scores_value_and_its_slope() -> None:
    task = make_task(ToyFlowModel(), SMOOTH, "99rewards,99gradients")
    pictures = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    prompt = torch.tensor([0, 0, 1, 1, 2, 2])
    value = task.differentiable_score(pictures.requires_grad_(), prompt)
    torch.testing.assert_close(value.detach(), task.score(pictures.detach(), prompt))
    (slope,) = torch.autograd.grad(value, pictures, grad_outputs=torch.ones_like(value))
    step = torch.zeros_like(slope)
    step[:, 1, 2, 3] = 1e-5
    ahead, behind = (task.score((pictures + s).detach(), prompt) for s in (step, -step))
    torch.testing.assert_close(slope[:, 1, 2, 3], (ahead - behind) / 2e-5, rtol=1e-4, atol=1e-8)
    assert slope.abs().min() > 0 and task.ledger.total.reward_calls == 6 * 2 * 4


def test_a_reward_without_a_gradient_is_named() -> None:
    task = make_task(ToyFlowModel(), load_suite({"match": RewardConfig(type="scene_match")}), "99rewards")
    with pytest.raises(RecipeError, match="has no gradient"):
        task.differentiable_score(torch.rand(1, 3, 32, 32, requires_grad=True), torch.tensor([0]))
    task = make_task(ToyFlowModel(), lambda prompts, outputs: [0.5] * len(outputs), "99rewards")
    with pytest.raises(RewardError, match=r"returned \[0.5\]"):
        task.differentiable_score(torch.rand(1, 3, 4, 4, requires_grad=True), torch.tensor([0]))
    with pytest.raises(RecipeError, match="there is no reward"):
        make_task(None, None).differentiable_score(torch.rand(1, 3, 4, 4), torch.tensor([0]))


def test_value_and_gradient_through_network_decoder_and_reward() -> None:
    model = CountingModel()
    model.network.double()
    model.velocity = lambda x, t, condition: model.network(x, t.double(), condition.tensors["caption"])
    task = make_task(model, Green(), "999nfe,99gradients", count=2, tile=3)
    rows = start(task)
    rows = rows.at(rows.x.double())

    def value(part: Rows) -> Tensor:
        pictures = task.preview(part, task.velocity(part, 0.7), 0.7)
        score = task.differentiable_score if part.x.requires_grad else task.score
        return score(pictures, part.prompt)

    slope = task.value_and_gradient(rows, value)
    assert task.ledger.total == Cost(network_calls=8, decodes=8, reward_calls=8, gradient_calls=8)
    direction = torch.cos(torch.arange(rows.x.numel(), dtype=torch.float64)).reshape(rows.x.shape)
    ahead, behind = (value(rows.at(rows.x + s * 1e-5 * direction)) for s in (1, -1))
    expected = (ahead - behind) / 2e-5
    torch.testing.assert_close((slope.gradient * direction).flatten(1).sum(1), expected, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(slope.value, value(rows))
    assert expected.abs().min() > 0 and not slope.gradient.requires_grad


def test_the_slope_of_a_missing_value_is_missing() -> None:
    task = make_task(None, None, "9gradients")
    rows = start(task, 2)

    def value(part: Rows) -> Tensor:
        total = part.x.flatten(1).square().sum(1)
        return torch.where(part.candidate == 1, torch.nan, total)

    slope = task.value_and_gradient(rows, value)
    missing = rows.candidate == 1
    assert slope.gradient[missing].isnan().all() and slope.value[missing].isnan().all()
    torch.testing.assert_close(slope.gradient[~missing], 2 * rows.x[~missing])
    with pytest.raises(RewardError, match="does not depend on the state"):
        task.value_and_gradient(rows.select(torch.tensor([0])), lambda part: torch.zeros(len(part)))


def test_the_totals_gradient_passes_by_a_missing_part() -> None:
    suite = suite_of(Green(), Green(lost=lambda value: value > 0.6), combine="r0 + r1")
    task = make_task(None, suite, "99rewards")
    pictures = torch.stack([torch.full((3, 4, 4), 0.5), torch.full((3, 4, 4), 0.7)]).requires_grad_()
    total = differentiable_total(suite, make_request(task.prompts[:2], pictures))
    assert total.isnan().tolist() == [False, True]
    (slope,) = torch.autograd.grad(total, pictures, grad_outputs=torch.tensor([1.0, 0.0]).double())
    torch.testing.assert_close(slope[0, 1], torch.full((4, 4), 2 / 16))
    assert (slope[1] == 0).all()


# --- refusals --------------------------------------------------------------------------------------------------------


def grouped(prompts: list[str], outputs: Tensor, group: list[int]) -> list[float]:
    return [0.0] * len(outputs)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: suite_of(grouped), "rewards.r0 compares the outputs of a batch"),
        (lambda: suite_of(Green(), combine="rank(r0)"), r'"rank\(r0\)" compares the outputs of a batch'),
        (
            lambda: load_suite({"a": RewardConfig(type="brightness"), "b": RewardConfig(type="contrast")}, add=False),
            "side by side",
        ),
        (
            lambda: load_suite(
                {"b": RewardConfig.model_validate({"type": "brightness", "calibrate": {"type": "zscore"}})}
            ),
            "rewards.b.calibrate has still to be measured",
        ),
    ],
)
def test_scores_that_cannot_be_compared_are_refused(make, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        make_task(None, make())


def test_no_prompts_are_refused() -> None:
    with pytest.raises(RecipeError, match="no prompts"):
        Task([], None, Budget.parse("9nfe"))
