"""What the lab's language network does on held-out problems: `python -m plaudit.builds.sums_report`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from plaudit.data.prompt import Prompt
from plaudit.lab.sums.check import Reading, last_number, read_facts
from plaudit.lab.sums.grammar import CATEGORIES, MAX_COMPLETION, evaluation_prompts
from plaudit.lab.sums.traces import STYLES, style_of
from plaudit.models.lab_text import LabTokenModel
from plaudit.models.tokens import TokenModel
from plaudit.recipe.sampling import TokenSampling
from plaudit.sampling.noise import numbered_keys
from plaudit.sampling.tokens import draw_completions

QUANTILES = (5, 25, 50, 75, 95)
CHUNK = 256  # problems drawn together
DRAWN = -3  # the step of their noise, which no run draws with


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A completion, read."""

    prompt: Prompt
    text: str
    reading: Reading


def attempts(model: TokenModel, prompts: Sequence[Prompt], *, temperature: float, seed: int = 0) -> list[Attempt]:
    """One completion of every problem, read; greedy at temperature 0."""
    sampling = TokenSampling(type="tokens", max_new_tokens=MAX_COMPLETION, temperature=temperature)
    found = []
    for start in range(0, len(prompts), CHUNK):
        chunk = prompts[start : start + CHUNK]
        keys = numbered_keys(chunk, seed=seed, step=DRAWN)
        completions = draw_completions(model, model.encode(chunk), sampling, keys)
        for prompt, ids in zip(chunk, completions.rows(), strict=True):
            text = model.decode(ids)
            found.append(Attempt(prompt=prompt, text=text, reading=read_facts(text, prompt.facts)))
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


def table(model: TokenModel, count: int = 1_024, seed: int = 0) -> dict[str, dict[str, float]]:
    """Rows by decoding, category and style, on held-out problems; styles and categories are of the sampled attempts."""
    prompts = evaluation_prompts("heldout", count)
    sampled = attempts(model, prompts, temperature=1.0, seed=seed)
    groups = {"sampled": sampled, "greedy": attempts(model, prompts, temperature=0.0)}
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
    for name, row in table(LabTokenModel(*sys.argv[1:2])).items():
        print(f"{name:18}" + "".join(f"{row.get(column, float('nan')):12.3f}" for column in columns))


if __name__ == "__main__":
    main()
