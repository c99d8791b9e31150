"""Language models against TRL, in one run: `python benchmarks/tokens.py [--parts losses speed memory] [--threads 2]`.

losses: our GRPO and DPO losses and those of TRL's trainers on the same log-probabilities, and their gradients. The whole way
    from weights to gradients is compared on a tiny model in `tests/objectives/test_trl_losses.py`.
speed: a step of TRL's GRPOTrainer against one of `plaudit align` on SmolLM2-135M (`benchmarks/smollm2.py`): all parameters in
    float32, 4 prompts x 4 completions of at most 32 tokens, beta 0, AdamW, no gradient checkpointing (TRL's default, which
    costs it another forward pass; `--checkpointing` leaves it on). The two take turns in one process; CPU time is printed
    too, which other processes disturb less. The reward differs in every sample, so that no group is skipped for lack of
    contrast. Once with every completion forced to 32 tokens (the same work), and once with natural ends, where each draws
    its own.
memory: the peak of each after two steps, in processes of their own (Linux).
learn (`--parts learn`, not part of the default): `plaudit align` with a rule reward on one-digit sums; greedy accuracy on
    held-out sums before and after `--minutes`.

With two threads set OMP_WAIT_POLICY=PASSIVE (done here unless it is set), or a busy second core makes every barrier spin.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from smollm2 import FOLDER, ensure, one_digit_sums, varied_reward
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.objectives.base import Objective
from plaudit.objectives.batch import Batch, Pairs
from plaudit.objectives.dpo import Dpo
from plaudit.objectives.grpo import Grpo
from plaudit.objectives.token_terms import TokenTerms
from plaudit.recipe.load import load
from plaudit.recipe.objectives import DpoConfig, GrpoConfig, KlConfig
from plaudit.recipe.schema import Recipe
from plaudit.runs.display import PlainDisplay
from plaudit.sampling.tokens import Completions
from plaudit.train.checkpoint import Progress
from plaudit.train.loop import _step
from plaudit.train.setup import Setup, prepare
from plaudit.verbs import align

PROMPTS, COMPLETIONS, TOKENS, RATE = 4, 4, 32, 1e-6
MODEL = Path(os.environ.get("PLAUDIT_BENCH_MODEL", FOLDER))  # another folder for a quick try
LOSS_TYPES: dict[str, Any] = {"grpo": "grpo", "bnpo": "dapo", "dapo": "dapo", "dr_grpo": "dr_grpo", "luspo": "luspo"}


# --- losses ----------------------------------------------------------------------------------------------------------


class GivenTerms(TokenTerms):
    """Terms whose log-probabilities are given, as TRL's are below."""

    def __init__(self, batch: Batch, completions: Completions, log_prob: Tensor, reference: Tensor) -> None:
        self.batch, self.completions = batch, completions
        self.__dict__["log_prob"] = log_prob.double()
        self._views = {"reference": SimpleNamespace(log_prob=reference.double())}  # type: ignore[dict-item]

    @property
    def entropy(self) -> Tensor:
        return torch.zeros(self.completions.mask.shape)


def our_loss(objective: Objective, terms: GivenTerms, leaf: Tensor) -> tuple[float, Tensor]:
    losses = objective.losses(terms)
    parts = torch.stack([(part * losses.weights).sum() for part in losses.parts.values()])
    loss = parts.sum() / objective.count(terms.batch)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.item(), gradient


def compare_losses(work: Path) -> list[dict[str, Any]]:
    """Loss and largest gradient entry of both, and how far apart they are."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "models"))
    from tiny_causal import build
    from trl_peer import dpo_loss, given_batch, grpo_loss, make_dpo_trainer, make_trainer

    folder = build(work / "tiny")
    trainer = make_trainer(work / "losses", folder, one_digit_sums(), varied_reward)
    batch, log_prob, reference = given_batch(PROMPTS * COMPLETIONS, TOKENS)
    leaf, rows = log_prob.clone().requires_grad_(), []
    levels: tuple[Any, ...] = ("token", "sequence")
    for name, level, beta in itertools.product(LOSS_TYPES, levels, (0.0, 0.04)):
        theirs = grpo_loss(trainer, batch, log_prob, reference, name, level, beta)
        kl = KlConfig(weight=beta, scaling="k3")
        config = GrpoConfig(type="grpo", importance_sampling_level=level, loss_type=LOSS_TYPES[name], kl=kl)
        own = our_loss(Grpo(config), GivenTerms(batch, batch.completions, leaf, reference), leaf)
        rows.append(_row(f"{name}, {level} ratio, beta {beta}", own, theirs))
    both, half = batch.completions, torch.arange(len(batch)).chunk(2)
    pairs = Pairs(chosen=both.select(half[0]), rejected=both.select(half[1]))
    for beta in (0.1, 0.5):
        theirs = dpo_loss(make_dpo_trainer(work / "dpo", folder, beta), both.mask, log_prob, reference)
        of_pairs = replace(batch.select(half[0]), samples=pairs)
        masked = leaf * both.mask  # as replay gives them
        own = our_loss(
            Dpo(DpoConfig(type="dpo", beta=beta)), GivenTerms(of_pairs, both, masked, reference * both.mask), leaf
        )
        rows.append(_row(f"DPO, beta {beta}", own, theirs))
    return rows


def _row(name: str, own: tuple[float, Tensor], theirs: tuple[float, Tensor]) -> dict[str, Any]:
    gap, largest = (own[1] - theirs[1]).abs().max().item(), theirs[1].abs().max().item()
    return {"loss": name, "ours": own[0], "TRL": theirs[0], "gradient": largest, "gradient_difference": gap}


# --- speed and memory ------------------------------------------------------------------------------------------------


def write_prompts(file: Path, prompts: Sequence[Prompt]) -> Path:
    rows = ({"id": prompt.id, "text": prompt.text, "facts": dict(prompt.facts)} for prompt in prompts)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def make_recipe(work: Path, reward: str, **train: Any) -> Recipe:
    """`plaudit align` as TRL's GRPOTrainer is set up below."""
    train_file = write_prompts(work / "train.jsonl", one_digit_sums())
    heldout = write_prompts(work / "heldout.jsonl", one_digit_sums(heldout=True))
    tokens = {"type": "tokens", "max_new_tokens": TOKENS}
    size = {"prompts_per_step": PROMPTS, "samples_per_prompt": COMPLETIONS, "micro_batch": PROMPTS * COMPLETIONS}
    settings: dict[str, Any] = {
        "model": {"type": "transformers", "path": str(ensure(MODEL)), "lora": None},
        "prompts": {"type": "file", "train": str(train_file), "heldout": str(heldout)},
        "rewards": {"reward": {"type": reward}},
        "sampler": tokens,
        "objective": {"type": "grpo", "loss_type": "dapo"},
        "shaping": {"clip": None},
        "train": {**size, "lr": RATE, "betas": [0.9, 0.999], "grad_clip": 1.0, **train},
        "evaluate": {"reward": {"type": "smollm2:says_the_sum"}, "sampler": {**tokens, "temperature": 0}},
    }
    return Recipe.model_validate(settings)


class Ours:
    """Steps of `plaudit align`."""

    def __init__(self, work: Path, steps: int) -> None:
        self.setup: Setup = prepare(make_recipe(work, "smollm2:varied_reward", steps=steps))
        self.model, self.progress = self.setup.policy.model, Progress()
        self.end_ids = self.model.end_ids  # type: ignore[attr-defined]

    def force_length(self, forced: bool) -> None:
        self.model.end_ids = frozenset({-1}) if forced else self.end_ids  # type: ignore[attr-defined]

    def step(self) -> dict[str, float]:
        cpu = time.process_time()
        metrics, timing = _step(self.setup, self.progress)
        cpu = time.process_time() - cpu
        assert metrics["frac_reward_zero_std"] == 0, "a group without contrast would be skipped"
        return {
            "step": timing["timing_s/step"],
            "draw": timing["timing_s/rollout"],
            "learn": timing["timing_s/learn"],
            "cpu": cpu,
            "length": float(metrics["completions/mean_length"] or 0),
        }


def compare_speed(work: Path, steps: int, checkpointing: bool) -> dict[str, Any]:
    from trl_peer import run_trl

    found: dict[str, Any] = {}
    ours = Ours(work, steps=10 * (steps + 1))
    for mode in ("forced", "natural"):
        own: list[dict[str, float]] = []
        ours.force_length(mode == "forced")
        theirs = run_trl(
            work / mode,
            ensure(MODEL),
            one_digit_sums(),
            varied_reward,
            steps=steps + 1,
            forced=mode == "forced",
            checkpointing=checkpointing,
            between=lambda own=own: own.append(ours.step()),
        )
        own, theirs = own[1:], theirs[1:]  # the first step allocates
        found[mode] = {
            "ours": {key: statistics.median(row[key] for row in own) for key in own[0]},
            "TRL": {key: statistics.median(row[key] for row in theirs) for key in theirs[0]},
            "ratios": [round(a["step"] / b["step"], 3) for a, b in zip(own, theirs, strict=True)],
            "cpu_ratios": [round(a["cpu"] / b["cpu"], 3) for a, b in zip(own, theirs, strict=True)],
        }
    return found


def peak_gib(who: str, work: Path, checkpointing: bool) -> float:
    """Peak resident memory of two forced steps; called in a process of its own."""
    if who == "ours":
        ours = Ours(work, steps=2)
        ours.force_length(True)
        for _ in range(2):
            ours.step()
    else:
        from trl_peer import run_trl

        run_trl(
            work, ensure(MODEL), one_digit_sums(), varied_reward, steps=2, forced=True, checkpointing=checkpointing,
            between=lambda: None,
        )  # fmt: skip
    # Not `ru_maxrss`, which a new process takes over from the one that started it.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 2**20


def compare_memory(arguments: argparse.Namespace) -> dict[str, float]:
    found = {}
    for who in ("ours", "TRL"):
        command = [sys.executable, __file__, "--peak", who, "--threads", str(arguments.threads)]
        command += ["--checkpointing"] if arguments.checkpointing else []
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[who] = float(done.stdout.split()[-1])
    return found


# --- learning --------------------------------------------------------------------------------------------------------


def learn(work: Path, minutes: float, seed: int) -> dict[str, Any]:
    """8 completions of 4 prompts a step; the whole held-out set, greedily, before and after."""
    size = {"prompts_per_step": 4, "samples_per_prompt": 8, "micro_batch": 32, "lr": 1e-5}
    recipe = make_recipe(work, "smollm2:sum_reward", minutes=minutes, **size)
    quiet = {"evaluate": {"every": 20}, "run": {"folder": str(work), "name": f"seed{seed}", "seed": seed}}
    quiet["run"]["save_every"] = 10_000
    return dict(align(load([recipe.model_dump(), quiet]), overwrite=True, display=PlainDisplay()).summary)


# --- report ----------------------------------------------------------------------------------------------------------


def print_losses(rows: Sequence[dict[str, Any]]) -> None:
    print(f"\n{'loss':<34} ours        TRL         difference  gradient difference (largest entry)")
    for row in rows:
        print(
            f"{row['loss']:<34} {row['ours']:+.7f}  {row['TRL']:+.7f}  {abs(row['ours'] - row['TRL']):.1e}"
            f"     {row['gradient_difference']:.1e} ({row['gradient']:.1e})"
        )
    worst = max(max(abs(row["ours"] - row["TRL"]), row["gradient_difference"]) for row in rows)
    print(f"largest difference {worst:.1e} (allowed 1e-5): {'ok' if worst <= 1e-5 else 'FAILED'}")


def print_speed(found: dict[str, Any]) -> None:
    for mode, row in found.items():
        for name, ratios in (("wall clock", row["ratios"]), ("CPU time", row["cpu_ratios"])):
            print(
                f"{mode} lengths, {name}: ours / TRL {statistics.median(ratios):.3f} (aim <= 0.7), median of {ratios}"
            )
        for who in ("ours", "TRL"):
            times = row[who]
            print(
                f"  {who:<5} step {times['step']:6.2f} s: drawing {times['draw']:.2f}, learning {times['learn']:.2f};"
                f" {times['cpu']:.2f} s of CPU time; {times['length']:.1f} tokens a completion"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts: dict[str, Callable[[], None]] = {
        "losses": lambda: print_losses(compare_losses(work)),
        "speed": lambda: print_speed(compare_speed(work, arguments.steps, arguments.checkpointing)),
        "memory": lambda: print(f"\npeak memory in GiB: {compare_memory(arguments)}"),
        "learn": lambda: [print(json.dumps(learn(work, arguments.minutes, seed))) for seed in arguments.seeds],  # type: ignore[func-returns-value]
    }
    parser.add_argument("--parts", nargs="+", choices=parts, default=["losses", "speed", "memory"])
    parser.add_argument("--steps", type=int, default=5, help="measured steps of each, after one that is not")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checkpointing", action="store_true", help="leave TRL's gradient checkpointing on")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--peak", choices=("ours", "TRL"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", category=FutureWarning)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        if arguments.peak:
            print(peak_gib(arguments.peak, work, arguments.checkpointing))
            return
        for part in arguments.parts:
            parts[part]()


if __name__ == "__main__":
    main()
