"""Rewards for reasoning on toys (S123, S128).

1. noise: sums modulo 7 by a small network, first taught a little, then trained by group-relative policy gradient on
   rewards inverted with probability p, for all outputs of a question together or for each alone (S128).
2. calibration: a policy that first chooses whether to reason, and only then can read the question, trained on a reward
   model that is wrong about many answers, with and without the reasoning-pattern calibration (S128).
3. credit: routes with one change, a softmax for each slot of the answer, rewarded for right routes only or also for
   partial credit (S123).

The policy gradient is on-policy (clipping would be inert), advantages are `group_advantage`, Adam.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from plaudit.rewards.compose.noise import inverted
from plaudit.rewards.compose.shapers import calibrated
from plaudit.rewards.rules.reasoning import PHRASES, reasoning_pattern
from plaudit.rewards.rules.routes import Leg, is_route, route_detail
from plaudit.sampling.noise import SampleKey
from plaudit.shaping.credit import group_advantage

MODULUS = 7
SUMS = list(itertools.product(range(MODULUS), repeat=2))
TRUTH = torch.tensor([(a + b) % MODULUS for a, b in SUMS])
GROUP, QUESTIONS = 8, 12


def one_hot(questions: Sequence[tuple[int, int]]) -> Tensor:
    pairs = torch.tensor(questions)
    return nn.functional.one_hot(pairs, MODULUS).flatten(1).float()


INPUTS = one_hot(SUMS)


def mlp(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(2 * MODULUS, 64), nn.ReLU(), nn.Linear(64, outputs))


def learn(optimizer: torch.optim.Optimizer, log_prob: Tensor, scores: Tensor, groups: Tensor) -> int:
    """One policy-gradient step; how many groups carried a signal."""
    found = group_advantage(scores, groups)
    loss = -(found.value * log_prob * found.valid).sum() / found.valid.sum().clamp(min=1)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return found.groups - found.constant_groups


def warm_start(network: nn.Module, steps: int) -> None:
    """Some supervised steps, so that there is an ability for the rewards to bring out."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(steps):
        loss = nn.functional.cross_entropy(network(INPUTS), TRUTH)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def accuracy_of(chances: Tensor) -> float:
    return chances[torch.arange(len(SUMS)), TRUTH].mean().item()


# --- 1. noise --------------------------------------------------------------------------------------------------------


def noisy_sums(by: str, probability: float, seed: int, marks: Sequence[int]) -> list[float]:
    """Probability of the right answer, over all sums, at the start and after each of `marks` steps."""
    torch.manual_seed(seed)
    order = np.random.default_rng(seed)
    network = mlp(MODULUS)
    warm_start(network, 12)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    groups = torch.arange(QUESTIONS).repeat_interleave(GROUP)
    member = torch.arange(GROUP).repeat(QUESTIONS)
    curve = []
    for step in range(max(marks) + 1):
        if step in (0, *marks):
            with torch.no_grad():
                curve.append(accuracy_of(network(INPUTS).softmax(1)))
        asked = torch.from_numpy(order.choice(len(SUMS), QUESTIONS, replace=False))[groups]
        policy = torch.distributions.Categorical(logits=network(INPUTS[asked]))
        answers = policy.sample()
        right = (answers == TRUTH[asked]).float()
        index = member if by == "sample" else torch.zeros_like(member)
        keys = [
            SampleKey(seed=seed, step=step, prompt=str(question), index=number)
            for question, number in zip(asked.tolist(), index.tolist(), strict=True)
        ]
        flips = torch.tensor(inverted(keys, probability)) if probability else torch.zeros(len(asked), dtype=torch.bool)
        learn(optimizer, policy.log_prob(answers), torch.where(flips, 1 - right, right), groups)
    return curve


def noise(*, seed: int, quick: bool, by: str, probability: float) -> dict[str, float]:
    """Accuracy after 2,400 steps."""
    return {"accuracy": noisy_sums(by, probability, seed, [4 if quick else 2400])[-1]}


# --- 2. calibration --------------------------------------------------------------------------------------------------


def weak_model(accuracy: float, seed: int) -> Tensor:
    """Scores `[sums, answers]` of a classifier that is wrong about some answers, always the same: 0.3 no, 0.7 yes."""
    wrong = torch.from_numpy(np.random.default_rng([seed, 9]).random((len(SUMS), MODULUS)) > accuracy)
    right = torch.arange(MODULUS)[None] == TRUTH[:, None]
    return torch.where(right ^ wrong, 0.7, 0.3)


def reasoning_sums(accuracy: float | None, weight: float, seed: int, steps: int) -> list[float]:
    """Final accuracy, and how often the policy reasons. Without an accuracy, the reward is the pattern reward alone."""
    torch.manual_seed(seed)
    order = np.random.default_rng(seed)
    reader, guesser, chooser = mlp(MODULUS), nn.Parameter(torch.zeros(MODULUS)), nn.Parameter(torch.tensor([0.0, -4.0]))
    warm_start(reader, 25)
    model = weak_model(accuracy or 0.0, seed)
    pattern = torch.tensor([reasoning_pattern("hm"), reasoning_pattern(" ".join(PHRASES[:20]))])
    optimizer = torch.optim.Adam([*reader.parameters(), guesser, chooser], lr=5e-3)
    groups = torch.arange(QUESTIONS).repeat_interleave(GROUP)
    for _ in range(steps):
        asked = torch.from_numpy(order.choice(len(SUMS), QUESTIONS, replace=False))[groups]
        choice = torch.distributions.Categorical(logits=chooser.expand(len(asked), 2))
        reasons = choice.sample()
        logits = torch.where(reasons[:, None] == 1, reader(INPUTS[asked]), guesser.expand(len(asked), MODULUS))
        policy = torch.distributions.Categorical(logits=logits)
        answers = policy.sample()
        looks = pattern[reasons]
        scores = looks if accuracy is None else calibrated(model[asked, answers], looks, weight=weight)
        learn(optimizer, choice.log_prob(reasons) + policy.log_prob(answers), scores, groups)
    with torch.no_grad():
        often = chooser.softmax(0)[1].item()
        return [accuracy_of(often * reader(INPUTS).softmax(1) + (1 - often) * guesser.softmax(0)), often]


def calibration(*, seed: int, quick: bool, accuracy: float | None, weight: float) -> dict[str, float]:
    right, often = reasoning_sums(accuracy, weight, seed, 4 if quick else 800)
    return {"accuracy": right, "reasons": often}


# --- 3. partial credit -----------------------------------------------------------------------------------------------

STOPS = [f"s{i}" for i in range(10)]
LINES = {"A": STOPS[:4], "B": STOPS[3:7], "C": STOPS[6:], "D": [STOPS[1], STOPS[8]]}
NAMES = [*LINES, "W", "X", "Y", "Z"]  # four lines that do not exist
TRIPS = [("s0", "s5"), ("s1", "s6"), ("s2", "s4"), ("s4", "s9"), ("s5", "s8"), ("s3", "s7")]
SLOTS = (
    len(NAMES),
    len(STOPS),
    len(STOPS),
    len(NAMES),
)  # first line, where it is left, where the next begins, its line


def route_credit_run(detail: float, seed: int, steps: int) -> tuple[float, float, float]:
    """Step at which a fifth of the routes is right (`steps` if never), final accuracy, groups with a signal."""
    torch.manual_seed(seed)
    logits = [nn.Parameter(torch.zeros(len(TRIPS), size)) for size in SLOTS]
    optimizer = torch.optim.Adam(logits, lr=0.05)
    groups = torch.arange(len(TRIPS)).repeat_interleave(GROUP)
    reached, signals, right_share = float(steps), 0, []
    for step in range(steps):
        policies = [torch.distributions.Categorical(logits=slot[groups]) for slot in logits]
        picks = [policy.sample() for policy in policies]
        rows, right = [], []
        for trip, *slots in zip(groups.tolist(), *(pick.tolist() for pick in picks), strict=True):
            start, goal = TRIPS[trip]
            legs = [
                Leg(line=NAMES[slots[0]], departure=start, arrival=STOPS[slots[1]]),
                Leg(line=NAMES[slots[3]], departure=STOPS[slots[2]], arrival=goal),
            ]
            right.append(float(is_route(legs, LINES, start, goal)))
            rows.append(10 * right[-1] + detail * route_detail(legs, LINES, start, goal, transfers=1))
        log_prob = sum(policy.log_prob(pick) for policy, pick in zip(policies, picks, strict=True))
        signals += learn(optimizer, log_prob, torch.tensor(rows), groups)
        right_share.append(float(np.mean(right)))
        if reached == steps and np.mean(right_share[-10:]) >= 0.2:
            reached = float(step)
    return reached, float(np.mean(right_share[-20:])), signals / (steps * len(TRIPS))


def credit(*, seed: int, quick: bool, detail: float) -> dict[str, float]:
    reached, right, signal = route_credit_run(detail, seed, 4 if quick else 1500)
    return {"reached": reached, "right": right, "signal": signal}
