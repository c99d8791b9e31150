"""VLM-RM: the projection's geometry, and what a baseline removes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.rewards.encoders.gradients import check_picture_gradient

from plaudit.builds.encoder import pictures_of
from plaudit.data.prompt import Prompt
from plaudit.errors import RewardError
from plaudit.lab.scenes.grammar import sample_prompts
from plaudit.rewards.base import Status
from plaudit.rewards.calling.call import call_reward
from plaudit.rewards.encoders.goal import GoalBaselineSimilarity, goal_projection, goal_reward
from plaudit.rewards.encoders.load import load_encoder
from plaudit.rewards.encoders.similarity import EncoderSimilarity


def unit(*values: float) -> torch.Tensor:
    return F.normalize(torch.tensor(values, dtype=torch.float64), dim=0)


GOAL, BASELINE = unit(1, 0, 0), unit(0, 1, 0)
STATES = torch.stack([unit(1, 2, 3), unit(-1, 0, 0), unit(1, 0, 0), unit(0, 1, 0)])


def test_alpha_0_is_the_cosine() -> None:
    reward = goal_reward(STATES, GOAL, goal_projection(GOAL, BASELINE, 0.0))
    torch.testing.assert_close(reward, STATES @ GOAL)


def test_alpha_1_sees_only_the_line() -> None:
    """By hand: the component of s - g along (1, -1, 0) / sqrt 2; what is added across it changes nothing."""
    M = goal_projection(GOAL, BASELINE, 1.0)
    along = (STATES - GOAL) @ torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64) / 2**0.5
    torch.testing.assert_close(goal_reward(STATES, GOAL, M), 1 - along**2 / 2)
    for across in ([1.0, 1.0, 0.0], [0.0, 0.0, 1.0]):
        moved = STATES + 0.3 * torch.tensor(across, dtype=torch.float64)
        torch.testing.assert_close(goal_reward(moved, GOAL, M), goal_reward(STATES, GOAL, M))
    assert goal_reward(GOAL, GOAL, M).item() == pytest.approx(1.0)
    assert goal_reward(BASELINE, GOAL, M).item() == pytest.approx(0.0)


def test_in_between_the_published_matrix() -> None:
    d = GOAL - BASELINE
    expected = 0.3 * torch.outer(d, d) / d.dot(d) + 0.7 * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(goal_projection(GOAL, BASELINE, 0.3), expected)
    values = goal_reward(STATES, GOAL, expected)
    slow = torch.stack([1 - 0.5 * torch.linalg.vector_norm((s - GOAL) @ expected) ** 2 for s in STATES])
    torch.testing.assert_close(values, slow)
    assert ((values >= -1) & (values <= 1)).all()


def test_equal_goal_and_baseline_have_no_line() -> None:
    with pytest.raises(RewardError, match="same embedding"):
        goal_projection(GOAL, GOAL, 0.5)


@pytest.fixture(scope="module")
def scenes() -> tuple[list[Prompt], torch.Tensor]:
    prompts = sample_prompts("train", 6, np.random.default_rng(5), ("two",))
    return prompts, pictures_of(prompts, np.random.default_rng(6), spoil=False)


def test_with_the_encoder_alpha_0_is_plain_similarity(scenes: tuple) -> None:
    prompts, images = scenes
    plain = [s.value for s in call_reward("s", EncoderSimilarity(), prompts, images)]
    found = [
        s.value for s in call_reward("g", GoalBaselineSimilarity(baseline="a red circle", alpha=0.0), prompts, images)
    ]
    assert found == pytest.approx(plain, abs=1e-5)
    projected = [s.value for s in call_reward("g", GoalBaselineSimilarity(baseline="a red circle"), prompts, images)]
    assert max(abs(a - b) for a, b in zip(found, projected, strict=True)) > 0.01


def test_wordings_are_averaged_and_the_goal_may_be_fixed(scenes: tuple) -> None:
    _, images = scenes
    goals = ["a red circle and a blue square", "a blue square and a red circle"]
    reward = GoalBaselineSimilarity(goal=goals, baseline="a red circle", alpha=0.0)
    encoder = load_encoder("lab")
    mean = F.normalize(encoder.embed_texts(goals).mean(0), dim=0)
    torch.testing.assert_close(reward([""] * 6, images), encoder.embed_images(images) @ mean, atol=1e-5, rtol=0)


def test_gradients_reach_the_pictures(scenes: tuple) -> None:
    _, images = scenes
    reward = GoalBaselineSimilarity(goal="a red circle", baseline="a blue square", alpha=0.4)
    check_picture_gradient(lambda x: reward([""] * 2, x), images[:2].clamp(0.05, 0.95))


def test_a_window_of_frames_is_one_state(scenes: tuple) -> None:
    _, images = scenes
    reward = GoalBaselineSimilarity(goal="a red circle", baseline="a blue square", alpha=0.4, window=2)
    assert reward.card.kind == "video"
    video = images[:5]  # two windows, and a frame that fills none
    found = call_reward("g", reward, [Prompt(id="", text="")], video[None])[0]
    states = F.normalize(load_encoder("lab").embed_images(video[:4]).unflatten(0, (2, 2)).mean(1), dim=-1)
    texts = load_encoder("lab").embed_texts(["a red circle", "a blue square"])
    expected = goal_reward(states, texts[0], goal_projection(texts[0], texts[1], 0.4))
    assert found.dense is not None
    torch.testing.assert_close(found.dense, _placed(expected), atol=1e-5, rtol=0)
    assert found.value == pytest.approx(expected.mean().item(), abs=1e-5)
    short = call_reward("g", reward, [Prompt(id="", text="")], video[None, :1])[0]
    assert short.status is Status.NOT_APPLICABLE


def _placed(rewards: torch.Tensor) -> torch.Tensor:
    return torch.tensor([0.0, rewards[0].item(), 0.0, rewards[1].item(), 0.0])
