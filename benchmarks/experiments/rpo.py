"""S119 RPO: on few noisy pairs, does DPO lower the chosen answers' likelihood and then accuracy, and does RPO hold them up?"""

from benchmarks.sums import Experiment, Variant


def weighted(eta: float) -> Variant:
    return Variant(sources=["sums-rpo"], overrides=["--objective.sft_weight", str(eta)])


EXPERIMENT = Experiment(
    question="S119: does the likelihood of the chosen answers keep DPO on few noisy pairs from drifting?",
    variants={
        "eta 0": weighted(0.0),
        "eta 0.005": weighted(0.005),
        "eta 0.05": weighted(0.05),
        "eta 0.5": weighted(0.5),
    },
    overrides=["--evaluate.every", "15", "--evaluate.prompts", "96"],
    steps=60,
    columns={
        "logps/chosen": "chosen log-prob",
        "logps/rejected": "rejected log-prob",
        "rewards/margins": "margin",
        "rewards/accuracies": "pairs preferred right",
    },
)
