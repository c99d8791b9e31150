"""What does one more cost? Adds one of each kind in a copy of the sources and uses it: how many files of ours it touched is
counted and held against what it may cost.

    python tests/additions.py              all of them, some minutes
    python tests/additions.py world        those whose name contains the word
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHORT = (
    "--train.minutes null --train.steps 2 --train.prompts_per_step 2 --train.samples_per_prompt 2 --evaluate.final_prompts 4 "
    "--evaluate.prompts 4 --run.threads 1"
)


@dataclass(frozen=True, kw_only=True)
class Addition:
    """`files` are new ones and `rows` lines put before an anchor, below src/plaudit; `own` are the user's files beside them,
    which cost nothing of ours. `may_touch` is the most files of ours."""

    name: str
    may_touch: int
    command: str
    files: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    own: Mapping[str, str] = field(default_factory=dict)


REWARD = '''
from plaudit.rewards.base import card

@card(low=0, high=1)
def redness(prompts, outputs):
    """How red a picture is."""
    return outputs[:, 0].mean((1, 2)).tolist()
'''
OBJECTIVE = """
from plaudit.objectives.base import Losses, Objective
from plaudit.objectives.terms import FlowTerms, stratified_times
from plaudit.recipe.objectives import Needs

class Matching(Objective):
    needs = Needs(families=("flow",))

    def mask(self, batch):
        return batch.valid[:, None]

    def terms(self, policy, batch):
        return FlowTerms(policy, batch, stratified_times(batch.keys, 1, 0.0, 1.0, 1.0))

    def losses(self, terms):
        error = terms.error.unflatten(0, (len(terms.batch), 1))
        weight = terms.batch.credit.expand(error.shape).exp()
        return Losses(parts={"policy": weight * error}, weights=self.weights(terms.batch), mask=self.mask(terms.batch))
"""
METHOD = '''
from collections.abc import Iterator
from dataclasses import dataclass

from plaudit.search.base import Found, Task

@dataclass(frozen=True, kw_only=True)
class Twice:
    """Two plain samples of every prompt."""

    def run(self, task: Task) -> Iterator[Found]:
        import torch

        prompts = torch.arange(len(task.prompts))
        for number in range(2):
            yield task.sample(prompts, torch.full_like(prompts, number))
'''
KERNEL = """
import torch
from plaudit.models.flow import per_sample
from plaudit.sampling.kernels import Transition

def even(x, v, t, t_next, level):
    std = level.clamp(max=1) * torch.minimum(t_next, 1 - t_next)
    clean, noise = x - per_sample(t, x) * v, x + per_sample(1 - t, x) * v
    kept = (t_next.square() - std.square()).clamp(min=0).sqrt()
    return Transition(mean=per_sample(1 - t_next, x) * clean + per_sample(kept, x) * noise, std=std)
"""
WORLD = '''
import hashlib

import numpy as np
from plaudit.data.prompt import Prompt
from plaudit.lab.networks import SlotNetwork
from plaudit.lab.scenes.grammar import evaluation_prompts, sample_prompts
from plaudit.rewards.base import card

class Source:
    """Captions of one object, and how bright its picture should be."""

    def __init__(self, config):
        self.config = config

    def batch(self, step, count, seed):
        return sample_prompts("train", count, np.random.default_rng([seed, step, 1]), ("single",))

    def evaluation(self, count):
        return {"heldout": evaluation_prompts("heldout", count, ("single",))}

class Network(SlotNetwork):
    """A generator of its own would be here."""

@card(low=0, high=1, verdict=True)
def dim(prompts, outputs):
    """1 where a picture is dark."""
    return (outputs.mean((1, 2, 3)) < 0.2).double().tolist()
'''
WORLD_ROW = """        World(
            name="dusk",
            family="flow",
            networks={"dusk": "plaudit.lab.dusk:Network"},
            prompts="plaudit.lab.dusk:Source",
            recipe="default",
            truth="plaudit.lab.dusk:dim",
            judges=("brightness",),
            budgets=("40nfe",),
        ),
"""
TAUGHT = """
base: slots-grpo
name: taught
rewards:
  match: null
  real: {type: discriminator, learn: {lr: 1.0e-4}}
turns: {order: [{train: real}, {train: policy}]}
"""

ADDITIONS = (
    Addition(
        name="a reward of one's own",
        may_touch=0,
        own={"mine.py": REWARD},
        command=f"align slots-nft --rewards.match null --rewards.red mine:redness {SHORT}",
    ),
    Addition(
        name="a built-in reward",
        may_touch=2,
        files={"rewards/rules/redness.py": REWARD},
        rows={
            "rewards/table.py": (
                '        "brightness":',
                '        "redness": "plaudit.rewards.rules.redness:redness",\n',
            )
        },
        command="rewards show redness",
    ),
    Addition(
        name="an objective of one's own",
        may_touch=0,
        own={
            "mine.py": OBJECTIVE,
            "mine.yaml": "base: slots-nft\nname: mine\nobjective: {type: custom, class: 'mine:Matching'}\n",
        },
        command=f"align mine.yaml {SHORT}",
    ),
    Addition(
        name="a kernel of one's own",
        may_touch=0,
        own={"mine.py": KERNEL},
        command=f"align slots-grpo --sampler.kernel mine:even --train.updates_per_step 1 {SHORT}",
    ),
    Addition(
        name="a search method",
        may_touch=2,
        files={"search/twice.py": METHOD},
        rows={
            "search/table.py": (
                '    "best_of_n": Entry(',
                '    "twice": Entry(path="plaudit.search.twice:Twice", families=("flow", "tokens"), summary="two samples"),\n',
            )
        },
        command="search slots-nft --method twice --budget 40nfe --count 2 --plain",
    ),
    Addition(
        name="a world",
        may_touch=2,  # its folder counts as one
        files={"lab/dusk.py": WORLD},
        rows={"worlds.py": ("    )\n}\nNETWORKS", WORLD_ROW)},
        own={
            "dusk.yaml": "base: slots-nft\nname: dusk\nprompts: {type: dusk}\nmodel: {type: lab, name: dusk, weights: WEIGHTS}\n"
            "rewards: {match: null, dim: 'plaudit.lab.dusk:dim'}\nevaluate: {reward: 'plaudit.lab.dusk:dim'}\n"
        },
        command=f"align dusk.yaml {SHORT}",
    ),
    Addition(
        name="a reward model",
        may_touch=0,
        own={"fit.yaml": "base: scenes-reward\nname: fit\nfit: {data: {pairs: 64}, head: {layers: 3}}\n"},
        command="fit fit.yaml --train.steps 2 --train.prompts_per_step 8 --evaluate.final_prompts 8",
    ),
    Addition(name="a second network", may_touch=0, own={"taught.yaml": TAUGHT}, command=f"align taught.yaml {SHORT}"),
    Addition(
        name="a second process",
        may_touch=0,
        command=f"align slots-nft --processes 2 {SHORT}",
    ),
)


def touched(addition: Addition, package: Path) -> int:
    """Files of ours that were written or changed; a row whose anchor is gone stops here."""
    for name, text in addition.files.items():
        (package / name).write_text(text, encoding="utf-8")
    for name, (anchor, row) in addition.rows.items():
        path = package / name
        before = path.read_text(encoding="utf-8")
        if before.count(anchor) != 1:
            raise SystemExit(f"{addition.name}: {name} has {before.count(anchor)} places {anchor!r}; there must be one")
        path.write_text(before.replace(anchor, row + anchor), encoding="utf-8")
    return len(addition.files) + len(addition.rows)


def works(addition: Addition, folder: Path) -> str | None:
    """What went wrong, if anything did."""
    weights = folder / "src" / "plaudit" / "lab" / "weights" / "slots.safetensors"
    for name, text in addition.own.items():
        (folder / name).write_text(text.replace("WEIGHTS", str(weights)), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": f"{folder / 'src'}{os.pathsep}{folder}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "plaudit", *addition.command.split()]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    return None if done.returncode == 0 else (done.stdout + done.stderr)[-1500:]


def main(words: list[str]) -> int:
    failed = 0
    for addition in [one for one in ADDITIONS if not words or any(word in one.name for word in words)]:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            for name in ("src", "recipes"):
                shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            count = touched(addition, folder / "src" / "plaudit")
            wrong = works(addition, folder)
        failed += wrong is not None or count > addition.may_touch
        print(f"{'FAILED' if wrong else 'works '}  {count} of {addition.may_touch} files  {addition.name}", flush=True)
        if wrong:
            print(wrong, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
