"""What a composition of rewards does to learning, on toys whose truth is known (S008, S044).

The policy is a Gaussian whose mean learns by REINFORCE with group-relative advantages; figures are of the mean's truth. S008: a
scorer that is saturated, so that its last differences are noise and a hack. S044: an editor that earns the bonus by leaving the
input alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plaudit.rewards.compose import operators, pairwise
from plaudit.shaping.credit import Deviation, group_advantage

PROMPTS, MEMBERS = 4, 16
GROUP = torch.arange(PROMPTS).repeat_interleave(MEMBERS)
Signal = Callable[[Tensor, torch.Generator], Tensor]  # outputs [B, D] to rewards [B]


@dataclass(frozen=True, kw_only=True)
class Setting:
    start: Sequence[float]
    sigma: float = 0.3
    rate: float = 0.05
    steps: int = 400
    std: Deviation = "group"
    floor: float = 1e-8  # GRPO's own, so that what the floor of the toolkit would hide is seen


def train(setting: Setting, signal: Signal, truth: Callable[[Tensor], Tensor], seed: int) -> list[float]:
    """The truth of the policy's mean after every step."""
    generator = torch.Generator().manual_seed(seed)
    mean, curve = torch.tensor(setting.start, dtype=torch.float64), []
    for _ in range(setting.steps):
        noise = torch.randn(len(GROUP), len(mean), dtype=torch.float64, generator=generator)
        reward = signal(mean + setting.sigma * noise, generator)
        advantage = group_advantage(reward, GROUP, std=setting.std, floor=setting.floor).value
        mean = mean + setting.rate * (advantage[:, None] * noise).mean(
            0
        )  # sigma times the score function: a step in sigmas
        curve.append(truth(mean[None]).item())
    return curve


# --- S008 ------------------------------------------------------------------------------------------------------------


def s008_truth(outputs: Tensor) -> Tensor:
    return torch.tanh(outputs[:, 0]) - 0.1 * outputs[:, 1] ** 2


def s008_scores(outputs: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(len(outputs), dtype=torch.float64, generator=generator)
    return torch.tanh(outputs[:, 0]) + 0.003 * outputs[:, 1] + 1e-4 * noise


SATURATED: dict[str, Signal] = {
    "score": s008_scores,
    "win-rate": lambda x, g: pairwise.win_rate(s008_scores(x, g), group=GROUP),
    "win-rate-with-ties": lambda x, g: pairwise.win_rate(s008_scores(x, g), group=GROUP, margin=0.02),
}


def saturated(*, seed: int, quick: bool, signal: str) -> dict[str, float]:
    """The truth after training on a scorer with 0.003 of a hack."""
    setting = Setting(start=(0.0, 0.0), steps=8 if quick else 800)
    curve = train(setting, SATURATED[signal], s008_truth, seed)
    return {"truth": curve[-1], "best": max(curve), "advantage": noise_advantage(signal, seed)}


def noise_advantage(signal: str, seed: int) -> float:
    """Mean size of the advantages of scores around 0.9 that differ by noise of 1e-4."""
    generator = torch.Generator().manual_seed(seed)
    scores = 0.9 + 1e-4 * torch.randn(len(GROUP), dtype=torch.float64, generator=generator)
    if signal != "score":
        scores = pairwise.win_rate(scores, group=GROUP, margin=1e-3 if signal == "win-rate-with-ties" else 0.0)
    return group_advantage(scores, GROUP, floor=1e-8).value.abs().mean().item()


# --- S044 ------------------------------------------------------------------------------------------------------------


def execution(outputs: Tensor) -> Tensor:
    """How far the edit is carried out, given its strength."""
    return torch.sigmoid(3 * (outputs[:, 0] - 2))


def consistency(outputs: Tensor) -> Tensor:
    """How much of the input is left."""
    return torch.exp(-0.15 * outputs[:, 0].abs())


REWARDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "half-half": lambda e, c: operators.weighted_sum([e, c], weights=(0.5, 0.5)),
    "six-four": lambda e, c: operators.weighted_sum([e, c], weights=(0.6, 0.4)),
    "product": lambda e, c: operators.product([e, c]),
    "cme": operators.cme,
    "qma": operators.qma,
}


def editor(*, seed: int, quick: bool, reward: str, start: float) -> dict[str, float]:
    """How far an edit is carried out after training from a strength of `start`, and what is left of the input."""
    setting = Setting(start=(start,), steps=4 if quick else 400)
    signal: Signal = lambda x, g: REWARDS[reward](execution(x), consistency(x))  # noqa: E731
    return {
        "execution": train(setting, signal, execution, seed)[-1],
        "consistency": train(setting, signal, consistency, seed)[-1],
    }
