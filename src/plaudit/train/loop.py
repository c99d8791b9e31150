"""Training a generator on its rewards: collect -> score -> shape -> learn, measured before, on the way and after."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from plaudit import storage
from plaudit.errors import RunError
from plaudit.objectives.batch import Batch
from plaudit.ranks import Ranks, join
from plaudit.recipe.load import Source, as_recipe
from plaudit.recipe.rewards import HANDED
from plaudit.recipe.schema import Recipe
from plaudit.recipe.turns import POLICY
from plaudit.rewards.suite import Suite
from plaudit.runs.display import Display, Metrics
from plaudit.runs.folder import RunFolder
from plaudit.runs.record import read_run
from plaudit.statistics import Items, paired_gain
from plaudit.train.balance import Balanced, balance_noise
from plaudit.train.checkpoint import Progress, State
from plaudit.train.doctor.doctor import cheap_checks, failed_message
from plaudit.train.evaluate import Measured, calibrate, evaluate
from plaudit.train.feeds import feed
from plaudit.train.learn import learn
from plaudit.train.run import RunResult, Stepped, run
from plaudit.train.setup import Setup, prepare
from plaudit.train.turns import teach, whose_turn
from plaudit.version import __version__


def train(
    recipe: Recipe | Source,
    *,
    resume: bool = False,
    overwrite: bool = False,
    display: Display | None = None,
) -> RunResult:
    """`plaudit.align` but for the report, which is made from the finished folder."""
    recipe, ranks = as_recipe(recipe, "align"), join()
    return run(
        recipe, ranks, lambda: Alignment(prepare(recipe, ranks)), resume=resume, overwrite=overwrite, display=display
    )


@dataclass(frozen=True)
class Alignment:
    """What `run` runs."""

    setup: Setup

    @property
    def recipe(self) -> Recipe:
        return self.setup.recipe

    @property
    def ranks(self) -> Ranks:
        return self.setup.ranks

    def state(self) -> State:
        return self.setup.state()

    def load_state(self, state: State) -> None:
        self.setup.load_state(state)

    def start(self, folder: RunFolder, display: Display) -> Progress:
        setup = self.setup
        _calibrate(setup, folder, display)
        balanced = _balance(setup, folder, display)
        display.say("checking the recipe before the first step")
        setup.ranks.from_main(lambda: _check(setup, folder))
        before = evaluate(setup, folder, step=0, label="before", count=setup.recipe.evaluate.final_prompts)
        _show(display, 0, "before", before)
        return Progress(network_calls=balanced.network_calls, reward_calls=balanced.reward_calls)

    def step(self, progress: Progress) -> Stepped:
        return _step(self.setup, progress)

    def between(self, folder: RunFolder, display: Display, progress: Progress, metrics: Metrics) -> None:
        step, evaluation = progress.step, self.recipe.evaluate
        if metrics.get("frac_reward_zero_std") == 1.0:
            display.say(f"step {step}: every group's rewards are equal, so nothing was learned from it")
        if step % evaluation.every == 0:
            _show(
                display, step, "step", evaluate(self.setup, folder, step=step, label="step", count=evaluation.prompts)
            )

    def finish(self, folder: RunFolder, display: Display, progress: Progress) -> Callable[[str], Mapping[str, Any]]:
        count = self.recipe.evaluate.final_prompts
        after = evaluate(self.setup, folder, step=progress.step, label="after", count=count)
        _show(display, progress.step, "after", after)
        return partial(_keep, self.setup, folder, progress, after)

    def again(self, folder: RunFolder) -> str:
        handed = [name for name, config in self.recipe.rewards.items() if config.type.startswith(HANDED)]
        if handed:
            again = ", ".join(f"{name!r}: ..." for name in handed)
            return (
                "go on from Python, where the rewards are handed over again: "
                f"plaudit.align(plaudit.load([{str(folder.root)!r}, {{'rewards': {{{again}}}}}]), resume=True)"
            )
        return f"go on with `plaudit align {folder.root / 'recipe.yaml'} --resume`"


def _check(setup: Setup, folder: RunFolder) -> None:
    checks = cheap_checks(setup.alone())
    folder.write_json("checks.json", [check.to_json() for check in checks])
    if any(check.passed is False for check in checks):
        raise RunError(failed_message(checks))


def _calibrate(setup: Setup, folder: RunFolder, display: Display) -> None:
    """The scales that rewards ask for, kept with the run."""
    if outputs := calibrate(setup):
        display.say(f"calibrated the rewards on {outputs} outputs of the untrained model")
    if scales := setup.rewards.calibration():
        folder.write_json("calibration.json", scales)


def _balance(setup: Setup, folder: RunFolder, display: Display) -> Balanced:
    """The noise of the steps, where the recipe wants it found; kept with the run."""
    if not setup.balances:
        return Balanced()
    display.say("finding the noise that leaves each step as likely to gain as to lose")
    balanced = balance_noise(setup)
    levels = setup.levels()
    folder.write_json("noise.json", {"levels": levels, "rose": balanced.rose, "fell": balanced.fell})
    display.say(f"noise of the steps: {', '.join(f'{level:.2f}' for level in levels)}")
    return balanced


def _step(setup: Setup, progress: Progress) -> Stepped:
    step, started = progress.step, time.perf_counter()
    fed = feed(setup, step, progress.updates)
    learning = time.perf_counter()
    turn = whose_turn(setup, fed, step)
    if turn.who == POLICY:
        learned = _learned(setup, fed.batch, progress)
    else:
        learned = teach(setup, turn.who, fed, step)
    ended = time.perf_counter()
    progress.step += 1
    progress.network_calls += fed.network_calls
    progress.reward_calls += fed.reward_calls
    progress.training_seconds += ended - started
    metrics = {**fed.metrics, **learned, "lr": setup.recipe.train.lr}
    metrics |= {**turn.metrics, **{f"turns/{name}": float(name == turn.who) for name in setup.learners}}
    for reward in setup.rewards.rewards:
        metrics |= {f"rewards/{reward.name}/{key}": value for key, value in reward.caller.meter.take_metrics().items()}
    metrics |= {"network_calls": progress.network_calls, "reward_calls": progress.reward_calls}
    timing = {
        "timing_s/rollout": fed.seconds_sampling,
        "timing_s/reward": fed.seconds_scoring,
        "timing_s/learn": ended - learning,
        "timing_s/step": ended - started,
        **_reward_costs(setup.rewards),
    }
    return Stepped(metrics=metrics, timing=timing)


def _learned(setup: Setup, batch: Batch, progress: Progress) -> dict[str, float | None]:
    """The generator's updates from one batch, and its snapshots after them."""
    recipe, policy, step = setup.recipe, setup.policy, progress.step
    metrics = learn(recipe, policy, setup.objective, batch, step, setup.ranks)
    progress.updates += recipe.train.updates_per_step
    for name, decay in setup.objective.snapshots.items():
        if decay is not None:
            policy.blend(name, decay(progress.updates))
    if recipe.train.ema > 0:
        policy.blend("ema", min(recipe.train.ema, (1 + step) / (10 + step)))
    return metrics


def _reward_costs(rewards: Suite) -> dict[str, float]:
    """What calling the rewards has cost: seconds per call of this step, and counts since the start."""
    costs: dict[str, float] = {}
    for reward in rewards.rewards:
        meter, prefix = reward.caller.meter, f"rewards/{reward.name}"
        if latencies := meter.take_latencies():
            p50, p95 = np.percentile(latencies, [50, 95])
            costs |= {f"{prefix}/latency_p50_s": float(p50), f"{prefix}/latency_p95_s": float(p95)}
        costs |= {f"{prefix}/calls": meter.calls, f"{prefix}/repeats": meter.repeats}
        costs[f"{prefix}/cache_hits"] = meter.cache_hits
        if reward.caller.cache is not None:
            costs[f"{prefix}/cache_failures"] = reward.caller.cache.store.failures
    return costs


def _show(display: Display, step: int, label: str, measured: Mapping[str, Measured]) -> None:
    for split, result in measured.items():
        name = split if label == "step" else f"{split} {label}"
        display.evaluation(step, name, result.interval.mean, result.interval.low, result.interval.high)


def _keep(
    setup: Setup, folder: RunFolder, progress: Progress, after: Mapping[str, Measured], stopped: str
) -> dict[str, Any]:
    with setup.policy.using(setup.result), storage.explain_write_errors(folder.root / "final"):
        (folder.root / "final").mkdir(exist_ok=True)
        setup.policy.model.save(folder.root / "final")
    for name, learner in setup.learners.items():
        (folder.root / "rewards").mkdir(exist_ok=True)
        save_file(learner.network.state_dict(), folder.root / "rewards" / f"{name}.safetensors")
    if not any((folder.root / "final").iterdir()):
        raise RunError(
            f"{folder.root}: {type(setup.policy.model).__name__}.save wrote nothing into the folder that it was given; the "
            "weights are in the last checkpoint: mend it, then go on with --resume"
        )
    return _summarise(setup, folder, progress, after, stopped)


def _summarise(
    setup: Setup, folder: RunFolder, progress: Progress, after: Mapping[str, Measured], stopped: str
) -> dict[str, Any]:
    split, result = next(iter(after.items()))
    record = read_run(folder.root)
    before = record.before(split)
    items = record.items_of(before)
    if before is None or items is None:
        raise RunError(f"{folder.root}: the measurement before training is gone, so there is no gain to report")
    gain = paired_gain(items.items(), Items(ids=tuple(result.ids), scores=tuple(result.scores.tolist())))
    return {
        "split": split,
        "reward": setup.recipe.evaluate.reward.type,
        "accuracy": setup.truth.verdict,
        "before": before.mean,
        "before_low": before.low,
        "before_high": before.high,
        "after": result.interval.mean,
        "after_low": result.interval.low,
        "after_high": result.interval.high,
        "gain": gain.mean,
        "gain_low": gain.low,
        "gain_high": gain.high,
        "minutes": progress.total_seconds / 60,
        "training_minutes": progress.training_seconds / 60,
        "steps": progress.step,
        "network_calls": progress.network_calls,
        "reward_calls": progress.reward_calls,
        "stopped": stopped,
        "plaudit": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "seed": setup.recipe.run.seed,
    }
