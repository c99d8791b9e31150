"""What a rollout's samples are credited with, as the recipe's `credit` says.

Shape legend: B samples, D decisions, T tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

import torch
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.errors import RewardError
from plaudit.models.flow import clean_prediction, decoded, guided_velocity
from plaudit.objectives.batch import Batch
from plaudit.recipe.credit import PositionsCredit, StepsCredit
from plaudit.rewards.base import Score
from plaudit.rewards.suite import ScoredBatch
from plaudit.sampling.drawers import FlowDrawer
from plaudit.sampling.noise import uniform
from plaudit.sampling.path import path, walked
from plaudit.sampling.plan import deterministic_plan
from plaudit.sampling.rollout import FlowSamples, tiles
from plaudit.shaping.credit import Credit
from plaudit.shaping.dense import padded, per_step_credit, position_credit, step_gains
from plaudit.shaping.lengths import kept_groups
from plaudit.train.curriculum import Curriculum
from plaudit.train.setup import Setup


@dataclass(frozen=True, kw_only=True)
class Dense:
    """Credit of every decision, and what it cost beyond the rollout."""

    credit: Credit
    network_calls: int = 0
    reward_calls: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)


def dense_credit(setup: Setup, batch: Batch, scored: ScoredBatch, weights: str) -> Dense | None:
    """None where the recipe credits outcomes. States are completed with the `weights` that drew them."""
    match setup.recipe.credit:
        case StepsCredit() as config:
            with setup.policy.using(weights):
                return of_steps(setup, config, batch, scored)
        case PositionsCredit() as config:
            return of_positions(setup, config, batch, scored)
    return None


# --- steps of a flow -------------------------------------------------------------------------------------------------


def of_steps(setup: Setup, config: StepsCredit, batch: Batch, scored: ScoredBatch) -> Dense:
    worth, calls, asked = worth_of_states(
        setup, config.completion, batch.flow, batch.prompts, batch.group, scored.total
    )
    gain = step_gains(worth) if config.of == "gain" else worth[:, 1:]
    shaping = setup.recipe.shaping
    credit = per_step_credit(gain, batch.group, std=shaping.std, floor=shaping.floor, clip=shaping.clip)
    signs = {f"credit/rising_{k}": (step > 0).double().mean().item() for k, step in enumerate(gain.unbind(1))}
    return Dense(credit=credit, network_calls=calls, reward_calls=asked, metrics=signs)


@torch.no_grad()
def worth_of_states(
    setup: Setup, completion: str, samples: FlowSamples, prompts: Sequence[Prompt], group: Tensor, total: Tensor
) -> tuple[Tensor, int, int]:
    """The total `[B, D + 1]` of what the recorded states become without further noise, and the calls that took. The last is
    the sample itself: behind the decisions there is no noise."""
    drawer = setup.drawer
    assert isinstance(drawer, FlowDrawer) and samples.trace is not None, "the recipe has checked this"
    worth, calls, asked = [], 0, 0
    for k in range(samples.trace.limit):
        complete = functools.partial(completed, drawer, samples, k, completion)
        pieces = list(setup.ranks.share(tiles(len(samples), drawer.sampler.tile), complete))
        calls += sum(piece.network_calls for piece in pieces)
        pictures = torch.cat([piece.pictures for piece in pieces])
        found = setup.ranks.from_main(functools.partial(totals, setup, prompts, pictures, group))
        worth.append(found.total)
        asked += found.calls
    return torch.stack([*worth, total], 1), calls, asked


def totals(setup: Setup, prompts: Sequence[Prompt], pictures: Tensor, group: Tensor) -> ScoredBatch:
    return setup.rewards(prompts, pictures, group=group)


@dataclass(frozen=True, kw_only=True)
class Completed:
    pictures: Tensor
    network_calls: int


def completed(drawer: FlowDrawer, samples: FlowSamples, k: int, completion: str, rows: Tensor) -> Completed:
    """Pictures of the states before decision `k`. With a window samples stand at different times: those alike go together."""
    part = samples.select(rows)
    trace, per_velocity = part.trace, part.conditioning.calls_per_velocity
    assert trace is not None
    latents, calls = torch.empty_like(part.latents), 0
    for t in trace.times[:, k].unique():
        alike = (trace.times[:, k] == t).nonzero()[:, 0]
        velocity = functools.partial(guided_velocity, drawer.model, conditioning=part.conditioning.select(alike))
        x, times = trace.states[alike, k], drawer.times
        times = times[int((times - t).abs().argmin()) :]
        if completion == "one_step":
            latents[alike] = clean_prediction(x, velocity(x, t.expand(len(x))), t.expand(len(x)))
            steps = 1
        else:
            plan, steps = deterministic_plan(times, len(x)), len(times) - 1
            latents[alike] = walked(path(velocity, x, plan, ()), x)
        calls += len(alike) * steps * per_velocity
    return Completed(pictures=decoded(drawer.model, latents), network_calls=calls)


# --- tokens ----------------------------------------------------------------------------------------------------------


def of_positions(setup: Setup, config: PositionsCredit, batch: Batch, scored: ScoredBatch) -> Dense:
    there = batch.completions.mask
    scores = scored.scores[config.reward]
    value = padded(
        [_per_token(config.reward, score, int(n)) for score, n in zip(scores, there.sum(1), strict=True)],
        there.shape[1],
    )
    ended = value.gather(1, (there.sum(1, keepdim=True) - 1).clamp(min=0))[
        :, 0
    ]  # an answer's last token is never redundant
    lost = ended.isnan()
    credit = position_credit(value, ended, there & ~lost[:, None], batch.group, floor=config.floor)
    credit = replace(credit, value=credit.value.float(), valid=credit.valid & ~lost)
    if config.easy_gain is None:
        return Dense(credit=credit)
    return _of_kept_groups(setup.curriculum, config, batch, scored, credit)


def _per_token(name: str, score: Score, tokens: int) -> Tensor | None:
    if score.dense is None:
        if score.value == score.value:
            raise RewardError(
                f"credit.reward: {name} scored an output without a value per token; name one whose scores have `dense`, such as "
                "needed_reasoning"
            )
        return None
    if not tokens - 1 <= len(score.dense) <= tokens:  # the text has no mark for the end
        raise RewardError(
            f"credit.reward: {name} gave {len(score.dense)} values for {tokens} tokens; its `unit` must be the policy's tokenizer"
        )
    filled = score.dense if len(score.dense) == tokens else torch.cat([score.dense, score.dense[-1:]])
    return filled.double()


def _of_kept_groups(
    curriculum: Curriculum, config: PositionsCredit, batch: Batch, scored: ScoredBatch, credit: Credit
) -> Dense:
    right, rates, draws = scored.parts[config.correct], {}, {}
    for g in batch.group.unique().tolist():
        members = (batch.group == g).nonzero()[:, 0]
        judged = right[members][right[members].isfinite()]
        if len(judged):
            rates[g] = Fraction(int((judged == 1).sum()), len(judged))
            draws[g] = uniform([batch.keys[int(members[0])]], "curriculum", 1).item()
    kept = kept_groups(rates, curriculum.kappa, draws)
    learned = torch.tensor([g in kept for g in batch.group.tolist()])
    shares = [
        s.components["needed_share"]
        for s in scored.scores[config.reward]
        if s.components and "needed_share" in s.components
    ]
    metrics = {"credit/kappa": curriculum.kappa, "credit/kept_groups": float(len(kept))}
    if shares:
        metrics["credit/needed_share"] = sum(shares) / len(shares)
        curriculum.follow(metrics["credit/needed_share"], config.easy_gain or 0.0)
    return Dense(
        credit=replace(credit, value=credit.value * learned[:, None], valid=credit.valid & learned), metrics=metrics
    )
