"""S113 DLER: does a plain truncation reward do its work once the optimiser is mended, piece by piece?

The limit of 14 tokens is 40 % of the base model's mean length. Accuracy is measured without the limit; `correct` is the
truncation reward on held-out problems.
"""

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
