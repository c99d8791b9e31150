"""DRPO on tokens against its objective J, written down with loops and differentiated by autograd."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.reference.token_toys import BigramModel, TinyLanguage, drawn_batch, slow_log_probs
from torch import Tensor

from plaudit.objectives.batch import Batch
from plaudit.objectives.drpo import Drpo
from plaudit.recipe.objectives import DrpoConfig
from plaudit.sampling.tokens import given_completions
from plaudit.shaping.credit import group_advantage
from plaudit.train.learn import accumulate, update_rows
from plaudit.train.trainable import Policy

NAN = float("nan")
LIMIT = 8
LETTER_PROMPTS = [(1,), (3,), (2,), (4,)]
LAB_PROMPTS = [(9, 12, 10, 13, 14), (5, 14), (4, 12, 9, 14)]
MIXED = [1, 0, 1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0]
"""Rightness of four groups: two with both kinds, one all right, one all wrong."""


def config(**changes: float) -> DrpoConfig:
    values = {"temperature": 0.3, "contrast_temperature": 0.7, "barrier": 50.0, "margin": 1e-4} | changes
    return DrpoConfig(type="drpo", correct="right", prefer="brief", **values)


def judged(batch: Batch, correct: list[float], limit: int = LIMIT) -> Batch:
    """`batch` with this rightness, and 1 - length / limit as the preference."""
    right = torch.tensor(correct, dtype=torch.float64)
    brief = 1 - batch.completions.length.double() / limit
    return dataclasses.replace(
        batch,
        scores={"right": right, "brief": brief},
        score=right,
        credit=dataclasses.replace(batch.credit, valid=right.isfinite()),
    )


def moved(model, size: float, seed: int = 7) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def toy(correct: list[float], move: float = 0.0, seed: int = 0) -> tuple[BigramModel, Batch]:
    """Completions whose recorded log-probabilities are those of weights `move` away from the current ones."""
    model = BigramModel(seed)
    batch = judged(drawn_batch(model, LETTER_PROMPTS[: len(correct) // 4], 4, limit=LIMIT), correct)
    moved(model, move)
    assert len(set(batch.completions.length.tolist())) > 1
    return model, batch


def objective_of_the_card(model, batch: Batch, settings: DrpoConfig) -> tuple[Tensor, float]:
    """J of the current weights, and the KL of its barrier.

    J = mean over q of [sum over right omega_i s_i / sum omega - tau log mean over wrong exp(s_j / tau)]
        - b / 2 max(KL - d, 0)^2, with s a mean over tokens and KL the mean over all tokens of log p_old - log p.
    """
    completions, tau = batch.completions, settings.contrast_temperature
    rows = zip(completions.prompt_ids, completions.rows(), strict=True)
    log_probs = [slow_log_probs(model, prompt, row, 1.0) for prompt, row in rows]
    right, brief = batch.scores["right"], batch.scores["brief"]
    total = torch.zeros((), dtype=torch.float64)
    questions = sorted(set(batch.group.tolist()))
    for q in questions:
        members = [i for i in range(len(batch)) if batch.group[i] == q]
        good = [i for i in members if right[i] == 1]
        bad = [i for i in members if right[i] == 0]
        if not good or not bad:
            continue
        omega = {i: (brief[i] / settings.temperature).exp() for i in good}
        total = total + sum(omega[i] * log_probs[i].mean() for i in good) / sum(omega.values())
        total = total - tau * torch.stack([(log_probs[j].mean() / tau).exp() for j in bad]).mean().log()
    known = [i for i in range(len(batch)) if batch.valid[i]]
    differences = torch.cat([completions.log_prob[i, : len(log_probs[i])] - log_probs[i] for i in known])
    kl = differences.mean()
    return total / len(questions) - settings.barrier / 2 * (kl - settings.margin).clamp(min=0) ** 2, float(kl.detach())


def gradient(model, batch: Batch, settings: DrpoConfig, updates: int = 1, micro_batch: int = 64) -> Tensor:
    model.network.zero_grad(set_to_none=True)
    accumulate(Policy(model), Drpo(settings, updates=updates), batch, micro_batch)
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.network.parameters()]
    return -torch.cat([part.flatten() for part in parts])


def card_gradient(model, batch: Batch, settings: DrpoConfig) -> tuple[Tensor, float]:
    value, kl = objective_of_the_card(model, batch, settings)
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.network.parameters()))]), kl


# --- the gradient is that of J ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lam", "tau"), ((0.1, 10.0), (0.3, 0.7), (2.0, 0.2)))
def test_before_any_update_the_gradient_is_that_of_the_objective(lam: float, tau: float) -> None:
    model, batch = toy(MIXED)
    settings = config(temperature=lam, contrast_temperature=tau)
    expected, kl = card_gradient(model, batch, settings)
    assert abs(kl) < 1e-6, "the barrier is idle"
    for updates in (1, 2):
        torch.testing.assert_close(gradient(model, batch, settings, updates), expected, rtol=1e-4, atol=1e-6)
    assert expected.abs().max() > 0.01


@pytest.mark.parametrize("strength", (50.0, 1e3))
def test_after_an_update_the_barrier_pulls_by_its_own_gradient(strength: float) -> None:
    """The contrast takes the current log-probabilities, not the recorded ones, and the barrier is over all tokens."""
    model, batch = toy(MIXED, move=0.25)
    settings = config(barrier=strength)
    expected, kl = card_gradient(model, batch, settings)
    assert kl > 10 * settings.margin, "the barrier is active"
    without, _ = card_gradient(model, batch, config(barrier=0.0))
    assert (expected - without).norm() > 0.1 * without.norm()
    torch.testing.assert_close(gradient(model, batch, settings, updates=2), expected, rtol=1e-4, atol=1e-5)


def test_a_negative_estimate_of_the_kl_meets_no_barrier() -> None:
    model, batch = toy(MIXED)
    raised = torch.where(batch.completions.mask, batch.completions.log_prob - 0.2, 0.0)
    batch = dataclasses.replace(batch, samples=dataclasses.replace(batch.completions, log_prob=raised))
    expected, kl = card_gradient(model, batch, config())
    assert kl == pytest.approx(-0.2, abs=1e-5)
    torch.testing.assert_close(gradient(model, batch, config(), updates=2), expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(gradient(model, batch, config(), updates=2), gradient(model, batch, config(barrier=0.0), 2))


def test_a_step_along_the_gradient_raises_the_objective() -> None:
    """The sign, independently of any gradient: J itself rises."""
    model, batch = toy(MIXED, move=0.1)
    settings = config()
    before, _ = objective_of_the_card(model, batch, settings)
    step = gradient(model, batch, settings, updates=2).view_as(model.table)
    with torch.no_grad():
        model.table.add_(1e-3 * step)
    after, _ = objective_of_the_card(model, batch, settings)
    assert (
        float((after - before).detach()) == pytest.approx(1e-3 * float(step.square().sum()), rel=0.05)
        and after > before
    )


def test_an_infinite_temperature_is_disco() -> None:
    """Right answers count alike: J is the mean of the right less the contrast, without any length."""
    model, batch = toy(MIXED)
    unweighted = torch.zeros((), dtype=torch.float64)
    rows = zip(batch.completions.prompt_ids, batch.completions.rows(), strict=True)
    scores = [slow_log_probs(model, prompt, row, 1.0).mean() for prompt, row in rows]
    for first in (0, 4):
        right = torch.stack([scores[i] for i in range(first, first + 4) if MIXED[i] == 1])
        wrong = torch.stack([scores[i] for i in range(first, first + 4) if MIXED[i] == 0])
        unweighted = unweighted + right.mean() - 0.7 * (wrong / 0.7).exp().mean().log()
    expected = torch.autograd.grad(unweighted / 4, model.table)[0].flatten()
    torch.testing.assert_close(gradient(model, batch, config(temperature=1e12)), expected, rtol=1e-4, atol=1e-6)
    assert (gradient(model, batch, config(temperature=0.1)) - expected).norm() > 0.1 * expected.norm()


# --- who is pushed where ---------------------------------------------------------------------------------------------


def test_a_long_right_answer_is_never_pushed_down_though_grpo_pushes_it() -> None:
    """The identity check of the paper, on a group of a short right, a long right and a wrong answer."""
    model = BigramModel()
    rows = ((1, 5), (2, 3, 1, 4, 2, 3, 5), (3, 2, 5))
    given = given_completions([(1,)] * 3, rows)
    log_prob = torch.zeros(given.ids.shape, dtype=torch.float64)
    for i, row in enumerate(rows):
        log_prob[i, : len(row)] = slow_log_probs(model, (1,), row, 1.0).detach()
    base = drawn_batch(model, [(1,)], 3)
    batch = judged(dataclasses.replace(base, samples=dataclasses.replace(given, log_prob=log_prob)), [1, 1, 0])
    with_length = batch.scores["right"] * (1 + 3 * batch.scores["brief"])
    assert group_advantage(with_length, batch.group).value[1] < -0.1
    objective = Drpo(config(temperature=0.1))
    short, long, wrong = objective.prepare(Policy(model), batch).extra["coefficient"].tolist()
    assert short > long > 0 > wrong and short + long == pytest.approx(1) and wrong == pytest.approx(-1)


@pytest.mark.parametrize("kind", (0, 1))
def test_groups_of_one_kind_teach_nothing_and_stay_in_the_divisor(kind: int) -> None:
    model, both = toy([1, 0, 1, 0])
    alone = gradient(model, both, config())
    model, batch = toy([1, 0, 1, 0, *[kind] * 4])
    torch.testing.assert_close(gradient(model, batch, config()), alone / 2, rtol=1e-5, atol=1e-8)
    assert alone.norm() > 0.01
    model, only = toy([kind] * 4)
    assert not gradient(model, only, config()).any()


def test_a_group_of_one_kind_is_not_computed_but_its_kl_counts() -> None:
    """Without a barrier only groups with both kinds need the network; an active barrier needs all."""
    model, batch = toy(MIXED)
    objective = Drpo(config())
    assert objective.computed(objective.prepare(Policy(model), batch)).tolist() == [True] * 8 + [False] * 8
    model, batch = toy(MIXED, move=0.25)
    objective = Drpo(config(), updates=2)
    assert objective.computed(objective.prepare(Policy(model), batch)).all()


def test_an_answer_that_is_not_known_counts_as_absent() -> None:
    """Missing is not wrong: neither the contrast nor the barrier nor the tilt sees it."""
    model, whole = toy(MIXED, move=0.25)
    batch = judged(whole, [NAN, 0, 1, 0, 1, NAN, 0, 1, *MIXED[8:]])
    expected, kl = card_gradient(model, batch, config())
    assert kl > 1e-3
    torch.testing.assert_close(gradient(model, batch, config(), updates=2), expected, rtol=1e-4, atol=1e-5)
    treated_as_wrong, _ = card_gradient(model, judged(whole, [0, 0, 1, 0, 1, 0, 0, 1, *MIXED[8:]]), config())
    assert (treated_as_wrong - expected).norm() > 0.1 * expected.norm()


# --- how an update is split ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", (0, 64))
def test_gradients_and_metrics_do_not_depend_on_the_split(pack: int) -> None:
    """Pitfall 39, with groups that are cut by micro-batches and an active barrier."""

    def split(micro_batch: int) -> tuple[Tensor, dict[str, float]]:
        model = TinyLanguage()
        model.end_ids = frozenset({1, 4, 8})
        batch = drawn_batch(model, LAB_PROMPTS, 4, limit=9)
        moved(model, 0.06)
        batch = judged(batch, [1, 0, 1, 0, 1, NAN, 0, 1, 1, 1, 1, 1], limit=9)
        sums = accumulate(Policy(model), Drpo(config(barrier=1e3), pack, updates=2), batch, micro_batch)
        parts = [p.grad.flatten() for p in model.network.parameters() if p.grad is not None]
        return torch.cat(parts), sums.totals

    whole, totals = split(64)
    assert whole.norm() > 1e-2 and abs(totals["loss/barrier"]) > 1e-4
    for micro_batch in (1, 3, 7):
        found, metrics = split(micro_batch)
        torch.testing.assert_close(found, whole, rtol=1e-3, atol=1e-5)
        assert metrics == pytest.approx(totals, rel=1e-4, abs=1e-7), micro_batch


def test_updates_take_whole_groups_and_each_divides_by_its_own() -> None:
    model, batch = toy(MIXED)
    assert Drpo(config()).needs.whole_groups
    parts = list(update_rows(batch.group, 2, seed=0, step=0, whole_groups=True))
    assert sorted(torch.cat(parts).tolist()) == list(range(16))
    for rows in parts:
        part = batch.select(rows)
        assert [int((part.group == g).sum()) for g in set(part.group.tolist())] == [4, 4]
        expected, _ = card_gradient(model, part, config())
        torch.testing.assert_close(gradient(model, part, config()), expected, rtol=1e-4, atol=1e-6)
