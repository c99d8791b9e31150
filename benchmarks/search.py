"""Speed of search, as ratios from one run: `python benchmarks/search.py [--models slots pixels] [--repeats 7]`.

First best-of-N through `run_search`, with ledger, budget and bookkeeping, against the bare work in it: the same samples drawn
in the same batches by the sampler, decoded and scored by the reward, with nothing around them. The two alternate, and the ratio
is the median over pairs. Once with prompts enough to fill the batches and once with a single prompt.

Then every method's wall clock per network call over that of the bare work with as many network calls (`all`), and the same
without what decodes, reward calls and gradients take on either side (`steering`): methods that look at previews want more of
them, which is their price and not their overhead.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from plaudit.data.prompt import Prompt
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
from plaudit.search.flow.task import FlowTask
from plaudit.search.options import find_method
from plaudit.search.run import run_search

TILE = 64
SIZES = {"slots": ((16, 16), (1, 32)), "pixels": ((16, 4), (1, 16))}  # prompts and candidates of each
METHODS = {"slots": ("best_of_n", "prune", "renoise", "beam", "particles", "guidance"), "slots-turbo": ("noise",)}
METHODS["pixels"] = METHODS["slots"]
STEPS = {"slots": 10, "pixels": 10, "slots-turbo": 1}
GRADIENTS = ("guidance", "noise")  # which need a reward with a gradient


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A model, a reward and prompts, `count` samples of each."""

    model: LabFlowModel
    suite: Suite
    prompts: list[Prompt]
    count: int
    steps: int

    @property
    def calls(self) -> int:
        return self.count * self.steps * len(self.prompts)

    def task(self) -> FlowTask:
        return FlowTask(
            self.model,
            self.prompts,
            PromptEncoder(self.model)(self.prompts, 1.0),
            self.suite,
            Budget(network_calls=self.count * self.steps),
            times=self.model.schedule(self.steps, None),
            tile=TILE,
        )

    @torch.no_grad()
    def bare(self) -> Iterator[tuple[Tensor, list[Prompt]]]:
        """Latents of all samples and their prompts, batch by batch."""
        conditioning = PromptEncoder(self.model)(self.prompts, 1.0)
        times, P = self.model.schedule(self.steps, None), len(self.prompts)
        number = torch.arange(self.count * P)
        for rows in tiles(len(number), TILE):
            of = [self.prompts[i % P] for i in number[rows].tolist()]
            keys = [
                SampleKey(seed=0, step=PLAIN_STEP, prompt=prompt.id, index=i // P)
                for prompt, i in zip(of, number[rows].tolist(), strict=True)
            ]
            plan = deterministic_plan(times, len(of))
            yield draw(self.model, conditioning.select(number[rows] % P), plan, keys, tile=TILE).latents, of

    def scores(self) -> Tensor:
        """Best scores `[P]` by hand."""
        totals = [self.suite(of, self.model.decode(latents)).total for latents, of in self.bare()]
        return torch.cat(totals).reshape(self.count, len(self.prompts)).amax(0)

    def found(self) -> Tensor:
        """The same by the search."""
        return run_search(self.task(), BestOfN()).scores


def workload(name: str, reward: str, prompts: int, count: int) -> Workload:
    return Workload(
        model=LabFlowModel(name),
        suite=load_suite({"reward": RewardConfig(type=reward)}),
        prompts=evaluation_prompts("heldout", prompts),
        count=count,
        steps=STEPS[name],
    )


def seconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    started = clock()
    work()
    return clock() - started


def compare_best_of_n(models: list[str], repeats: int) -> None:
    """In processor time: all work is in this process and on one thread, and other load on the machine should not count."""
    print("model   prompts  candidates  bare s  search s  ratio (median of pairs, lowest, highest)")
    for name in models:
        for prompts, count in SIZES[name]:
            work = workload(name, "scene_match", prompts, count)
            assert torch.equal(work.scores(), work.found()), "the two found different candidates"
            clocks = partial(seconds, clock=time.process_time)
            pairs = [(clocks(work.scores), clocks(work.found)) for _ in range(repeats)]
            ratios = sorted(after / before for before, after in pairs)
            before, after = (statistics.median(column) for column in zip(*pairs, strict=True))
            print(
                f"{name:7} {prompts:7}  {count:10}  {before:6.3f}  {after:8.3f}  "
                f"{statistics.median(ratios):.3f} ({ratios[0]:.3f}, {ratios[-1]:.3f})",
                flush=True,
            )


def compare_methods(models: list[str], repeats: int) -> None:
    """In wall clock, as the ledger measures what is spent in what."""
    print(
        "\nper network call    network  decodes  rewards  gradients  rest (ms)  all over bare        steering over bare"
    )
    for name in models:
        for method in METHODS[name]:
            prompts, count = (16, 50) if name == "slots-turbo" else SIZES[name][0]
            work = workload(name, "scene_proxy" if method in GRADIENTS else "scene_match", prompts, count)
            work.scores()
            measured = [by_method(work, method) for _ in range(repeats)]
            columns = [statistics.median(column) for column in zip(*(m.milliseconds for m in measured), strict=True)]
            shown = [
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})"
                for ratios in ([m.all for m in measured], [m.steering for m in measured])
            ]
            print(
                f"{name:7} {method:10}  {columns[0]:7.3f}  {columns[1]:7.3f}  {columns[2]:7.3f}  {columns[3]:9.3f}  "
                f"{columns[4]:9.3f}  {shown[0]:19}  {shown[1]}",
                flush=True,
            )


@dataclass(frozen=True, kw_only=True)
class Measured:
    milliseconds: tuple[float, ...]  # of a network call: by kind of work, and the rest
    all: float
    steering: float


def by_method(work: Workload, method: str) -> Measured:
    """A search after the bare work: drawing alone, and with decoding and scoring."""
    drawing, scoring = (
        seconds(part, time.perf_counter) / work.calls for part in (lambda: list(work.bare()), work.scores)
    )
    task = work.task()
    total = seconds(lambda: run_search(task, find_method(method, {}, "flow")), time.perf_counter)
    spent, calls = task.ledger.total_seconds(), task.ledger.total.network_calls
    beside = spent["decodes"] + spent["reward_calls"] + spent["gradient_calls"]
    rest = total - beside - spent["network_calls"]
    return Measured(
        milliseconds=tuple(1000 * value / calls for value in (*spent.values(), rest)),
        all=total / calls / scoring,
        steering=(total - beside) / calls / drawing,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    compare_best_of_n(options.models, options.repeats)
    compare_methods([*options.models, "slots-turbo"], options.repeats)


if __name__ == "__main__":
    main()
