"""What the reward layer costs, as ratios from one run: `python benchmarks/rewards.py [--repeats 15]`.

1. Scoring 256 lab pictures through the layer against the bare scorer; the two alternate, median over pairs.
2. A score found in the cache, in milliseconds, and against scoring again.
3. A training step with a reward elsewhere that takes as long as the rollout, against the same step without it, for
   samples drawn and scored in pieces of several sizes.
4. The scene checker's pictures a second.

The service's round trip is `python benchmarks/service.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from plaudit.lab.scenes.check import check
from plaudit.lab.scenes.grammar import sample_prompts
from plaudit.lab.scenes.render import rasterise, sample_scenes
from plaudit.recipe.load import load
from plaudit.recipe.rewards import RewardConfig
from plaudit.rewards.calling.cache import ScoreCache
from plaudit.rewards.suite import load_suite
from plaudit.train.checkpoint import Progress
from plaudit.train.loop import _step
from plaudit.train.setup import prepare

COUNT = 256
SECONDS = {"rollout": 0.0}


async def elsewhere(prompts: list[str], outputs: torch.Tensor) -> list[float]:
    """A reward in another place: its time passes without this machine's help."""
    await asyncio.sleep(SECONDS["rollout"] * len(outputs) / SECONDS["outputs"])
    return [0.5] * len(outputs)


def seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def paired(first: Callable[[], object], second: Callable[[], object], repeats: int) -> tuple[float, float, float]:
    """Median seconds of both, and the median of their ratio, from alternating runs."""
    first(), second()
    pairs = [(seconds(first), seconds(second)) for _ in range(repeats)]
    ratio = statistics.median(b / a for a, b in pairs)
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), ratio


def pictures(count: int) -> tuple[list, torch.Tensor]:
    rng = np.random.default_rng(0)
    prompts = [prompt for prompt in sample_prompts("train", count // 16, rng) for _ in range(16)]
    return prompts, rasterise(sample_scenes(prompts, rng))


def overhead(repeats: int) -> None:
    prompts, outputs = pictures(COUNT)
    suite = load_suite({"match": RewardConfig(type="scene_match")})

    def bare() -> None:
        verdicts = check(outputs, prompts)
        torch.tensor([0.5 * v.correct + 0.5 * v.graded for v in verdicts], dtype=torch.float64)

    alone, layered, ratio = paired(bare, lambda: suite(prompts, outputs), repeats)
    print(
        f"scene_match on {COUNT} pictures: bare {1000 * alone:.1f} ms, through the layer {1000 * layered:.1f} ms, {ratio:.3f}x"
    )
    print(f"scene checker: {COUNT / alone:,.0f} pictures/s")


def cache(repeats: int) -> None:
    prompts, outputs = pictures(COUNT)
    with tempfile.TemporaryDirectory() as folder:
        store = ScoreCache(Path(folder))
        kept = load_suite({"match": RewardConfig(type="scene_match", cache=True)}, cache=store)
        plain = load_suite({"match": RewardConfig(type="scene_match")})
        kept(prompts, outputs)
        _, hit, ratio = paired(lambda: plain(prompts, outputs), lambda: kept(prompts, outputs), repeats)
        one = statistics.median(seconds(lambda: kept(prompts[:1], outputs[:1])) for _ in range(50))
    print(
        f"cache: {1000 * hit / COUNT:.3f} ms a hit in a batch of {COUNT} ({ratio:.2f}x scoring again), "
        f"{1000 * one:.2f} ms alone"
    )


def overlap(repeats: int, tile: int) -> None:
    """The last tile's scores cannot be hidden, so smaller tiles hide more."""
    far = {"rewards": {"far": {"type": f"{__name__}:elsewhere", "weight": 0.0, "concurrency": 1}}}
    setups = [prepare(load(["slots-nft", {"sampler": {"tile": tile}}, *layers])) for layers in ([], [far])]
    if __name__ == "__main__":
        setups[1].rewards.rewards[1].caller.function = elsewhere  # the module has two names when run as a script
    steps = [functools.partial(_step, setup, Progress()) for setup in setups]
    _, timing = steps[0]()
    train = setups[0].recipe.train
    SECONDS.update(rollout=timing["timing_s/rollout"], outputs=train.prompts_per_step * train.samples_per_prompt)
    rollouts = [steps[0]()[1]["timing_s/rollout"] for _ in range(3)]
    SECONDS["rollout"] = statistics.median(rollouts)
    without, with_it, ratio = paired(steps[0], steps[1], repeats)
    print(
        f"tile {tile}: a step of {1000 * without:.0f} ms with a reward elsewhere that takes as long as its rollout "
        f"({1000 * SECONDS['rollout']:.0f} ms): {1000 * with_it:.0f} ms, {ratio:.3f}x "
        f"(one after the other it would be {(without + SECONDS['rollout']) / without:.2f}x)"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    overhead(arguments.repeats)
    cache(arguments.repeats)
    for tile in (64, 32, 16):
        overlap(arguments.repeats, tile)
