"""Length rewards on a toy that can overthink: `python benchmarks/length_rewards.py [--seeds 5] [--steps 120] [--guess 0.05]`.

A tabular policy writes `um` (filler), steps or an answer, knowing the problem's level and the steps done. A level needs 2, 3,
5 or 7 steps and then succeeds with probability 0.98, 0.9, 0.7 or 0.45; an answer before that succeeds with 0.05. Steps beyond
the needed ones are re-checks. The start writes filler and re-checks; past 32 tokens an output is cut off and wrong. Every
method is the same on-policy gradient (Adam, tokens of a batch weigh equally) under another reward or credit; the columns are
those of 4000 fresh samples, mean and standard deviation over seeds. `hardest` is the last level's accuracy, `rechecks` the
steps beyond those needed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.rewards.base import Score
from plaudit.rewards.calling.call import Caller
from plaudit.rewards.calling.request import make_request
from plaudit.rewards.load import find_reward
from plaudit.shaping.credit import group_advantage
from plaudit.shaping.dense import position_credit
from plaudit.shaping.lengths import decoupled_credit
from plaudit.shaping.mix import mixed_advantage

NEEDED, CEILING = np.array([2, 3, 5, 7]), np.array([0.98, 0.9, 0.7, 0.45])
FILLER, STEP, ANSWER = range(3)
LIMIT, STATES = 32, 10  # tokens; steps done, the last one standing for all further
PROBLEMS_PER_LEVEL, GROUP = 4, 8
LEVELS = np.repeat(np.arange(4), PROBLEMS_PER_LEVEL)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Outputs of `level [B]`: tokens, states and mask `[B, T]`, rightness `[B]`."""

    level: np.ndarray
    tokens: np.ndarray
    states: np.ndarray
    mask: np.ndarray
    right: np.ndarray

    @property
    def length(self) -> np.ndarray:
        return self.mask.sum(1)


Credit = Callable[["Batch", Tensor, int], Tensor]
"""What each token's log-probability is multiplied by `[B, T]`, from the batch, the policy's log-probs and the step."""


def starting_logits() -> Tensor:
    """Filler at every second token, and after the last needed step four more tokens before the answer."""
    logits = torch.zeros(4, STATES, 3, dtype=torch.float64)
    logits[..., ANSWER] = -2.5
    for level, needed in enumerate(NEEDED):
        logits[level, needed:, ANSWER] = -0.5
    return logits


def draw(logits: Tensor, level: np.ndarray, rng: np.random.Generator, guess: float) -> Batch:
    chances = logits.softmax(-1).detach().numpy().cumsum(-1)
    size = len(level)
    tokens, states, mask = np.zeros((size, LIMIT), int), np.zeros((size, LIMIT), int), np.zeros((size, LIMIT), bool)
    done, alive = np.zeros(size, int), np.ones(size, bool)
    for t in range(LIMIT):
        states[:, t], mask[:, t] = np.minimum(done, STATES - 1), alive
        picked = (rng.random(size)[:, None] > chances[level, states[:, t]]).sum(1).clip(max=2)
        tokens[:, t] = picked
        done += alive & (picked == STEP)
        alive &= picked != ANSWER
    chance = np.where(done >= NEEDED[level], CEILING[level], guess)
    right = ~alive & (rng.random(size) < chance)
    return Batch(level=level, tokens=tokens, states=states, mask=mask, right=right)


def written(batch: Batch) -> list[str]:
    """The outputs as text, one word a token; the last needed step states the total, which is 7 where right."""
    texts = []
    for i, level in enumerate(batch.level):
        words, done, total = [], 0, "7" if batch.right[i] else "8"
        for token in batch.tokens[i][batch.mask[i]]:
            done += int(token == STEP)
            if token == ANSWER:
                words.append(f"</think>{total}")
            elif token == FILLER:
                words.append("um ")
            else:
                words.append("add\n" if done < NEEDED[level] else f"={total}\n" if done == NEEDED[level] else "Wait\n")
        texts.append("".join(words))
    return texts


# --- rewards and credits ---------------------------------------------------------------------------------------------


def scorer(type_: str, **arguments: Any) -> Callable[[Batch, int], list[Score]]:
    caller = Caller(type_, find_reward(type_, type_, arguments))

    def score(batch: Batch, step: int) -> list[Score]:
        prompts = [
            Prompt(
                id=str(i // GROUP),
                text="",
                facts={"correct": float(batch.right[i]), "completion_ids": [0] * int(n), "answer": "7"},
            )
            for i, n in enumerate(batch.length)
        ]
        return caller(make_request(prompts, written(batch), groups(batch).tolist(), step))

    return score


def groups(batch: Batch) -> Tensor:
    return torch.arange(len(batch.level)) // GROUP


def values(scores: list[Score]) -> Tensor:
    return torch.tensor([s.value for s in scores], dtype=torch.float64)


def right_of(batch: Batch) -> Tensor:
    return torch.from_numpy(batch.right).double()


def brief_of(batch: Batch) -> Tensor:
    return torch.from_numpy(1 - batch.length / LIMIT)


def grpo(score: Callable[[Batch, int], Tensor], std: str = "group") -> Credit:
    """A group advantage for the whole output."""

    def credit(batch: Batch, _: Tensor, step: int) -> Tensor:
        return group_advantage(score(batch, step), groups(batch), std=std).value[:, None].expand(-1, LIMIT)

    return credit


def rewarded(type_: str, std: str = "group", **arguments: Any) -> Callable[[], Credit]:
    def build() -> Credit:
        score = scorer(type_, **arguments)
        return grpo(lambda batch, step: values(score(batch, step)), std)

    return build


def decoupled_tokens() -> Credit:
    score = scorer("needed_reasoning", judge={"type": "states_answer"}, unit="words", limit=LIMIT, beta=0.1)

    def credit(batch: Batch, _: Tensor, step: int) -> Tensor:
        padded = torch.zeros(batch.mask.shape, dtype=torch.float64)
        for row, one in zip(padded, score(batch, step), strict=True):
            row[: len(one.dense)] = one.dense
        return position_credit(padded, 1.1 * right_of(batch), torch.from_numpy(batch.mask), groups(batch)).value

    return credit


def tilted(temperature: float) -> Callable[[], Credit]:
    def credit(batch: Batch, log_prob: Tensor, _: int) -> Tensor:
        length = torch.from_numpy(batch.length).double()
        mean = (log_prob * torch.from_numpy(batch.mask)).sum(1) / length
        found = decoupled_credit(mean, brief_of(batch), right_of(batch), groups(batch), temperature=temperature)
        return (found.value / length)[:, None].expand(-1, LIMIT)

    return lambda: credit


def mixed(weight: float) -> Callable[[], Credit]:
    def credit(batch: Batch, _: Tensor, __: int) -> Tensor:
        parts, weights = {"right": right_of(batch), "brief": brief_of(batch)}, {"right": 1.0, "brief": weight}
        return mixed_advantage(parts, weights, groups(batch)).value[:, None].expand(-1, LIMIT)

    return lambda: credit


def added(weight: float) -> Callable[[], Credit]:
    return lambda: grpo(lambda batch, _: right_of(batch) + weight * brief_of(batch))


def read_texts() -> list[str]:
    """What the n-gram prior has read: the start's own reasoning."""
    batch = draw(starting_logits(), LEVELS.repeat(20), np.random.default_rng(0), 0.0)
    return [text.partition("</think>")[0] for text in written(batch)]


def methods() -> dict[str, Callable[[], Credit]]:
    words = {"unit": "words"}
    uniform, learned = {"type": "uniform", "vocabulary": 5}, {"type": "ngram", "texts": read_texts()}
    finished = {"type": "regex_format", "arguments": {"pattern": r".*</think>\d"}}
    return {
        "right or wrong": lambda: grpo(lambda batch, _: right_of(batch)),
        "+ 0.5 brevity": added(0.5),
        "+ 2 brevity": added(2.0),
        "MRN, brevity 0.1": mixed(0.1),
        "MRN, brevity 1": mixed(1.0),
        "within 10 (DLER), group std": rewarded("correct_within", limit=10),
        "within 10 (DLER), pooled std": rewarded("correct_within", std="pooled", limit=10),
        "within 6/12 (DA-DLER)": rewarded("correct_within_tiers", std="pooled", short=6, long=12),
        "GRPO-lambda 0.2": rewarded("short_where_solved", share=0.2),
        "GRPO-lambda 1.0": rewarded("short_where_solved", share=1.0),
        "HAPO": rewarded("shorter_than_before"),
        "DECS": decoupled_tokens,
        "DRPO 0.1": tilted(0.1),
        "DRPO infinite": tilted(float("inf")),
        "CIB uniform, 0.02": rewarded("reasoning_nats", prior=uniform, beta=0.02),
        "CIB bigram, 0.02": rewarded("reasoning_nats", prior=learned, beta=0.02),
        "format + length (no labels)": rewarded("format_length", limit=LIMIT, format=finished, **words),
    }


# --- training --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Result:
    accuracy: float
    length: float
    hardest: float
    rechecks: float


def train(credit: Credit, steps: int, seed: int, guess: float) -> Result:
    rng, logits = np.random.default_rng(seed), starting_logits().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for step in range(steps):
        batch = draw(logits, LEVELS.repeat(GROUP), rng, guess)
        level = torch.from_numpy(batch.level)[:, None]
        chosen = logits.log_softmax(-1)[level, torch.from_numpy(batch.states), torch.from_numpy(batch.tokens)]
        worth = credit(batch, chosen.detach(), step) * torch.from_numpy(batch.mask)
        optimizer.zero_grad()
        (-(worth * chosen).sum() / batch.mask.sum()).backward()
        optimizer.step()
    return evaluate(logits, guess)


def evaluate(logits: Tensor, guess: float, samples: int = 4000) -> Result:
    batch = draw(logits, np.arange(samples) % 4, np.random.default_rng(10**6), guess)
    return Result(
        accuracy=float(batch.right.mean()),
        length=float(batch.length.mean()),
        hardest=float(batch.right[batch.level == 3].mean()),
        rechecks=float(_rechecks(batch).sum(1).mean()),
    )


def _rechecks(batch: Batch) -> np.ndarray:
    return batch.mask & (batch.tokens == STEP) & (batch.states >= NEEDED[batch.level][:, None])


def line(name: str, results: list[Result], seconds: float) -> str:
    cells = [f"{name:<28}"]
    for column in ("accuracy", "length", "hardest", "rechecks"):
        found = [getattr(result, column) for result in results]
        digits = 1 if column in ("length", "rechecks") else 3
        cells.append(f"{statistics.fmean(found):8.{digits}f} ± {statistics.pstdev(found):5.{digits}f}")
    return "".join(cells) + f"{seconds:9.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--guess", type=float, default=0.05, help="the chance that an early answer is right")
    parser.add_argument("--only", default="", help="methods whose name contains this")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    best = float(np.mean(CEILING))
    print(
        f"best accuracy {best:.3f} at length {float(np.mean(NEEDED)) + 1:.2f}; {chosen.steps} steps, {chosen.seeds} seeds"
    )
    print(f"{'':<28}{'accuracy':>16}{'length':>16}{'hardest':>16}{'rechecks':>16}{'seconds':>9}")
    print(line("start", [evaluate(starting_logits(), chosen.guess)], 0.0))
    for name, build in methods().items():
        if chosen.only in name:
            started = time.perf_counter()
            results = [train(build(), chosen.steps, seed, chosen.guess) for seed in range(chosen.seeds)]
            print(line(name, results, time.perf_counter() - started), flush=True)


if __name__ == "__main__":
    main()
