"""A fabricated run folder: what the training loop writes, with numbers chosen by the test."""

from __future__ import annotations

import functools
import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plaudit.data.prompt import Prompt
from plaudit.lab.scenes.grammar import CATEGORIES, evaluation_prompts
from plaudit.lab.scenes.render import rasterise, sample_scenes
from plaudit.pages.grid import grid_image, write_grid
from plaudit.recipe.load import dump
from plaudit.recipe.schema import Recipe
from plaudit.statistics import Items, mean_interval, paired_gain

COLUMNS = 6
STEPS = 60

Fabricate = Callable[..., Path]


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@functools.cache
def asked(split: str, count: int) -> tuple[Prompt, ...]:
    return tuple(evaluation_prompts(split, count))


@functools.cache
def draw_grid(count: int, seed: int) -> bytes:
    """True scenes of the first held-out prompts, as the training loop lays out its grids."""
    buffer = io.BytesIO()
    scenes = sample_scenes(list(asked("heldout", count)), np.random.default_rng(seed))
    captions = [prompt.text for prompt in asked("heldout", count)]
    write_grid(grid_image(rasterise(scenes), COLUMNS, captions), buffer)
    return buffer.getvalue()


class _Writer:
    """Writes one split of one measurement: items, categories and the line of evaluations.jsonl."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.rng = np.random.default_rng(seed)
        self.lines: list[dict[str, Any]] = []
        self.scores: dict[tuple[str, str], Items] = {}

    def measure(self, split: str, label: str, step: int, accuracy: float, count: int, reward: float) -> None:
        prompts = asked(split, count)
        # Exactly the stated accuracy: the easiest draws are the correct ones, the same ones at every measurement.
        ease = np.random.default_rng(5).permutation(count)
        score = [float(rank < round(accuracy * count)) for rank in ease]
        category = [prompt.facts["category"] for prompt in prompts]
        name = f"evaluations/{label}_{step:06d}_{split}.json"
        document = {
            "id": [f"{prompt.id}/{i}" for i, prompt in enumerate(prompts)],
            "category": category,
            "score": score,
        }
        (self.folder / "evaluations").mkdir(exist_ok=True)
        (self.folder / name).write_text(json.dumps(document), encoding="utf-8")
        self.scores[split, label] = Items(ids=tuple(document["id"]), scores=tuple(score))
        interval = mean_interval(score)
        by_category = {
            kind: {"mean": float(np.mean([s for s, c in zip(score, category, strict=True) if c == kind])), "count": n}
            for kind in CATEGORIES
            if (n := category.count(kind))
        }
        self.lines.append(
            {"step": step, "split": split, "label": label, "reward": "scene_exact", "missing": 0, "items": name}
            | {"verdict": True}
            | {"mean": interval.mean, "low": interval.low, "high": interval.high, "count": interval.count}
            | {"by_category": by_category, "rewards": {"match": reward}}
        )


def _metrics(rng: np.random.Generator, steps: int, start: float, end: float, grpo: bool) -> list[dict[str, Any]]:
    rows = []
    for step in range(1, steps + 1):
        progress = 1 - math.exp(-3 * step / steps)
        reward = start + (end - start) * progress + 0.01 * float(rng.normal())
        row = {
            "step": step,
            "reward": reward,
            "rewards/match/mean": reward,
            "rewards/match/std": 0.15,
            "rewards/match/missing_frac": 0.0,
            "frac_reward_zero_std": min(0.05 + 0.3 * progress + 0.02 * float(rng.random()), 1.0),
            "loss": 0.4 - 0.1 * progress + 0.01 * float(rng.normal()),
            "loss/policy": 0.39 - 0.1 * progress,
            "loss/kl": 0.01 * progress,
            "grad_norm": 0.8 + 0.3 * float(rng.random()),
            "lr": 3e-4,
            "network_calls": 1920 * step,
            "reward_calls": 192 * step,
            "diversity": 0.11 - 0.03 * progress,
            "kl": 0.02 * progress,
        }
        rows.append(row | ({"ratio/first_step_max_dev": 1e-8 * float(rng.random())} if grpo else {}))
    return rows


CHECKS = [
    {
        "name": "level 0 equals the stock sampler",
        "passed": True,
        "value": 3e-7,
        "limit": 1e-5,
        "remedy": "",
        "seconds": 0.2,
    },
    {
        "name": "the mismatched prompt scores lower",
        "passed": False,
        "value": 0.01,
        "limit": 0.05,
        "remedy": "check that the reward reads its prompt",
        "seconds": 0.4,
    },
    {"name": "ratio is 1 at update 0", "passed": None, "value": None, "limit": 1e-6, "remedy": "", "seconds": 0.0},
]


def _summary(writer: _Writer, minutes: float, steps: int, seed: int) -> dict[str, Any]:
    before, after = writer.scores["heldout", "before"], writer.scores["heldout", "after"]
    first, last, gain = mean_interval(before.scores), mean_interval(after.scores), paired_gain(before, after)
    return {
        "before": first.mean,
        "before_low": first.low,
        "before_high": first.high,
        "after": last.mean,
        "after_low": last.low,
        "after_high": last.high,
        "gain": gain.mean,
        "gain_low": gain.low,
        "gain_high": gain.high,
        "minutes": minutes + 0.4,
        "training_minutes": minutes,
        "steps": steps,
        "network_calls": 1920 * steps,
        "reward_calls": 192 * steps,
        "stopped": f"train.minutes {minutes:g}",
        "plaudit": "0.1.0",
        "torch": "2.13.0",
        "threads": 1,
        "seed": seed,
    }


def fabricate_run(
    folder: Path,
    *,
    recipe: Recipe | None = None,
    before: float = 0.40,
    after: float = 0.65,
    reward: tuple[float, float] = (0.55, 0.80),
    heldout_after: int = 300,
    minutes: float = 5.0,
    prompts: Sequence[str] | None = None,
    pictures: bool = True,
) -> Path:
    """A finished run whose held-out accuracy went from `before` to `after` and its trained reward along `reward`."""
    recipe = recipe or Recipe()
    seed, steps = recipe.run.seed, STEPS
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(dump(recipe), encoding="utf-8")
    write_lines(folder / "metrics.jsonl", _metrics(rng, steps, *reward, grpo=recipe.objective.type == "grpo"))
    second = minutes * 60 / steps
    timing = [
        {
            "step": step,
            "timing_s/rollout": 0.5 * second,
            "timing_s/reward": 0.1 * second,
            "timing_s/learn": 0.3 * second,
        }
        | {"timing_s/step": second, "seconds": second * step}
        for step in range(1, steps + 1)
    ]
    write_lines(folder / "timing.jsonl", timing)
    writer = _Writer(folder, seed)
    for split, drop in (("heldout", 0.0), ("compositional", 0.15)):
        writer.measure(split, "before", 0, before - drop, heldout_after, reward[0])
        for step in range(20, steps + 1, 20):
            progress = 1 - math.exp(-3 * step / steps)
            writer.measure(split, "step", step, before - drop + (after - before) * progress, 96, reward[1])
        writer.measure(split, "after", steps, after - drop, heldout_after, reward[1])
    write_lines(folder / "evaluations.jsonl", writer.lines)
    if pictures:
        _write_samples(folder / "samples", prompts)
    (folder / "checks.json").write_text(json.dumps(CHECKS), encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps(_summary(writer, minutes, steps, seed)), encoding="utf-8")
    return folder


def _write_samples(folder: Path, texts: Sequence[str] | None) -> None:
    prompts = asked("heldout", 12)
    folder.mkdir()
    for name, seed in (("before", 1), ("step_000020", 2), ("step_000040", 3), ("after", 4)):
        (folder / f"{name}.png").write_bytes(draw_grid(len(prompts), seed))
    document = {
        "prompts": list(texts or [prompt.text for prompt in prompts]),
        "columns": COLUMNS,
        "before": [float(i % 3 == 0) for i in range(12)],
        "after": [None if i == 11 else float(i % 4 != 1) for i in range(12)],
    }
    (folder / "prompts.json").write_text(json.dumps(document), encoding="utf-8")
