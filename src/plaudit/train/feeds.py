"""What a step learns from: rollouts that were scored, pairs or answers that were given, or prompts alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.objectives.batch import Batch, Pairs
from plaudit.recipe.objectives import Feed
from plaudit.runs.display import Metrics
from plaudit.sampling.base import Outputs, Samples
from plaudit.sampling.drawers import FlowDrawer
from plaudit.sampling.noise import SampleKey
from plaudit.sampling.rollout import FlowSamples
from plaudit.sampling.tokens import Completions, given_completions
from plaudit.shaping.credit import Credit
from plaudit.train.collect import Rollout, collect, expand_groups
from plaudit.train.setup import Setup


@dataclass(frozen=True, kw_only=True)
class Fed:
    """One step's batch, what it cost, and what is said of it."""

    batch: Batch
    network_calls: int
    outputs: Outputs | None = None  # where they were drawn
    reward_calls: int = 0
    metrics: Metrics = field(default_factory=dict)
    seconds_sampling: float = 0.0
    seconds_scoring: float = 0.0


def feed(setup: Setup, step: int, version: int) -> Fed:
    """What the objective needs. `version` is the number of optimiser updates behind the weights."""
    return FEEDS[setup.objective.needs.feed](setup, step, version)


# --- rollouts --------------------------------------------------------------------------------------------------------


def _rollouts(setup: Setup, step: int, version: int) -> Fed:
    rollout = collect(setup, step=step, version=version)
    return Fed(
        batch=rollout.batch,
        network_calls=rollout.network_calls,
        outputs=rollout.outputs,
        reward_calls=rollout.reward_calls,
        metrics=_rollout_metrics(rollout),
        seconds_sampling=rollout.seconds_sampling,
        seconds_scoring=rollout.seconds_scoring,
    )


def _rollout_metrics(rollout: Rollout) -> dict[str, float | None]:
    metrics: dict[str, float | None] = {"reward": rollout.scored.total.nanmean().item()}
    for name, values in rollout.scored.parts.items():
        present = values[values.isfinite()]
        metrics[f"rewards/{name}/mean"] = present.mean().item() if len(present) else None
        metrics[f"rewards/{name}/std"] = present.std().item() if len(present) > 1 else None
        metrics[f"rewards/{name}/missing_frac"] = 1 - len(present) / len(values)
    metrics["frac_reward_zero_std"] = rollout.credit.constant_groups / rollout.credit.groups
    metrics["advantage/abs_mean"] = rollout.credit.value.abs().mean().item()
    metrics |= rollout.metrics
    if set(rollout.scored.terms) - set(rollout.scored.parts):
        metrics |= {f"terms/{text}": values.nanmean().item() for text, values in rollout.scored.terms.items()}
    metrics["diversity"] = _diversity(rollout.outputs, rollout.group)
    if rollout.dropped:
        metrics["refill/dropped_groups"] = float(rollout.dropped)
    if isinstance(rollout.batch.samples, Completions):
        completions = rollout.batch.samples
        metrics["completions/mean_length"] = completions.length.double().mean().item()
        metrics["completions/clipped_ratio"] = completions.cut.double().mean().item()
    return metrics


def _diversity(outputs: Outputs, group: Tensor) -> float:
    """Of pictures the mean squared distance between members of a group, twice the variance inside it; of texts the share of
    pairs in a group that differ."""
    size = int((group == group[0]).sum())
    if isinstance(outputs, Tensor):
        members = outputs.flatten(1).unflatten(0, (-1, size))
        return 2 * float(members.var(dim=1).mean())
    groups = [Counter(outputs[i : i + size]) for i in range(0, len(outputs), size)]
    pairs = size * (size - 1)
    return sum(1 - sum(n * (n - 1) for n in same.values()) / pairs for same in groups) / len(groups)


# --- what is given, and prompts alone --------------------------------------------------------------------------------


def _given_pairs(setup: Setup, step: int, version: int) -> Fed:
    prompts = _rows(setup, step)
    return _read(setup, prompts, step, _pairs(setup, prompts))


def _given_answers(setup: Setup, step: int, version: int) -> Fed:
    prompts = _rows(setup, step)
    return _read(setup, prompts, step, _given(setup, prompts, "completion"))


def _prompts_alone(setup: Setup, step: int, version: int) -> Fed:
    batch = _starts(setup, _rows(setup, step), step)
    calls = len(batch) * len(setup.rewards.rewards)
    return Fed(batch=batch, network_calls=batch.samples.network_calls, reward_calls=calls)


FEEDS: Mapping[Feed, Callable[[Setup, int, int], Fed]] = {
    "rollouts": _rollouts,
    "pairs": _given_pairs,
    "demonstrations": _given_answers,
    "prompts": _prompts_alone,
}


def _rows(setup: Setup, step: int) -> list[Prompt]:
    """`prompts_per_step` rows of the training file; every row counts alike."""
    return setup.prompts.batch(step, setup.recipe.train.prompts_per_step, setup.recipe.run.seed)


def _read(setup: Setup, prompts: Sequence[Prompt], step: int, samples: Samples) -> Fed:
    keys = [SampleKey(seed=setup.recipe.run.seed, step=step, prompt=p.id, index=i) for i, p in enumerate(prompts)]
    batch = _unscored(samples, prompts, keys, torch.arange(len(prompts)))
    return Fed(batch=batch, network_calls=samples.network_calls)


def _pairs(setup: Setup, prompts: Sequence[Prompt]) -> Samples:
    scores = [prompt.inputs.get("scores") for prompt in prompts]
    margins = [prompt.inputs.get("margin") for prompt in prompts]
    said: dict[str, Any] = {
        "scores": None if None in scores else torch.tensor(scores, dtype=torch.float64),
        "margin": None if None in margins else torch.tensor(margins, dtype=torch.float64),
    }
    if isinstance(setup.drawer, FlowDrawer):
        return Pairs(chosen=_pictures(setup, prompts, "chosen"), rejected=_pictures(setup, prompts, "rejected"), **said)
    return Pairs(chosen=_given(setup, prompts, "chosen"), rejected=_given(setup, prompts, "rejected"), **said)


def _pictures(setup: Setup, prompts: Sequence[Prompt], name: str) -> FlowSamples:
    """Given pictures as latents, under their prompts without guidance."""
    assert isinstance(setup.drawer, FlowDrawer), "pictures are a flow model's"
    latents = setup.latents([prompt.inputs[name] for prompt in prompts])
    return FlowSamples(conditioning=setup.drawer.encoder(prompts, 1.0), latents=latents, trace=None, network_calls=0)


def _starts(setup: Setup, prompts: Sequence[Prompt], step: int) -> Batch:
    """Where the step's samples begin, for objectives that draw them with a gradient."""
    assert isinstance(setup.drawer, FlowDrawer), "the objective's needs say flow"
    size, seed = setup.recipe.train.samples_per_prompt, setup.recipe.run.seed
    members, group, keys = expand_groups(prompts, size, seed, step)
    starts = setup.drawer.starts(members, keys, [keys[i - i % size] for i in range(len(keys))])
    return _unscored(starts, members, keys, group)


def _unscored(samples: Samples, prompts: Sequence[Prompt], keys: Sequence[SampleKey], group: Tensor) -> Batch:
    everything = torch.ones(len(prompts), dtype=torch.bool)
    return Batch(
        samples=samples,
        prompts=tuple(prompts),
        keys=tuple(keys),
        group=group,
        score=torch.full((len(prompts),), torch.nan).double(),
        scores={},
        credit=Credit(value=torch.ones(len(prompts)), valid=everything),
        informative=everything,
    )


def _given(setup: Setup, prompts: Sequence[Prompt], name: str) -> Completions:
    model = setup.policy.model
    texts = [prompt.inputs[name] for prompt in prompts]
    return given_completions(model.encode(prompts), [model.encode_completion(text) for text in texts])
