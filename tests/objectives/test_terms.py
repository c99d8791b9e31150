"""Terms are computed when first read, once, with the right weights; and gradients do not depend on who else is read."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.reference.toys import ToyFlowModel, gradients, perturb, rollout_batch, with_trace
from torch import Tensor

from plaudit.objectives.batch import Batch
from plaudit.objectives.grpo import Grpo
from plaudit.objectives.nft import Nft
from plaudit.objectives.terms import FlowTerms, stratified_times
from plaudit.recipe.objectives import GrpoConfig, KlConfig, NftConfig
from plaudit.recipe.sampling import Sampler
from plaudit.sampling.rollout import replay
from plaudit.shaping.credit import Credit
from plaudit.train.learn import accumulate, update_rows
from plaudit.train.trainable import Policy

SDE = Sampler(kernel="flow_sde", steps=5)


class Watch(Policy):
    """Notes which snapshots were entered."""

    def __init__(self, model: ToyFlowModel) -> None:
        super().__init__(model)
        self.entered: list[str] = []

    def using(self, name: str):
        self.entered.append(name)
        return super().using(name)


def watched(sampler: Sampler = SDE) -> tuple[FlowTerms, ToyFlowModel, Watch]:
    """Terms of a policy whose current, old and reference weights all differ."""
    model = ToyFlowModel()
    policy = Watch(model)
    policy.take("reference")
    perturb(model, seed=1)
    policy.take("old")
    batch = rollout_batch(model, sampler)
    perturb(model, seed=2)
    model.rows.clear()
    return FlowTerms(policy, batch, stratified_times(batch.keys, 2, 0.0, 1.0, 1.0)), model, policy


def test_nothing_is_computed_until_it_is_read() -> None:
    terms, model, policy = watched()
    _ = terms.old, terms.reference, terms.snapshot("old"), terms.forward
    assert model.rows == [] and policy.entered == []


def test_everything_is_computed_at_most_once() -> None:
    terms, model, policy = watched()
    for _ in range(3):
        _ = terms.velocity, terms.x0, terms.error
    assert model.rows == [24] and policy.entered == []
    for _ in range(3):
        _ = terms.step, terms.log_prob
    assert model.rows == [24, 48] and policy.entered == []
    for _ in range(3):
        _ = terms.old.velocity, terms.old.error, terms.old.log_prob, terms.reference.step
    assert model.rows == [24, 48, 24, 48, 48] and policy.entered == ["old", "old", "reference"]
    assert terms.old is terms.snapshot("old")


def test_snapshots_are_evaluated_with_their_weights_and_without_gradient() -> None:
    terms, model, policy = watched()
    current = {k: p.detach().clone() for k, p in model.network.named_parameters()}
    found = {name: terms.snapshot(name) for name in ("old", "reference")}
    for name, view in found.items():
        assert not view.velocity.requires_grad and not view.log_prob.requires_grad
        with torch.no_grad():
            by_hand = torch.func.functional_call(
                model.network,
                policy.snapshots[name],
                (
                    terms.forward.x,
                    terms.forward.t,
                    terms.batch.flow.conditioning.select(terms.forward.sample).condition.tensors["caption"],
                ),
            )
        torch.testing.assert_close(view.velocity, by_hand)
    assert terms.velocity.requires_grad and terms.log_prob.requires_grad
    distances = [(terms.velocity - v.velocity).abs().max().item() for v in found.values()]
    assert min(distances) > 1e-3
    assert all(torch.equal(p, current[k]) for k, p in model.network.named_parameters()), "pitfall 44: weights restored"


def test_old_log_prob_of_the_policy_that_drew_is_the_recorded_one() -> None:
    terms, _, _ = watched()
    torch.testing.assert_close(terms.old.log_prob, terms.batch.flow.trace.log_prob, rtol=0, atol=1e-4)
    assert (terms.log_prob - terms.batch.flow.trace.log_prob).abs().max() > 1e-2


@pytest.mark.parametrize("read", ("velocity", "log_prob"))
def test_reading_a_snapshot_before_backward_does_not_change_the_gradient(read: str) -> None:
    """The swap of weights must leave the graph of the current policy alone."""
    plain, model, _ = watched()
    (getattr(plain, read) ** 2).sum().backward()
    expected = gradients(model).clone()
    terms, model, _ = watched()
    value = getattr(terms, read)
    _ = getattr(terms.old, read), getattr(terms.reference, read)
    (value**2).sum().backward()
    assert torch.equal(gradients(model), expected) and expected.norm() > 0


def test_x0_and_error_follow_from_the_velocity() -> None:
    terms, _, _ = watched()
    points = terms.forward
    t = points.t[:, None, None, None]
    torch.testing.assert_close(terms.x0, points.x - t * terms.velocity)
    torch.testing.assert_close(terms.error, ((terms.velocity - (points.noise - points.x0)) ** 2).mean((1, 2, 3)))


def test_a_step_is_the_replay() -> None:
    terms, model, _ = watched()
    again = replay(model, terms.batch.flow.conditioning, terms.batch.flow.trace)
    assert torch.equal(terms.step.mean, again.mean) and torch.equal(terms.step.std, again.std)


def test_terms_that_the_batch_cannot_give_say_so() -> None:
    model = ToyFlowModel()
    batch = rollout_batch(model, Sampler(kernel="ode", steps=3))
    assert batch.flow.trace is None
    with pytest.raises(AssertionError, match="stochastic"):
        _ = FlowTerms(Policy(model), batch).log_prob
    with pytest.raises(AssertionError, match="forward points"):
        _ = FlowTerms(Policy(model), batch).velocity


def test_selecting_rows_selects_everything() -> None:
    batch = rollout_batch(ToyFlowModel(), SDE)
    rows = torch.tensor([9, 0, 4])
    part = batch.select(rows)
    for name in ("group", "score", "valid", "informative"):
        assert torch.equal(getattr(part, name), getattr(batch, name)[rows])
    assert torch.equal(part.credit.value, batch.credit.value[rows])
    assert torch.equal(part.flow.latents, batch.flow.latents[rows])
    assert torch.equal(part.scores["toy"], batch.scores["toy"][rows])
    assert part.prompts == tuple(batch.prompts[i] for i in (9, 0, 4))
    assert part.keys == tuple(batch.keys[i] for i in (9, 0, 4)) and len(part) == 3
    assert torch.equal(part.flow.trace.states, batch.flow.trace.states[rows])
    caption = batch.flow.conditioning.condition.tensors["caption"]
    assert torch.equal(part.flow.conditioning.condition.tensors["caption"], caption[rows])


# --- gradients and how an update is split ----------------------------------------------------------------------------

OBJECTIVES = {
    "grpo": Grpo(GrpoConfig(type="grpo")),
    "grpo with kl": Grpo(GrpoConfig(type="grpo", kl=KlConfig(weight=0.2))),
    "nft": Nft(NftConfig(times_per_sample=3, kl_weight=0.1)),
}


def prepared(name: str) -> tuple[Policy, ToyFlowModel, Batch]:
    """An update in the middle of training, with missing and uninformative samples and decisions that were not drawn."""
    model = ToyFlowModel()
    policy = Policy(model)
    policy.take("reference"), policy.take("old")
    batch = rollout_batch(model, SDE, groups=3, size=5)
    perturb(model, 0.02)
    valid, informative = batch.valid.clone(), batch.informative.clone()
    valid[2], informative[5:10] = False, False
    informative[2] = False
    advantage = torch.where(informative, batch.credit.value, 0.0)
    drawn = batch.flow.trace.mask.clone()
    drawn[::2, 3] = False
    batch = dataclasses.replace(batch, credit=Credit(value=advantage, valid=valid), informative=informative)
    return policy, model, with_trace(batch, mask=drawn)


def gradient_of(name: str, micro_batch: int) -> tuple[Tensor, dict[str, float]]:
    policy, model, batch = prepared(name)
    sums = accumulate(policy, OBJECTIVES[name], batch, micro_batch)
    return gradients(model), sums.totals


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_and_metrics_do_not_depend_on_the_split(name: str) -> None:
    """Pitfall 39, with splits that leave a remainder."""
    whole, totals = gradient_of(name, 64)
    assert whole.norm() > 1e-4
    for micro_batch in (1, 2, 4, 7, 9, 14):
        split, split_totals = gradient_of(name, micro_batch)
        torch.testing.assert_close(split, whole, rtol=1e-4, atol=1e-6)
        assert split_totals == pytest.approx(totals, rel=1e-5, abs=1e-9), micro_batch


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_gradient_is_that_of_the_mean_over_counted_elements(name: str) -> None:
    """The whole update as one expression: sum of parts where the mask is true, divided by how many are."""
    policy, model, batch = prepared(name)
    losses = OBJECTIVES[name].losses(OBJECTIVES[name].terms(policy, batch))
    loss = sum((part * losses.mask).sum() for part in losses.parts.values()) / losses.mask.sum()
    loss.backward()
    found, totals = gradient_of(name, 4)
    torch.testing.assert_close(found, gradients(model), rtol=1e-4, atol=1e-6)
    assert sum(v for k, v in totals.items() if k.startswith("loss/")) == pytest.approx(loss.item(), rel=1e-5)


def test_skipping_uninformative_rows_is_computing_them() -> None:
    """Without KL their gradient is zero, so only the network calls differ."""
    policy, model, batch = prepared("grpo")
    model.rows.clear()
    skipped = accumulate(policy, OBJECTIVES["grpo"], batch, 64)
    fast, rows = gradients(model), sum(model.rows)
    model.network.zero_grad(), model.rows.clear()

    class Thorough(Grpo):
        def computed(self, batch: Batch) -> Tensor:
            return batch.valid

    everything = accumulate(policy, Thorough(GrpoConfig(type="grpo")), batch, 64)
    torch.testing.assert_close(fast, gradients(model), rtol=1e-5, atol=1e-7)
    assert skipped.totals["loss/policy"] == pytest.approx(everything.totals["loss/policy"], rel=1e-6)
    assert rows == 9 * 4 and sum(model.rows) == 14 * 4


@pytest.mark.parametrize("kind", ("k1", "k2", "k3"))
@pytest.mark.parametrize(("kernel", "density"), [("flow_sde", "mean"), ("flow_sde", "flow_grpo"), ("cps", "cps")])
def test_an_estimated_kl_is_that_of_the_density_itself(kernel: str, density: str, kind: str) -> None:
    """Made of a scaled density, k2 would be the KL divided by the square of the number of dimensions."""
    found = {}
    for recorded in ("exact", density):
        model = ToyFlowModel()
        policy = Policy(model)
        policy.take("reference")
        batch = rollout_batch(model, SDE.model_copy(update={"kernel": kernel}), density=recorded)
        perturb(model, 0.02)
        found[recorded] = FlowTerms(policy, batch).kl(kind)
    torch.testing.assert_close(found[density], found["exact"])
    assert found["exact"].abs().max() > 1e-3 and found[density].requires_grad


def test_uninformative_rows_still_feel_the_kl() -> None:
    policy, model, batch = prepared("grpo with kl")
    model.rows.clear()
    accumulate(policy, OBJECTIVES["grpo with kl"], batch, 64)
    assert model.rows == [14 * 4, 14 * 4]


GROUP = torch.arange(4).repeat_interleave(3)


@pytest.mark.parametrize("updates", (1, 2, 3, 6))
def test_updates_are_a_partition_of_the_batch(updates: int) -> None:
    parts = list(update_rows(GROUP, updates, seed=1, step=5))
    assert [len(p) for p in parts] == [12 // updates] * updates
    assert sorted(torch.cat(parts).tolist()) == list(range(12))
    again = list(update_rows(GROUP, updates, seed=1, step=5))
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))
    if updates > 1:
        assert not torch.equal(torch.cat(parts), torch.cat(list(update_rows(GROUP, updates, seed=1, step=6))))
        assert torch.cat(parts).tolist() != list(range(12)), "groups must not stay together in one update"


@pytest.mark.parametrize(("updates", "sizes"), ((2, [2, 2]), (3, [1, 1, 2]), (4, [1, 1, 1, 1])))
def test_whole_groups_stay_in_one_update(updates: int, sizes: list[int]) -> None:
    parts = list(update_rows(GROUP, updates, seed=1, step=5, whole_groups=True))
    assert sorted(torch.cat(parts).tolist()) == list(range(12))
    found = [torch.unique(GROUP[part], return_counts=True) for part in parts]
    assert [len(groups) for groups, _ in found] == sizes and all((counts == 3).all() for _, counts in found)
    orders = {tuple(torch.cat(list(update_rows(GROUP, updates, 1, step, True))).tolist()) for step in range(6)}
    assert len(orders) > 2, "which groups come together changes from step to step"


def test_an_update_without_contrast_has_no_gradient() -> None:
    policy, model, batch = prepared("nft")
    nothing = dataclasses.replace(batch, informative=torch.zeros(15, dtype=torch.bool))
    model.rows.clear()
    sums = accumulate(policy, OBJECTIVES["nft"], nothing, 4)
    assert sums.totals == {} and model.rows == [] and gradients(model).abs().sum() == 0
