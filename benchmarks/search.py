"""Speed of search, as ratios from one run: `python benchmarks/search.py [--models slots pixels] [--repeats 7]`.

Best-of-N through `run_search`, with ledger, budget and bookkeeping, against the bare work in it: the same samples drawn in
the same batches by the sampler, decoded and scored by the reward, with nothing around them. The two alternate, and the
ratio is the median over pairs. Once with prompts enough to fill the batches and once with a single prompt.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from plaudit.lab.scenes.grammar import evaluation_prompts
from plaudit.models.conditioning import PromptEncoder
from plaudit.models.lab import LabFlowModel
from plaudit.recipe.rewards import RewardConfig
from plaudit.rewards.suite import Suite, load_suite
from plaudit.sampling.noise import SampleKey
from plaudit.sampling.plan import deterministic_plan
from plaudit.sampling.rollout import draw, tiles
from plaudit.search.base import PLAIN_STEP
from plaudit.search.best_of_n import BestOfN
from plaudit.search.budget import Budget
from plaudit.search.run import run_search
from plaudit.search.task import FlowTask

STEPS, TILE = 10, 64
SIZES = {"slots": ((16, 16), (1, 32)), "pixels": ((16, 4), (1, 16))}  # prompts and candidates of each
REWARD = {"match": RewardConfig(type="scene_match")}


def searched(model: LabFlowModel, suite: Suite, prompts: list, count: int) -> torch.Tensor:
    """Best scores `[P]` by the search."""
    task = FlowTask(
        model,
        prompts,
        PromptEncoder(model)(prompts, 1.0),
        suite,
        Budget(network_calls=count * STEPS),
        times=model.schedule(STEPS, None),
        tile=TILE,
    )
    return run_search(task, BestOfN()).scores


@torch.no_grad()
def bare(model: LabFlowModel, suite: Suite, prompts: list, count: int) -> torch.Tensor:
    """The same by hand."""
    conditioning = PromptEncoder(model)(prompts, 1.0)
    times, P = model.schedule(STEPS, None), len(prompts)
    number = torch.arange(count * P)
    totals = []
    for rows in tiles(count * P, TILE):
        asked = (number[rows] % P).tolist()
        keys = [
            SampleKey(seed=0, step=PLAIN_STEP, prompt=prompts[p].id, index=int(i) // P)
            for p, i in zip(asked, number[rows], strict=True)
        ]
        plan = deterministic_plan(times, len(rows))
        drawn = draw(model, conditioning.select(torch.tensor(asked)), plan, keys, tile=TILE)
        totals.append(suite([prompts[p] for p in asked], model.decode(drawn.latents)).total)
    return torch.cat(totals).reshape(count, P).amax(0)


def seconds(work: Callable[[], torch.Tensor]) -> float:
    """Of processor time: all work is in this process and on one thread, and other load on the machine should not count."""
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("model   prompts  candidates  bare s  search s  ratio (median of pairs, lowest, highest)")
    for name in options.models:
        model, suite = LabFlowModel(name), load_suite(REWARD)
        for count_prompts, count in SIZES[name]:
            prompts = evaluation_prompts("heldout", count_prompts)
            by_hand = partial(bare, model, suite, prompts, count)
            by_search = partial(searched, model, suite, prompts, count)
            assert torch.equal(by_hand(), by_search()), "the two found different candidates"
            pairs = [(seconds(by_hand), seconds(by_search)) for _ in range(options.repeats)]
            ratios = sorted(after / before for before, after in pairs)
            before, after = (statistics.median(column) for column in zip(*pairs, strict=True))
            print(
                f"{name:7} {count_prompts:7}  {count:10}  {before:6.3f}  {after:8.3f}  "
                f"{statistics.median(ratios):.3f} ({ratios[0]:.3f}, {ratios[-1]:.3f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
