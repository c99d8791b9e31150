"""An experiment's runs: what is missing is run, what is there is measured, and the claim is judged.

A run lies in a folder that is named after what decides its numbers: a finished one is reused, by another experiment too, and one
that was stopped goes on from its checkpoint.
"""

from __future__ import annotations

import json
import math
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from plaudit import storage
from plaudit.audit.claim import Point, effect_of, verdict_of
from plaudit.audit.record import SOURCE, Figures, Found, Record, Side, what_runs
from plaudit.dotted import import_dotted
from plaudit.errors import Interrupted, RunError
from plaudit.recipe.experiment import BEFORE, Expectation, Experiment, placed
from plaudit.recipe.load import dump
from plaudit.recipe.schema import Recipe
from plaudit.runs.display import Silent
from plaudit.runs.record import read_run
from plaudit.version import __version__

SUMMARY = "summary.json"  # of a training
FIGURES = "figures.json"  # of a search or a function: what was measured, by metric and item
COSTS = ("seconds", "network_calls", "reward_calls")
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One arm with one seed, or what arms start from; `first` are the folders of what has to be there before."""

    experiment: Experiment
    arm: str
    seed: int
    folder: Path
    first: Mapping[str, Path] = field(default_factory=dict)
    quick: bool = False

    @property
    def stage(self) -> int:
        """Jobs of a lower one come first."""
        return list(self.experiment.prepare).index(self.arm) if self.is_prepared else len(self.experiment.prepare)

    @property
    def is_prepared(self) -> bool:
        return self.arm in self.experiment.prepare

    @property
    def is_done(self) -> bool:
        return (self.folder / (SUMMARY if self.trains else FIGURES)).is_file()

    @property
    def trains(self) -> bool:
        arm = self.experiment.sides[self.arm]
        return arm.recipe is not None and arm.verb != "search"

    @property
    def recipe(self) -> Recipe:
        recipe = self.experiment.recipe_of(self.arm, self.seed, self.quick, self.first)
        place = {"folder": str(self.folder.parent), "name": self.folder.name}
        return recipe.model_copy(update={"run": recipe.run.model_copy(update=place)})


def jobs_of(experiment: Experiment, out: Path, quick: bool = False) -> list[Job]:
    """Seeds outside: whenever it is stopped, the arms have had nearly equally many runs. Quick is one seed of each."""
    jobs, sides = [], experiment.sides
    names = {arm: (config.recipe or config.function or "").partition(":")[0] for arm, config in sides.items()}
    labels = {arm: Path(name.replace("/", "-")).name.removesuffix(".yaml") for arm, name in names.items()}
    digests = {arm: what_runs(experiment, arm).digest for arm in sides}
    for seed in experiment.seeds[: 1 if quick else None]:
        folders = {arm: out / f"{labels[arm]}-seed{seed}-{digests[arm]}" for arm in sides}
        for arm, folder in folders.items():
            first = {name: folders[name] for name in experiment.needed(arm)}
            jobs.append(Job(experiment=experiment, arm=arm, seed=seed, folder=folder, first=first, quick=quick))
    return jobs


# --- running ---------------------------------------------------------------------------------------------------------


def run_job(job: Job, say: Say) -> None:
    """Start or go on with one run. What it finds is in its folder."""
    if missing := [name for name, folder in job.first.items() if not is_finished(folder)]:
        raise RunError(f"{missing[0]}, which it starts from, has not come to an end")
    if job.trains:
        _train(job, say)
    elif job.experiment.sides[job.arm].function is not None:
        _call(job)
    else:
        _search(job, say)


def is_finished(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (SUMMARY, FIGURES))


def _call(job: Job) -> None:
    arm, started = job.experiment.sides[job.arm], time.monotonic()
    arguments = {"seed": job.seed, "quick": job.quick, **placed(arm.arguments, job.first)}
    if job.is_prepared:
        job.folder.mkdir(parents=True, exist_ok=True)
        arguments["folder"] = job.folder
    given = import_dotted(arm.function or "", f"{job.arm}.function")(**arguments) or {}
    values = {f"values/{name}": value if isinstance(value, Mapping) else {"": value} for name, value in given.items()}
    _keep(job.folder, {"values": values, "seconds": time.monotonic() - started})


def _train(job: Job, say: Say) -> None:
    from plaudit.fit.fit import fit_reward
    from plaudit.train.loop import train

    started = storage.latest_snapshot(job.folder / "checkpoints") is not None
    verb = fit_reward if job.experiment.sides[job.arm].verb == "fit" else train
    verb(job.recipe, resume=started, overwrite=not started, display=Told(say))


def _search(job: Job, say: Say) -> None:
    from plaudit.search.api import search

    recipe, truth = job.recipe, job.recipe.evaluate.reward.type
    job.folder.mkdir(parents=True, exist_ok=True)
    storage.write_text(job.folder / "recipe.yaml", dump(recipe))
    result = search(
        str(job.folder / "recipe.yaml"),
        {name: name for name in recipe.rewards},
        budget=recipe.search.budget,
        method=recipe.search.method,
        options=recipe.search.options,
        combine=recipe.combine,
        count=recipe.evaluate.final_prompts,
        truth=truth,
        seed=job.seed,
        watch=lambda share, tracker: say(f"{share:.0%} of the budget"),
    )
    if result.stopped == "interrupted":
        raise Interrupted("stopped; a search starts over")
    ids = [f"{prompt.id}/{i}" for i, prompt in enumerate(result.prompts)]
    found = {"truth": result.truth[truth].best, "before truth": result.truth[truth].plain}
    if len(recipe.rewards) == 1:
        name = next(iter(recipe.rewards))
        found |= {f"rewards/{name}": result.scores, f"before rewards/{name}": result.plain_scores}
    points = {key: dict(zip(ids, scores.tolist(), strict=True)) for key, scores in found.items()}
    spent = result.ledger.total
    _keep(
        job.folder,
        {
            "values": {key: point for key, point in points.items() if not key.startswith(BEFORE)},
            "before": {
                key.removeprefix(f"{BEFORE} "): point for key, point in points.items() if key.startswith(BEFORE)
            },
            "seconds": result.seconds,
            "network_calls": spent.network_calls,
            "reward_calls": spent.reward_calls,
        },
    )


def _keep(folder: Path, found: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    storage.write_text(folder / FIGURES, json.dumps(found))  # NaN stays NaN here: nobody else reads it


class Told(Silent):
    """Of a run no more than the steps, for one line among others."""

    def __init__(self, say: Say) -> None:
        self.told, self.total = say, "?"

    def begin(self, total_steps: int | None, minutes: float | None) -> None:
        self.total = str(total_steps or "?")

    def step(self, step: int, metrics: Any, seconds: float) -> None:
        self.told(f"step {step}/{self.total}")


# --- measuring -------------------------------------------------------------------------------------------------------


class Measured:
    """What the folder of a finished run says, metric by metric: points by item, or with one number; nothing where the run has no
    such figure."""

    def point(self, of: str, before: bool = False) -> Point | None:
        kind, _, name = of.partition("/")
        if kind in COSTS:
            return None if before else _single(self.cost(kind))
        if kind != "gap":
            return self.own_point(of, before)
        reward, truth = self.point(f"rewards/{name}", before), self.point("truth", before)
        if reward is None or truth is None:
            return None
        return {item: value - truth.get(item, math.nan) for item, value in reward.items()}

    def own_point(self, of: str, before: bool) -> Point | None:
        raise NotImplementedError

    def cost(self, key: str) -> float | None:
        raise NotImplementedError


class OfATraining(Measured):
    def __init__(self, folder: Path) -> None:
        self.run = read_run(folder)

    def own_point(self, of: str, before: bool) -> Point | None:
        kind, _, name = of.partition("/")
        if kind == "steps":
            values = self.run.series(name).values
            return None if before or not len(values) else _single(float(np.mean(values[-max(len(values) // 10, 1) :])))
        if kind == "best":
            label, split = (BEFORE,) if before else ("step", "after"), self.run.main_split
            rows = [row.mean for row in self.run.evaluations if row.split == split and row.label in label]
            return _single(max((mean for mean in rows if mean is not None), default=None))
        items = self.run.items_of(self.run.before() if before else self.run.latest())
        if items is None:
            return None
        columns = {"truth": items.score, "length": items.length, "rewards": items.rewards.get(name)}
        found = columns.get(kind)
        return {i: math.nan if v is None else v for i, v in zip(items.id, found, strict=True)} if found else None

    def cost(self, key: str) -> float | None:
        summary = self.run.summary
        assert summary is not None
        return 60 * (summary.minutes or math.nan) if key == "seconds" else getattr(summary, key)


class OfAnother(Measured):
    """A search, or a function."""

    def __init__(self, folder: Path) -> None:
        self.kept: dict[str, Any] = json.loads((folder / FIGURES).read_text(encoding="utf-8"))

    def own_point(self, of: str, before: bool) -> Point | None:
        found: Point | None = self.kept.get(BEFORE if before else "values", {}).get(of)
        return found

    def cost(self, key: str) -> float | None:
        return self.kept.get(key)


def _single(value: float | None) -> Point | None:
    return None if value is None else {"": value}


def _mean(point: Point | None) -> float | None:
    present = [value for value in (point or {}).values() if not math.isnan(value)]
    return sum(present) / len(present) if present else None


def record_of(experiment: Experiment, jobs: Sequence[Job], errors: Mapping[Path, str]) -> Record:
    """The verdict and the figures of an experiment whose runs have ended; `errors` are of those that failed."""
    measured = {
        (job.arm, job.seed): (OfATraining if job.trains else OfAnother)(job.folder) for job in jobs if job.is_done
    }
    found = [_found(experiment, one, measured) for one in experiment.expect]
    ran = {arm: what_runs(experiment, arm) for arm in experiment.arms}
    first = next(iter(ran.values())).recipe
    shared = {k: v for k, v in first.items() if all(r.recipe.get(k, ...) == v for r in ran.values())}
    runs = {(j.arm, j.seed): _figures(experiment, measured.get((j.arm, j.seed)), errors.get(j.folder)) for j in jobs}
    measured = {key: run for key, run in measured.items() if key[0] in experiment.arms}
    lost = {
        metric.of
        for metric in experiment.metrics.values()
        if all(m.point(metric.of) is None for m in measured.values())
    }
    if measured and lost:
        raise RunError(f"metrics: no run has {', '.join(sorted(lost))}; name another, docs/experiments.md has them")
    return Record(
        claim=experiment.claim,
        verdict=verdict_of([one.effect.verdict for one in found]),
        found=found,
        metrics=experiment.metrics,
        shared=shared,
        arms={
            arm: Side(
                recipe={k: v for k, v in ran[arm].recipe.items() if k not in shared},
                code=ran[arm].code,
                digest=ran[arm].digest,
                runs={seed: runs[arm, seed] for seed in experiment.seeds},
            )
            for arm in experiment.arms
        },
        seconds=math.fsum(figures.seconds or 0 for figures in runs.values()),
        network_calls=sum(figures.network_calls or 0 for figures in runs.values()),
        reward_calls=sum(figures.reward_calls or 0 for figures in runs.values()),
        commit=_commit(),
        versions=_versions(),
    )


def _found(experiment: Experiment, one: Expectation, measured: Mapping[tuple[str, int], Measured]) -> Found:
    metric = experiment.metrics[one.metric]

    def figures(side: str, other: str) -> dict[int, Point | None]:
        arm = other if side == BEFORE else side
        chosen = {seed: measured.get((arm, seed)) for seed in experiment.seeds}
        return {seed: run.point(metric.of, before=side == BEFORE) if run else None for seed, run in chosen.items()}

    sign = 1.0 if metric.better == "higher" else -1.0
    better, than = figures(one.better, one.than), figures(one.than, one.better)
    return Found(expected=one, effect=effect_of(better, than, sign=sign, by=one.by))


def _figures(experiment: Experiment, run: Measured | None, error: str | None) -> Figures:
    if run is None:
        return Figures(error=error or "has not run")
    return Figures(
        values={name: _mean(run.point(metric.of)) for name, metric in experiment.metrics.items()},
        before={
            name: value
            for name, metric in experiment.metrics.items()
            if (value := _mean(run.point(metric.of, before=True))) is not None
        },
        **{key: run.cost(key) for key in COSTS},
    )


def _commit() -> str | None:
    """Of the source, with a + where files differ from it; nothing outside of a repository."""
    try:
        git = ["git", "-C", str(SOURCE), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        return subprocess.run(git, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _versions() -> dict[str, str]:
    import torch

    return {"plaudit": __version__, "torch": torch.__version__, "python": platform.python_version()}
