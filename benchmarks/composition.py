"""What a composition of rewards does to learning, on toys whose truth is known: `python benchmarks/composition.py [--seeds 5]`.

1. S008: the size of advantages when a saturated scorer's differences are noise, by score and by win rate; then training
   on a scorer whose last differences are a hack.
2. S101: shapers on a linear reward model fitted to few preferences, which extrapolates a feature that is only good within
   the data; by centred advantages, and by advantages divided by the group's standard deviation, which may have a floor.
   A shaper also changes how fast the policy moves, so compare the end with the best and not one row's step with another's.
3. S044: weighted sum against base-and-bonus where leaving the input alone earns the whole bonus.

The policy is a Gaussian whose mean learns by REINFORCE with group-relative advantages. All numbers are of the mean's
truth, as mean +- standard deviation over seeds.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plaudit.rewards.compose import operators, pairwise, running, shapers
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


def spread(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):8.3f} +- {statistics.stdev(values):5.3f}"


def table(title: str, rows: dict[str, dict[str, list[float]]]) -> None:
    columns = list(next(iter(rows.values())))
    print(f"\n{title}\n{'':34}" + "".join(f"{column:>24}" for column in columns))
    for name, row in rows.items():
        print(f"{name:34}" + "".join(f"{spread(values):>24}" for values in row.values()))


# --- 1: S008 ---------------------------------------------------------------------------------------------------------


def advantage_sizes(seeds: int) -> None:
    rows: dict[str, dict[str, list[float]]] = {}
    for gap in (1e-1, 1e-4, 1e-6):
        sizes: dict[str, list[float]] = {
            "score": [], "score, floor 1e-3": [], "win rate": [], "win rate, margin 1e-3": []
        }  # fmt: skip
        for seed in range(seeds):
            generator = torch.Generator().manual_seed(seed)
            scores = 0.9 + gap * torch.randn(len(GROUP), dtype=torch.float64, generator=generator)
            rates = pairwise.win_rate(scores, group=GROUP)
            tied = pairwise.win_rate(scores, group=GROUP, margin=1e-3)
            for name, values, floor in zip(sizes, (scores, scores, rates, tied), (1e-8, 1e-3, 1e-8, 1e-8), strict=True):
                sizes[name].append(group_advantage(values, GROUP, floor=floor).value.abs().mean().item())
        rows[f"scores {gap:g} apart"] = sizes
    table("1a. S008: mean |advantage| of scores around 0.9 that differ by noise", rows)


def s008_truth(outputs: Tensor) -> Tensor:
    return torch.tanh(outputs[:, 0]) - 0.1 * outputs[:, 1] ** 2


def s008_scores(outputs: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(len(outputs), dtype=torch.float64, generator=generator)
    return torch.tanh(outputs[:, 0]) + 0.003 * outputs[:, 1] + 1e-4 * noise


def saturated_scorer(seeds: int) -> None:
    signals: dict[str, Signal] = {
        "score": s008_scores,
        "win rate of the score": lambda x, g: pairwise.win_rate(s008_scores(x, g), group=GROUP),
        "win rate of the score, margin .02": lambda x, g: pairwise.win_rate(
            s008_scores(x, g), group=GROUP, margin=0.02
        ),
        "win rate of an oracle, margin .02": lambda x, g: pairwise.win_rate(s008_truth(x), group=GROUP, margin=0.02),
    }
    setting = Setting(start=(0.0, 0.0), steps=800)
    rows: dict[str, dict[str, list[float]]] = {}
    for name, signal in signals.items():
        curves = [train(setting, signal, s008_truth, seed) for seed in range(seeds)]
        rows[name] = {"truth at its best": [max(c) for c in curves], "truth at the end": [c[-1] for c in curves]}
    table("1b. S008: a saturated scorer with 0.003 of a hack, 800 steps", rows)


# --- 2: S101 ---------------------------------------------------------------------------------------------------------


def s101_gold(outputs: Tensor) -> Tensor:
    """Better with the first feature; the second does no harm up to 1.5, then more and more."""
    return outputs[:, 0] - 0.15 * outputs[:, 0] ** 2 - (outputs[:, 1] - 1.5).clamp(min=0) ** 2


def s101_outputs(count: int, generator: torch.Generator) -> Tensor:
    """Of the model before training: the features go together."""
    first = torch.randn(count, dtype=torch.float64, generator=generator)
    other = torch.randn(count, dtype=torch.float64, generator=generator)
    return torch.stack([first, 0.8 * first + 0.6 * other], 1)


def fitted_proxy(seed: int, pairs: int = 60) -> Tensor:
    """Weights of a linear Bradley-Terry model of `pairs` noisy preferences, by Newton's method."""
    generator = torch.Generator().manual_seed(1000 + seed)
    first, second = s101_outputs(pairs, generator), s101_outputs(pairs, generator)
    wins = torch.rand(pairs, dtype=torch.float64, generator=generator) < torch.sigmoid(
        2 * (s101_gold(first) - s101_gold(second))
    )
    ahead = torch.where(wins[:, None], first - second, second - first)
    weights = torch.zeros(2, dtype=torch.float64)
    for _ in range(30):
        p = torch.sigmoid(ahead @ weights)
        hessian = (ahead * (p * (1 - p))[:, None]).T @ ahead + 0.1 * torch.eye(2, dtype=torch.float64)
        weights = weights + torch.linalg.solve(hessian, ahead.T @ (1 - p) - 0.1 * weights)
    return weights


def s101_shapers(weights: Tensor, seed: int) -> dict[str, Signal]:
    generator = torch.Generator().manual_seed(2000 + seed)
    references = [(s101_outputs(1, generator) @ weights).expand(len(GROUP)) for _ in range(10)]
    zscore, clip, minmax = running.RunningZScore(), running.RunningClip(), running.RunningMinMax()
    shaped: dict[str, Callable[[Tensor], Tensor]] = {
        "raw": lambda s: s,
        "mean-std (running)": lambda s: zscore(s, learn=True),
        "clip to mean +- std (running)": lambda s: clip(s, learn=True),
        "min-max (running)": lambda s: minmax(s, learn=True),
        "ceiling at 2": lambda s: shapers.clip(s, high=2.0),
        "sigmoid, not centred": shapers.sigmoid,
        "tanh, centred, M=10": lambda s: shapers.par_tanh(s, references),
        "LSC, M=10": lambda s: shapers.lsc(s, references),
        "PAR, M=1": lambda s: shapers.par(s, references[:1]),
        "PAR, M=10": lambda s: shapers.par(s, references),
    }
    return {name: (lambda x, g, f=f: f(x @ weights)) for name, f in shaped.items()}


def hackable_proxy(seeds: int) -> None:
    settings = {
        "centred advantages": Setting(start=(0.0, 0.0), steps=600, std="none", rate=0.2),
        "advantages divided by the group's std": Setting(start=(0.0, 0.0), steps=600),
        "the same, the std no smaller than 0.05": Setting(start=(0.0, 0.0), steps=600, floor=0.05),
    }
    for words, setting in settings.items():
        rows: dict[str, dict[str, list[float]]] = {}
        for name in s101_shapers(torch.zeros(2, dtype=torch.float64), 0):
            curves = []
            for seed in range(seeds):
                signal = s101_shapers(fitted_proxy(seed), seed)[name]
                curves.append(train(setting, signal, s101_gold, seed))
            rows[name] = {
                "gold at its best": [max(c) for c in curves],
                f"after {setting.steps // 4}": [c[setting.steps // 4 - 1] for c in curves],
                "at the end": [c[-1] for c in curves],
            }
        table(f"2. S101: gold reward under a hackable proxy, {words}, {setting.steps} steps", rows)


# --- 3: S044 ---------------------------------------------------------------------------------------------------------


def execution(outputs: Tensor) -> Tensor:
    """How far the edit is carried out, given its strength."""
    return torch.sigmoid(3 * (outputs[:, 0] - 2))


def consistency(outputs: Tensor) -> Tensor:
    """How much of the input is left."""
    return torch.exp(-0.15 * outputs[:, 0].abs())


def base_and_bonus(seeds: int) -> None:
    for start in (0.3, 1.0):
        rewards: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "0.5 E + 0.5 C": lambda e, c: operators.weighted_sum([e, c], weights=(0.5, 0.5)),
            "0.6 E + 0.4 C": lambda e, c: operators.weighted_sum([e, c], weights=(0.6, 0.4)),
            "product E C": lambda e, c: operators.product([e, c]),
            "CME": operators.cme,
            "QMA": operators.qma,
        }
        rows: dict[str, dict[str, list[float]]] = {}
        for name, reward in rewards.items():
            setting = Setting(start=(start,))
            signal: Signal = lambda x, g, f=reward: f(execution(x), consistency(x))  # noqa: E731
            rows[name] = {
                "execution": [train(setting, signal, execution, seed)[-1] for seed in range(seeds)],
                "consistency": [train(setting, signal, consistency, seed)[-1] for seed in range(seeds)],
            }
        table(
            f"3. S044: editing at the end, from strength {start:g} (E {execution(torch.tensor([[start]])).item():.3f})",
            rows,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    for experiment in (advantage_sizes, saturated_scorer, hackable_proxy, base_and_bonus):
        experiment(seeds)


if __name__ == "__main__":
    main()
