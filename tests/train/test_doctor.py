"""The doctor passes what is sound, and each of its checks fails when the thing that it guards is broken."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.reference import toys
from tests.reference.toys import GRPO, LORA, ToyFlowModel, toy_recipe

import plaudit.objectives.terms as flow_terms
import plaudit.shaping.credit as shaping
import plaudit.train.learn as learning
from plaudit.errors import RunError
from plaudit.objectives.nft import Nft
from plaudit.recipe.load import load
from plaudit.rewards.base import card
from plaudit.rewards.rules.code import UnitTests
from plaudit.sampling import kernels
from plaudit.sampling.kernels import Transition
from plaudit.sandbox import Level, levels
from plaudit.train.doctor import doctor
from plaudit.train.doctor import flow as doctor_flow
from plaudit.train.doctor.checks import Check, Patient, admit
from plaudit.train.doctor.doctor import cheap_checks, examine
from plaudit.train.setup import prepare
from plaudit.verbs import align

NAMES = {
    "isolation": "programs are kept from this machine",
    "frozen": "something is trainable",
    "lora_zero": "LoRA starts at zero",
    "level_zero": "level 0 is the stock sampler",
    "ratio_one": "ratio is 1 before the first update",
    "mismatch_kl": "drawing and replay are one distribution",
    "constant_group": "a constant group gets advantage 0",
    "permutation": "permuting the batch permutes the rewards",
    "reward_is_deterministic": "scoring twice gives the same scores",
    "mismatch": "mismatched prompts score lower",
    "kl_matches": "KL equals torch.distributions",
    "draws_match_density": "draws have the density's mean and std",
    "kl_has_gradient": "the KL term has a gradient",
    "micro_batches": "gradients do not depend on the split",
    "batch_size": "samples do not depend on the batch",
}


CHEAP = (*doctor.FIRST, *doctor_flow.CHEAP, *doctor.CHEAP)
ALL = (*CHEAP, *doctor_flow.LATER, *doctor.LATER)


def verdicts(checks: list[Check]) -> dict[str, bool | None]:
    return {check.name: check.passed for check in checks}


def one(check: Callable[[Patient], Check], tmp_path: Path, *layers: dict) -> Check:
    return check(admit(prepare(toy_recipe(tmp_path, *layers))))


def test_every_check_is_run_and_named(tmp_path: Path) -> None:
    assert {check.__name__ for check in ALL} == set(NAMES)
    setup = prepare(toy_recipe(tmp_path))
    cheap = [NAMES[check.__name__] for check in CHEAP]
    assert [check.name for check in cheap_checks(setup)] == cheap
    assert {check.name for check in examine(setup.recipe)} == set(NAMES.values()) > set(cheap)


@pytest.mark.parametrize(
    ("base", "layers", "not_applicable"),
    [
        ("slots-nft", [], {"isolation", "lora_zero", "ratio_one", "mismatch_kl", "kl_matches", "draws_match_density"}),
        ("slots-grpo", [], {"isolation", "lora_zero", "kl_has_gradient"}),
        ("edits-grpo", [], {"isolation", "lora_zero", "kl_has_gradient"}),
        (
            "slots-grpo",
            [
                {
                    "objective": {"kl": {"weight": 0.01}},
                    "model": {"lora": {"rank": 4}},
                    "sampler": {"guidance": 2.0, "kernel": "cps", "window": {"size": 2, "start": [0, 4]}},
                }
            ],
            {"isolation"},
        ),
    ],
    ids=("nft", "grpo", "grpo on an editor", "grpo with everything"),
)
def test_the_shipped_recipes_are_sound(base: str, layers: list[dict], not_applicable: set[str]) -> None:
    found = verdicts(examine(load([{"base": base, "run": {"threads": 1}}, *layers])))
    assert set(found) == set(NAMES.values())
    assert found == {name: None if key in not_applicable else True for key, name in NAMES.items()}


def test_the_toys_are_sound(tmp_path: Path) -> None:
    for layers in ([], [GRPO], [GRPO, LORA], [{"sampler": {"kernel": "flow_sde", "level": 0.0}}]):
        assert False not in verdicts(examine(toy_recipe(tmp_path, *layers))).values()


@pytest.mark.parametrize("problem", [None, "the kernel says no"])
def test_the_level_in_force_is_told_and_why_it_is_no_higher(
    problem: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def problem_of(level: Level) -> str | None:
        return problem if level <= Level.LANDLOCK else "not here"

    monkeypatch.setattr(levels, "problem_of", problem_of)
    monkeypatch.delenv(levels.DEMAND, raising=False)
    levels._found.cache_clear()
    runs_programs = SimpleNamespace(card=UnitTests.card)
    setup = SimpleNamespace(rewards=SimpleNamespace(rewards=[runs_programs]), truth=SimpleNamespace(card=None))
    check = doctor.isolation(SimpleNamespace(setup=setup))  # type: ignore[arg-type]
    levels._found.cache_clear()
    assert check.passed is (problem is None)
    assert "namespaces: not here" in (check.limit if check.passed else check.remedy)
    assert check.value == ("landlock" if check.passed else "no")


def test_a_check_that_does_not_apply_says_so_instead_of_passing(tmp_path: Path) -> None:
    for check in (doctor.ratio_one, doctor.mismatch_kl, doctor_flow.kl_matches, doctor_flow.draws_match_density):
        assert one(check, tmp_path).passed is None
        assert one(check, tmp_path, {"sampler": {"kernel": "flow_sde", "level": 0.0}}).passed is None
        assert one(check, tmp_path, GRPO).passed is True
    assert one(doctor.lora_zero, tmp_path).passed is None and one(doctor.lora_zero, tmp_path, LORA).passed is True
    assert one(doctor.kl_has_gradient, tmp_path, {"objective": {"kl_weight": 0.0}}).passed is None


# --- what breaks each check ------------------------------------------------------------------------------------------


def model_with(monkeypatch: pytest.MonkeyPatch, velocity) -> None:
    """The toy model with another velocity: `velocity(own, x, t, condition)`."""
    real = ToyFlowModel.velocity
    monkeypatch.setattr(ToyFlowModel, "velocity", lambda self, x, t, c: velocity(real(self, x, t, c), x, t))


def test_level_zero_fails_when_a_kernel_is_not_euler_there(tmp_path, monkeypatch) -> None:
    real = kernels.KERNELS["flow_sde"]

    def off(x, v, t, t_next, level):
        step = real(x, v, t, t_next, level)
        return Transition(mean=step.mean + 1e-4, std=step.std)

    monkeypatch.setitem(kernels.KERNELS, "flow_sde", off)
    assert one(doctor_flow.level_zero, tmp_path, GRPO).passed is False


def test_level_zero_fails_when_the_model_has_a_memory(tmp_path, monkeypatch) -> None:
    """Pitfall 7: a stateful scheduler shared by two trajectories."""
    calls: list[int] = []
    model_with(monkeypatch, lambda v, x, t: v + 1e-4 * (calls.append(1) or len(calls)))
    assert one(doctor_flow.level_zero, tmp_path).passed is False


def test_ratio_fails_with_dropout(tmp_path, monkeypatch) -> None:
    model_with(monkeypatch, lambda v, x, t: torch.nn.functional.dropout(v, 0.1))
    assert one(doctor.ratio_one, tmp_path, GRPO).passed is False


def test_ratio_fails_when_replay_guides_otherwise(tmp_path, monkeypatch) -> None:
    real = flow_terms.replay
    monkeypatch.setattr(
        flow_terms,
        "replay",
        lambda model, conditioning, trace: real(model, dataclasses.replace(conditioning, guidance=1.0), trace),
    )
    assert one(doctor.ratio_one, tmp_path, GRPO, {"sampler": {"guidance": 1.5}}).passed is False


def test_ratio_fails_when_states_are_stored_in_half_precision(tmp_path, monkeypatch) -> None:
    """Pitfall 8."""
    patient = admit(prepare(toy_recipe(tmp_path, GRPO)))
    samples = patient.piece.samples
    trace = dataclasses.replace(samples.trace, states=samples.trace.states.bfloat16().float())
    piece = dataclasses.replace(patient.piece, samples=dataclasses.replace(samples, trace=trace))
    patient = dataclasses.replace(patient, given=piece)
    assert doctor.ratio_one(patient).passed is False


@pytest.mark.parametrize(("drift", "verdict"), ((0.1, False), (-0.1, False), (0.02, True)))
def test_the_mismatch_is_the_mean_kl_of_all_decisions(drift: float, verdict: bool, tmp_path) -> None:
    """exp(d) - 1 - d is 5e-3 at 0.1 and 2e-4 at 0.02; allowed are 1e-3."""
    patient = admit(prepare(toy_recipe(tmp_path, GRPO)))
    samples = patient.piece.samples
    trace = dataclasses.replace(samples.trace, log_prob=samples.trace.log_prob - drift)
    piece = dataclasses.replace(patient.piece, samples=dataclasses.replace(samples, trace=trace))
    assert doctor.mismatch_kl(patient).passed is True
    assert doctor.mismatch_kl(dataclasses.replace(patient, given=piece)).passed is verdict


def test_kl_fails_without_dt(tmp_path, monkeypatch) -> None:
    real = doctor_flow.kl_divergence
    monkeypatch.setattr(doctor_flow, "kl_divergence", lambda a, b, t, s: real(a, b, t, s) * (t - s))
    assert one(doctor_flow.kl_matches, tmp_path, GRPO).passed is False


@pytest.mark.parametrize("factor", (0.5, 0.97, 1.03))
def test_draws_fail_when_the_density_has_another_deviation(factor: float, tmp_path, monkeypatch) -> None:
    """Pitfall 2; 0.5 is what a missing sqrt(dt) does at four steps."""
    real = doctor_flow.log_density
    monkeypatch.setattr(
        doctor_flow, "log_density", lambda x, step: real(x, Transition(mean=step.mean, std=step.std * factor))
    )
    assert one(doctor_flow.draws_match_density, tmp_path, GRPO).passed is False


@pytest.mark.parametrize("harm", ("deviation", "mean", "the same noise for all"))
def test_draws_fail_when_the_sampler_draws_otherwise(harm: str, tmp_path, monkeypatch) -> None:
    real = doctor_flow.move

    def move(step, keys, decision):
        match harm:
            case "deviation":
                return real(Transition(mean=step.mean, std=step.std * 1.03), keys, decision)
            case "mean":
                return real(step, keys, decision) + 0.02 * step.std[0]
        return real(step, [keys[0]] * len(keys), decision)

    monkeypatch.setattr(doctor_flow, "move", move)
    assert one(doctor_flow.draws_match_density, tmp_path, GRPO).passed is False


@pytest.mark.parametrize("kind", ("grpo", "nft"))
def test_the_kl_check_fails_when_it_is_detached(kind: str, tmp_path, monkeypatch) -> None:
    """Pitfall 37."""
    if kind == "grpo":
        real = flow_terms.kl_divergence
        monkeypatch.setattr(flow_terms, "kl_divergence", lambda *args: real(*args).detach())
        layers = [GRPO]
    else:
        losses = Nft.losses

        def detached(self, terms):
            found = losses(self, terms)
            return dataclasses.replace(found, parts=found.parts | {"kl": found.parts["kl"].detach()})

        monkeypatch.setattr(Nft, "losses", detached)
        layers = []
    assert one(doctor.kl_has_gradient, tmp_path, *layers).passed is False


@pytest.mark.parametrize("layers", ([], [GRPO]), ids=("nft", "grpo"))
def test_the_split_check_fails_when_a_micro_batch_divides_by_itself(layers: list[dict], tmp_path, monkeypatch) -> None:
    """Pitfall 39."""

    def accumulate(policy, objective, batch, micro_batch):
        for rows in torch.arange(len(batch)).split(micro_batch):
            losses = objective.losses(objective.terms(policy, batch.select(rows)))
            sum((part * losses.weights).sum() / losses.weights.sum() for part in losses.parts.values()).backward()

    monkeypatch.setattr(learning, "accumulate", accumulate)
    assert one(doctor.micro_batches, tmp_path, *layers).passed is False


def test_the_batch_check_fails_when_the_model_looks_at_the_batch(tmp_path, monkeypatch) -> None:
    model_with(monkeypatch, lambda v, x, t: v - 0.1 * x.mean())
    assert one(doctor.batch_size, tmp_path).passed is False


REAL = toys.redness


def first_only(prompts, outputs):
    return REAL([prompts[0]] * len(prompts), outputs)


def off_by_one(prompts, outputs):
    return REAL(prompts[1:] + prompts[:1], outputs)


def backwards(prompts, outputs):
    return REAL(prompts[::-1], outputs)


def by_position(prompts, outputs):
    return [0.01 * i for i in range(len(prompts))]


def torch_random(prompts, outputs):
    return torch.rand(len(prompts))


def sometimes_missing(prompts, outputs):
    return [None if i == 5 else v for i, v in enumerate(REAL(prompts, outputs))]


@pytest.mark.parametrize("reward", (first_only, off_by_one, backwards, by_position, sometimes_missing))
def test_the_permutation_check_fails_when_a_reward_mixes_its_items(reward, tmp_path, monkeypatch) -> None:
    """Pitfall 20."""
    monkeypatch.setattr(toys, "redness", reward)
    found = one(doctor.permutation, tmp_path)
    assert found.passed is False and "rewards.red" in found.value and "another item's prompt" in found.remedy


def jittery(prompts, outputs):
    return [value + 0.01 * random.random() for value in REAL(prompts, outputs)]


def jittery_and_first_only(prompts, outputs):
    return jittery([prompts[0]] * len(prompts), outputs)


COUNT, DICE = itertools.count(), random.Random(0)


def drifting(prompts, outputs):
    calls = next(COUNT)
    return [value + calls for value in REAL(prompts, outputs)]


def rounding_by_place(prompts, outputs):
    return [value * (1 + 1e-4 * i) for i, value in enumerate(REAL(prompts, outputs))]


def failing_now_and_then(prompts, outputs):
    for _ in outputs:
        if DICE.random() < 0.3:
            raise ConnectionError("the judge is busy")
    return REAL(prompts, outputs)


WHICH = {  # verdicts on permuting and on repeating, then both where the recipe admits noise; and words of the diagnosis
    torch_random: (True, False, True, None, "the reward is random"),
    jittery: (True, False, True, None, "admit it with rewards.red.deterministic: false"),
    drifting: (True, False, True, None, "admit it with rewards.red.deterministic: false"),
    jittery_and_first_only: (False, False, False, None, "another item's prompt"),
    rounding_by_place: (False, True, True, None, "rounds by the place in the batch"),
    first_only: (False, True, False, None, "another item's prompt"),
    failing_now_and_then: (False, False, False, False, "ConnectionError: the judge is busy"),
}


@pytest.mark.parametrize("reward", WHICH, ids=lambda reward: reward.__name__)
def test_noise_rounding_failures_and_leakage_are_told_apart(reward, tmp_path, monkeypatch) -> None:
    """Pitfall 61."""
    monkeypatch.setattr(toys, "redness", reward)
    checks = (doctor.permutation, doctor.reward_is_deterministic)
    strict = [one(check, tmp_path) for check in checks]
    admitting = {"rewards": {"red": {"deterministic": False}}}
    admitted = [one(check, tmp_path, admitting) for check in checks]
    *verdicts, words = WHICH[reward]
    assert [check.passed for check in (*strict, *admitted)] == verdicts
    assert any(words in f"{check.value} {check.remedy}" for check in strict if check.passed is False)


def test_the_permutation_check_looks_past_the_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PLAUDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(toys, "redness", first_only)
    assert one(doctor.permutation, tmp_path, {"rewards": {"red": {"cache": True}}}).passed is False


def test_a_card_may_admit_noise_too(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(toys, "redness", card(deterministic=False)(lambda prompts, outputs: jittery(prompts, outputs)))
    assert False not in verdicts(cheap_checks(prepare(toy_recipe(tmp_path)))).values()


def test_the_mismatch_check_tells_good_from_bad_from_blind(tmp_path, monkeypatch) -> None:
    def solve(prompts, outputs):  # the toys are untrained, so pictures are made to fit their prompts here
        return [
            float(hash_of(text) == round(picture[0, 0, 0].item() * 1e6))
            for text, picture in zip(prompts, outputs, strict=True)
        ]

    def hash_of(text: str) -> int:
        return int(text.split()[-1]) + 1

    patient = admit(prepare(toy_recipe(tmp_path)))
    marks = torch.tensor([hash_of(p.text) / 1e6 for p in patient.prompts])
    piece = dataclasses.replace(patient.piece, outputs=marks[:, None, None, None].expand(-1, 3, 4, 4).clone())
    for reward, verdict in (
        (solve, True),
        (lambda prompts, outputs: [1 - s for s in solve(prompts, outputs)], False),
        (lambda prompts, outputs: solve(prompts[-4:] + prompts[:-4], outputs), False),
        (lambda prompts, outputs: outputs.mean((1, 2, 3)), None),
    ):
        monkeypatch.setattr(toys, "redness", reward)
        patient = dataclasses.replace(patient, setup=prepare(toy_recipe(tmp_path)), given=piece)
        assert doctor.mismatch(patient).passed is verdict


@pytest.mark.parametrize("kind", ("a random number", "a counter", "missing at times"))
def test_the_repetition_check_fails_for_a_reward_with_moods(kind: str, tmp_path, monkeypatch) -> None:
    calls: list[int] = []

    def reward(prompts, outputs):
        calls.append(1)
        match kind:
            case "a random number":
                return [s + 0.1 * random.random() for s in REAL(prompts, outputs)]
            case "a counter":
                return [s + len(calls) for s in REAL(prompts, outputs)]
        return [None if i == len(calls) else s for i, s in enumerate(REAL(prompts, outputs))]

    monkeypatch.setattr(toys, "redness", reward)
    assert one(doctor.reward_is_deterministic, tmp_path).passed is False


def test_the_constant_group_check_fails_without_the_exact_comparison(tmp_path, monkeypatch) -> None:
    """Pitfall 30."""
    monkeypatch.setattr(
        shaping, "_constant_groups", lambda score, present, index, groups: torch.zeros(groups, dtype=torch.bool)
    )
    assert one(doctor.constant_group, tmp_path).passed is False


def test_the_trainable_check_fails_when_nothing_is(tmp_path) -> None:
    patient = admit(prepare(toy_recipe(tmp_path)))
    patient.setup.policy.model.network.requires_grad_(False)
    assert doctor.frozen(patient).passed is False


def test_the_lora_check_fails_when_adapters_start_elsewhere(tmp_path) -> None:
    """Pitfall 14."""
    patient = admit(prepare(toy_recipe(tmp_path, LORA)))
    with torch.no_grad():
        patient.setup.policy.model.network.leave.lora_B.default.weight[0, 0] = 1e-6
    assert doctor.lora_zero(patient).passed is False


# --- what follows from a failed check --------------------------------------------------------------------------------


def test_a_run_is_not_started_when_a_cheap_check_fails(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(toys, "redness", first_only)
    with pytest.raises(
        RunError,
        match=r"(?s)the run was not started because a check failed:.*permuting the batch.*another item's prompt",
    ):
        align(toy_recipe(tmp_path))
    assert not (tmp_path / "runs/toy/metrics.jsonl").exists()
    assert (tmp_path / "runs/toy/checks.json").exists()


def test_checks_leave_the_weights_and_gradients_as_they_were(tmp_path) -> None:
    setup = prepare(toy_recipe(tmp_path, GRPO))
    before = {k: p.detach().clone() for k, p in setup.policy.trainable.items()}
    doctor._run(ALL, setup)
    assert all(torch.equal(p, before[k]) and p.grad is None for k, p in setup.policy.trainable.items())
    assert all(check.seconds >= 0 and check.to_json()["name"] for check in cheap_checks(setup))
