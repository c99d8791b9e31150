"""S100 GRPO-lambda: does a length penalty for the best solved groups only shorten answers at no loss, where the same
penalty everywhere costs accuracy?"""

from benchmarks.sums import Experiment, Variant

EVERYWHERE = ["--rewards.short.arguments.share", "1.0"]

EXPERIMENT = Experiment(
    question="S100: is accuracy kept when only the best solved fifth of the groups is pressed to be short?",
    variants={
        "plain": Variant(),
        "everywhere": Variant(sources=["sums-grpo-lambda"], overrides=EVERYWHERE),
        "lambda 0.2": Variant(sources=["sums-grpo-lambda"]),
    },
    overrides=["--train.prompts_per_step", "4", "--evaluate.every", "1000", "--evaluate.final_prompts", "200"],
    steps=40,
    columns={"completions/mean_length": "sampled length"},
)
