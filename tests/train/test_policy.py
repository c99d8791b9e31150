"""Weights, adapters and snapshots: what is frozen stays frozen, and swaps are undone."""

from __future__ import annotations

import pytest
import torch
from tests.reference.toys import EMA, GRPO, LORA, ToyFlowModel, perturb, rollout_batch, toy_recipe

from plaudit.errors import RecipeError
from plaudit.lab.scenes.grammar import evaluation_prompts
from plaudit.models.lab import LabFlowModel
from plaudit.models.lora import add_lora
from plaudit.objectives.nft import Nft
from plaudit.recipe.models import LoraConfig
from plaudit.recipe.objectives import NftConfig
from plaudit.recipe.sampling import Sampler
from plaudit.recipe.schema import Recipe, Train
from plaudit.train.learn import learn
from plaudit.train.setup import prepare
from plaudit.train.trainable import Policy


def weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


def take_steps(policy: Policy, model: ToyFlowModel, count: int = 3) -> None:
    train = Train(minutes=1, lr=0.05, prompts_per_step=3, samples_per_prompt=4)
    recipe = Recipe(train=train)
    policy.optimise(train)
    objective = Nft(NftConfig(kl_weight=0.1))
    policy.take("old"), policy.take("reference")
    for step in range(count):
        learn(recipe, policy, objective, rollout_batch(model, Sampler(steps=3), seed=step), step)


# --- adapters --------------------------------------------------------------------------------------------------------


def test_adapters_change_nothing_at_the_start_to_the_last_bit() -> None:
    plain, adapted = LabFlowModel("slots"), LabFlowModel("slots")
    add_lora(adapted, LoraConfig(rank=4), seed=0)
    condition = plain.encode(evaluation_prompts("heldout", 9))
    x, t = torch.randn(9, *plain.latent_shape), torch.linspace(0, 1, 9)
    with torch.no_grad():
        assert torch.equal(plain.velocity(x, t, condition), adapted.velocity(x, t, condition))
    trainable = Policy(adapted).trainable
    assert trainable and all("lora_" in name for name in trainable)
    assert all((p == 0).all() for name, p in trainable.items() if "lora_B" in name)
    assert any((p != 0).any() for name, p in trainable.items() if "lora_A" in name)
    assert {name.split(".")[-4] for name in trainable} == set(LabFlowModel.lora_targets)


def test_what_is_frozen_stays_frozen_and_adapters_move() -> None:
    """Pitfalls 14 and 27: `module.requires_grad = False` does nothing."""
    model = ToyFlowModel()
    add_lora(model, LoraConfig(rank=2), seed=0)
    policy, before = Policy(model), weights(model)
    take_steps(policy, model)
    after = weights(model)
    for name, tensor in before.items():
        if "lora_" in name:
            assert not torch.equal(after[name], tensor), name
        else:
            assert torch.equal(after[name], tensor), name
    assert sum("lora_" in name for name in before) == 4


def test_full_tuning_trains_everything() -> None:
    model = ToyFlowModel()
    policy, before = Policy(model), weights(model)
    take_steps(policy, model)
    assert set(policy.trainable) == set(before)
    assert all(not torch.equal(tensor, before[name]) for name, tensor in weights(model).items())


def test_adapters_start_from_the_runs_seed_and_leave_the_global_generator_alone() -> None:
    def adapters(seed: int) -> torch.Tensor:
        model = ToyFlowModel()
        add_lora(model, LoraConfig(rank=2), seed=seed)
        return torch.cat([p.flatten() for p in Policy(model).trainable.values()])

    state = torch.get_rng_state()
    first = adapters(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert torch.equal(adapters(0), first) and not torch.equal(adapters(1), first)


def test_targets_that_match_nothing_are_an_error() -> None:
    with pytest.raises(RecipeError, match=r"model.lora.targets: \['to_q'\] match no module"):
        add_lora(ToyFlowModel(), LoraConfig(targets=("to_q",)), seed=0)


def test_named_targets_are_taken() -> None:
    model = ToyFlowModel()
    add_lora(model, LoraConfig(targets=("leave",)), seed=0)
    assert all(name.startswith("leave.") for name in Policy(model).trainable)


# --- snapshots -------------------------------------------------------------------------------------------------------


def two_policies() -> tuple[Policy, ToyFlowModel, torch.Tensor]:
    model = ToyFlowModel()
    policy = Policy(model)
    policy.take("old")
    perturb(model)
    return policy, model, model.network.leave.weight.detach().clone()


def test_a_snapshot_is_a_copy() -> None:
    policy, model, _ = two_policies()
    assert not torch.equal(policy.snapshots["old"]["leave.weight"], model.network.leave.weight)
    assert torch.equal(policy.snapshots["old"]["leave.weight"], ToyFlowModel().network.leave.weight)


def test_a_swap_is_undone() -> None:
    policy, model, current = two_policies()
    with policy.using("old"):
        assert policy.active == "old"
        assert torch.equal(model.network.leave.weight, policy.snapshots["old"]["leave.weight"])
    assert policy.active == "current" and torch.equal(model.network.leave.weight, current)


def test_a_swap_is_undone_when_something_fails() -> None:
    """Pitfall 44."""
    policy, model, current = two_policies()
    with pytest.raises(ZeroDivisionError), policy.using("old"):
        raise ZeroDivisionError
    assert policy.active == "current" and torch.equal(model.network.leave.weight, current)
    with pytest.raises(KeyError), policy.using("absent"):
        pass
    assert policy.active == "current" and torch.equal(model.network.leave.weight, current)


def test_the_current_policy_needs_no_swap_and_swaps_nest() -> None:
    policy, model, current = two_policies()
    with policy.using("current"):
        assert torch.equal(model.network.leave.weight, current)
    policy.take("other")
    with policy.using("old"):
        for name in ("other", "old"):
            with policy.using(name):
                assert torch.equal(model.network.leave.weight, policy.snapshots[name]["leave.weight"])
            assert torch.equal(model.network.leave.weight, policy.snapshots["old"]["leave.weight"])
        with pytest.raises(RuntimeError, match="the current weights inside snapshot 'old'"), policy.using("current"):
            pass
        with pytest.raises(ZeroDivisionError), policy.using("other"):
            1 / 0  # noqa: B018
        assert torch.equal(model.network.leave.weight, policy.snapshots["old"]["leave.weight"])
    assert torch.equal(model.network.leave.weight, current)
    assert not torch.equal(current, policy.snapshots["old"]["leave.weight"])


def test_the_optimizer_goes_on_with_the_same_parameters_after_a_swap() -> None:
    policy, _model, _ = two_policies()
    before = list(policy.trainable.values())
    with policy.using("old"):
        pass
    assert all(a is b for a, b in zip(before, policy.trainable.values(), strict=True))


@pytest.mark.parametrize("decay", (0.0, 0.25, 0.9, 1.0))
def test_a_blend_is_decay_times_old_plus_the_rest_of_current(decay: float) -> None:
    policy, model, current = two_policies()
    old = policy.snapshots["old"]["leave.weight"].clone()
    policy.blend("old", decay)
    torch.testing.assert_close(policy.snapshots["old"]["leave.weight"], decay * old + (1 - decay) * current)
    assert torch.equal(model.network.leave.weight, current)


def test_the_old_policy_follows_its_schedule_in_a_run(tmp_path, monkeypatch) -> None:
    """Pitfall 41: the first decay is `rate * 1`, so the old policy starts as nearly the trained one."""
    import plaudit.train.loop as loop

    blends: list[tuple[str, float]] = []
    real = Policy.blend

    def blend(self, name, decay):
        blends.append((name, decay))
        real(self, name, decay)

    monkeypatch.setattr(Policy, "blend", blend)
    recipe = toy_recipe(
        tmp_path, EMA, {"objective": {"old_decay_rate": 0.2, "old_decay_max": 0.5}, "train": {"steps": 4}}
    )
    loop.train(recipe)
    assert [d for n, d in blends if n == "old"] == pytest.approx([0.2, 0.4, 0.5, 0.5])
    assert [d for n, d in blends if n == "ema"] == pytest.approx([1 / 10, 2 / 11, 3 / 12, 4 / 13])
    assert "reference" not in {n for n, _ in blends}


# --- set-up ----------------------------------------------------------------------------------------------------------


def test_a_setup_has_the_snapshots_its_objective_and_result_need(tmp_path) -> None:
    assert set(prepare(toy_recipe(tmp_path)).policy.snapshots) == {"old", "reference"}
    assert set(prepare(toy_recipe(tmp_path, {"objective": {"kl_weight": 0.0}})).policy.snapshots) == {"old"}
    assert set(prepare(toy_recipe(tmp_path, GRPO, EMA)).policy.snapshots) == {"reference", "ema"}
    assert prepare(toy_recipe(tmp_path)).result == "current" and prepare(toy_recipe(tmp_path, EMA)).result == "ema"


def test_nothing_trainable_is_an_error(tmp_path, monkeypatch) -> None:
    from tests.reference import toys

    def frozen(seed: int = 0) -> ToyFlowModel:
        model = ToyFlowModel(seed=seed)
        model.network.requires_grad_(False)
        return model

    monkeypatch.setattr(toys, "build", frozen)
    with pytest.raises(RecipeError, match="model: nothing is trainable"):
        prepare(toy_recipe(tmp_path))


def test_a_lora_setup_trains_adapters_only(tmp_path) -> None:
    policy = prepare(toy_recipe(tmp_path, LORA)).policy
    assert policy.trainable and all("lora_" in name for name in policy.trainable)
    assert set(policy.snapshots["reference"]) == set(policy.trainable)


def test_adapters_name_their_targets_in_one_order() -> None:
    model = ToyFlowModel()
    add_lora(model, LoraConfig(rank=2, targets=("leave", "enter")), seed=0)
    assert model.network.peft_config["default"].to_dict()["target_modules"] == ["enter", "leave"]
