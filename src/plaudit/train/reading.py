"""One step's samples for objectives that do not learn from rollouts: pairs of answers, demonstrations, or prompts alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.objectives.batch import Batch, Pairs
from plaudit.sampling.base import Samples
from plaudit.sampling.drawers import FlowDrawer
from plaudit.sampling.noise import SampleKey
from plaudit.sampling.rollout import FlowSamples
from plaudit.sampling.tokens import Completions, given_completions
from plaudit.shaping.credit import Credit
from plaudit.train.collect import expand_groups
from plaudit.train.setup import Setup


def read_batch(setup: Setup, step: int) -> Batch:
    """`prompts_per_step` rows of the training file; every row counts alike."""
    recipe, source = setup.recipe, setup.objective.needs.feed
    prompts = setup.prompts.batch(step, recipe.train.prompts_per_step, recipe.run.seed)
    samples: Samples
    if source == "prompts":
        return _starts(setup, prompts, step)
    if source == "pairs":
        samples = _pairs(setup, prompts)
    else:
        samples = _given(setup, prompts, "completion")
    keys = [SampleKey(seed=recipe.run.seed, step=step, prompt=p.id, index=i) for i, p in enumerate(prompts)]
    return _unscored(samples, prompts, keys, torch.arange(len(prompts)))


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
