"""Search of token models: `python benchmarks/search_tokens.py [--parts bigram lister sums smollm2] [--seeds 0 1 2]`.

bigram: SMC decoding (S094) on a language of two words whose every text can be written down: how far the law of what a search
    returns is from model probability times exp(3 reward), by network calls, beside best-of-N, whose law is exact.
lister: SDR's best-of-8 without a reference (S079). A small network, trained here, lists the objects of a scene in any order;
    some of its texts are careless, and then omit, invent or garble (circle a red). Score: how near every item is to a bank
    of items of training texts. What is invented is in the bank too, and a garbled object costs 1e-5 to 1e-4 with the lab's
    encoder; clean texts tie. Truth: F1 of the set. Best-of-8, the same with the worst dropped on the way, and best-of-4.
sums: SMC decoding on lab/sums with a verifier of beginnings, the share of steps that hold; best-of-N gets as many network
    calls on every prompt. Truth: the right answer.
smollm2: S094's lexical constraint (the share of four given words that a text has) on SmolLM2-135M, as in `sums`. Needs
    `benchmarks/smollm2.py`; minutes.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the bigram is that of the tests

from tests.reference.bigram import Bigram, every_text, tilted, total_variation

from plaudit.data.prompt import Prompt
from plaudit.lab.language import KeyValues, LanguageNetwork, Shape, initialise
from plaudit.lab.scenes.grammar import COLORS, SHAPES, noun
from plaudit.lab.sums.check import read_facts
from plaudit.lab.sums.grammar import evaluation_prompts
from plaudit.models.lab_text import LabTokenModel
from plaudit.recipe.sampling import TokenSampling
from plaudit.rewards.calling.call import Caller
from plaudit.rewards.encoders.sets import BankSimilarity
from plaudit.rewards.load import Reward
from plaudit.rewards.rules.sums import sum_steps
from plaudit.rewards.suite import Suite, make_suite
from plaudit.sampling.tokens import causal
from plaudit.search import weights as smc
from plaudit.search.best_of_n import BestOfN
from plaudit.search.budget import Budget
from plaudit.search.run import run_search
from plaudit.search.text.smc import TokenSmc
from plaudit.search.text.streaming import Streaming
from plaudit.search.text.task import TokenTask

NO_LIMIT = Budget(network_calls=10**9)
ROUND = 8  # plain texts of a prompt that are drawn together
VARIANTS = {
    "no moves": {"moves": 0},
    "moves, exact": {"moves": 2, "movers": "all", "below": None},
    "moves, as published": {"moves": 2},
}


def suite_of(function: Callable, name: str) -> Suite:
    return make_suite([Reward(name=name, caller=Caller(name, function))])


def spread(values: Sequence[float]) -> str:
    """Mean and, of several seeds, the standard deviation."""
    mean = f"{statistics.fmean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


def heading(*columns: str) -> None:
    print("\n| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))


def row(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


# --- a language that can be written down -----------------------------------------------------------------------------

LONGEST, ALPHA, SEARCHES = 5, 3.0, 200


def turns(text: str) -> float:
    return sum(a != b for a, b in itertools.pairwise(text)) / 2 - 0.1 * text.count("a")


def best_of_n_law(model: Bigram, n: int) -> dict[tuple[int, ...], float]:
    """The best of n independent texts; of equally good ones the first."""
    texts, mass = every_text(model.table, LONGEST), Counter[float]()
    for words, p in texts.items():
        mass[round(turns(model.decode(words)), 9)] += p
    below, chance = 0.0, {}
    for level in sorted(mass):
        chance[level] = ((below + mass[level]) ** n - below**n) / mass[level]
        below += mass[level]
    return {words: p * chance[round(turns(model.decode(words)), 9)] for words, p in texts.items()}


def compare_bigram(seeds: Sequence[int]) -> None:
    exact_model = Bigram()
    texts = every_text(exact_model.table, LONGEST)
    target = tilted(texts, lambda words: math.exp(ALPHA * turns(exact_model.decode(words))))
    goal = sum(p * turns(exact_model.decode(words)) for words, p in target.items())
    each = sum(p * len(words) for words, p in texts.items())
    print(f"\nbigram: {SEARCHES} searches a seed, {len(texts)} texts; the target's mean reward is {goal:.3f}")
    heading(
        "method", "N", "calls", "TV of what it returns", "its mean reward", "best-of-N at these calls: TV", "reward"
    )
    for name, options in VARIANTS.items():
        for N in (4, 16, 64, 256):
            found = [bigram_search(TokenSmc(particles=N, alpha=ALPHA, blocks=5, **options), seed) for seed in seeds]
            calls = statistics.fmean(one[1] for one in found)
            peer = best_of_n_law(exact_model, max(round(calls / each), 1))
            row(
                name,
                N,
                f"{calls:.0f}",
                spread([total_variation(law, target) for law, _ in found]),
                spread([sum(p * turns(exact_model.decode(words)) for words, p in law.items()) for law, _ in found]),
                f"{total_variation(peer, target):.3f}",
                f"{sum(p * turns(exact_model.decode(words)) for words, p in peer.items()):.3f}",
            )


def bigram_search(method: TokenSmc, seed: int) -> tuple[dict[tuple[int, ...], float], float]:
    """The law of a particle drawn by its weight, over many searches, and the network calls of one."""
    asked = [Prompt(id=str(i), text="p") for i in range(SEARCHES)]
    sampling = TokenSampling(type="tokens", max_new_tokens=LONGEST, tile=100_000)
    judge = suite_of(lambda prompts, outputs: [turns(text) for text in outputs], "turns")
    task = TokenTask(Bigram(), asked, judge, NO_LIMIT, sampling=sampling, seed=seed)
    *_, (particles, _) = method.stages(task)
    law: Counter = Counter()
    weight = smc.normalised(particles.log_weight).flatten() / SEARCHES
    rows = particles.rows
    for ids, n, w in zip(rows.ids.tolist(), rows.length.tolist(), weight.tolist(), strict=True):
        law[tuple(ids[:n])] += w
    return dict(law), task.ledger.total.network_calls / SEARCHES


# --- lists of objects ------------------------------------------------------------------------------------------------

ITEMS = tuple(noun(1, pair) for pair in itertools.product(COLORS, SHAPES))
GARBLED = {item: " ".join((item.split()[2], item.split()[0], item.split()[1])) for item in ITEMS}  # circle a red
WORDS = ("<pad>", "<end>", " ;", " :", *ITEMS, *GARBLED.values())
CARELESS = (0.4, 0.8)  # shares of the texts; the chances below are those of an object, careful and careless
OMIT, INVENT, GARBLE = (0.03, 0.20), (0.02, 0.15), (0.02, 0.30)
LIST_STEPS, LIST_BATCH, LIST_LENGTH = 700, 64, 20


class Lister:
    """An object is one token, right or garbled, and what ends it another."""

    pad_id, end_ids, context, packs, lora_targets = 0, frozenset({1}), None, True, ()

    def __init__(self, seed: int) -> None:
        shape = Shape(vocabulary=len(WORDS), width=64, inner=128, layers=2, heads=4)
        self.network = initialise(LanguageNetwork(shape), torch.Generator().manual_seed(seed))
        with torch.no_grad():  # 0.02 is for wide networks
            for parameter in self.network.parameters():
                parameter.mul_(5.0 if parameter.ndim > 1 else 1.0)

    def encode(self, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
        return [self.prompt_ids(prompt.facts["objects"]) for prompt in prompts]

    def prompt_ids(self, objects: Sequence[str]) -> tuple[int, ...]:
        return (*map(WORDS.index, objects), WORDS.index(" :"))

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(WORDS[i] for i in ids if i > 1)

    def new_cache(self) -> KeyValues:
        return KeyValues()

    def logits(self, ids, positions, visible, *, cache=None, keep=None) -> Tensor:
        return self.network(ids, positions, visible, cache, keep)


def scene(rng: np.random.Generator) -> list[str]:
    return [ITEMS[i] for i in rng.permutation(len(ITEMS))[: rng.integers(6, 10)]]


def listing(objects: Sequence[str], share: float, rng: np.random.Generator) -> list[int]:
    """A text as the network learns it: in any order, careful or (a `share` of them) careless throughout."""
    careless, ids = int(rng.random() < share), list[int]()
    for i in rng.permutation(len(objects)):
        omit, invent, garble = rng.random(3) < [OMIT[careless], INVENT[careless], GARBLE[careless]]
        item = str(rng.choice(ITEMS)) if invent else objects[i]
        ids += [] if omit else [WORDS.index(GARBLED[item] if garble else item), WORDS.index(" ;")]
    return [*ids, 1]


def train_lister(seed: int, share: float) -> Lister:
    model, rng = Lister(seed), np.random.default_rng([seed, 1])
    optimizer = torch.optim.AdamW(model.network.parameters(), lr=4e-3, betas=(0.9, 0.95), weight_decay=0.01)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 50, 1.0) * (1 - step / LIST_STEPS)
    )
    for _ in range(LIST_STEPS):
        rows = []
        for _ in range(LIST_BATCH):
            objects = scene(rng)
            prompt = model.prompt_ids(objects)
            rows.append((len(prompt), (*prompt, *listing(objects, share, rng))))
        width = max(len(ids) for _, ids in rows)
        ids = torch.tensor([[*ids, *[0] * (width - len(ids))] for _, ids in rows])
        column = torch.arange(width)
        valid = column < torch.tensor([len(ids) for _, ids in rows])[:, None]
        learned = valid & (column >= torch.tensor([begin for begin, _ in rows])[:, None])
        logits = model.network(ids, column.expand_as(ids), causal(valid))[:, :-1]
        loss = cross_entropy(logits[learned[:, 1:]], ids[:, 1:][learned[:, 1:]])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.network.parameters(), 1.0)
        optimizer.step()
        rate.step()
    model.network.eval()
    return model


def set_f1(text: str, objects: Sequence[str]) -> float:
    listed = {piece.strip() for piece in text.split(";") if piece.strip()}
    right = len(listed & set(objects))
    return 2 * right / (len(listed) + len(set(objects)))


def compare_lister(seeds: Sequence[int]) -> None:
    for share in CARELESS:
        compare_listers(seeds, share)


def compare_listers(seeds: Sequence[int], share: float, count: int = 100) -> None:
    methods = {
        "random": BestOfN(candidates=1),
        "best-of-8": BestOfN(candidates=8),
        "best-of-8, streaming": Streaming(candidates=8),
        "best-of-4": BestOfN(candidates=4),
    }
    table: dict[str, list[tuple[float, float, float]]] = {name: [] for name in methods}
    for seed in seeds:
        started = time.perf_counter()
        model, rng = train_lister(seed, share), np.random.default_rng([seed, 2])
        seconds = time.perf_counter() - started
        bank = [item for _ in range(60) for item in scene(rng)]  # of training texts without mistakes
        judge = suite_of(BankSimilarity(bank, encoder="lab"), "bank")
        scenes = [scene(rng) for _ in range(count)]
        asked = [Prompt(id=str(i), text="list", facts={"objects": objects}) for i, objects in enumerate(scenes)]
        for name, method in methods.items():
            sampling = TokenSampling(type="tokens", max_new_tokens=LIST_LENGTH)
            task = TokenTask(model, asked, judge, NO_LIMIT, sampling=sampling, seed=seed)
            with torch.no_grad():
                result = run_search(task, method)
            f1 = [set_f1(text, objects) for text, objects in zip(result.outputs, scenes, strict=True)]
            calls = task.ledger.total.network_calls / count
            table[name].append((float(result.scores.mean()), statistics.fmean(f1), calls))
        print(f"lister: seed {seed} trained in {seconds:.0f} s", file=sys.stderr)
    print(f"\nlister: {share:.0%} of the texts learnt from are careless; {count} scenes a seed")
    heading("method", "bank score", "set F1", "network calls", "of best-of-8's")
    for name, rows in table.items():
        score, f1, calls = zip(*rows, strict=True)
        part = [own[2] / full[2] for own, full in zip(rows, table["best-of-8"], strict=True)]
        row(name, f"{statistics.fmean(score):.1e}", spread(f1), f"{statistics.fmean(calls):.0f}", spread(part))


# --- the same calls for SMC and best-of-N ----------------------------------------------------------------------------


def best_with_calls(task: TokenTask, calls: Sequence[int]) -> tuple[list[str], list[str]]:
    """The best plain text of every prompt among as many as these network calls pay for (a text of n tokens takes n), and
    the first of them. `calls` are at least those of one text."""
    P = len(calls)
    left, best = list(calls), [(-math.inf, "")] * P
    first: list[str] = []
    for start in itertools.count(0, ROUND):
        rows = task.drawn(torch.arange(P).repeat(ROUND), torch.arange(start, start + ROUND).repeat_interleave(P))
        texts = task.texts(rows)
        first = first or texts[:P]
        scores = task.score(texts, rows.prompt).nan_to_num(nan=-math.inf).tolist()
        for p, length, text, score in zip(rows.prompt.tolist(), rows.length.tolist(), texts, scores, strict=True):
            left[p] -= length
            if left[p] >= 0 and (score > best[p][0] or not best[p][1]):
                best[p] = (score, text)
        if max(left) <= 0:
            return [text for _, text in best], first


Truth = Callable[[str, Prompt], float]


def compare_methods(
    make: Callable[[int], TokenTask], truth: Truth, methods: dict[str, TokenSmc], seeds: Sequence[int]
) -> None:
    heading(
        "method", "network calls", "reward calls", "truth", "reward", "best-of-N, same calls: truth", "reward", "plain"
    )
    for name, method in methods.items():
        columns = list(zip(*(compared(make, truth, method, seed) for seed in seeds), strict=True))
        calls, rewards = (f"{statistics.fmean(column):.0f}" for column in columns[:2])
        row(name, calls, rewards, *map(spread, columns[2:]))


def compared(make: Callable[[int], TokenTask], truth: Truth, method: TokenSmc, seed: int) -> tuple[float, ...]:
    """Network and reward calls of one pass of the particles, truth and reward of its best texts and of those of best-of-N
    at the same network calls, and the truth of plain texts."""
    task = make(seed)
    best = one_pass(task, method)
    calls, rewards = task.ledger.counts["network_calls"].tolist(), task.ledger.counts["reward_calls"].tolist()
    peer, plain = best_with_calls(make(seed), calls)
    right = [statistics.fmean(map(truth, own, task.prompts)) for own in (best, peer, plain)]
    score = [float(task.score(own, torch.arange(len(own))).nanmean()) for own in (best, peer)]
    return statistics.fmean(calls), statistics.fmean(rewards), right[0], score[0], right[1], score[1], right[2]


def one_pass(task: TokenTask, method: TokenSmc) -> list[str]:
    """The best text of every prompt: the plain sample, or what one pass of the particles finished."""
    best: dict[int, tuple[float, str]] = {}
    for found in (task.plain(), *method.one_pass(task)):
        for p, text, score in zip(found.prompt.tolist(), found.outputs, found.score.tolist(), strict=True):
            value = -math.inf if math.isnan(score) else score
            if p not in best or value > best[p][0]:
                best[p] = (value, text)
    return [best[p][1] for p in range(len(task.prompts))]


# --- sums ------------------------------------------------------------------------------------------------------------


def compare_sums(seeds: Sequence[int], count: int = 48) -> None:
    model, asked = LabTokenModel(), evaluation_prompts("heldout", count)
    sampling = TokenSampling(type="tokens", max_new_tokens=96, tile=256)

    def make(seed: int) -> TokenTask:
        judge = suite_of(sum_steps, "steps")
        return TokenTask(model, asked, judge, NO_LIMIT, sampling=sampling, seed=seed)

    common = {"boundary": "[;:?#]", "blocks": 10}
    methods = {name: TokenSmc(particles=8, **common, **options) for name, options in VARIANTS.items()}
    methods["as published, 4 blocks of 24 tokens"] = TokenSmc(particles=8)
    print(f"\nsums: {count} problems a seed, one pass of 8 particles, a block for every step")
    compare_methods(make, lambda text, prompt: float(read_facts(text, prompt.facts).correct), methods, seeds)


# --- SmolLM2 ---------------------------------------------------------------------------------------------------------

CONSTRAINTS = (
    ("river", "lantern", "bridge", "snow"),
    ("doctor", "violin", "market", "storm"),
    ("kitchen", "mirror", "winter", "train"),
    ("forest", "letter", "candle", "horse"),
)


def has_words(prompts: Sequence[str], outputs: Sequence[str], facts: Sequence[dict]) -> list[float]:
    return [
        statistics.fmean(word in text.lower() for word in own["words"])
        for text, own in zip(outputs, facts, strict=True)
    ]


def compare_smollm2(seeds: Sequence[int], particles: int = 8, tokens: int = 32) -> None:
    from smollm2 import ensure

    from plaudit.models.causal import CausalTokenModel
    from plaudit.recipe.models import TransformersModel

    model = CausalTokenModel.from_config(TransformersModel(type="transformers", path=str(ensure()), lora=None))
    asked = [
        Prompt(
            id="-".join(words),
            text=f"Write a very short story with a {words[0]} and a {words[1]}.",
            facts={"words": words},
        )
        for words in CONSTRAINTS
    ]
    sampling = TokenSampling(type="tokens", max_new_tokens=tokens, tile=64)

    def make(seed: int) -> TokenTask:
        return TokenTask(model, asked, suite_of(has_words, "words"), NO_LIMIT, sampling=sampling, seed=seed)

    methods = {name: TokenSmc(particles=particles, alpha=8.0, **options) for name, options in VARIANTS.items()}
    print(f"\nsmollm2: {len(asked)} prompts a seed, {particles} particles of {tokens} tokens, one pass")
    compare_methods(make, lambda text, prompt: has_words([""], [text], [dict(prompt.facts)])[0], methods, seeds)


def main() -> None:
    parts = {"bigram": compare_bigram, "lister": compare_lister, "sums": compare_sums, "smollm2": compare_smollm2}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=parts, default=["bigram", "lister", "sums"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for part in options.parts:
        started = time.perf_counter()
        with torch.set_grad_enabled(part == "lister"):
            parts[part](options.seeds)
        print(f"{part}: {time.perf_counter() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
