"""One step's samples: prompts, groups, keys, outputs, and their scores shaped to credit."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.objectives.batch import Batch
from plaudit.recipe.schema import Recipe
from plaudit.rewards.calling.request import make_request
from plaudit.rewards.suite import ScoredBatch, enforce_missing, join_scored
from plaudit.sampling.base import Outputs, Piece
from plaudit.sampling.noise import SampleKey
from plaudit.shaping.credit import Credit, group_advantage
from plaudit.shaping.mix import mixed_advantage
from plaudit.train.credit import Dense, dense_credit
from plaudit.train.setup import Setup

PENALTY = "(kl)"  # beside the rewards by their names


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Group-contiguous samples of one step. `version` is the number of optimiser updates behind the weights that drew;
    `dropped` counts groups without contrast that others were drawn for."""

    prompts: tuple[Prompt, ...]
    group: Tensor
    batch: Batch
    outputs: Outputs
    scored: ScoredBatch
    credit: Credit
    metrics: Mapping[str, float]
    version: int
    dropped: int
    network_calls: int
    reward_calls: int
    seconds_sampling: float
    seconds_scoring: float


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Scored samples that are not shaped yet."""

    prompts: list[Prompt]
    keys: list[SampleKey]
    piece: Piece
    scored: ScoredBatch
    seconds_sampling: float
    seconds_scoring: float


def expand_groups(
    prompts: Sequence[Prompt], size: int, seed: int, step: int, seen: Counter[str] | None = None
) -> tuple[list[Prompt], Tensor, list[SampleKey]]:
    """Every prompt `size` times in a row. A prompt that comes up twice in a step goes on counting its samples, so no two
    samples share their noise; `seen` counts the prompts of a step that came before."""
    seen = Counter() if seen is None else seen
    members, keys = [], []
    for prompt in prompts:
        start = seen[prompt.id] * size
        seen[prompt.id] += 1
        members += [prompt] * size
        keys += [SampleKey(seed=seed, step=step, prompt=prompt.id, index=start + i) for i in range(size)]
    return members, torch.arange(len(prompts)).repeat_interleave(size), keys


def step_prompts(setup: Setup, step: int, turn: int = 0) -> list[Prompt]:
    """The prompts of a step; those of a later `turn` replace groups of the ones before."""
    train = setup.recipe.train
    return setup.prompts.batch(step * (1 + train.refill) + turn, train.prompts_per_step, setup.recipe.run.seed)


def collect(setup: Setup, *, step: int, version: int) -> Rollout:
    """Draw, decode, score and shape one step's samples.

    With `train.refill`, groups whose scores are all equal are replaced by groups of new prompts, in so many rounds at most;
    what is still missing then is filled up with equal ones, which count and teach nothing.
    """
    train, seen = setup.recipe.train, Counter[str]()
    kept, equal, rounds = list[Drawn](), list[Drawn](), list[Drawn]()
    for turn in range(1 + train.refill):
        wanted = train.prompts_per_step - len(kept)
        if wanted == 0:
            break
        drawn = draw_scored(setup, step_prompts(setup, step, turn)[:wanted], step, seen)
        rounds.append(_checked(drawn, rounds, setup.recipe))
        for group in _groups(rounds[-1], train.samples_per_prompt):
            (kept if has_contrast(group.scored, setup.recipe) else equal).append(group)
    if train.refill == 0:
        chosen, dropped = rounds, 0
    else:
        chosen = (kept + equal)[: train.prompts_per_step]
        dropped = len(kept) + len(equal) - len(chosen)
    return _shaped(setup, chosen, rounds, dropped, version)


def draw_scored(setup: Setup, prompts: Sequence[Prompt], step: int, seen: Counter[str]) -> Drawn:
    """Samples of some prompts; rewards elsewhere start while the rest is still being drawn."""
    recipe, policy = setup.recipe, setup.policy
    size = recipe.train.samples_per_prompt
    started = time.perf_counter()
    members, group, keys = expand_groups(prompts, size, recipe.run.seed, step, seen)
    first_of_group = [keys[i - i % size] for i in range(len(keys))]
    pieces, drawn, columns = [], 0, make_request(members, members, group).columns
    with setup.rewards.pending() as pending:
        with policy.using(setup.objective.sampler), torch.no_grad():
            for piece in setup.drawer.training(members, keys, first_of_group):
                of = slice(drawn, drawn + len(piece))
                pieces.append(piece)
                drawn += len(piece)
                if setup.ranks.is_main:
                    pending.add(make_request(members[of], piece.outputs, group[of], step, columns, piece.ids))
        joined = setup.drawer.join(pieces)
        sampled = time.perf_counter()
        request = make_request(members, joined.outputs, group, step, completion_ids=joined.ids)
        scored = setup.ranks.from_main(lambda: pending.finish(request, learn=True))
    return Drawn(
        prompts=members,
        keys=keys,
        piece=joined,
        scored=scored,
        seconds_sampling=sampled - started,
        seconds_scoring=time.perf_counter() - sampled,
    )


def _checked(drawn: Drawn, before: Sequence[Drawn], recipe: Recipe) -> Drawn:
    """Missing scores are limited over the rounds together: one of few would break any limit."""
    together = enforce_missing(join_scored([*(each.scored for each in before), drawn.scored]), recipe.missing)
    own = torch.arange(len(together.total))[-len(drawn.prompts) :]
    return replace(drawn, scored=join_scored([together], own))


def _groups(drawn: Drawn, size: int) -> Iterator[Drawn]:
    for rows in torch.arange(len(drawn.prompts)).split(size):
        of = slice(int(rows[0]), int(rows[-1]) + 1)
        yield Drawn(
            prompts=drawn.prompts[of],
            keys=drawn.keys[of],
            piece=drawn.piece.select(rows),
            scored=join_scored([drawn.scored], rows),
            seconds_sampling=0.0,
            seconds_scoring=0.0,
        )


def _shaped(setup: Setup, chosen: Sequence[Drawn], rounds: Sequence[Drawn], dropped: int, version: int) -> Rollout:
    recipe, objective = setup.recipe, setup.objective
    piece = chosen[0].piece if len(chosen) == 1 else setup.drawer.join([drawn.piece for drawn in chosen])
    scored = chosen[0].scored if len(chosen) == 1 else join_scored([drawn.scored for drawn in chosen])
    prompts = tuple(prompt for drawn in chosen for prompt in drawn.prompts)
    group = torch.arange(len(prompts)) // recipe.train.samples_per_prompt
    nothing = torch.zeros(len(prompts), dtype=torch.bool)
    batch = Batch(
        samples=piece.samples,
        prompts=prompts,
        keys=tuple(key for drawn in chosen for key in drawn.keys),
        group=group,
        score=scored.total,
        scores=scored.parts,
        credit=Credit(value=torch.zeros(len(prompts)), valid=scored.total.isfinite()),
        informative=nothing,
    )
    dense = dense_credit(setup, batch, scored, objective.sampler)
    kl = objective.needs.kl
    if dense is None:
        penalty = objective.penalty(setup.policy, batch)
        dense = Dense(credit=shape(recipe, scored, group, penalty, kl.weight if kl else 1.0))
    return Rollout(
        prompts=prompts,
        group=group,
        batch=batch.shaped(dense.credit),
        outputs=piece.outputs,
        scored=scored,
        credit=dense.credit,
        metrics=dense.metrics,
        version=version,
        dropped=dropped,
        network_calls=dense.network_calls + sum(drawn.piece.samples.network_calls for drawn in rounds),
        reward_calls=dense.reward_calls + sum(drawn.scored.calls for drawn in rounds),
        seconds_sampling=sum(drawn.seconds_sampling for drawn in rounds),
        seconds_scoring=sum(drawn.seconds_scoring for drawn in rounds),
    )


def shape(recipe: Recipe, scored: ScoredBatch, group: Tensor, penalty: Tensor | None = None, kl: float = 1.0) -> Credit:
    """Credit of the total, or of each reward by itself and then added by weight. `kl` is the penalty's weight."""
    shaping = recipe.shaping
    if shaping.normalise == "total":
        score = scored.total if penalty is None else scored.total - penalty
        return group_advantage(score, group, std=shaping.std, floor=shaping.floor, clip=shaping.clip)
    weights = {name: recipe.rewards[name].weight for name in scored.parts}
    if penalty is not None:
        # by its weight again afterwards, which dividing by the deviation would take out
        scored, weights = scored.with_part(PENALTY, -penalty / kl), weights | {PENALTY: kl}
    mixed = mixed_advantage(scored.parts, weights, group, std=shaping.std, floor=shaping.floor)
    limit = shaping.clip
    return mixed if limit is None else replace(mixed, value=mixed.value.clamp(-limit, limit))


def has_contrast(scored: ScoredBatch, recipe: Recipe) -> bool:
    """Whether what is normalised differs within the group: the total, or any reward that counts."""
    counting = [values for name, values in scored.parts.items() if recipe.rewards[name].weight != 0]
    for score in [scored.total] if recipe.shaping.normalise == "total" else counting:
        present = score[score.isfinite()]
        if len(present) > 1 and bool(present.max() > present.min()):
            return True
    return False
