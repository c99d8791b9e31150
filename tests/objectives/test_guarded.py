"""Objectives of one's own that are wrong are one line that names them and what they must give."""

from __future__ import annotations

import pytest
import torch
from tests.reference.toys import ToyFlowModel, rollout_batch
from torch import Tensor

from plaudit.errors import RunError
from plaudit.objectives.base import Losses, Objective
from plaudit.objectives.guarded import Guarded
from plaudit.objectives.terms import FlowTerms, stratified_times
from plaudit.recipe.objectives import Needs
from plaudit.recipe.sampling import Sampler
from plaudit.train.learn import accumulate
from plaudit.train.trainable import Policy


class Matching(Objective):
    needs = Needs(families=("flow",))

    def mask(self, batch) -> Tensor:
        return batch.valid[:, None]

    def terms(self, policy, batch) -> FlowTerms:
        return FlowTerms(policy, batch, stratified_times(batch.keys, 1, 0.0, 1.0, 1.0))

    def losses(self, terms):
        error = terms.error[:, None]
        return Losses(parts={"policy": error}, weights=self.weights(terms.batch), mask=self.mask(terms.batch))


def of(**methods) -> Guarded:
    return Guarded(type("Mine", (Matching,), methods)(), "my_module:Mine")


def summed(self, terms):
    losses = Matching.losses(self, terms)
    return Losses(parts={"policy": losses.parts["policy"].sum()}, weights=losses.weights, mask=losses.mask)


def detached(self, terms):
    losses = Matching.losses(self, terms)
    return Losses(parts={"policy": losses.parts["policy"].detach()}, weights=losses.weights, mask=losses.mask)


def ended(self, terms):
    raise SystemExit(5)


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        ({"losses": lambda self, terms: terms.error}, r"losses gave a Tensor; it must be Losses"),
        ({"losses": summed}, r"losses gave `policy` of shape \[\]; it must be the mask's, \[12, 1\]"),
        ({"losses": detached}, r"losses has no gradient"),
        ({"losses": ended}, r"losses raised SystemExit: 5"),
        ({"losses": lambda self, terms: terms.reference.error}, r"losses raised KeyError: .*reference"),
        ({"mask": lambda self, batch: batch.valid}, r"mask gave torch.bool \[12\]; it must be a bool tensor \[B, D\]"),
        ({"terms": lambda self, policy, batch: 1 / 0}, r"terms raised ZeroDivisionError: .*\(test_guarded.py:\d+\)"),
    ],
)
def test_what_is_wrong_is_one_line(methods: dict, said: str) -> None:
    model = ToyFlowModel()
    batch = rollout_batch(model, Sampler(kernel="flow_sde", steps=3))
    with pytest.raises(RunError, match=rf"objective\.class: my_module:Mine\.{said}") as refused:
        accumulate(Policy(model), of(**methods), batch, 100)
    assert "\n" not in str(refused.value)


def test_what_is_right_is_the_same_as_without_a_guard() -> None:
    model = ToyFlowModel()
    batch = rollout_batch(model, Sampler(kernel="flow_sde", steps=3))
    plain, guarded = (accumulate(Policy(model), one, batch, 5).totals for one in (Matching(), of()))
    assert plain == guarded and plain["loss/policy"] > 0


@pytest.mark.parametrize("needs", ({"families": ("flows",)}, {"feed": "prompt"}, {"rewards": ("foo",)}))
def test_needs_that_nobody_can_have_are_refused(needs: dict) -> None:
    with pytest.raises(ValueError, match=rf"Needs\.{next(iter(needs))} is"):
        Needs(**needs)
    assert torch.is_grad_enabled()
