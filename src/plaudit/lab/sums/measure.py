"""What the lab's language network does on held-out problems: `python -m plaudit.lab.sums.measure`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from plaudit.data.prompt import Prompt
from plaudit.lab.language import KeyValues, LanguageNetwork, load_language
from plaudit.lab.sums.check import Reading, last_number, read_facts
from plaudit.lab.sums.grammar import CATEGORIES, END_ID, MAX_COMPLETION, PAD_ID, decode, encode, evaluation_prompts
from plaudit.lab.sums.traces import STYLES, style_of
from plaudit.sampling.noise import SampleKey, uniform

QUANTILES = (5, 25, 50, 75, 95)


@torch.no_grad()
def complete(
    network: LanguageNetwork,
    prompts: Sequence[Prompt],
    *,
    temperature: float,
    seed: int = 0,
    limit: int = MAX_COMPLETION,
) -> list[str]:
    """One completion per prompt, sampled (Gumbel-max over the counter-based noise), or greedy at temperature 0."""
    rows = [encode(prompt.text) for prompt in prompts]
    N, P = len(rows), max(map(len, rows))
    ids = torch.tensor([(PAD_ID,) * (P - len(row)) + row for row in rows])
    real = ids != PAD_ID
    positions = (real.cumsum(1) - 1).clamp(min=0)
    keys = [SampleKey(seed=seed, step=0, prompt=prompt.id, index=i) for i, prompt in enumerate(prompts)]
    numbers = uniform(keys, "lab language", limit * len(network.lm_head.weight)).clamp(1e-7, 1 - 1e-7)
    gumbel = -(-numbers.log()).log().view(N, limit, -1)
    cache, drawn = KeyValues(), []
    logits = network(ids, positions, real[:, None] & torch.ones(P, P, dtype=torch.bool).tril(), cache)[:, -1]
    done = torch.zeros(N, dtype=torch.bool)
    for place in range(limit):
        token = (logits + temperature * gumbel[:, place]).argmax(-1).masked_fill(done, PAD_ID)
        drawn.append(token)
        done |= token == END_ID
        if done.all():
            break
        real = torch.cat([real, torch.ones(N, 1, dtype=torch.bool)], dim=1)
        position = (positions[:, -1] + 1 + place)[:, None]
        logits = network(token[:, None], position, real[:, None], cache)[:, -1]
    return [decode(row) for row in torch.stack(drawn, dim=1).tolist()]


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A completion, read."""

    prompt: Prompt
    text: str
    reading: Reading


def attempts(
    network: LanguageNetwork, prompts: Sequence[Prompt], *, temperature: float, seed: int = 0
) -> list[Attempt]:
    """Completions of these problems, read; 256 at a time."""
    found = []
    for start in range(0, len(prompts), 256):
        chunk = prompts[start : start + 256]
        texts = complete(network, chunk, temperature=temperature, seed=seed + start)
        found += [Attempt(prompt=p, text=t, reading=read_facts(t, p.facts)) for p, t in zip(chunk, texts, strict=True)]
    return found


def summary(found: Sequence[Attempt]) -> dict[str, float]:
    """Shares and lengths of some attempts: right and marked, marked, last number right; lengths in characters, those of
    right attempts as quantiles, absent where there are none."""
    measures = {
        "count": len(found),
        "pass": float(np.mean([a.reading.correct for a in found])),
        "well_formed": float(np.mean([a.reading.well_formed for a in found])),
        "answer": float(np.mean([last_number(a.text) == a.prompt.facts["answer"] for a in found])),
        "length": float(np.mean([len(a.text) for a in found])),
    }
    right = [len(a.text) for a in found if a.reading.correct]
    if right:
        measures |= {f"right_q{q:02}": float(np.quantile(right, q / 100)) for q in QUANTILES}
    return measures


def table(network: LanguageNetwork, count: int = 1_024, seed: int = 0) -> dict[str, dict[str, float]]:
    """Rows by decoding, category and style, on held-out problems; styles and categories are of the sampled attempts."""
    prompts = evaluation_prompts("heldout", count)
    sampled = attempts(network, prompts, temperature=1.0, seed=seed)
    groups = {"sampled": sampled, "greedy": attempts(network, prompts, temperature=0.0)}
    by: Mapping[str, Callable[[Attempt], str]] = {
        "category": lambda a: a.prompt.facts["category"],
        "style": lambda a: style_of(a.text),
    }
    for kind, names in (("category", CATEGORIES), ("style", tuple(STYLES))):
        groups |= {f"{kind} {name}": [a for a in sampled if by[kind](a) == name] for name in names}
    return {name: summary(found) for name, found in groups.items() if found}


def main() -> None:
    columns = ("count", "pass", "well_formed", "answer", "length", *(f"right_q{q:02}" for q in QUANTILES))
    print(f"{'':18}" + "".join(f"{column:>12}" for column in columns))
    for name, row in table(load_language()).items():
        print(f"{name:18}" + "".join(f"{row.get(column, float('nan')):12.3f}" for column in columns))


if __name__ == "__main__":
    main()
