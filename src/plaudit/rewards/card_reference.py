"""The reference on a reward's card: its mean and deviation over true pictures of the lab's held-out captions."""

from __future__ import annotations

import numpy as np
import torch

from plaudit.errors import RewardError
from plaudit.lab.scenes.grammar import evaluation_prompts
from plaudit.lab.scenes.render import rasterise, sample_scenes
from plaudit.rewards.base import LAB_SCENES, Reference
from plaudit.rewards.calling.call import Caller
from plaudit.rewards.calling.request import make_request
from plaudit.rewards.load import find_reward

COUNT = 600


def measure(name: str) -> Reference:
    """What the card of a picture reward should say."""
    prompts = evaluation_prompts("heldout", COUNT)
    pictures = rasterise(sample_scenes(prompts, np.random.default_rng(0)))
    caller = Caller(name, find_reward(name, name, {}))
    if caller.card is not None and caller.card.kind != "image":
        raise RewardError(f"reward {name} looks at {caller.card.kind}; the reference is over pictures of the lab")
    values = torch.tensor([score.value for score in caller(make_request(prompts, pictures))], dtype=torch.float64)
    values = values[values.isfinite()]
    if len(values) < 2:
        raise RewardError(f"reward {name} has no score for pictures of the lab")
    return Reference(mean=values.mean().item(), std=values.std().item(), on=LAB_SCENES)
