"""S095 MRN: does one reward on another scale change what is learned? Brevity, which costs accuracy, as it is and times ten."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.sums import Experiment, Variant

from plaudit.rewards.base import Card, Score, Status
from plaudit.rewards.calling.request import Request
from plaudit.rewards.rules.outcomes import inner_caller

HIGHEST = 10.0


class Scaled:
    """Another reward's scores times a factor. The card names one range for all, for what is on unlike scales is not added."""

    def __init__(self, reward: Mapping[str, Any], factor: float) -> None:
        self.caller, self.factor = inner_caller("scaled", reward), factor
        self.card = Card(summary="another reward times a factor", kind="text", low=0, high=HIGHEST)

    def __call__(self, prompts: Sequence[str], outputs: Sequence[str], request: Request) -> list[Score]:
        return [
            replace(score, value=self.factor * score.value) if score.status is Status.OK else score
            for score in self.caller(request)
        ]


def scaled(reward: Mapping[str, Any], factor: float, weight: float = 1.0) -> dict[str, Any]:
    arguments = {"reward": reward, "factor": factor}
    return {"type": "benchmarks.experiments.mrn:Scaled", "arguments": arguments, "weight": weight}


BRIEF = {"type": "correct_within", "arguments": {"limit": 14, "correct": {"type": "sum_format"}}}
TENFOLD = {
    "base": "sums-mrn",
    "rewards": {
        "correct": scaled({"type": "sum_correct"}, 1.0),
        "format": scaled({"type": "sum_format"}, 1.0),
        "brief": scaled(BRIEF, 10.0, weight=0.1),
    },
}
SUMMED = ["--shaping.normalise", "total"]

EXPERIMENT = Experiment(
    question="S095: is the mix of rewards that are normalised one by one free of their scales, where their sum is not?",
    variants={
        "mrn": Variant(sources=["sums-mrn"]),
        "mrn x10": Variant(sources=[TENFOLD]),
        "sum": Variant(sources=["sums-mrn"], overrides=SUMMED),
        "sum x10": Variant(sources=[TENFOLD], overrides=SUMMED),
    },
    overrides=["--evaluate.every", "1000"],
    steps=30,
    columns={"completions/mean_length": "sampled length"},
)
