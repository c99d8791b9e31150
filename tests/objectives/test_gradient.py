"""The reward's gradient through sampling: equal to finite differences, whatever the split, with missing scores left out."""

from __future__ import annotations

import pytest
import torch
from tests.reference.toys import ToyFlowModel, conditioning, gradients, prompts
from torch import Tensor

from plaudit.errors import RecipeError, RewardError
from plaudit.models.flow import clean_prediction, guided_velocity
from plaudit.objectives.batch import Batch
from plaudit.objectives.gradient import RewardGradient
from plaudit.recipe.load import load
from plaudit.recipe.objectives import GradientConfig
from plaudit.recipe.rewards import Missing
from plaudit.recipe.sampling import Sampler
from plaudit.rewards.calling.call import Caller
from plaudit.rewards.load import Reward
from plaudit.rewards.suite import Suite, make_suite
from plaudit.sampling.noise import uniform
from plaudit.sampling.plan import stochastic_plan
from plaudit.sampling.rollout import Starts
from plaudit.shaping.credit import Credit
from plaudit.train.collect import expand_groups
from plaudit.train.learn import accumulate
from plaudit.train.setup import prepare
from plaudit.train.trainable import Policy

STEPS = 4


def colour(prompts: list[str], outputs: Tensor) -> Tensor:
    return torch.sin(3 * outputs[:, 0].mean((1, 2))) + outputs[:, 1].mean((1, 2)).square()


def picky(prompts: list[str], outputs: Tensor) -> Tensor:
    """No opinion on some, in a way whose own slope is no number."""
    scores = colour(prompts, outputs)
    declined = torch.tensor([text.endswith("1") for text in prompts])
    return scores * torch.where(declined, torch.nan, 1.0)


def suite(function=colour) -> Suite:
    return make_suite([Reward(name="colour", caller=Caller("colour", function))])


def starts(model: ToyFlowModel, kernel: str = "ode", guidance: float = 1.0) -> Batch:
    members, group, keys = expand_groups(prompts(3), 4, 0, 0)
    sampler = Sampler(kernel=kernel, steps=STEPS, level=0.4)
    plan = stochastic_plan(sampler, model.schedule(STEPS, None), keys, keys)
    samples = Starts(
        conditioning=conditioning(model, members, guidance), plan=plan, keys=tuple(keys), initial_keys=tuple(keys)
    )
    everything = torch.ones(len(keys), dtype=torch.bool)
    return Batch(
        samples=samples, prompts=tuple(members), keys=tuple(keys), group=group,
        score=torch.full((len(keys),), torch.nan).double(), scores={},
        credit=Credit(value=torch.ones(len(keys)), valid=everything),
        informative=everything,
    )  # fmt: skip


def found(objective: RewardGradient, model: ToyFlowModel, batch: Batch, micro_batch: int = 100) -> tuple[Tensor, float]:
    """The gradient of an update, and its loss."""
    model.network.zero_grad(set_to_none=True)
    sums = accumulate(Policy(model), objective, batch, micro_batch)
    return gradients(model), sums.totals["loss/reward"]


def of(**keys: object) -> RewardGradient:
    return objective(suite(), **keys)


def objective(rewards: Suite, **keys: object) -> RewardGradient:
    return RewardGradient(GradientConfig(type="gradient", **keys), rewards, Missing(max_missing_fraction=0.9))


@pytest.mark.parametrize("target", (None, 0.9))
@pytest.mark.parametrize(("kernel", "guidance"), [("ode", 1.0), ("ode", 2.5), ("flow_sde", 1.0)])
def test_the_whole_gradient_equals_finite_differences_of_the_loss(
    kernel: str, guidance: float, target: float | None
) -> None:
    model = ToyFlowModel()
    batch, objective = starts(model, kernel, guidance), of(truncation="none", target=target)
    gradient, _ = found(objective, model, batch)
    weight = next(model.network.parameters())
    for at in ((0, 0), (3, 5), (9, 1)):
        values = []
        for shift in (5e-3, -5e-3):
            with torch.no_grad():
                weight[at] += shift
            values.append(found(objective, model, batch)[1])
            with torch.no_grad():
                weight[at] -= shift
        slope = (values[0] - values[1]) / 1e-2
        assert slope == pytest.approx(gradient[: weight.numel()].view_as(weight)[at].item(), rel=1e-2, abs=2e-5)
    assert gradient.abs().max() > 1e-3


@pytest.mark.parametrize("truncation", ("none", "last", "suffix", "per_step", "one_step"))
def test_the_split_does_not_matter(truncation: str) -> None:
    model = ToyFlowModel()
    batch, objective = starts(model), of(truncation=truncation, last=2)
    whole, loss = found(objective, model, batch)
    parts, same = found(objective, model, batch, micro_batch=5)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-7)
    assert same == pytest.approx(loss) and whole.abs().max() > 1e-4


def test_one_step_is_the_clean_prediction_at_a_late_step() -> None:
    model = ToyFlowModel()
    batch = starts(model)
    gradient, _ = found(of(truncation="one_step", last=3), model, batch)
    model.network.zero_grad(set_to_none=True)
    samples, total = batch.starts, torch.zeros(())
    for i, row in enumerate(torch.arange(len(batch)).split(1)):
        k = STEPS - 1 - int(uniform([samples.keys[i]], "truncation", 1) * 3)
        x, times = samples.select(row).noise(model.latent_shape), samples.plan.times
        condition = samples.conditioning.select(row)
        with torch.no_grad():
            for j in range(k):
                x = x - (times[j] - times[j + 1]) * guided_velocity(model, x, times[j : j + 1], condition)
        v = guided_velocity(model, x, times[k : k + 1], condition)
        total = total - colour([""], model.decode(clean_prediction(x, v, times[k : k + 1]))).sum() / len(batch)
    total.backward()
    torch.testing.assert_close(gradient, gradients(model), rtol=1e-4, atol=1e-6)


def test_a_missing_score_has_no_weight_and_no_slope() -> None:
    model = ToyFlowModel()
    batch = starts(model)
    there = torch.tensor([not prompt.text.endswith("1") for prompt in batch.prompts])
    assert 0 < there.sum() < len(batch)
    declining = objective(suite(picky), truncation="none")
    gradient, _ = found(declining, model, batch)
    rest, _ = found(of(truncation="none"), model, batch.select(there.nonzero()[:, 0]))
    torch.testing.assert_close(gradient, rest * there.sum() / len(batch), rtol=1e-4, atol=1e-7)
    sums = accumulate(Policy(model), declining, batch, 5)
    mean = accumulate(Policy(model), of(truncation="none"), batch.select(there.nonzero()[:, 0]), 5)
    assert sums.totals["reward"] == pytest.approx(mean.totals["reward"]), "a mean over what is there"


def test_more_missing_scores_than_allowed_stop_the_run() -> None:
    model = ToyFlowModel()
    strict = RewardGradient(GradientConfig(type="gradient"), suite(picky), Missing())
    with pytest.raises(RewardError, match="totals are missing, more than missing"):
        found(strict, model, starts(model))


def test_rewards_without_a_gradient_and_formulas_over_groups_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"objective\.type: gradient follows each .*centre\(colour\)"):
        objective(make_suite(suite().rewards, "centre(colour)"))
    with pytest.raises(RecipeError, match=r"rewards\.match has no gradient"):
        prepare(load("slots-alignprop", ["--rewards.match", "scene_match"]))
    model = ToyFlowModel()
    with pytest.raises(RewardError, match=r"rewards\.colour returned .*depends on the outputs"):
        found(objective(suite(lambda prompts, outputs: [1.0] * len(prompts))), model, starts(model))


def test_it_is_for_flow_models() -> None:
    with pytest.raises(RecipeError, match=r"objective\.type: gradient does not train models of family tokens"):
        load("sums-grpo", ["--objective.type", "gradient"])
