"""One of several processes that train every kind of recipe together: `torchrun -m tests.train.ranks_worker FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tests.reference.toys import LORA
from tests.train.test_conformance import ROWS, Row, recipe, toy_recipe
from tests.train.test_turns import LEARNS

from plaudit.recipe.schema import Recipe
from plaudit.train import loop

TAUGHT = {**LEARNS, "turns": {"order": [{"train": "shade"}, {"train": "policy"}]}}
KINDS = {
    **ROWS,
    "nft on adapters": Row(base=toy_recipe, layers=[LORA], learning={}),
    "grpo with a reward that learns": Row(base=toy_recipe, layers=[TAUGHT], learning={}),
}
SMALL = {"train": {"micro_batch": 2, "steps": 2}}  # so that there is something to share
PIECES = {"sampler": {"tile": 3}, "evaluate": {"sampler": {"tile": 2}}}


def shared(name: str, folder: Path, *layers: dict) -> Recipe:
    if name not in ROWS:
        return toy_recipe(folder, *KINDS[name].layers, SMALL, PIECES, *layers)
    return recipe(name, folder, SMALL, PIECES, *layers)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for name in KINDS:
        loop.train(shared(name, folder / name))
        loop.train(shared(name, folder / "short" / name, {"train": {"steps": 1}}))
        loop.train(shared(name, folder / "long" / name), resume=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
