"""S113 DLER: does a plain truncation reward do its work once the optimiser is mended, piece by piece?

The limit of 14 tokens is 40 % of the base model's mean length. Accuracy is measured without the limit; `correct` is the
truncation reward on held-out problems. Afterwards the update-selective merge of every run of the variant `dler`:

    python -m benchmarks.sums dler
    python -m benchmarks.experiments.dler build/sums/dler
"""

import sys
from pathlib import Path

from benchmarks.sums import Experiment, Variant

NO_REFILL = ["--train.refill", "0"]
SYMMETRIC = ["--objective.clip_high", "0.2"]
GROUP = ["--shaping.std", "group"]

EXPERIMENT = Experiment(
    question="S113: what do batch deviation, asymmetric clip and refill each add to a truncation reward?",
    variants={
        "group": Variant(sources=["sums-dler"], overrides=[*NO_REFILL, *SYMMETRIC, *GROUP]),
        "batch": Variant(sources=["sums-dler"], overrides=[*NO_REFILL, *SYMMETRIC]),
        "batch higher": Variant(sources=["sums-dler"], overrides=NO_REFILL),
        "dler": Variant(sources=["sums-dler"]),
    },
    overrides=["--evaluate.every", "1000", "--evaluate.final_prompts", "200"],
    steps=30,
    columns={"completions/mean_length": "sampled length", "reward": "sampled reward"},
)


def merges(folder: Path) -> None:
    """Accuracy and length of the base model, of each run's, and of their merge, on the same held-out problems and noise."""
    from plaudit.builds.sums_report import attempts
    from plaudit.lab.language import WEIGHTS
    from plaudit.lab.sums.grammar import evaluation_prompts
    from plaudit.models.lab_text import LabTokenModel
    from plaudit.models.merge import merge_folders

    asked = evaluation_prompts("heldout", 400)

    def show(label: str, weights: Path) -> None:
        found = attempts(LabTokenModel(str(weights)), asked, temperature=1.0)
        right = 100 * sum(a.reading.correct for a in found) / len(found)
        print(f"{label:20s} accuracy {right:5.1f} %  length {sum(len(a.text) + 1 for a in found) / len(found):5.1f}")

    show("base", WEIGHTS)
    for run in sorted(folder.glob("dler-seed*/final")):
        merged = folder / f"{run.parent.name}-merged"
        if not merged.exists():
            merge_folders(WEIGHTS, run, merged)
        show(run.parent.name, run / "model.safetensors")
        show("  merged", merged / "model.safetensors")


if __name__ == "__main__":
    merges(Path(sys.argv[1]))
