"""The sandbox at work: `python benchmarks/sandbox.py [--repeats 30] [--tasks 164]`.

1. Starting Python in the sandbox against starting it bare, and which isolation is in force.
2. HumanEval's tasks judged by `unit_tests`: the canonical solutions, and the prompts alone.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from plaudit.data.prompt import Prompt
from plaudit.recipe.rewards import RewardConfig
from plaudit.rewards.load import load_reward
from plaudit.rewards.rules.code import human_eval_prompts
from plaudit.sandbox import level, run_python


def milliseconds(function: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median and best."""
    function()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times), min(times)


def start_up(repeats: int) -> None:
    bare = milliseconds(lambda: subprocess.run([sys.executable, "-I", "-S", "-c", "pass"], check=True), repeats)
    inside = milliseconds(lambda: run_python("pass"), repeats)
    print(f"isolation: {level().name.lower()}")
    print(
        f"bare Python {bare[0]:.0f} ms (best {bare[1]:.0f}), in the sandbox {inside[0]:.0f} ms (best {inside[1]:.0f})"
    )


def human_eval(tasks: int) -> None:
    prompts: list[Prompt] = human_eval_prompts()[:tasks]
    reward = load_reward("tests", RewardConfig(type="unit_tests", batch=1))
    for name, outputs in (
        ("canonical solutions", [p.text + p.facts["reference"] for p in prompts]),
        ("prompts alone", [p.text for p in prompts]),
    ):
        started = time.perf_counter()
        scores = reward(prompts, outputs)
        passed = sum(score.value == 1 for score in scores)
        missing = sum(score.value != score.value for score in scores)
        each = 1000 * (time.perf_counter() - started) / len(prompts)
        print(f"HumanEval, {name}: {passed} of {len(prompts)} pass, {missing} missing, {each:.0f} ms each")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--tasks", type=int, default=164)
    arguments = parser.parse_args()
    start_up(arguments.repeats)
    human_eval(arguments.tasks)
