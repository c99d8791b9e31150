"""Checks of the rewards: scores follow their prompts, and the same outputs get the same scores.

A reward that is not the same to the bit is told apart from one that reads its neighbour's prompt by repeated calls: what
permuting changes is held against what nothing changes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor

from plaudit.rewards.base import Status
from plaudit.rewards.suite import ScoredBatch, in_words, join_scored
from plaudit.train.doctor.checks import Check, Patient, not_applicable, within

PERMUTATION = "permuting the batch permutes the rewards"
REPETITION = "scoring twice gives the same scores"
NO_SCORES = "no output of the small rollout has a score"
LIMIT = 1e-6
ROUNDING = 2.0**-7  # of bfloat16, relative
MOVED = (False, True, True, False, True, False, False, True)  # which calls are permuted: what drifts evenly cancels
SIGNAL = 4.0  # how often the variance of noise the square of a difference has to be


def permutation(patient: Patient) -> Check:
    """Scores follow their prompts."""
    straight, moved = _call(patient, moved=False), _call(patient, moved=True)
    if _no_scores(straight, moved):
        return _always_failing(PERMUTATION, patient, straight) or not_applicable(PERMUTATION, NO_SCORES)
    noise = None
    for name in _counting(patient):
        if failure := _failing(PERMUTATION, patient, name, straight, moved):
            return failure
        if _difference(straight, moved, [name], straight.parts[name], moved.parts[name]) <= LIMIT:
            continue
        verdict = _told_apart(patient, name)
        if verdict.passed is False:
            return verdict
        noise = verdict
    return noise or _same_totals(PERMUTATION, patient, straight, moved, "combine mixes the items of a batch")


def reward_is_deterministic(patient: Patient) -> Check:
    """The same outputs get the same scores."""
    first, second = patient.scored(), patient.scored()
    if _no_scores(first, second):
        return _always_failing(REPETITION, patient, first) or not_applicable(REPETITION, NO_SCORES)
    noisy = [name for name in _counting(patient) if _admitted(patient, name)]
    for name in _counting(patient):
        if failure := _failing(REPETITION, patient, name, first, second):
            return failure
        deviation = _difference(first, second, [name], first.parts[name], second.parts[name])
        if deviation > LIMIT and name not in noisy:
            remedy = "the reward is random: average it, fix its seed, or admit it with"
            return _found(REPETITION, name, deviation, f"<= {LIMIT:g}", f"{remedy} rewards.{name}.deterministic: false")
    if noisy:
        return not_applicable(REPETITION, f"rewards.{noisy[0]} is admitted not to be deterministic")
    return _same_totals(REPETITION, patient, first, second, "combine is random")


def _call(patient: Patient, *, moved: bool) -> ScoredBatch:
    """Scores of the rollout's outputs in its order, asked for in that order or in another; none from a cache, where they lie
    under their own prompts."""
    with ExitStack() as stack:
        for reward in patient.setup.rewards.rewards:
            stack.enter_context(reward.caller.uncached())
        if not moved:
            return patient.scored()
        order = torch.from_numpy(
            np.random.default_rng(0).permutation(len(patient.piece))
        )  # an off-by-one follows a shift
        scored = patient.scored([patient.prompts[i] for i in order.tolist()], order)
    return join_scored([scored], order.argsort())


def _counting(patient: Patient) -> list[str]:
    """The rewards that the total is made of."""
    suite = patient.setup.rewards
    return [reward.name for reward in suite.rewards if suite.formula is None or reward.name in suite.formula.names]


def _admitted(patient: Patient, name: str) -> bool:
    reward = next(reward for reward in patient.setup.rewards.rewards if reward.name == name)
    return not patient.recipe.rewards[name].deterministic or (reward.card is not None and not reward.card.deterministic)


def _no_scores(first: ScoredBatch, second: ScoredBatch) -> bool:
    return bool(first.total.isnan().all() and second.total.isnan().all())


def _gaps(first: Tensor, second: Tensor) -> Tensor:
    """Infinite where a score is missing on one side only."""
    both_missing = first.isnan() & second.isnan()
    return torch.where(both_missing, 0.0, (first - second).abs()).nan_to_num(torch.inf)


def _difference(a: ScoredBatch, b: ScoredBatch, names: Sequence[str], first: Tensor, second: Tensor) -> float:
    """The largest, over outputs that none of the rewards failed for."""
    failed = torch.stack([_has_failed(batch, name) for batch in (a, b) for name in names]).any(0)
    return _gaps(first, second)[~failed].amax().item() if not failed.all() else 0.0


def _same_totals(check: str, patient: Patient, first: ScoredBatch, second: ScoredBatch, remedy: str) -> Check:
    deviation = _difference(first, second, _counting(patient), first.total, second.total)
    return within(check, deviation, LIMIT, remedy)


def _found(check: str, name: str, deviation: float, limit: str, remedy: str, *, passed: bool = False) -> Check:
    return Check(name=check, passed=passed, value=f"rewards.{name}: {deviation:.2e}", limit=limit, remedy=remedy)


def _has_failed(batch: ScoredBatch, name: str) -> Tensor:
    return torch.tensor([score.status not in (Status.OK, Status.NOT_APPLICABLE) for score in batch.scores[name]])


def _always_failing(check: str, patient: Patient, batch: ScoredBatch) -> Check | None:
    for name in _counting(patient):
        if all(score.status is Status.ERRORED for score in batch.scores[name]):
            return Check(
                name=check,
                passed=False,
                value=f"rewards.{name} failed for every output, the first: {in_words(batch.scores[name][0])}",
                limit="a score",
                remedy="mend the reward",
            )
    return None


def _failing(check: str, patient: Patient, name: str, *batches: ScoredBatch) -> Check | None:
    """A reward that fails now and then is neither random nor given the wrong prompts: its own words say what it is."""
    failed, limit = torch.stack([_has_failed(batch, name) for batch in batches]), patient.recipe.missing.limit
    if bool((failed[0] == failed[1]).all()) or failed.double().mean() <= limit:
        return None
    batch, row = failed.nonzero()[0].tolist()
    why = in_words(batches[batch].scores[name][row])
    return Check(
        name=check,
        passed=False,
        value=f"rewards.{name} failed for {int(failed.sum())} of {failed.numel()} scores, the first: {why}",
        limit=f"a share of {limit:g} (missing.max_missing_fraction)",
        remedy="mend the reward, or give it `retries`",
    )


def _told_apart(patient: Patient, name: str) -> Check:
    """Why a reward's scores differ after permuting: noise, rounding, or that it reads another item's prompt."""
    calls, wrong = _repeated(patient, name), "a reward reads another item's prompt"
    if not calls.numel():
        return not_applicable(PERMUTATION, f"rewards.{name} fails for every output now and then")
    straight, moved = calls[~torch.tensor(MOVED)], calls[torch.tensor(MOVED)]
    spread, gaps = _gaps(straight[:1], straight[1:]).max().item(), _gaps(straight, moved)
    deviation = gaps.max().item()
    if spread > LIMIT:
        leaks = _beyond_noise(calls) and _beyond_noise(_repeated(patient, name))
        limit = f"the spread of repeated calls, {spread:.2e}"
        return _found(PERMUTATION, name, deviation, limit, wrong if leaks else "", passed=not leaks)
    if (gaps > ROUNDING * straight.abs().nan_to_num(0.0)).any():
        return _found(PERMUTATION, name, deviation, f"<= {LIMIT:g}", wrong)
    remedy = f"the reward rounds by the place in the batch: use float32, or admit it with rewards.{name}.deterministic: false"
    return _found(PERMUTATION, name, deviation, f"<= {LIMIT:g}, or admitted", remedy, passed=_admitted(patient, name))


def _repeated(patient: Patient, name: str) -> Tensor:
    """Values `[calls, items]` of one reward; items that it failed for in any call are left out of all."""
    batches = [_call(patient, moved=moved) for moved in MOVED]
    failed = torch.stack([_has_failed(batch, name) for batch in batches]).any(0)
    return torch.stack([batch.parts[name] for batch in batches])[:, ~failed]


def _beyond_noise(calls: Tensor) -> bool:
    """Whether the permuted calls differ from the others by more than any other half of the calls from its rest does, as by
    chance one time in 35, and by more than their noise makes."""
    there = calls.nan_to_num(0.0)
    features = torch.cat([there / there.std().clamp(min=1e-12), calls.isnan().to(calls.dtype)], dim=1)
    half, everyone = len(MOVED) // 2, set(range(len(MOVED)))
    gaps = {}
    for chosen in itertools.combinations(range(1, len(MOVED)), half - 1):
        one, other = features[[0, *chosen]], features[sorted(everyone - {0, *chosen})]
        noise = (one.var(0) + other.var(0)).sum().item() / half  # of the difference between their means
        gaps[0, *chosen] = (one.mean(0) - other.mean(0)).square().sum().item(), noise
    own, noise = gaps.pop(tuple(i for i, moved in enumerate(MOVED) if moved == MOVED[0]))
    return own > (1 + 1e-9) * max(gap for gap, _ in gaps.values()) and own > SIGNAL * noise
