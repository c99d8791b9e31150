"""What it costs to have a reward in another process: pictures per second here and through the service.

    python benchmarks/service.py [--rounds 15] [--calls 10] [--batch 64] [--reward scene_match]

Rounds of both kinds take turns, so that whatever else the machine does meets both alike. Prints the medians over rounds,
and the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from plaudit.lab.scenes.grammar import all_prompts
from plaudit.lab.scenes.render import rasterise, sample_scenes
from plaudit.recipe.schema import RewardConfig
from plaudit.rewards.call import Request, make_request
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
    torch.set_num_threads(1)
    request = lab_request(given.batch)
    here = load_reward("here", RewardConfig(type=given.reward))
    there = load_reward("there", RewardConfig(type=given.reward, python=sys.executable))
    try:
        assert here.score(request) == there.score(request)
        pairs = []
        for i in range(given.rounds):
            order = (here, there) if i % 2 else (there, here)
            taken = {reward.name: seconds_per_call(reward.score, request, given.calls) for reward in order}
            pairs.append((taken["here"], taken["there"]))
    finally:
        there.caller.function.close()  # type: ignore[attr-defined]
    local, remote = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(mine / other for mine, other in pairs)
    best = min(column[0] for column in pairs) / min(column[1] for column in pairs)
    size = request.outputs.nbytes / 2**20
    print(
        f"{given.reward}, {given.batch} pictures a call ({size:.2f} MiB), {given.rounds} rounds of {given.calls} calls"
    )
    print(f"in process  {1000 * local:7.2f} ms a call  {given.batch / local:8.0f} pictures/s")
    print(f"service     {1000 * remote:7.2f} ms a call  {given.batch / remote:8.0f} pictures/s")
    print(f"service / in process: {ratio:.2f} (median of rounds), {best:.2f} (best rounds)")


if __name__ == "__main__":
    main()
