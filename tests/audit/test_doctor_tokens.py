"""Every check of a token model fails when the thing that it guards is broken."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.reference.token_toys import KL, PACKED, sums_recipe
from torch import Tensor

import plaudit.objectives.token_terms as token_terms
import plaudit.sampling.tokens as tokens
import plaudit.train.learn as learning
from plaudit.models.lab_text import LabTokenModel
from plaudit.sampling.tokens import causal
from plaudit.train.doctor import doctor
from plaudit.train.doctor import tokens as doctor_tokens
from plaudit.train.doctor.checks import Check, Patient, admit
from plaudit.train.setup import prepare

REAL = LabTokenModel.logits


def patient(folder: Path, *layers: dict) -> Patient:
    return admit(prepare(sums_recipe(folder, *layers)))


def passed(check: Callable[[Patient], Check], folder: Path, *layers: dict) -> bool | None:
    return check(patient(folder, *layers)).passed


def model_with(monkeypatch: pytest.MonkeyPatch, change: Callable[..., Tensor]) -> None:
    """The lab's model with other logits: `change(model, ids, positions, visible, cache, keep)`."""

    def logits(self, ids, positions, visible, *, cache=None, keep=None):
        return change(self, ids, positions, visible, cache, keep)

    monkeypatch.setattr(LabTokenModel, "logits", logits)


def columns(ids: Tensor) -> Tensor:
    """What a model takes for positions that does not look at them."""
    return torch.arange(ids.shape[1]).expand(ids.shape)


def with_places(model, ids, positions, visible, cache, keep) -> Tensor:
    """A model with absolute positions; rotary ones do not change when all of a row move together."""
    own = positions if keep is None else positions[:, keep]
    places = torch.sin(own[:, :, None] * torch.arange(1, 20))
    return REAL(model, ids, positions, visible, cache=cache, keep=keep) + places


def sees_everything(visible: Tensor, cache) -> Tensor:
    """A mask that is causal and nothing else."""
    return torch.ones_like(visible).tril(visible.shape[2] - visible.shape[1])


def test_the_sound_model_passes(tmp_path: Path) -> None:
    subject = patient(tmp_path, PACKED, KL)
    for check in (
        *doctor_tokens.CHEAP,
        *doctor_tokens.LATER,
        doctor.ratio_one,
        doctor.batch_size,
        doctor.micro_batches,
    ):
        assert check(subject).passed is True, check.__name__
    assert doctor.kl_has_gradient(subject).passed is True


# --- padding and packing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "expected"), ((-torch.inf, True), (torch.nan, False)))
def test_padding_passes_with_a_masked_vocabulary_and_fails_with_nan(
    value: float, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(model, ids, positions, visible, cache, keep) -> Tensor:
        logits = REAL(model, ids, positions, visible, cache=cache, keep=keep)
        return torch.cat([torch.full_like(logits[..., :1], value), logits[..., 1:]], dim=-1)

    subject = patient(tmp_path)
    model_with(monkeypatch, change)
    assert doctor_tokens.padding(subject).passed is expected


def test_padding_fails_when_padding_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(model, ids, positions, visible, cache, keep):
        return REAL(model, ids, positions, sees_everything(visible, cache), cache=cache, keep=keep)

    model_with(monkeypatch, careless)
    assert passed(doctor_tokens.padding, tmp_path) is False


def test_padding_fails_when_positions_are_those_of_the_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_with(monkeypatch, with_places)
    assert passed(doctor_tokens.padding, tmp_path) is True
    model_with(monkeypatch, lambda model, ids, _, *rest: with_places(model, ids, columns(ids), *rest))
    assert passed(doctor_tokens.padding, tmp_path) is False


def test_padding_fails_with_statistics_of_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def normalised(model, ids, positions, visible, cache, keep):
        logits = REAL(model, ids, positions, visible, cache=cache, keep=keep)
        return logits - 0.01 * logits.mean(0)

    model_with(monkeypatch, normalised)
    assert passed(doctor_tokens.padding, tmp_path) is False


def test_packing_fails_when_completions_see_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(model, ids, positions, visible, cache, keep):
        visible = visible if cache is not None else causal(ids != model.pad_id)
        return REAL(model, ids, positions, visible, cache=cache, keep=keep)

    model_with(monkeypatch, careless)
    assert passed(doctor_tokens.packing, tmp_path, PACKED) is False


def test_packing_fails_when_positions_go_on_through_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(model, ids, positions, visible, cache, keep):
        positions = positions if cache is not None else columns(ids)
        return REAL(model, ids, positions, visible, cache=cache, keep=keep)

    model_with(monkeypatch, careless)
    assert passed(doctor_tokens.packing, tmp_path, PACKED) is False


def test_packing_does_not_apply_without_packing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert passed(doctor_tokens.packing, tmp_path) is None
    monkeypatch.setattr(LabTokenModel, "packs", False)
    assert passed(doctor_tokens.packing, tmp_path, PACKED) is None


# --- ends and draws --------------------------------------------------------------------------------------------------


def test_ends_fail_when_the_adapter_names_another_end(tmp_path: Path) -> None:
    subject = patient(tmp_path)
    assert doctor_tokens.ends(subject).passed is True
    for wrong in (frozenset({4}), frozenset[int](), frozenset({1, 10})):
        subject.setup.policy.model.end_ids = wrong
        assert doctor_tokens.ends(subject).passed is False, wrong


def test_ends_fail_when_drawing_goes_on_after_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_ended", lambda model, drawn, stop: torch.zeros(len(drawn), dtype=torch.bool))
    assert passed(doctor_tokens.ends, tmp_path) is False


def test_ends_fail_when_drawing_stops_too_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tokens._ended
    monkeypatch.setattr(tokens, "_ended", lambda model, drawn, stop: real(model, drawn, stop) | (drawn.shape[1] == 3))
    assert passed(doctor_tokens.ends, tmp_path) is False


@pytest.mark.parametrize("wrong", (True, False))
def test_ends_fail_when_the_cut_ones_are_not_known(wrong: bool, tmp_path: Path) -> None:
    subject = patient(tmp_path)
    samples = dataclasses.replace(subject.piece.samples, cut=torch.full((len(subject.piece),), wrong))
    assert subject.piece.samples.cut.any() and not subject.piece.samples.cut.all()
    subject = dataclasses.replace(subject, given=dataclasses.replace(subject.piece, samples=samples))
    assert doctor_tokens.ends(subject).passed is False


def test_a_stop_text_is_an_end(tmp_path: Path) -> None:
    stop = {"sampler": {"stop": ["#", ";"]}}
    subject = patient(tmp_path, stop)
    ends = {subject.piece.outputs[i][-1:] for i in range(12) if not subject.piece.samples.cut[i]}
    assert {"#", ";"} & ends and doctor_tokens.ends(subject).passed is True
    forgotten = dataclasses.replace(subject, setup=prepare(sums_recipe(tmp_path)), given=subject.piece)
    assert doctor_tokens.ends(forgotten).passed is False


@pytest.mark.parametrize(
    "harm",
    (
        lambda log_probs, number: tokens.pick(log_probs, number**1.01),
        lambda log_probs, number: tokens.pick(log_probs, 0.99 * number),
        lambda log_probs, number: tokens.pick(1.02 * log_probs, number),
        lambda log_probs, number: tokens.pick(log_probs, number).clamp(min=1, max=log_probs.shape[1] - 2) + 1,
        lambda log_probs, number: log_probs.argmax(1),
    ),
    ids=("bent", "short", "sharpened", "off by one", "greedy"),
)
def test_draws_fail_when_picking_is_biased(harm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert passed(doctor_tokens.draws_match_density, tmp_path) is True
    monkeypatch.setattr(doctor_tokens, "pick", harm)
    assert passed(doctor_tokens.draws_match_density, tmp_path) is False


# --- what both families share, on tokens -----------------------------------------------------------------------------


def test_the_batch_check_fails_when_the_model_looks_at_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sociable(model, ids, positions, visible, cache, keep):
        logits = REAL(model, ids, positions, visible, cache=cache, keep=keep)
        return logits - 0.7 * logits.mean(0, keepdim=True)

    model_with(monkeypatch, sociable)
    assert passed(doctor.batch_size, tmp_path) is False


@pytest.mark.parametrize("scaling", ("exact", "k2", "k3"))
def test_the_kl_check_fails_when_it_is_detached(scaling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [KL, {"objective": {"kl": {"scaling": scaling}}}]
    assert passed(doctor.kl_has_gradient, tmp_path, *layers) is True
    real = token_terms.TokenTerms.kl
    monkeypatch.setattr(token_terms.TokenTerms, "kl", lambda self, scaling: real(self, scaling).detach())
    assert passed(doctor.kl_has_gradient, tmp_path, *layers) is False


@pytest.mark.parametrize("loss_type", ("dapo", "grpo", "dr_grpo", "luspo"))
def test_the_split_check_fails_when_a_micro_batch_divides_by_itself(
    loss_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def accumulate(policy, objective, batch, micro_batch):
        for rows in torch.arange(len(batch)).split(micro_batch):
            part = batch.select(rows)
            losses = objective.losses(objective.terms(policy, part))
            sum((p * losses.weights).sum() / objective.count(part) for p in losses.parts.values()).backward()

    layers = {"objective": {"loss_type": loss_type}}
    assert passed(doctor.micro_batches, tmp_path, layers) is True
    monkeypatch.setattr(learning, "accumulate", accumulate)
    assert passed(doctor.micro_batches, tmp_path, layers) is False


def test_every_check_of_tokens_is_run_and_none_of_flows(tmp_path: Path) -> None:
    found = {check.name for check in doctor.examine(sums_recipe(tmp_path))}
    assert {
        "padding changes nothing",
        "packed rows equal single ones",
        "completions end where they should",
        "draws have the density's frequencies",
    } <= found
    assert not {"level 0 is the stock sampler", "KL equals torch.distributions"} & found
    cheap = {check.name for check in doctor.cheap_checks(prepare(sums_recipe(tmp_path)))}
    assert {"padding changes nothing", "completions end where they should"} <= cheap < found
