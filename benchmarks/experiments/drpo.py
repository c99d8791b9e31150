"""S127 DRPO: at equal accuracy, does weighing right answers among themselves shorten more than a length reward in GRPO?"""

from benchmarks.sums import Experiment, Variant

LENGTH = {
    "base": "sums-grpo",
    "rewards": {"brief": {"type": "brevity", "arguments": {"limit": 96, "low": 0.0}}},
    "combine": "correct * (1 + brief)",
}

EXPERIMENT = Experiment(
    question="S127: is DRPO's trade of accuracy for length better than that of GRPO with a length reward?",
    variants={
        "grpo length": Variant(sources=[LENGTH], overrides=["--train.updates_per_step", "2"]),
        "drpo 0.1": Variant(sources=["sums-drpo"]),
        "drpo 1": Variant(sources=["sums-drpo"], overrides=["--objective.temperature", "1"]),
    },
    overrides=["--train.prompts_per_step", "4", "--evaluate.every", "1000", "--evaluate.final_prompts", "200"],
    steps=40,
    columns={"completions/mean_length": "sampled length", "approx_kl": "approx KL"},
)
