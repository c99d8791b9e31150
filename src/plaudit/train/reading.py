"""One step's samples for objectives that learn from data: pairs of answers, or demonstrations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from plaudit.data.prompt import Prompt
from plaudit.errors import DataError
from plaudit.objectives.batch import Batch, Pairs
from plaudit.sampling.base import Samples
from plaudit.sampling.noise import SampleKey
from plaudit.sampling.tokens import Completions, given_completions

if TYPE_CHECKING:
    from plaudit.train.setup import Setup

NEEDED = {"pairs": ("chosen", "rejected"), "demonstrations": ("completion",)}


def read_batch(setup: Setup, step: int) -> Batch:
    """`prompts_per_step` rows of the training file; every row counts alike."""
    recipe, source = setup.recipe, setup.objective.learns_from
    prompts = setup.prompts.batch(step, recipe.train.prompts_per_step, recipe.run.seed)
    samples: Samples
    if source == "pairs":
        samples = Pairs(chosen=_given(setup, prompts, "chosen"), rejected=_given(setup, prompts, "rejected"))
    else:
        samples = _given(setup, prompts, "completion")
    everything = torch.ones(len(prompts), dtype=torch.bool)
    return Batch(
        samples=samples,
        prompts=tuple(prompts),
        keys=tuple(SampleKey(seed=recipe.run.seed, step=step, prompt=p.id, index=i) for i, p in enumerate(prompts)),
        group=torch.arange(len(prompts)),
        score=torch.full((len(prompts),), torch.nan).double(),
        scores={},
        advantage=torch.ones(len(prompts)),
        valid=everything,
        informative=everything,
    )


def _given(setup: Setup, prompts: Sequence[Prompt], name: str) -> Completions:
    for prompt in prompts:
        if name not in prompt.inputs:
            raise DataError(
                f"prompts.train: prompt {prompt.id} ({prompt.text[:60]!r}) has no `{name}`; objective "
                f"{setup.recipe.objective.type} needs rows with `prompt` and {' and '.join(NEEDED[setup.objective.learns_from])}"
            )
    model = setup.policy.model
    texts = [prompt.inputs[name] for prompt in prompts]
    return given_completions(model.encode(prompts), [model.encode_completion(text) for text in texts])
