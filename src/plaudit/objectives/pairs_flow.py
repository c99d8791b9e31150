"""What flow models learn from given pairs: Flow-DPO, and reward-weighted regression (RWR).

    e  = mean |v(x_t, t) - (noise - x_0)|^2         at x_t = (1 - t) x_0 + t noise, the same t and noise for both of a pair
    DPO: L = -log sigma(-(b_t / 2) [(e+ - e+_ref) - (e- - e-_ref)]),      b_t = b, or b (1 - t)^2 as the theory gives
    RWR: L = sum over both of exp(r / tau) e

The bracket is a difference of losses, smaller for what the model likes better, hence the minus sign.

Departures: errors are means over dimensions as in the released code, where the paper writes a norm; times are stratified.

Shape legend: P pairs, T times per pair.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from plaudit.objectives.base import Losses, Objective
from plaudit.objectives.batch import Batch, SnapshotPolicy
from plaudit.objectives.terms import FlowTerms, stratified_times
from plaudit.recipe.objectives import FlowDpoConfig, RwrConfig
from plaudit.sampling.rollout import FlowSamples


def flow_dpo_loss(chosen: Tensor, rejected: Tensor, beta: Tensor | float) -> Tensor:
    """Of how much larger each side's error is than the reference's."""
    return -F.logsigmoid(-beta / 2 * (chosen - rejected))


def both_sides(batch: Batch) -> Batch:
    """`[2P]` samples, the chosen first. Noise and times follow from keys, which the sides of a pair share."""
    twice = batch.select(torch.arange(len(batch)).repeat(2))
    sides = [side for side in (batch.pairs.chosen, batch.pairs.rejected) if isinstance(side, FlowSamples)]
    return replace(twice, samples=FlowSamples.cat(sides))


class PairsOfPictures(Objective):
    """What both have in common: where errors are taken."""

    def __init__(self, config: FlowDpoConfig | RwrConfig) -> None:
        self.at, self.needs = config, config.needs

    def mask(self, batch: Batch) -> Tensor:
        return batch.valid[:, None].expand(-1, self.at.times_per_sample)

    def terms(self, policy: SnapshotPolicy, batch: Batch) -> tuple[Batch, FlowTerms]:
        at, twice = self.at, both_sides(batch)
        return batch, FlowTerms(
            policy, twice, stratified_times(twice.keys, at.times_per_sample, *at.time_range, at.time_shift)
        )


class FlowDpo(PairsOfPictures):
    snapshots = {"reference": None}

    def __init__(self, config: FlowDpoConfig) -> None:
        super().__init__(config)
        self.config = config

    def losses(self, terms: tuple[Batch, FlowTerms]) -> Losses:
        batch, flow = terms
        assert flow.forward is not None
        shape = (2, len(batch), self.config.times_per_sample)
        more = (flow.error.double() - flow.reference.error.double()).reshape(shape)
        times = flow.forward.t.reshape(shape)[0].double()
        beta = self.config.beta * ((1 - times).square() if self.config.schedule == "theory" else torch.ones_like(times))
        chosen, rejected = (-beta * side / 2 for side in more)
        metrics = {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected,
            "rewards/accuracies": (chosen > rejected).double(),
        }
        return Losses(
            parts={"policy": flow_dpo_loss(more[0], more[1], beta)},
            weights=self.weights(batch),
            mask=self.mask(batch),
            metrics={name: value.detach() for name, value in metrics.items()},
        )


class Rwr(PairsOfPictures):
    def __init__(self, config: RwrConfig) -> None:
        super().__init__(config)
        self.config = config

    def losses(self, terms: tuple[Batch, FlowTerms]) -> Losses:
        batch, flow = terms
        scores = batch.pairs.scores
        assert scores is not None, "the objective's needs say scored"
        weights = (scores.double() / self.config.temperature).exp().T[:, :, None]
        errors = flow.error.double().reshape(2, len(batch), self.config.times_per_sample)
        return Losses(
            parts={"policy": (weights * errors).sum(0)},
            weights=self.weights(batch),
            mask=self.mask(batch),
            metrics={"error/chosen": errors[0].detach(), "error/rejected": errors[1].detach()},
        )
