"""S129 LUSPO: does the sequence ratio shorten answers through 1/|y|, and does the length-unbiased sum stop that?"""

from benchmarks.sums import Experiment, Variant

EXPERIMENT = Experiment(
    question="S129: does GSPO's division by length shorten answers where LUSPO keeps their length?",
    variants={
        "grpo": Variant(overrides=["--objective.loss_type", "grpo"]),
        "gspo": Variant(sources=["sums-luspo"], overrides=["--objective.loss_type", "grpo"]),
        "luspo": Variant(sources=["sums-luspo"]),
    },
)
