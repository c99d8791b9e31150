"""Terms of completions, KL estimates against the distributions themselves, and GRPO's divisors against loops."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from tests.reference.token_toys import (
    BigramModel,
    TinyLanguage,
    drawn_batch,
    plain_logits,
    slow_log_probs,
    token_batch,
)
from torch import Tensor

from plaudit.objectives.batch import Batch
from plaudit.objectives.estimates import kl_estimate
from plaudit.objectives.grpo import Grpo
from plaudit.objectives.token_terms import TokenTerms
from plaudit.recipe.objectives import GrpoConfig, KlConfig
from plaudit.sampling.tokens import Completions
from plaudit.shaping.credit import Credit
from plaudit.train.learn import accumulate
from plaudit.train.trainable import Policy

PROMPTS = [(9, 12, 10, 13, 14), (5, 14), (4, 12, 9, 14)]
LOSS_TYPES = ("dapo", "grpo", "dr_grpo", "luspo")
TEMPERATURE, LIMIT = 0.8, 9


class Watch(Policy):
    """Notes which snapshots were entered."""

    def __init__(self, model: TinyLanguage) -> None:
        super().__init__(model)
        self.entered: list[str] = []

    def using(self, name: str):
        self.entered.append(name)
        return super().using(name)


def moved(model, size: float, seed: int = 5) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def prepared(step: float = 0.02) -> tuple[Watch, TinyLanguage, Batch]:
    """Completions drawn by other weights than the current ones, and a reference that is neither."""
    model = TinyLanguage()
    model.end_ids = frozenset({1, 4, 8})
    policy = Watch(model)
    policy.take("reference")
    moved(model, 0.05, seed=1)
    batch = drawn_batch(model, PROMPTS, 4, limit=LIMIT, temperature=TEMPERATURE)
    moved(model, step)
    model.rows.clear()
    assert len(set(batch.completions.length.tolist())) > 4
    return policy, model, batch


def with_gaps(batch: Batch) -> Batch:
    """A missing sample, and a group without contrast."""
    valid, informative = batch.valid.clone(), batch.informative.clone()
    valid[2] = informative[2] = False
    informative[4:8] = False
    advantage = torch.where(informative, batch.credit.value, 0.0)
    return dataclasses.replace(batch, credit=Credit(value=advantage, valid=valid), informative=informative)


def gradients(model) -> Tensor:
    parts = [(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in model.network.parameters()]
    return torch.cat(parts)


# --- estimates of the KL ---------------------------------------------------------------------------------------------


def two_policies() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    logits, reference = torch.randn(2, 7, dtype=torch.float64, generator=generator)
    return logits.requires_grad_(), reference


def kl(logits: Tensor, reference: Tensor) -> Tensor:
    first, second = (torch.distributions.Categorical(logits=x) for x in (logits, reference))
    return torch.distributions.kl_divergence(first, second)


def expected_estimate(logits: Tensor, reference: Tensor, kind: str) -> Tensor:
    """The mean of the estimate over tokens of the policy; gradients go through the estimate, not through the draw."""
    log_ratio = logits.log_softmax(0) - reference.log_softmax(0)
    return (logits.softmax(0).detach() * kl_estimate(log_ratio, kind)).sum()


@pytest.mark.parametrize("kind", ("k1", "k3"))
def test_k1_and_k3_are_unbiased(kind: str) -> None:
    logits, reference = two_policies()
    exact = kl(logits, reference)
    assert exact > 0.3
    torch.testing.assert_close(expected_estimate(logits, reference, kind), exact)


def test_the_gradients_of_the_estimates_are_whose_they_are_said_to_be() -> None:
    """k1: none on average; k2: of KL(policy || reference); k3: of KL(reference || policy)."""
    logits, reference = two_policies()
    found = {k: torch.autograd.grad(expected_estimate(logits, reference, k), logits)[0] for k in ("k1", "k2", "k3")}
    forward = torch.autograd.grad(kl(logits, reference), logits)[0]
    backward = torch.autograd.grad(kl(reference, logits), logits)[0]
    torch.testing.assert_close(found["k1"], torch.zeros(7, dtype=torch.float64), rtol=0, atol=1e-15)
    torch.testing.assert_close(found["k2"], forward)
    torch.testing.assert_close(found["k3"], backward)
    assert (forward - backward).abs().max() > 0.05


def test_estimates_by_hand() -> None:
    log_ratio = torch.tensor([-1.0, 0.0, 0.5], dtype=torch.float64)
    assert kl_estimate(log_ratio, "k1").tolist() == [-1.0, 0.0, 0.5]
    assert kl_estimate(log_ratio, "k2").tolist() == [0.5, 0.0, 0.125]
    assert kl_estimate(log_ratio, "k3").tolist() == pytest.approx([2.718281828 - 2, 0.0, 0.6065306597 - 0.5])
    with pytest.raises(ValueError, match="k1, k2, k3"):
        kl_estimate(log_ratio, "k4")


# --- terms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", (0, 64))
def test_nothing_is_computed_until_it_is_read_and_then_once(pack: int) -> None:
    policy, model, batch = prepared()
    terms = TokenTerms(policy, batch, pack)
    _ = terms.reference, terms.snapshot("reference")
    assert model.rows == [] and policy.entered == []
    rows = [12] if pack == 0 else [3]
    for _ in range(2):
        _ = terms.log_prob, terms.logits, terms.entropy
    assert model.rows == rows and policy.entered == []
    for _ in range(2):
        _ = terms.kl("exact"), terms.kl("k3"), terms.reference.log_prob
    assert model.rows == rows * 2 and policy.entered == ["reference"]


def test_terms_are_those_of_their_weights() -> None:
    policy, model, batch = prepared()
    terms, completions = TokenTerms(policy, batch, 64), batch.completions
    own = {key: parameter.detach().clone() for key, parameter in policy.trainable.items()}
    assert terms.log_prob.requires_grad and not terms.entropy.requires_grad

    def slow() -> Tensor:
        found = torch.zeros(completions.mask.shape, dtype=torch.float64)
        for i, row in enumerate(completions.rows()):
            found[i, : len(row)] = slow_log_probs(model, completions.prompt_ids[i], row, TEMPERATURE)
        return found

    with torch.no_grad():
        torch.testing.assert_close(terms.log_prob.detach(), slow(), rtol=0, atol=1e-5)
        with policy.using("reference"):
            torch.testing.assert_close(terms.reference.log_prob, slow(), rtol=0, atol=1e-5)
    fresh = TokenTerms(policy, batch, 0)
    assert not fresh.reference.logits.requires_grad and not fresh.reference.log_prob.requires_grad
    assert (terms.log_prob - terms.reference.log_prob).abs().max() > 0.05
    assert (terms.log_prob - completions.log_prob).abs().max() > 0.01
    assert all(torch.equal(p, own[key]) for key, p in policy.trainable.items()), "pitfall 44: weights restored"


@pytest.mark.parametrize("pack", (0, 64))
def test_the_exact_kl_is_that_of_torch_at_every_token(pack: int) -> None:
    policy, model, batch = prepared()
    completions = batch.completions
    found = TokenTerms(policy, batch, pack).kl("exact")
    expected = torch.zeros_like(found)
    for i, (prompt, row) in enumerate(zip(completions.prompt_ids, completions.rows(), strict=True)):
        own = plain_logits(model, (*prompt, *row))[len(prompt) - 1 : -1].double() / TEMPERATURE
        with torch.no_grad(), policy.using("reference"):
            reference = plain_logits(model, (*prompt, *row))[len(prompt) - 1 : -1].double() / TEMPERATURE
        expected[i, : len(row)] = kl(own, reference)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert (found[completions.mask] > 0).all() and (found[~completions.mask] == 0).all()
    ours, theirs = (
        torch.cat([g.flatten() for g in torch.autograd.grad(value.sum(), list(model.network.parameters()))])
        for value in (found, expected)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert theirs.norm() > 0.1


def test_tokens_that_cannot_be_drawn_add_nothing_to_the_exact_kl() -> None:
    """A model that masks its vocabulary has logits of minus infinity."""
    policy, _, batch = prepared()
    terms = TokenTerms(policy, batch, 0)
    own, reference = terms.logits.detach().clone(), terms.reference.logits.clone()
    own[:, 2:5], reference[:, 2:4] = -torch.inf, -torch.inf  # the reference can draw one token more
    drawable = [i for i in range(own.shape[1]) if not 2 <= i < 5]
    terms.__dict__["logits"], terms.reference.__dict__["logits"] = own.requires_grad_(), reference
    log_own, log_reference = own[:, drawable].double().log_softmax(1), reference.double().log_softmax(1)[:, drawable]
    found = terms.kl("exact")
    expected = (log_own.exp() * (log_own - log_reference)).sum(1)
    torch.testing.assert_close(found[batch.completions.mask], expected, rtol=1e-4, atol=1e-6)
    found.sum().backward()
    assert own.grad is not None and own.grad.isfinite().all() and (own.grad[:, 2:5] == 0).all()


@pytest.mark.parametrize("kind", ("k1", "k2", "k3"))
def test_the_estimated_kl_is_the_estimate_at_the_drawn_tokens(kind: str) -> None:
    policy, _, batch = prepared()
    terms = TokenTerms(policy, batch, 64)
    expected = kl_estimate(terms.log_prob - terms.reference.log_prob, kind)
    torch.testing.assert_close(terms.kl(kind), expected)
    assert (terms.kl(kind)[~batch.completions.mask] == 0).all() and terms.kl(kind).abs().max() > 1e-4


def test_terms_of_other_completions_have_the_same_policies() -> None:
    policy, _, batch = prepared()
    terms, other = TokenTerms(policy, batch, 0), batch.completions.select(torch.arange(12).flip(0))
    torch.testing.assert_close(terms.of(other).log_prob, terms.log_prob.flip(0)[:, : other.ids.shape[1]])
    torch.testing.assert_close(terms.of(other).reference.log_prob, terms.reference.log_prob.flip(0))


# --- GRPO on tokens --------------------------------------------------------------------------------------------------


def looped(
    log_prob: Tensor, batch: Batch, weigh: Callable[[int], float], total: float, low: float, high: float, level: str
) -> Tensor:
    """The loss written down: every token's clipped ratio, times the weight of its sample's length, over a total."""
    loss = torch.zeros((), dtype=torch.float64)
    completions = batch.completions
    for i in range(len(batch)):
        n = int(completions.length[i])
        if not batch.valid[i]:
            continue
        drift = log_prob[i, :n] - completions.log_prob[i, :n]
        for t in range(n):
            ratio = (drift.mean() if level == "sequence" else drift[t]).exp()
            advantage = batch.credit.value[i].double()
            bounded = ratio.clamp(1 - low, 1 + high)
            loss = loss - torch.minimum(ratio * advantage, bounded * advantage) * weigh(n)
    return loss / total


def divisors(batch: Batch) -> dict[str, tuple[Callable[[int], float], float]]:
    """The weight of a token in a sample of n tokens, and what the sum is divided by."""
    lengths = [int(n) for n, valid in zip(batch.completions.length, batch.valid, strict=True) if valid]
    samples = len(lengths)
    return {
        "dapo": (lambda n: 1.0, float(sum(lengths))),
        "grpo": (lambda n: 1 / n, float(samples)),
        "dr_grpo": (lambda n: 1.0, float(samples * LIMIT)),
        "luspo": (lambda n: 1.0, float(samples)),
    }


@pytest.mark.parametrize("level", ("token", "sequence"))
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_every_divisor_is_the_loops_in_value_and_gradient(loss_type: str, level: str) -> None:
    policy, model, batch = prepared(0.02 if level == "token" else -0.02)
    batch = with_gaps(batch)
    low, high = (0.05, 0.1) if level == "token" else (2e-3, 2.5e-3)
    config = GrpoConfig(type="grpo", loss_type=loss_type, importance_sampling_level=level, clip_low=low, clip_high=high)
    weigh, total = divisors(batch)[loss_type]
    expected = looped(TokenTerms(policy, batch, 0).log_prob, batch, weigh, total, low, high, level)
    expected.backward()
    theirs = gradients(model)
    model.network.zero_grad()
    sums = accumulate(policy, Grpo(config, pack=64), batch, 5)
    assert sums.totals["loss/policy"] == pytest.approx(expected.item(), rel=1e-4, abs=1e-7)
    torch.testing.assert_close(gradients(model), theirs, rtol=1e-3, atol=1e-5)
    assert theirs.norm() > 1e-2
    assert sums.totals["clip_ratio/low"] > 0 and sums.totals["clip_ratio/high"] > 0, "both sides are clipped somewhere"


def test_the_divisors_differ() -> None:
    _, _, batch = prepared()
    objectives = {kind: Grpo(GrpoConfig(type="grpo", loss_type=kind)) for kind in LOSS_TYPES}
    assert len({objective.count(batch) for objective in objectives.values()}) == 3
    assert objectives["grpo"].weights(batch).sum().item() == pytest.approx(12)
    for kind in ("dapo", "dr_grpo", "luspo"):
        assert torch.equal(objectives[kind].weights(batch), batch.completions.mask.double())


def toy_sequences() -> tuple[BigramModel, Batch]:
    """Completions of a bigram model whose recorded log-probabilities are those of weights a little away."""
    model = BigramModel()
    batch = drawn_batch(model, [(1,), (3,)], 3, limit=6)
    moved(model, 0.02)
    return model, batch


@pytest.mark.parametrize(("loss_type", "per_length"), (("grpo", True), ("luspo", False)))
def test_the_gradients_of_gspo_and_luspo_are_the_papers(loss_type: str, per_length: bool) -> None:
    """GSPO: s A (1 / |y|) sum grad log p; LUSPO: s A sum grad log p; s = exp(mean log-ratio); mean over samples."""
    model, batch = toy_sequences()
    policy, completions = Policy(model), batch.completions
    expected, ratios = torch.zeros_like(model.table), []
    for i, (prompt, row) in enumerate(zip(completions.prompt_ids, completions.rows(), strict=True)):
        log_prob = slow_log_probs(model, prompt, row, 1.0)
        grad = torch.autograd.grad(log_prob.sum(), model.table)[0]
        ratios.append((log_prob.detach() - completions.log_prob[i, : len(row)]).mean().exp().item())
        scale = 1 / len(row) if per_length else 1.0
        expected += ratios[-1] * batch.credit.value[i] * scale * grad / len(batch)
    assert len(set(completions.length.tolist())) > 2 and all(abs(s - 1) > 1e-4 for s in ratios)
    config = GrpoConfig(type="grpo", loss_type=loss_type, importance_sampling_level="sequence")
    accumulate(policy, Grpo(config), batch, 4)
    torch.testing.assert_close(-model.table.grad, expected, rtol=1e-4, atol=1e-6)
    assert expected.abs().max() > 0.01


def test_a_sequence_beyond_its_range_has_no_gradient() -> None:
    model, batch = toy_sequences()
    shifted = torch.where(
        batch.completions.mask, batch.completions.log_prob - 0.1 * batch.credit.value.sign()[:, None], 0.0
    )
    far = dataclasses.replace(batch, samples=dataclasses.replace(batch.completions, log_prob=shifted))
    config = GrpoConfig(type="grpo", importance_sampling_level="sequence", clip_low=2e-3, clip_high=2.5e-3)
    sums = accumulate(Policy(model), Grpo(config), far, 64)
    assert model.table.grad is None or not model.table.grad.any()
    assert sums.totals["clip_ratio/low"] + sums.totals["clip_ratio/high"] == pytest.approx(1)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_before_any_update_the_gradient_is_the_policy_gradient(loss_type: str) -> None:
    model = TinyLanguage()
    batch = drawn_batch(model, PROMPTS, 4, limit=LIMIT)
    weigh, total = divisors(batch)[loss_type]
    loss = torch.zeros((), dtype=torch.float64)
    for i, (prompt, row) in enumerate(zip(batch.completions.prompt_ids, batch.completions.rows(), strict=True)):
        loss = loss - batch.credit.value[i] * slow_log_probs(model, prompt, row, 1.0).sum() * weigh(len(row)) / total
    loss.backward()
    expected = gradients(model)
    model.network.zero_grad()
    sums = accumulate(Policy(model), Grpo(GrpoConfig(type="grpo", loss_type=loss_type), pack=64), batch, 64)
    torch.testing.assert_close(gradients(model), expected, rtol=1e-3, atol=1e-5)
    assert expected.norm() > 0.1 and sums.largest_deviation <= 1e-6 * batch.completions.rounding


@pytest.mark.parametrize("pack", (0, 64))
@pytest.mark.parametrize("level", ("token", "sequence"))
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_gradients_and_metrics_do_not_depend_on_the_split(loss_type: str, level: str, pack: int) -> None:
    """Pitfall 39; the KL's share has other rows than the policy's."""
    kl_config = KlConfig(weight=0.3, scaling="k3" if level == "token" else "exact")
    config = GrpoConfig(type="grpo", loss_type=loss_type, importance_sampling_level=level, kl=kl_config)

    def split(micro_batch: int) -> tuple[Tensor, dict[str, float]]:
        policy, model, batch = prepared()
        sums = accumulate(policy, Grpo(config, pack), with_gaps(batch), micro_batch)
        return gradients(model), sums.totals

    whole, totals = split(64)
    assert whole.norm() > 1e-2 and {"loss/policy", "loss/kl", "entropy", "kl"} <= set(totals)
    for micro_batch in (1, 3, 7):
        found, metrics = split(micro_batch)
        torch.testing.assert_close(found, whole, rtol=1e-3, atol=1e-5)
        assert metrics == pytest.approx(totals, rel=1e-4, abs=1e-7), micro_batch


def test_the_kl_part_is_weighed_and_divided_like_the_policys() -> None:
    for loss_type in LOSS_TYPES:
        policy, _, batch = prepared()
        batch = with_gaps(batch)
        exact = TokenTerms(policy, batch, 0).kl("exact").detach()
        weigh, total = divisors(batch)[loss_type]
        rows = [i for i in range(12) if batch.valid[i]]
        expected = 0.3 * sum(exact[i].sum().item() * weigh(int(batch.completions.length[i])) for i in rows) / total
        config = GrpoConfig(type="grpo", loss_type=loss_type, kl=KlConfig(weight=0.3))
        sums = accumulate(policy, Grpo(config, 64), batch, 5)
        assert sums.totals["loss/kl"] == pytest.approx(expected, rel=1e-4) and expected > 1e-4


def test_metrics_are_means_over_the_tokens_of_valid_samples() -> None:
    policy, _, batch = prepared()
    terms = TokenTerms(policy, batch, 0)
    log_ratio = (terms.log_prob - batch.completions.log_prob).detach()[batch.completions.mask]
    entropy = terms.entropy[batch.completions.mask].mean().item()
    totals = accumulate(policy, Grpo(GrpoConfig(type="grpo")), batch, 5).totals
    assert totals["ratio/mean"] == pytest.approx(log_ratio.exp().mean().item(), rel=1e-5)
    assert totals["approx_kl"] == pytest.approx((log_ratio.exp() - 1 - log_ratio).mean().item(), rel=1e-4)
    assert totals["entropy"] == pytest.approx(entropy, rel=1e-4) and entropy > 0.1


# --- KL from the reward ----------------------------------------------------------------------------------------------

FROM_REWARD = GrpoConfig(type="grpo", kl=KlConfig(weight=0.3, scaling="k1", place="reward"))


@pytest.mark.parametrize("rows", (64, 5))
def test_kl_in_the_reward_is_the_sum_over_a_samples_tokens(rows: int) -> None:
    policy, _, batch = prepared()
    batch = with_gaps(batch)
    objective = Grpo(FROM_REWARD, 64, rows)
    assert objective.snapshots == {"reference": None}
    found = objective.penalty(policy, batch)
    terms = TokenTerms(policy, batch, 0)
    expected = 0.3 * (terms.log_prob - terms.reference.log_prob).sum(1).detach()
    expected[2] = 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not found.requires_grad and (found > 0).any() and (found < 0).any()
    assert set(objective.losses(objective.terms(policy, batch)).parts) == {"policy"}
    assert torch.equal(objective.computed(batch), batch.informative)
    assert Grpo(GrpoConfig(type="grpo", kl=KlConfig(weight=0.3))).penalty(policy, batch) is None
    assert Grpo(GrpoConfig(type="grpo")).penalty(policy, batch) is None


def test_a_group_where_one_is_missing_is_not_divided_by_it() -> None:
    """A sample without a score has no decisions; the others weigh the same as if it had not been drawn."""
    _, model, batch = prepared()
    everything = torch.arange(12)
    for loss_type in LOSS_TYPES:
        objective = Grpo(GrpoConfig(type="grpo", loss_type=loss_type))
        missing = dataclasses.replace(batch, credit=dataclasses.replace(batch.credit, valid=everything != 3))
        without = token_batch(batch.completions.select(everything[everything != 3]), 4)
        assert objective.count(missing) == objective.count(without) < objective.count(batch)
        assert not objective.weights(missing)[3].any()
    assert isinstance(batch.samples, Completions) and model.rows == []
