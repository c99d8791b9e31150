"""S126 Format-Length RL: without labels, how much of correctness-RL's gain do format and length bring?

The premise is planted: a fifth of the untrained model's solutions is malformed, and longer scratchpads are more often right.
"""

from benchmarks.sums import Experiment, Variant

CORRECT = {"base": "sums-grpo", "rewards": {"format": {"type": "sum_format", "weight": 0.0}}}
FORMAT = {"base": "sums-grpo", "rewards": {"format": "sum_format", "correct": None}}


def turning_at(turn: float) -> Variant:
    return Variant(sources=["sums-format-length"], overrides=["--rewards.signal.arguments.turn", str(turn)])


EXPERIMENT = Experiment(
    question="S126: does a reward of format and length come close to correctness, and what do other turning points do?",
    variants={
        "correctness": Variant(sources=[CORRECT]),
        "format": Variant(sources=[FORMAT]),
        "format and length": turning_at(0.5),
        "turn 0.1": turning_at(0.1),
        "turn 1": turning_at(1.0),
    },
    overrides=["--evaluate.every", "1000"],
    steps=30,
    columns={"completions/mean_length": "sampled length"},
)
