"""VLM-RM (S080): similarity to a goal text along the line from a baseline text.

Shape legend: B outputs, T frames, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from plaudit.errors import RewardError
from plaudit.recipe.base import Fraction, Positive
from plaudit.rewards.base import Card, Score, Status, missing
from plaudit.rewards.encoders.base import embed_once
from plaudit.rewards.encoders.load import load_encoder
from plaudit.rewards.encoders.similarity import needs_pictures


def goal_projection(goal: Tensor, baseline: Tensor, alpha: float) -> Tensor:
    """M = alpha d d^T / |d|^2 + (1 - alpha) I, `[D, D]`, with d = goal - baseline."""
    direction = goal - baseline
    if not direction.norm() > 1e-6:
        raise RewardError("goal and baseline have the same embedding, so that no line joins them; word them apart")
    unit = direction / direction.norm()
    return alpha * torch.outer(unit, unit) + (1 - alpha) * torch.eye(len(goal), dtype=goal.dtype, device=goal.device)


def goal_reward(states: Tensor, goal: Tensor, projection: Tensor) -> Tensor:
    """R(s) = 1 - |(s - g) M|^2 / 2 for unit states `[..., D]`; the cosine where M = I."""
    return 1 - ((states - goal) @ projection).square().sum(-1) / 2


class GoalBaselineSimilarity:
    """VLM-RM: what has nothing to do with the way from `baseline` to `goal` counts less, not at all at `alpha` 1.

    Several wordings are averaged, and the mean made a unit vector again (the released code leaves it shorter, so that
    alpha 0 is a cosine for a single wording only). Without `goal` the prompt is the goal. With `window`, outputs are
    videos `[B, T, 3, H, W]`: each whole window of frames is one state, by the mean of its vectors; `dense` has its reward
    at the window's last frame and 0 elsewhere, the score is the windows' mean.
    """

    card = Card(
        summary="similarity to a goal text along the line from a baseline text",
        low=-1,
        high=1,
        differentiable=True,
        cost_ms=1.5,
        systems=("S080",),
    )

    def __init__(
        self,
        baseline: str | Sequence[str],
        goal: str | Sequence[str] | None = None,
        alpha: Fraction = 0.5,
        encoder: str = "lab",
        window: Positive | None = None,
    ) -> None:
        self.encoder, self.alpha, self.window = load_encoder(encoder), alpha, window
        needs_pictures(self.encoder, "goal_baseline_similarity")
        self.baseline = self._mean_of(baseline)
        self.goal = None if goal is None else self._mean_of(goal)
        self.card = replace(
            type(self).card,
            kind="image" if window is None else "video",
            differentiable=window is None,
            max_prompt_tokens=self.encoder.max_tokens,
        )

    def _mean_of(self, texts: str | Sequence[str]) -> Tensor:
        return F.normalize(self.encoder.embed_texts([texts] if isinstance(texts, str) else texts).mean(0), dim=0)

    def __call__(self, prompts: Sequence[str], outputs: Tensor) -> Tensor | list[Score]:
        return self._of_images(prompts, outputs) if self.window is None else self._of_videos(prompts, outputs)

    def _goals(self, prompts: Sequence[str]) -> Sequence[Tensor]:
        return list(embed_once(self.encoder, prompts)) if self.goal is None else [self.goal] * len(prompts)

    def _of_images(self, prompts: Sequence[str], images: Tensor) -> Tensor:
        pairs = zip(self.encoder.embed_images(images), self._goals(prompts), strict=True)
        return torch.stack([self._reward(state, goal) for state, goal in pairs])

    def _reward(self, states: Tensor, goal: Tensor) -> Tensor:
        return goal_reward(states, goal, goal_projection(goal, self.baseline, self.alpha))

    def _of_videos(self, prompts: Sequence[str], videos: Tensor | Sequence[Tensor]) -> list[Score]:
        return [self._of_video(video, goal) for video, goal in zip(videos, self._goals(prompts), strict=True)]

    def _of_video(self, frames: Tensor, goal: Tensor) -> Score:
        size = self.window
        assert size is not None
        count = len(frames) // size
        if not count:
            return missing(Status.NOT_APPLICABLE, f"{len(frames)} frames fill no window of {size}")
        vectors = self.encoder.embed_images(frames[: count * size]).unflatten(0, (count, size))
        rewards = self._reward(F.normalize(vectors.mean(1), dim=-1), goal)
        dense = torch.zeros(len(frames))
        dense[size - 1 : count * size : size] = rewards
        return Score(value=rewards.mean().item(), dense=dense)
