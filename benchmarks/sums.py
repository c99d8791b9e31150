"""The experiments of the token systems on the lab world `sums`: every variant from the same weights, over seeds.

    python -m benchmarks.sums luspo --seeds 0,1,2 --steps 60

A variant is a recipe with overrides. Finished runs in the folder are reused, so that an interrupted experiment goes on with
the same command. Printed are means over seeds with their deviations, on held-out problems: accuracy, length in tokens, and the
mean of what the recipe's other rewards say; and from training the entropy and how often a ratio was clipped.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from plaudit.recipe.load import load
from plaudit.runs.display import PlainDisplay
from plaudit.storage import latest_snapshot
from plaudit.verbs import align

COLUMNS = {
    "entropy": "entropy",
    "clip_ratio/low": "clipped low",
    "clip_ratio/high": "clipped high",
    "frac_reward_zero_std": "equal groups",
    "completions/clipped_ratio": "cut",
}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A contestant: the sources of its recipe and overrides of single keys."""

    sources: Sequence[str | Path | Mapping] = ("sums-grpo",)
    overrides: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A question, its contestants, and for all of them further overrides."""

    question: str
    variants: Mapping[str, Variant]
    overrides: Sequence[str] = ()
    steps: int = 60
    columns: Mapping[str, str] = field(default_factory=dict)


def find(name: str) -> Experiment:
    """Experiments are files of `benchmarks/experiments/`, each with one EXPERIMENT."""
    path = Path(__file__).parent / "experiments" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"experiment_{name}", path)
    assert spec is not None and spec.loader is not None and path.is_file(), f"no experiment at {path}"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EXPERIMENT


def run_of(experiment: Experiment, label: str, seed: int, steps: int, out: Path) -> Path:
    variant = experiment.variants[label]
    own = [
        *("--train.steps", str(steps), "--train.minutes", "null", "--run.seed", str(seed), "--run.threads", "1"),
        *("--run.folder", str(out), "--run.name", f"{label}-seed{seed}"),
    ]
    recipe = load(list(variant.sources), [*experiment.overrides, *variant.overrides, *own])
    folder = out / f"{label}-seed{seed}"
    if not (folder / "summary.json").is_file():
        started = latest_snapshot(folder / "checkpoints") is not None
        align(recipe, resume=started, overwrite=not started, display=PlainDisplay())
    return folder


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def measured(folder: Path, columns: Mapping[str, str]) -> dict[str, float]:
    """The numbers of one run: held out at the end, and of training the mean of the last tenth of its steps."""
    evaluations = lines(folder / "evaluations.jsonl")
    before = next(row for row in evaluations if row["label"] == "before")
    after = next(row for row in evaluations if row["label"] == "after")
    found = {
        "accuracy before": 100 * before["mean"],
        "accuracy after": 100 * after["mean"],
        "best seen": 100 * max(row["mean"] for row in evaluations),
        "length before": before["length"],
        "length after": after["length"],
    }
    found |= {f"{name} before": value for name, value in before["rewards"].items() if value is not None}
    found |= {f"{name} after": value for name, value in after["rewards"].items() if value is not None}
    steps = lines(folder / "metrics.jsonl")
    last = steps[-max(len(steps) // 10, 1) :]
    for key, name in {**COLUMNS, **columns}.items():
        values = [row[key] for row in last if row.get(key) is not None]
        if values:
            found[name] = statistics.fmean(values)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--only", help="variants, separated by commas")
    parser.add_argument("--out", type=Path, default=Path("build/sums"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    experiment = find(options.experiment)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    chosen = options.only.split(",") if options.only else list(experiment.variants)
    out, steps = options.out / options.experiment, options.steps or experiment.steps
    folders = {(seed, label): run_of(experiment, label, seed, steps, out) for seed in seeds for label in chosen}
    print(f"\n{experiment.question}\n{steps} steps, seeds {options.seeds}; mean (deviation over seeds)\n")
    for label in chosen:
        runs = [measured(folders[seed, label], experiment.columns) for seed in seeds]
        names = list(dict.fromkeys(name for run in runs for name in run))
        print(label)
        for name in names:
            values = [run[name] for run in runs if name in run]
            spread = f" ({statistics.stdev(values):.3g})" if len(values) > 1 else ""
            print(f"  {name:28s} {statistics.fmean(values):.4g}{spread}   [{', '.join(f'{v:.4g}' for v in values)}]")


if __name__ == "__main__":
    main()
