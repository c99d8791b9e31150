"""Particles and guidance against best-of-N on lab/slots, at equal cost: `python benchmarks/search_particles.py`.

The reward is `scene_proxy`, a learned judge with a planted flaw; the truth is `scene_exact`. Each block holds one kind of cost
equal for all methods: network calls, reward calls, or wall clock. A gradient is not a network call, so guidance is favoured in
the first two, and the wall clock says what it costs. `plain`, `mean` and `best` are the plain sample, the mean of all others
that were found, and the one that the search chose, each averaged over prompts; (dev.) is over seeds. Where the proxy rises and
the truth does not, the proxy is being hacked.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plaudit.lab.scenes.grammar import evaluation_prompts
from plaudit.models.conditioning import PromptEncoder
from plaudit.models.lab import LabFlowModel
from plaudit.recipe.rewards import RewardConfig
from plaudit.rewards.load import Reward, load_reward
from plaudit.rewards.suite import Suite, load_suite
from plaudit.search.base import Method
from plaudit.search.best_of_n import BestOfN
from plaudit.search.budget import KINDS, Budget
from plaudit.search.flow.guidance import Guidance
from plaudit.search.flow.particles import Particles
from plaudit.search.flow.task import FlowTask
from plaudit.search.results import SearchResult
from plaudit.search.run import run_search
from plaudit.search.track import Kept

METHODS: dict[str, Method] = {
    "best_of_n": BestOfN(),
    "kernel, alpha 0": Particles(alpha=0.0),
    "particles, alpha 10": Particles(alpha=10.0),
    "particles, alpha 100": Particles(alpha=100.0),
    "  max": Particles(alpha=100.0, potential="max"),
    "  4 proposals": Particles(alpha=100.0, proposals=4),
    "  4 weighted": Particles(alpha=100.0, proposals=4, choose="weighted"),
    "guidance, w 10": Guidance(strengths=(10.0,)),
    "guidance, w 100": Guidance(strengths=(100.0,)),
    "  clip 3": Guidance(strengths=(100.0,), clip=3.0),
    "  first half": Guidance(strengths=(100.0,), window=(0, 5)),
}
COSTS = ("100nfe", "24rewards", "0.5s")


def searched(
    model: LabFlowModel,
    suite: Suite,
    prompts: list,
    method: Method,
    budget: str,
    options: argparse.Namespace,
    seed: int,
) -> SearchResult:
    task = FlowTask(
        model,
        prompts,
        PromptEncoder(model)(prompts, 1.0),
        suite,
        Budget.parse(budget),
        times=model.schedule(options.steps, None),
        level=options.level,
        seed=seed,
        tile=64,
    )
    return run_search(task, method, keep_all=True)


@dataclass(frozen=True, kw_only=True)
class Row:
    """Means of one search over its prompts, by the proxy and by the truth, and what it cost per prompt."""

    proxy: Sequence[float]
    truth: Sequence[float]
    spent: Sequence[float]


def row(truth: Reward, result: SearchResult) -> Row:
    P = len(result.prompts)
    others = [(p, one) for p, one in result.kept if one.candidate]
    groups = [list(enumerate(result.plain)), others, list(enumerate(result.best))]
    counts = [getattr(result.ledger.total, kind) / P for kind in KINDS]
    return Row(
        proxy=[_mean([one.score for _, one in group]) for group in groups],
        truth=[judged(truth, result, group) for group in groups],
        spent=[*counts, result.seconds / P],
    )


def judged(truth: Reward, result: SearchResult, kept: list[tuple[int, Kept]]) -> float:
    if not kept:
        return torch.nan
    scores = truth([result.prompts[p] for p, _ in kept], torch.stack([one.output for _, one in kept]))
    return _mean([score.value for score in scores])


def _mean(values: Sequence[float]) -> float:
    return torch.tensor(values, dtype=torch.float64).nanmean().item()


def line(name: str, rows: list[Row]) -> str:
    def of(kind: str, i: int) -> Tensor:
        return torch.tensor([getattr(row, kind)[i] for row in rows], dtype=torch.float64)

    parts = [f"{name:22}"]
    for kind in ("proxy", "truth"):
        means = " ".join(f"{of(kind, i).mean().item():6.3f}" for i in range(3))
        parts.append(f"{means} ({of(kind, 2).std().item():.3f})")
    counts = " ".join(f"{of('spent', i).mean().item():7.1f}" for i in range(len(KINDS)))
    return "  ".join([*parts, f"{counts} {of('spent', len(KINDS)).mean().item():8.3f}"])


HEAD = (
    f"{'':22}  {'------- proxy -------':>28}  {'------- truth -------':>28}  ------------- per prompt -------------\n"
    f"{'method':22}  {'plain':>6} {'mean':>6} {'best':>6} {'(dev.)':7}  {'plain':>6} {'mean':>6} {'best':>6} {'(dev.)':7}"
    f"  network decodes rewards   grads  seconds"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--level", type=float, default=0.7)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budgets", nargs="+", default=list(COSTS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, suite = LabFlowModel("slots"), load_suite({"proxy": RewardConfig(type="scene_proxy")})
    truth, prompts = (
        load_reward("scene_exact", RewardConfig(type="scene_exact")),
        evaluation_prompts("heldout", options.prompts),
    )
    for budget in options.budgets:
        print(f"{budget} per prompt, {len(prompts)} prompts, {options.steps} steps, level {options.level}")
        print(HEAD)
        for name in options.methods:
            found = [
                row(truth, searched(model, suite, prompts, METHODS[name], budget, options, seed))
                for seed in options.seeds
            ]
            print(line(name, found), flush=True)


if __name__ == "__main__":
    main()
