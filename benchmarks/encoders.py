"""What the lab's encoders know, measured on the weights that ship: `python benchmarks/encoders.py [--captions 60] [--seeds 3]`.

1. The dual encoder: recall at 1 among captions of its split, and how often the true caption scores above an edited one.
2. Rewards as judges of generated pictures: the area under the curve against the exact checker, within a caption (six
   pictures of the `pixels` generator each, captions with both true and false pictures) and pooled over all pictures.
"""

from __future__ import annotations

import argparse
import statistics

import numpy as np
import torch

from plaudit.builds.direction import generated
from plaudit.builds.encoder import measure_encoder
from plaudit.builds.proxy import area_under_curve
from plaudit.lab.scenes.check import check
from plaudit.lab.scenes.grammar import sample_prompts
from plaudit.rewards.calling.call import Caller
from plaudit.rewards.calling.request import make_request
from plaudit.rewards.encoders.load import load_encoder
from plaudit.rewards.load import find_reward

EACH = 6
REWARDS = ("encoder_similarity", "directional_similarity", "caption_likelihood")


def percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def knowledge() -> None:
    for split, found in measure_encoder(load_encoder("lab").network).items():
        edits = ", ".join(f"{kind} {percent(value)}" for kind, value in found["true_above_edited"].items())
        print(
            f"encoder, {split}: R@1 {found['r_at_1_picture_to_caption']:.2f} of {found['pictures']}; above an edit of {edits}"
        )


def judged(split: str, captions: int, seed: int) -> dict[str, tuple[float, float]]:
    prompts = [p for p in sample_prompts(split, captions, np.random.default_rng([seed, 2])) for _ in range(EACH)]
    pictures = generated(prompts, steps=10, seed=seed)
    truth = torch.tensor([float(verdict.correct) for verdict in check(pictures, prompts)])
    found = {}
    for name in REWARDS:
        caller = Caller(name, find_reward(name, name, {}))
        values = torch.tensor([score.value for score in caller(make_request(prompts, pictures))])
        rows = [slice(at, at + EACH) for at in range(0, len(prompts), EACH)]
        within = [area_under_curve(values[r], truth[r]) for r in rows if 0 < truth[r].sum() < EACH]
        found[name] = (statistics.mean(within), area_under_curve(values, truth))
    return found


def judging(captions: int, seeds: int) -> None:
    for split in ("heldout", "compositional"):
        runs = [judged(split, captions, seed) for seed in range(seeds)]
        for name in REWARDS:
            within, pooled = ([run[name][i] for run in runs] for i in (0, 1))
            spread = [statistics.stdev(values) if seeds > 1 else 0.0 for values in (within, pooled)]
            print(
                f"{name}, {split}: within a caption {statistics.mean(within):.3f} +- {spread[0]:.3f}, "
                f"pooled {statistics.mean(pooled):.3f} +- {spread[1]:.3f}"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    knowledge()
    judging(arguments.captions, arguments.seeds)
