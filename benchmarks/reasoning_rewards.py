"""Rewards for reasoning on toys: `python benchmarks/reasoning_rewards.py [noise calibration credit] [--seeds 4]`.

1. noise: sums modulo 7 by a small network trained by group-relative policy gradient on rewards inverted with
   probability p, for all outputs of a question together or for each alone (S128).
2. calibration: a policy that first chooses whether to reason, and only then can read the question, trained on a reward
   model that rates many right answers wrong, with and without the reasoning-pattern calibration (S128).
3. credit: routes with one change, a softmax for each slot of the answer, rewarded for right routes only or also for
   partial credit (S123).

The policy gradient is on-policy (clipping would be inert), advantages are `group_advantage`, Adam. Each line gives mean and
standard deviation over seeds.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from plaudit.data.prompt import Prompt
from plaudit.rewards.call import Caller, make_request
from plaudit.rewards.rules.reasoning import PHRASES, FlippedByGroup, FlippedBySample, ReasoningCalibrated
from plaudit.rewards.rules.routes import Leg, is_route, route_detail
from plaudit.shaping.advantages import group_advantage

MODULUS = 7
SUMS = list(itertools.product(range(MODULUS), repeat=2))
GROUP, QUESTIONS = 8, 12


def spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} +- {np.std(values):.3f}"


def one_hot(questions: Sequence[tuple[int, int]]) -> Tensor:
    pairs = torch.tensor(questions)
    return nn.functional.one_hot(pairs, MODULUS).flatten(1).float()


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


def score(caller: Caller, questions: Sequence[tuple[int, int]], texts: Sequence[str], step: int) -> Tensor:
    prompts = [Prompt(id=f"{a}+{b}", text="", facts={"answer": str((a + b) % MODULUS)}) for a, b in questions]
    return torch.tensor([one.value for one in caller(make_request(prompts, texts, step=step))])


# --- 1. noise --------------------------------------------------------------------------------------------------------


def noisy_sums(reward: Callable[..., object], seed: int, steps: int, marks: Sequence[int]) -> list[float]:
    """Probability of the right answer, over all sums, after each of `marks` steps."""
    torch.manual_seed(seed)
    order = np.random.default_rng(seed)
    network, caller = mlp(MODULUS), Caller("noisy", reward)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    truth = torch.tensor([(a + b) % MODULUS for a, b in SUMS])
    curve = []
    for step in range(1, steps + 1):
        asked = [SUMS[i] for i in order.choice(len(SUMS), QUESTIONS, replace=False) for _ in range(GROUP)]
        policy = torch.distributions.Categorical(logits=network(one_hot(asked)))
        answers = policy.sample()
        texts = [f"<answer>{answer}</answer>" for answer in answers.tolist()]
        groups = torch.arange(QUESTIONS).repeat_interleave(GROUP)
        learn(optimizer, policy.log_prob(answers), score(caller, asked, texts, step), groups)
        if step in marks:
            with torch.no_grad():
                chances = network(one_hot(SUMS)).softmax(1)
            curve.append(chances[torch.arange(len(SUMS)), truth].mean().item())
    return curve


def noise(seeds: int) -> None:
    marks = (100, 200, 400, 800)
    print(
        f"sums modulo {MODULUS}: accuracy after {', '.join(map(str, marks))} steps of {QUESTIONS} questions x {GROUP}"
    )
    for kind, probability in itertools.product((FlippedByGroup, FlippedBySample), (0.0, 0.2, 0.4, 0.5)):
        if probability == 0 and kind is FlippedBySample:
            continue
        runs = [
            noisy_sums(kind("exact_answer", probability, seed=seed), seed, max(marks), marks) for seed in range(seeds)
        ]
        columns = "  ".join(spread(column) for column in zip(*runs, strict=True))
        print(f"  {kind.__name__:15} p = {probability:.1f}   {columns}", flush=True)


# --- 2. calibration --------------------------------------------------------------------------------------------------


class WeakRewardModel:
    """A classifier that is wrong about some answers, always the same ones: 0.3 for no, 0.7 for yes."""

    def __init__(self, accuracy: float, seed: int) -> None:
        wrong = np.random.default_rng([seed, 9]).random((MODULUS, MODULUS, MODULUS)) > accuracy
        self.wrong = wrong

    def __call__(self, prompts: Sequence[str], outputs: Sequence[str], ids: Sequence[str]) -> list[float]:
        scores = []
        for name, output in zip(ids, outputs, strict=True):
            a, b = (int(part) for part in name.split("+"))
            answer = int(output.rpartition("<answer>")[2][0])
            right = answer == (a + b) % MODULUS
            scores.append(0.7 if right != self.wrong[a, b, answer] else 0.3)
        return scores


REASONED = f"<think>{' '.join(PHRASES[:20])}</think>"


def reasoning_sums(accuracy: float | None, weight: float, seed: int, steps: int) -> tuple[float, float]:
    """Final accuracy and how often the policy reasons. Without an accuracy, the reward is the pattern reward alone."""
    torch.manual_seed(seed)
    order = np.random.default_rng(seed)
    reader, guesser, chooser = mlp(MODULUS), nn.Parameter(torch.zeros(MODULUS)), nn.Parameter(torch.tensor([0.0, -1.5]))
    if accuracy is None:
        caller = Caller("pattern", lambda prompts, outputs: [float(REASONED in output) for output in outputs])
    else:
        calibrated = ReasoningCalibrated("exact_answer", weight=weight)
        calibrated.inner = Caller("weak", WeakRewardModel(accuracy, seed))
        caller = Caller("calibrated", calibrated)
    optimizer = torch.optim.Adam([*reader.parameters(), guesser, chooser], lr=3e-3)
    groups = torch.arange(QUESTIONS).repeat_interleave(GROUP)
    for step in range(steps):
        asked = [SUMS[i] for i in order.choice(len(SUMS), QUESTIONS, replace=False) for _ in range(GROUP)]
        choice = torch.distributions.Categorical(logits=chooser.expand(len(asked), 2))
        reasons = choice.sample()
        logits = torch.where(reasons[:, None] == 1, reader(one_hot(asked)), guesser.expand(len(asked), MODULUS))
        policy = torch.distributions.Categorical(logits=logits)
        answers = policy.sample()
        texts = [
            f"{REASONED if reason else '<think>hm</think>'}<answer>{answer}</answer>"
            for reason, answer in zip(reasons.tolist(), answers.tolist(), strict=True)
        ]
        log_prob = choice.log_prob(reasons) + policy.log_prob(answers)
        learn(optimizer, log_prob, score(caller, asked, texts, step), groups)
    with torch.no_grad():
        often = chooser.softmax(0)[1].item()
        chances = often * reader(one_hot(SUMS)).softmax(1) + (1 - often) * guesser.softmax(0)
    truth = torch.tensor([(a + b) % MODULUS for a, b in SUMS])
    return chances[torch.arange(len(SUMS)), truth].mean().item(), often


def calibration(seeds: int) -> None:
    steps = 800
    print(f"reason or guess, then sums modulo {MODULUS}, a systematic reward model: after {steps} steps")
    settings = [(accuracy, weight) for accuracy in (1.0, 0.85, 0.75, 0.65) for weight in (0.0, 0.1)]
    for accuracy, weight in [*settings, (None, 0.0)]:
        runs = [reasoning_sums(accuracy, weight, seed, steps) for seed in range(seeds)]
        right, often = (spread(column) for column in zip(*runs, strict=True))
        name = "pattern reward alone" if accuracy is None else f"model {accuracy:.2f}, weight {weight:.1f}"
        print(f"  {name:24} accuracy {right}   reasons {often}", flush=True)


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


def credit(seeds: int) -> None:
    steps = 500
    print(f"routes with one change, {len(TRIPS)} trips x {GROUP}, {steps} steps")
    for detail in (0.0, 0.5):
        runs = [route_credit_run(detail, seed, steps) for seed in range(seeds)]
        reached, right, signal = (spread(column) for column in zip(*runs, strict=True))
        print(
            f"  detail x {detail:.1f}: 20 % right at step {reached}, final {right}, groups with signal {signal}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"noise": noise, "calibration": calibration, "credit": credit}
    parser.add_argument("parts", nargs="*", choices=[*parts, []], default=[])
    parser.add_argument("--seeds", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.parts or parts:
        started = time.perf_counter()
        parts[name](arguments.seeds)
        print(f"  {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
