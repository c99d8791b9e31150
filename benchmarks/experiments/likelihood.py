"""S073 likelihood rewards: binary, probability and log-probability of the reference answer, short answers and long ones.

Short: the number after `#`. Long: after `?` the whole calculation in an order that the model was not taught, which no checker has
to read. After the runs,

    python -m benchmarks.experiments.likelihood build/sums/likelihood

prints the perplexity of the reference answers given eight sampled chains, which accuracy does not show.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from benchmarks.sums import Experiment, Variant

from plaudit.data.prompt import Prompt
from plaudit.lab.sums import grammar
from plaudit.lab.sums.grammar import evaluation_prompts
from plaudit.lab.sums.traces import parts
from plaudit.models.lab_text import LabTokenModel
from plaudit.models.tokens import TokenModel
from plaudit.recipe.sampling import TokenSampling
from plaudit.rewards.likelihood.policy import answer_perplexity, token_log_probs_of, with_answers
from plaudit.sampling.noise import SampleKey
from plaudit.sampling.tokens import draw_completions

DELIMITER = {"short": "#", "long": "?"}
CATEGORIES = {"short": grammar.CATEGORIES, "long": ("pair", "mixed", "triple")}  # single digits have no other order
FOLDER = Path("build/sums")


def worked_out(prompt: Prompt) -> str:
    """The calculation without a mistake and with its answer, units before tens: right, and not how the model was taught."""
    total, *others = prompt.facts["operands"]
    steps = []
    for part in (part for operand in others for part in reversed(parts(operand))):
        steps.append(f"{total}{part:+d}={total + part}")
        total += part
    return f"{';'.join(steps)}#{total}"


def answer_of(prompt: Prompt, kind: str) -> str:
    return str(prompt.facts["answer"]) if kind == "short" else worked_out(prompt)


def long_answers(split: str, count: int) -> str:
    """A file of problems whose reference answer is the calculation."""
    path = FOLDER / f"long-{split}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"id": p.id, "text": p.text, "facts": {**p.facts, "answer": worked_out(p)}}
        for p in evaluation_prompts(split, count, CATEGORIES["long"])
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def reduced_by(reduction: str) -> list[str]:
    return ["--rewards.likelihood.arguments.reduction", reduction]


def on_long(reduction: str) -> Variant:
    prompts = {"type": "file", "train": long_answers("train", 512), "heldout": long_answers("heldout", 400)}
    reward = {"type": "policy_likelihood", "arguments": {"delimiter": DELIMITER["long"], "reduction": reduction}}
    return Variant(sources=[{"base": "sums-likelihood", "prompts": prompts, "rewards": {"likelihood": reward}}])


# The leave-one-out baseline without a deviation, and the same sum over tokens as the likelihood arms.
BINARY = {"base": "sums-grpo", "shaping": {"std": "loo", "clip": None}, "objective": {"loss_type": "luspo"}}

EXPERIMENT = Experiment(
    question="S073: which reward of a reference answer teaches, on short answers and on long ones?",
    variants={
        "binary": Variant(sources=[BINARY]),
        "probability": Variant(sources=["sums-likelihood"], overrides=reduced_by("probability")),
        "mean log-prob": Variant(sources=["sums-likelihood"]),
        "sum log-prob": Variant(sources=["sums-likelihood"], overrides=reduced_by("sum")),
        "long probability": on_long("probability"),
        "long mean log-prob": on_long("mean"),
    },
    overrides=["--evaluate.every", "1000"],
    steps=30,
    columns={
        "completions/mean_length": "sampled length",
        "reasoning_length": "reasoning",
        "answer_log_prob": "answer log-prob",
        "rewards/likelihood/std": "reward deviation",
        "advantage/abs_mean": "advantage size",
    },
)


# --- perplexity ------------------------------------------------------------------------------------------------------


def perplexity(model: TokenModel, kind: str, count: int = 96, chains: int = 8) -> float:
    """Of the reference answers of held-out problems: geometric mean over problems."""
    asked = [prompt for prompt in evaluation_prompts("heldout", count, CATEGORIES[kind]) for _ in range(chains)]
    keys = [SampleKey(seed=7, step=0, prompt=prompt.id, index=i % chains) for i, prompt in enumerate(asked)]
    drawn = draw_completions(
        model, model.encode(asked), TokenSampling(type="tokens", max_new_tokens=96, pack=0), keys
    ).rows()
    answers = [answer_of(prompt, kind) for prompt in asked]
    given, _ = with_answers(model, model.encode(asked), drawn, answers, DELIMITER[kind])
    log_probs = torch.stack([tokens.sum() for tokens in token_log_probs_of(model, given)]).view(count, chains)
    return math.exp(answer_perplexity(log_probs, given.length[::chains]).log().mean().item())


def main(folders: Sequence[str]) -> None:
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {}
    untrained = LabTokenModel()
    for kind in DELIMITER:
        found[f"untrained, {kind}"] = [perplexity(untrained, kind)]
    for run in sorted(path for folder in folders for path in Path(folder).iterdir() if (path / "final").is_dir()):
        label = run.name.rpartition("-seed")[0]
        model = LabTokenModel(str(run / "final" / "model.safetensors"))
        found.setdefault(label, []).append(perplexity(model, "long" if label.startswith("long") else "short"))
    for label, values in found.items():
        spread = f" ({statistics.stdev(values):.3g})" if len(values) > 1 else ""
        print(f"{label:20s} {statistics.fmean(values):.4g}{spread}   [{', '.join(f'{v:.4g}' for v in values)}]")


if __name__ == "__main__":
    main(sys.argv[1:])
