"""Rejection-sampling fine-tuning against GRPO: the same samples a step, once with a contrast and once only the right ones."""

from benchmarks.sums import Experiment, Variant

EXPERIMENT = Experiment(
    question="RFT: does likelihood of its own right solutions teach as much as a policy gradient?",
    variants={
        "grpo": Variant(sources=["sums-grpo"]),
        "rft": Variant(sources=["sums-rft"]),
        "rft best": Variant(
            sources=["sums-rft"], overrides=["--objective.keep", "best", "--objective.threshold", "null"]
        ),
    },
    overrides=["--evaluate.every", "1000"],
    steps=30,
    columns={"completions/mean_length": "sampled length", "diversity": "diversity"},
)
