"""S125 HAPO: does the memory of the shortest right answer shorten more, at less loss, than a fixed price of length?

All variants train on the same 32 problems, five times each in 40 steps.
"""

from benchmarks.sums import Experiment, Variant

FIXED = {
    "base": "sums-grpo",
    "rewards": {"brief": {"type": "brevity", "arguments": {"limit": 96, "low": 0.0}}},
    "combine": "correct * (1 + brief)",
}
PROBLEMS = ["--prompts.problems", "32"]

EXPERIMENT = Experiment(
    question="S125: does HAPO shorten right answers at little loss, and more than a fixed bonus for brevity?",
    variants={
        "correct": Variant(overrides=PROBLEMS),
        "fixed": Variant(sources=[FIXED], overrides=PROBLEMS),
        "hapo": Variant(sources=["sums-hapo"], overrides=PROBLEMS),
        "no floor": Variant(sources=["sums-hapo"], overrides=[*PROBLEMS, "--rewards.concise.arguments.floor", "-1"]),
    },
    overrides=["--train.prompts_per_step", "4", "--evaluate.every", "1000", "--evaluate.final_prompts", "200"],
    steps=40,
    columns={"completions/mean_length": "sampled length", "rewards/concise/mean": "sampled reward"},
)
