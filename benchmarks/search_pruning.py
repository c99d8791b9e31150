"""Schedules of pruning, simulated on (prompt, seed, step) rewards drawn once: `python benchmarks/search_pruning.py`.

Spearman's correlation of a preview's score with the final one among the seeds of a prompt, for the proxy itself and
for its noise-aware weights; then what pruning finds for the cost of best-of-n, decoding and judging included. Differences to
best-of-n are paired by prompt, with their standard error. Gold is `scene_exact`.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from plaudit.audit.pruning import Outcome, bootstrap, reward_tensors
from plaudit.builds.previews import RewardTensor, rank_correlation
from plaudit.lab.scenes.grammar import evaluation_prompts
from plaudit.models.conditioning import PromptEncoder
from plaudit.models.lab import LabFlowModel
from plaudit.recipe.rewards import RewardConfig
from plaudit.rewards.suite import load_suite
from plaudit.search.budget import Budget
from plaudit.search.flow.lookouts import noise_aware
from plaudit.search.flow.prune import Plan, default_plan, pruning_cost
from plaudit.search.flow.steps import score_total
from plaudit.search.flow.task import FlowTask

PROXY, GOLD = "scene_proxy", "scene_exact"
LATER = {"later": Plan(at=(3, 5), keep=(0.4, 0.4)), "once": Plan(at=(4,), keep=(0.25,))}


def make_task(
    name: str, reward: str, budget: Budget, options: argparse.Namespace, seed: int, **rest: object
) -> FlowTask:
    model, asked = LabFlowModel(name), evaluation_prompts("heldout", options.prompts)
    return FlowTask(
        model,
        asked,
        PromptEncoder(model)(asked, 1.0),
        load_suite({"verifier": RewardConfig(type=reward)}),
        budget,
        times=model.schedule(options.steps, None),
        seed=seed,
        **rest,
    )


@torch.no_grad()
def offline(options: argparse.Namespace) -> None:
    gold = load_suite({"gold": RewardConfig(type=GOLD)})

    def judge_gold(task: FlowTask, pictures: torch.Tensor, prompt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if t > 0:
            return torch.zeros(len(prompt)).double()  # asked about final pictures only
        return gold(task.prompts_of(prompt), pictures).total

    task = make_task(options.model, PROXY, Budget(seconds=1e9), options, seed=options.seed)
    judges = {"naive": score_total, "noise-aware": noise_aware(options.model), "gold": judge_gold}
    found = reward_tensors(task, options.seeds, judges)
    share = preview_cost(task, len(judges))
    print(f"lab/{options.model}: {options.prompts} prompts, {options.seeds} seeds, {options.steps} steps")
    print(f"decoding and judging one preview costs as much as {share:.3f} network calls\n")
    print("time        " + "  ".join(f"{t:.2f}" for t in task.times[:-1].tolist()))
    for name in ("naive", "noise-aware"):
        print(f"{name:11} " + " ".join(f"{value:5.2f}" for value in rank_correlation(found[name]).tolist()))
    print("\nfor the cost of  schedule  previews      seeds  reward  minus best-of-n    gold    minus best-of-n")
    for n in options.budgets:
        rng = np.random.default_rng(0)
        tensor = RewardTensor(steps=found["naive"].steps, final=found["naive"].final, gold=found["gold"].final)
        plain = bootstrap(tensor, Plan(at=(), keep=()), n, options.draws, rng)
        print(f"best of {n:<8}  -         -             {n:5}  {plain.reward.mean():.4f}{'':18}{plain.gold.mean():.4f}")
        for label, plan in {"paper": default_plan(options.steps), **LATER}.items():
            each = pruning_cost(options.steps, plan, network=1.0, preview=share)
            seeds = min(int(n * (options.steps + share) / each), options.seeds)
            for previews in ("naive", "noise-aware"):
                seen = RewardTensor(steps=found[previews].steps, final=tensor.final, gold=tensor.gold)
                pruned = bootstrap(seen, plan, seeds, options.draws, rng)
                print(f"best of {n:<8}  {label:8}  {previews:12}  {seeds:5}  {difference(pruned, plain)}")


def preview_cost(task: FlowTask, judges: int) -> float:
    """Seconds of one decode and one judgement by the proxy, in network calls. Every judge decoded for itself."""
    seconds, counts = task.ledger.total_seconds(), task.ledger.total
    looked = counts.decodes / judges
    judged = seconds["decodes"] / counts.decodes + seconds["reward_calls"] / counts.reward_calls
    assert looked > 0
    return judged / (seconds["network_calls"] / counts.network_calls)


def difference(pruned: Outcome, plain: Outcome) -> str:
    cells = []
    for found, before in ((pruned.reward, plain.reward), (pruned.gold, plain.gold)):
        change = found - before
        error = change.std() / len(change) ** 0.5
        cells.append(f"{found.mean():.4f}  {change.mean():+.4f} ± {error:.4f}")
    return "  ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="pixels", choices=("slots", "pixels"))
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=16, help="trajectories of each prompt")
    parser.add_argument("--budgets", type=int, nargs="+", default=[2, 4, 5], help="in plain samples")
    parser.add_argument("--draws", type=int, default=100, help="bootstrap draws")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    options = parser.parse_args()
    torch.set_num_threads(1)
    offline(options)


if __name__ == "__main__":
    main()
