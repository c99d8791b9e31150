"""S129 LUSPO: does GSPO's division by |y| shorten answers, and does the length-unbiased sum stop that?

In `sums` longer scratchpads are more often right. The control pays for a well-formed answer, which length does not help.
"""

from benchmarks.sums import Experiment, Variant

FORMAT = {"base": "sums-luspo", "rewards": {"format": {"type": "sum_format"}, "correct": None}}
GSPO = ["--objective.loss_type", "grpo"]

EXPERIMENT = Experiment(
    question="S129: does GSPO's division by length shorten answers where LUSPO keeps their length?",
    variants={
        "grpo": Variant(overrides=[*GSPO, "--train.updates_per_step", "2"]),
        "gspo": Variant(sources=["sums-luspo"], overrides=GSPO),
        "luspo": Variant(sources=["sums-luspo"]),
        "control gspo": Variant(sources=[FORMAT], overrides=GSPO),
        "control luspo": Variant(sources=[FORMAT]),
    },
    overrides=["--train.prompts_per_step", "4", "--evaluate.every", "1000", "--evaluate.final_prompts", "200"],
    steps=40,
    columns={"ratio/deviation": "ratio deviation", "completions/mean_length": "sampled length"},
)
