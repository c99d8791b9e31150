"""Speed of the training spine, as ratios from one run: `python benchmarks/spine.py [--model slots pixels] [--repeats 7]`.

1. A training step against the bare compute of its algorithm: the same network calls, forward and backward, and the
   optimiser, with nothing around them. The two alternate, and the ratio is the median over pairs.
2. Replaying all recorded steps in one network call against one call a step.
3. Prompt conditions from the cache against encoding them again (the tiny Stable Diffusion 3 pipeline of the tests, so
   that there are real text encoders; skipped without diffusers).
4. Peak memory of a step against that of its bare compute, each in a process of its own (Linux).
5. The exact checker's pictures a second.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from plaudit.lab.scenes.check import check
from plaudit.lab.scenes.grammar import sample_prompts
from plaudit.lab.scenes.render import rasterise, sample_scenes
from plaudit.models.conditioning import PromptEncoder
from plaudit.recipe.load import load
from plaudit.recipe.schema import Recipe
from plaudit.sampling.rollout import Trace, replay, replay_log_prob
from plaudit.train.checkpoint import Progress
from plaudit.train.collect import collect
from plaudit.train.loop import _step
from plaudit.train.setup import Setup, prepare

# A reward that differs in every sample, so that no group is skipped for lack of contrast.
REWARD = {"rewards": {"match": None, "bright": {"type": "brightness"}}}


def bench_recipe(model: str, objective: str) -> Recipe:
    recipe = load([f"{model}-{objective}", REWARD])
    small = {"prompts_per_step": 6, "samples_per_prompt": 8} if model == "pixels" else {}
    return load([recipe.model_dump(), {"train": small}])


def bare_step(setup: Setup) -> Callable[[], None]:
    """The network calls of one step on random inputs: sampling, learning, the optimiser."""
    recipe, network = setup.recipe, setup.policy.model.network
    train, sampler, shape = recipe.train, recipe.sampler, setup.policy.model.latent_shape
    samples = train.prompts_per_step * train.samples_per_prompt
    ids = setup.drawer.encoder(setup.prompts.batch(0, 1, 0), 1.0).condition.tensors["ids"]
    grpo = recipe.objective.type == "grpo"
    rows_per_sample = sampler.window.size or sampler.steps - 1 if grpo else recipe.objective.times_per_sample
    snapshots = len(setup.objective.snapshots)

    def call(rows: int) -> torch.Tensor:
        return network(torch.randn(rows, *shape), torch.rand(rows) * 0.9 + 0.05, ids.expand(rows, -1))

    def run() -> None:
        with torch.no_grad():
            for _ in range(sampler.steps):
                for tile in torch.arange(samples).split(sampler.tile):
                    call(len(tile))
        setup.optimizer.zero_grad(set_to_none=True)
        for micro in torch.arange(samples).split(train.micro_batch):
            call(len(micro) * rows_per_sample).square().mean().backward()
            with torch.no_grad():
                for _ in range(snapshots):
                    call(len(micro) * rows_per_sample)
        setup.optimizer.step()

    return run


def full_step(setup: Setup) -> Callable[[], None]:
    progress = Progress()
    return lambda: (_step(setup, progress), None)[1]


def seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def ratio(first: Callable[[], None], second: Callable[[], None], repeats: int) -> dict[str, float]:
    """Median of first / second over alternating pairs, after one warm-up of each."""
    first(), second()
    pairs = [(seconds(first), seconds(second)) for _ in range(repeats)]
    ratios = sorted(a / b for a, b in pairs)
    return {
        "seconds": statistics.median(a for a, _ in pairs),
        "bare_seconds": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios),
        "ratio_low": ratios[0],
        "ratio_high": ratios[-1],
    }


def replay_ratio(repeats: int) -> dict[str, float]:
    setup = prepare(bench_recipe("slots", "grpo"))
    batch, model = collect(setup, step=0, version=0).batch, setup.policy.model
    conditioning, trace = batch.flow.conditioning, batch.flow.trace
    assert trace is not None

    def backward(part: Trace) -> None:
        replay_log_prob(part, replay(model, conditioning, part), "exact").sum().backward()

    def one_by_one() -> None:
        for d in range(trace.levels.shape[1]):
            cut = {name: getattr(trace, name)[:, d : d + 1] for name in ("levels", "mask", "log_prob")}
            backward(replace(trace, states=trace.states[:, d : d + 2], times=trace.times[:, d : d + 2], **cut))

    return ratio(lambda: backward(trace), one_by_one, repeats)


def cache_ratio(repeats: int) -> dict[str, float] | None:
    try:
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "models"))
        from tiny_sd3 import build

        from plaudit.models.sd3 import Sd3FlowModel
        from plaudit.recipe.models import Sd3Model
    except ImportError:
        return None
    with tempfile.TemporaryDirectory() as folder:
        model = Sd3FlowModel.from_config(Sd3Model(type="sd3", path=str(build(Path(folder))), height=32, width=32))
        prompts = prepare(bench_recipe("slots", "grpo")).prompts.batch(0, 16, 0)
        kept = PromptEncoder(model)
        kept(prompts, 4.5)
        return ratio(
            lambda: (kept(prompts, 4.5), None)[1], lambda: (PromptEncoder(model)(prompts, 4.5), None)[1], repeats
        )


def checker_rate(repeats: int, batch: int = 256) -> dict[str, float]:
    """Pictures a second through the exact checker, batched, on one thread."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    prompts = sample_prompts("heldout", batch, rng)
    images = rasterise(sample_scenes(prompts, rng))
    rates = sorted(batch / seconds(lambda: (check(images, prompts), None)[1]) for _ in range(repeats + 1))
    return {"images_per_second": statistics.median(rates), "low": rates[0], "high": rates[-1]}


def peak_memory(model: str, objective: str) -> dict[str, float]:
    """Peak resident size in MiB above what is resident before the first step, of a step and of its bare compute."""
    grown = {}
    for what in ("full", "bare"):
        command = [sys.executable, __file__, "--memory-of", what, model, objective]
        grown[what] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {"step_mib": grown["full"], "bare_mib": grown["bare"], "ratio": grown["full"] / max(grown["bare"], 1e-9)}


def print_memory(what: str, model: str, objective: str) -> None:
    setup = prepare(bench_recipe(model, objective))
    work = full_step(setup) if what == "full" else bare_step(setup)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak that importing and loading reached
    before = _memory("VmRSS")
    work(), work()
    print(_memory("VmHWM") - before)


def _memory(field: str) -> float:
    """A field of the kernel's account of this process, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["slots", "pixels"], choices=["slots", "pixels"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory-of", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        return print_memory(*arguments.memory_of)
    results: dict[str, object] = {"torch": torch.__version__, "threads": arguments.threads}
    for model in arguments.model:
        for objective in ("grpo", "nft"):
            setup = prepare(bench_recipe(model, objective))
            name = f"{model} {objective}"
            results[f"{name}: step over bare compute"] = ratio(full_step(setup), bare_step(setup), arguments.repeats)
            results[f"{name}: peak memory over bare compute"] = peak_memory(model, objective)
    results["slots grpo: batched replay over step by step"] = replay_ratio(arguments.repeats)
    results["tiny sd3: cached prompts over encoding them"] = cache_ratio(arguments.repeats)
    results["scene checker, one thread"] = checker_rate(arguments.repeats)
    for name, value in results.items():
        print(f"{name}: {json.dumps(value)}")


if __name__ == "__main__":
    main()
