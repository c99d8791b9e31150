"""S101 PAR: a proxy that pays for every equation is maximised; which shaping of it keeps the truth up?

The four others are shaped as the paper's peers are. Without division by the deviation, as in the recipe, their scales differ;
Adam takes most of that out.
"""

from benchmarks.sums import Experiment, Variant


def shaped(combine: str, references: int = 0) -> Variant:
    """The recipe with another formula over the proxy and this many reference answers."""
    one = {"type": "reference_score", "arguments": {"reward": {"type": "sum_proxy"}}}
    several = {f"ref{i}": {**one, "arguments": {**one["arguments"], "index": i}} for i in range(references)}
    return Variant(sources=[{"base": "sums-par", "rewards": {"ref": None, **several}, "combine": combine}])


EXPERIMENT = Experiment(
    question="S101: does a proxy's raw score rise at the cost of the truth, and does PAR keep the truth up?",
    variants={
        "raw": shaped("1.0 * proxy"),
        "clip": shaped("running_clip(proxy)"),
        "minmax": shaped("running_minmax(proxy)"),
        "par 1": shaped("par(proxy, ref0)", 1),
        "par 4": shaped("par(proxy, ref0, ref1, ref2, ref3)", 4),
    },
    overrides=[
        *("--evaluate.every", "15", "--evaluate.prompts", "96", "--evaluate.final_prompts", "200"),
        *("--train.prompts_per_step", "6"),
    ],
    steps=60,
    columns={"completions/mean_length": "sampled length"},
)
