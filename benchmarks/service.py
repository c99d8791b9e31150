"""What it costs to have a reward in another process: pictures per second here and through the service.

    python benchmarks/service.py [--rounds 15] [--calls 10] [--batch 64] [--reward scene_match]

Rounds of all kinds take turns, so that whatever else the machine does meets them alike. Prints the medians over rounds,
and the median of the rounds' ratios. The last kind sends each batch in two halves, as a recipe's `batch` and `concurrency`
say: one is on its way while the other is scored. One thread computes, here and there.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded, here and in the service

import numpy as np

from plaudit.lab.scenes.grammar import all_prompts
from plaudit.lab.scenes.render import rasterise, sample_scenes
from plaudit.recipe.rewards import RewardConfig
from plaudit.rewards.calling.request import Request, make_request
from plaudit.rewards.load import load_reward


def lab_request(batch: int) -> Request:
    pool = [prompt for prompts in all_prompts("train").values() for prompt in prompts]
    draw = np.random.default_rng(0)
    prompts = [pool[i] for i in draw.integers(len(pool), size=batch)]
    return make_request(prompts, rasterise(sample_scenes(prompts, draw)))


def seconds_per_call(score: Callable[[Request], object], request: Request, calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        score(request)
    return (time.perf_counter() - started) / calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--reward", default="scene_match")
    given = parser.parse_args()
    request = lab_request(given.batch)
    apart = {"type": given.reward, "python": sys.executable}
    configs = {
        "in process": RewardConfig(type=given.reward),
        "service": RewardConfig(**apart),
        "service, halves": RewardConfig(**apart, batch=(given.batch + 1) // 2, concurrency=2),
    }
    rewards = {kind: load_reward("match", config) for kind, config in configs.items()}
    taken: dict[str, list[float]] = {kind: [] for kind in rewards}
    try:
        expected = rewards["in process"].score(request)
        assert all(reward.score(request) == expected for reward in rewards.values())
        for i in range(given.rounds):
            for kind in list(rewards)[:: 1 if i % 2 else -1]:
                taken[kind].append(seconds_per_call(rewards[kind].score, request, given.calls))
    finally:
        for reward in rewards.values():
            getattr(reward.caller.function, "close", lambda: None)()
    size = request.outputs.nbytes / 2**20
    print(
        f"{given.reward}, {given.batch} pictures a call ({size:.2f} MiB), {given.rounds} rounds of {given.calls} calls"
    )
    for kind, seconds in taken.items():
        median = statistics.median(seconds)
        ratio = statistics.median(here / there for here, there in zip(taken["in process"], seconds, strict=True))
        best = min(taken["in process"]) / min(seconds)
        print(
            f"{kind:<16}{1000 * median:7.2f} ms a call{given.batch / median:8.0f} pictures/s   "
            f"{ratio:.2f} x in process (best rounds {best:.2f})"
        )


if __name__ == "__main__":
    main()
