"""DiffusionNFT: reinforcement on the forward process, with a positive and a negative branch around an old policy.

    v+ = (1 - b) v_old + b v,   v- = (1 + b) v_old - b v,   r = clip(A / (2 c) + 1/2, 0, 1)
    L  = c / b * [ r |x0+ - x0|^2 / w+  +  (1 - r) |x0- - x0|^2 / w- ]  +  k |v - v_ref|^2
    w  = mean |x0+- - x0|, detached, at least 1e-5

The old policy draws the rollouts and is an average of the trained one whose decay is 0 for `flat` steps and then rises:
min(rate * (step - flat), max). Published are 0.001 to 0.5, and after 75 flat steps 0.0075 to 0.999.

Departures: c is `advantage_clip` (the paper prints 1, its code uses 5); times are stratified instead of the sampler's;
groups without contrast are left out (their gradient would only pull toward the old policy).

Shape legend: B samples, T times per sample.
"""

from __future__ import annotations

from torch import Tensor

from plaudit.models.flow import clean_prediction, per_sample
from plaudit.objectives.base import Losses, Objective
from plaudit.objectives.batch import Batch, SnapshotPolicy
from plaudit.objectives.terms import FlowTerms, stratified_times
from plaudit.recipe.objectives import NftConfig
from plaudit.shaping.credit import optimality

SMALLEST_WEIGHT = 1e-5


def branch_loss(x0_branch: Tensor, x0: Tensor, share: Tensor) -> Tensor:
    """Self-normalised squared error `[N]` of a branch's clean prediction, of which each place `[N, *]` has a share."""
    distance = (x0_branch.double() - x0.double()).flatten(1)
    weight = distance.detach().abs().mean(1).clamp(min=SMALLEST_WEIGHT)
    return (share.expand(x0.shape).flatten(1) * distance.square()).mean(1) / weight


def nft_loss(v: Tensor, v_old: Tensor, x: Tensor, t: Tensor, x0: Tensor, optimal: Tensor, beta: float) -> Tensor:
    """The two branches `[N]`, weighted by the probability `optimal [N]` or, of each place, `[N, *]`; gradients reach `v` only."""
    assert v.shape == v_old.shape == x.shape == x0.shape and t.shape == optimal.shape[:1] == v.shape[:1]
    optimal = per_sample(optimal, v) if optimal.ndim == 1 else optimal
    v_old = v_old.detach()
    positive = clean_prediction(x, (1 - beta) * v_old + beta * v, t)
    negative = clean_prediction(x, (1 + beta) * v_old - beta * v, t)
    return (branch_loss(positive, x0, optimal) + branch_loss(negative, x0, 1 - optimal)) / beta


class Nft(Objective):
    sampler = "old"

    def __init__(self, config: NftConfig) -> None:
        self.config, self.needs = config, config.needs
        self.snapshots = {"old": self.old_decay} | ({"reference": None} if config.kl_weight > 0 else {})

    def old_decay(self, step: int) -> float:
        risen = max(step - self.config.old_decay_flat, 0)
        return min(self.config.old_decay_rate * risen, self.config.old_decay_max)

    def mask(self, batch: Batch) -> Tensor:
        return self.computed(batch)[:, None].expand(-1, self.config.times_per_sample)

    def computed(self, batch: Batch) -> Tensor:
        return batch.valid & batch.informative

    def terms(self, policy: SnapshotPolicy, batch: Batch) -> FlowTerms:
        config = self.config
        times = stratified_times(batch.keys, config.times_per_sample, *config.time_range, config.time_shift)
        return FlowTerms(policy, batch, times)

    def losses(self, terms: FlowTerms) -> Losses:
        points, config = terms.forward, self.config
        assert points is not None
        shape = (len(terms.batch), config.times_per_sample)
        credit = terms.batch.credit.expand((*shape, *points.x0.shape[1:])).flatten(0, 1)
        optimal = optimality(credit, config.advantage_clip).double()
        branches = nft_loss(terms.velocity, terms.old.velocity, points.x, points.t, points.x0, optimal, config.beta)
        parts = {"policy": config.advantage_clip * branches.unflatten(0, shape)}
        metrics = {"old_distance": (terms.velocity - terms.old.velocity).detach().square().flatten(1).mean(1)}
        if config.kl_weight > 0:
            drift = (terms.velocity - terms.reference.velocity).double().square().flatten(1).mean(1)
            parts["kl"] = config.kl_weight * drift.unflatten(0, shape)
            metrics["kl"] = drift.detach()
        metrics = {name: value.unflatten(0, shape) for name, value in metrics.items()}
        return Losses(parts=parts, weights=self.weights(terms.batch), mask=self.mask(terms.batch), metrics=metrics)
