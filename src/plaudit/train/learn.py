"""Optimiser updates from a batch of samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from plaudit.errors import RunError
from plaudit.objectives.base import Losses, Objective
from plaudit.objectives.batch import Batch
from plaudit.ranks import ALONE, Ranks
from plaudit.recipe.schema import Recipe, Train
from plaudit.train.trainable import Policy

RATIO_REMEDY = (
    "rollout and replay disagree before any update: look for conditioning, guidance, precision or dropout that differ "
    "between them (`plaudit doctor` measures it)"
)


SHAPES = (1, 4, 16)  # samples at a time in which a replay is repeated
MARGIN = 4  # the few repeats do not find the largest that rounding can do
CEILING = 30  # times the stated limit: what half precision and dropout do is more, and is a mismatch


@dataclass
class Sums:
    """Sums over the elements of an update, so that means do not depend on how it was split."""

    losses: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    elements: float = 0.0
    largest_deviation: float | None = None

    def add(self, losses: Losses, count: float) -> None:
        for name, value in losses.parts.items():
            share = (value.detach().double() * losses.weights).sum().item() / count
            self.losses["loss/" + name] = self.losses.get("loss/" + name, 0.0) + share
        for name, value in losses.metrics.items():
            self.metrics[name] = self.metrics.get(name, 0.0) + (value.detach().double() * losses.mask).sum().item()
        self.elements += losses.mask.sum().item()
        deviation = losses.metrics.get("ratio/deviation")
        if deviation is not None and losses.mask.any():
            self.largest_deviation = max(self.largest_deviation or 0.0, deviation[losses.mask].max().item())

    def join(self, parts: Sequence[Sums]) -> None:
        """The sums of all parts of an update."""
        self.losses, self.metrics = _added([part.losses for part in parts]), _added([part.metrics for part in parts])
        self.elements = sum(part.elements for part in parts)
        found = [part.largest_deviation for part in parts if part.largest_deviation is not None]
        self.largest_deviation = max(found, default=None)

    @property
    def totals(self) -> dict[str, float]:
        """Loss parts as shares of the whole update's count, metrics as means over the elements that were computed."""
        means = {name: value / self.elements for name, value in self.metrics.items()} if self.elements else {}
        return self.losses | means


def _added(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    names = {name: None for part in parts for name in part}
    return {name: sum(part.get(name, 0.0) for part in parts) for name in names}


def update_rows(group: Tensor, updates: int, seed: int, step: int, whole_groups: bool = False) -> Iterator[Tensor]:
    """Rows of each optimiser update: all in order for one update, otherwise equal random parts, of samples or of groups."""
    rng = np.random.default_rng([seed, step, 3])
    if updates == 1:
        yield torch.arange(len(group))
    elif whole_groups:
        members = [(group == g).nonzero()[:, 0] for g in rng.permutation(torch.unique(group).numpy())]
        for part in range(updates):
            yield torch.cat(members[part * len(members) // updates : (part + 1) * len(members) // updates])
    else:
        yield from torch.from_numpy(rng.permutation(len(group))).split(len(group) // updates)


def accumulate(policy: Policy, objective: Objective, batch: Batch, micro_batch: int, ranks: Ranks = ALONE) -> Sums:
    """Gradients of one update. Every element is divided by the update's count, so the split does not matter, neither into
    micro-batches nor over ranks; samples whose gradient is certainly zero are counted but not computed."""
    sums = Sums()
    batch = objective.prepare(policy, batch)
    count, needed = objective.count(batch), objective.computed(batch).nonzero()[:, 0]
    if count == 0 or len(needed) == 0:
        return sums
    for rows in ranks.own(needed.split(micro_batch)):
        losses = objective.losses(objective.terms(policy, batch.select(rows)))
        parts = torch.stack([(part * losses.weights).sum() for part in losses.parts.values()])
        (parts.sum() / count).backward()
        sums.add(losses, count)
    _add(ranks, policy, sums)
    return sums


def _add(ranks: Ranks, policy: Policy, sums: Sums) -> None:
    """What the ranks computed, together. A rank without a micro-batch has no gradients, and counts as zero."""
    if ranks.count == 1:
        return
    parameters = list(policy.trainable.values())
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    ranks.add([parameter.grad for parameter in parameters])
    sums.join(ranks.gather(sums))


def learn(
    recipe: Recipe,
    policy: Policy,
    objective: Objective,
    batch: Batch,
    step: int,
    ranks: Ranks = ALONE,
) -> dict[str, float | None]:
    """All updates of a step; returns its metrics. Stops before an optimiser step that would spoil the weights."""
    train, collected = recipe.train, []
    updates = update_rows(batch.group, train.updates_per_step, recipe.run.seed, step, objective.needs.whole_groups)
    for number, rows in enumerate(updates):
        policy.optimizer.zero_grad(set_to_none=True)
        sums = accumulate(policy, objective, batch.select(rows), train.micro_batch, ranks)
        if number == 0:
            limit = _check_ratio(sums, policy, objective, train, batch.select(rows), step)
        norm = policy.clipped_norm()
        total = sum(value for name, value in sums.totals.items() if name.startswith("loss/"))
        if not (math.isfinite(total) and math.isfinite(norm)):
            raise RunError(
                f"step {step}: the loss is {total} and the gradient norm {norm}; the optimiser step was not taken and the "
                "last checkpoint is sound. Lower train.lr or sampler.level, then go on with --resume"
            )
        policy.move()
        entry: dict[str, float] = {"loss": total, "grad_norm": norm, **sums.totals}
        if number == 0 and sums.largest_deviation is not None and limit is not None:
            entry["ratio/first_step_max_dev"] = sums.largest_deviation
            entry["ratio/limit"] = limit
            entry["mismatch_kl"] = sums.totals["approx_kl"]
        collected.append(entry)
    names = {name: None for entry in collected for name in entry}
    # An update without contrast has no parts: they count as 0 there, as its loss does, so that parts sum to the loss.
    filled = [{name: 0.0 for name in names if name.startswith("loss/")} | entry for entry in collected]
    return {name: _mean([entry[name] for entry in filled if name in entry]) for name in names}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def ratio_limit(train: Train, policy: Policy, objective: Objective, batch: Batch, deviation: float) -> float:
    """How far ratios may be from 1 before the first update. Networks differ in how much they round in batches of other
    shapes: a deviation above the stated limit is allowed as far as this model's own replays disagree among themselves."""
    assert batch.samples.decisions is not None
    stated = train.ratio_tolerance * batch.samples.decisions.rounding
    if deviation <= stated:
        return stated
    return max(stated, min(MARGIN * _moved_by_shape(policy, objective, batch), CEILING * stated))


@torch.no_grad()
def _moved_by_shape(policy: Policy, objective: Objective, batch: Batch) -> float:
    """The most that the ratio of a decision differs between replays in several shapes."""
    few = objective.prepare(policy, batch)
    few = few.select(few.valid.nonzero()[: max(SHAPES), 0])

    def of(part: Batch) -> Tensor:
        assert part.samples.decisions is not None
        replayed: Tensor = objective.terms(policy, part).log_prob[part.samples.decisions.mask]
        return replayed

    def replayed(size: int) -> Tensor:
        return torch.cat([of(few.select(rows)) for rows in torch.arange(len(few)).split(size)])

    found = torch.stack([replayed(size) for size in SHAPES])
    return (found.amax(0) - found.amin(0)).expm1().max().item()


def _check_ratio(
    sums: Sums, policy: Policy, objective: Objective, train: Train, batch: Batch, step: int
) -> float | None:
    """Before any update the weights are those that drew: what differs is how drawing and replay compute. Returns the limit
    that ratios kept to, where there are any."""
    deviation = sums.largest_deviation
    if deviation is None:
        return None
    limit = ratio_limit(train, policy, objective, batch, deviation)
    if deviation > limit:
        raise RunError(
            f"step {step}: the importance ratio deviates from 1 by {deviation:.2e} before the first update (allowed "
            f"{limit:.2g}: train.ratio_tolerance {train.ratio_tolerance:g} at this size, or what replays in other shapes differ "
            f"by); {RATIO_REMEDY}"
        )
    if sums.totals["approx_kl"] > train.mismatch_kl:
        raise RunError(
            f"step {step}: the KL between drawing and replay is {sums.totals['approx_kl']:.2e} before the first update (allowed: "
            f"train.mismatch_kl {train.mismatch_kl:g}); {RATIO_REMEDY}"
        )
    return limit
