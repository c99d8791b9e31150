"""What box rewards teach a policy, without a network: `python benchmarks/boxes.py [--seeds 5]` (about half a minute).

The policy answers every target with a Gaussian over centre and log side lengths, and learns its mean from group-normalised
rewards (groups of 8), as a language model does that writes boxes. The rewards are vectorised here and first compared with
the package's own. Numbers are means over seeds +- standard deviation between seeds.

1. S078: hit-or-miss and IoU against the Gaussian reward, from a start that misses; adaptive against fixed widths.
2. S072: the size of boxes under hit, IoU and both, when larger boxes are placed less precisely.
3. S053: the precision reward's staircase: stages against one stage, against no staircase.

Shape legend: Q targets, G answers in a group; boxes [..., 4].
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plaudit.rewards.rules import geometry
from plaudit.rewards.rules.boxes import FIRST_STAGE, SECOND_STAGE, Stage, staircase
from plaudit.rewards.rules.geometry import Box

Array = NDArray[np.float64]
Reward = Callable[[Array, Array], Array]  # predicted [Q, G, 4], true [Q, 1, 4] -> [Q, G]
SCREEN = 1000.0
GROUP = 8


# --- vectorised rewards ----------------------------------------------------------------------------------------------


def sides(box: Array) -> Array:
    return box[..., 2:] - box[..., :2]


def centre(box: Array) -> Array:
    return (box[..., 2:] + box[..., :2]) / 2


def hit(p: Array, g: Array) -> Array:
    c = centre(p)
    return ((c >= g[..., :2]) & (c <= g[..., 2:])).all(-1).astype(float)


def overlap(p: Array, g: Array) -> Array:
    low, high = np.maximum(p[..., :2], g[..., :2]), np.minimum(p[..., 2:], g[..., 2:])
    both = (high - low).clip(0).prod(-1)
    return both / (sides(p).prod(-1) + sides(g).prod(-1) - both)


def generalised(p: Array, g: Array) -> Array:
    hull = (np.maximum(p[..., 2:], g[..., 2:]) - np.minimum(p[..., :2], g[..., :2])).prod(-1)
    both = (np.minimum(p[..., 2:], g[..., 2:]) - np.maximum(p[..., :2], g[..., :2])).clip(0).prod(-1)
    union = sides(p).prod(-1) + sides(g).prod(-1) - both
    return both / union - (hull - union) / hull


def point(p: Array, g: Array, sigma: float | None = None) -> Array:
    width = sides(g) / 2 if sigma is None else sigma
    return np.exp(-0.5 * (((centre(p) - centre(g)) / width) ** 2).sum(-1))


def coverage(p: Array, g: Array, sigma: float | None = None) -> Array:
    a, b = (sides(box) / 2 if sigma is None else np.full_like(sides(box), sigma) for box in (p, g))
    mean = (a**2 + b**2) / 2
    return np.exp(-((centre(p) - centre(g)) ** 2 / mean).sum(-1) / 8 - 0.5 * np.log(mean / (a * b)).sum(-1))


def closeness(p: Array, g: Array) -> Array:
    return 4 / (1 / np.maximum(1 - np.abs(p - g) / SCREEN, geometry.LEAST_TERM)).sum(-1)


def compare_with_the_package() -> None:
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 500, size=(2, 50, 2))
    p, g = np.concatenate([corner, corner + rng.uniform(5, 300, size=(2, 50, 2))], -1)
    size = geometry.Size(SCREEN, SCREEN)
    slow: dict[str, tuple[Array, Callable[[Box, Box], float]]] = {
        "hit": (hit(p, g), lambda a, b: float(b.contains(a.centre))),
        "iou": (overlap(p, g), lambda a, b: geometry.iou([a], [b])[0, 0]),
        "giou": (generalised(p, g), lambda a, b: geometry.giou([a], [b])[0, 0]),
        "point": (point(p, g), geometry.gaussian_point),
        "coverage": (coverage(p, g), geometry.gaussian_coverage),
        "closeness": (closeness(p, g), lambda a, b: geometry.coordinate_closeness(a, b, size)),
    }
    for name, (fast, one) in slow.items():
        expected = [one(Box(*a), Box(*b)) for a, b in zip(p, g, strict=True)]
        np.testing.assert_allclose(fast, expected, rtol=1e-9, err_msg=name)


# --- the policy ------------------------------------------------------------------------------------------------------


@dataclass
class Policy:
    """Mean centre `[Q, 2]` and log sides `[Q, 2]`. Centres vary by `jitter` pixels, or `relative` of the sides."""

    centre: Array
    log_sides: Array
    jitter: float = 0.0
    relative: float = 0.0
    size_jitter: float = 0.1

    def boxes(self) -> Array:
        return boxes_of(self.centre, self.log_sides)

    def spread(self) -> Array:
        return (self.jitter + self.relative * np.exp(self.log_sides))[:, None]

    def draw(self, z: Array, w: Array) -> Array:
        """Boxes `[Q, G, 4]` from standard normals `[Q, G, 2]` for centres and log sides."""
        return boxes_of(self.centre[:, None] + self.spread() * z, self.log_sides[:, None] + self.size_jitter * w)

    def learn(self, true: Array, reward: Reward, rate: float, rng: np.random.Generator) -> float:
        """One update by the policy gradient with group-normalised advantages; the share of groups with a contrast."""
        z, w = rng.normal(size=(2, len(self.centre), GROUP, 2))
        spread = self.spread()
        scores = reward(self.draw(z, w), true[:, None])
        std = scores.std(1, keepdims=True)
        advantage = np.where(std > 1e-9, (scores - scores.mean(1, keepdims=True)) / np.maximum(std, 1e-9), 0)[..., None]
        self.centre = self.centre + rate * spread[:, 0] * (advantage * z).mean(1)
        widening = self.relative * np.exp(self.log_sides)[:, None] / np.maximum(spread, 1e-9) * (z**2 - 1)
        self.log_sides = self.log_sides + rate * self.size_jitter * (
            advantage * (w + self.size_jitter * widening)
        ).mean(1)
        return float((std > 1e-9).mean())


def boxes_of(middle: Array, log_sides: Array) -> Array:
    half = np.exp(log_sides) / 2
    return np.concatenate([middle - half, middle + half], -1)


def targets(count: int, side: float, rng: np.random.Generator) -> Array:
    return boxes_of(rng.uniform(300, 700, size=(count, 2)), np.full((count, 2), np.log(side)))


def shifted(true: Array, distance: float, rng: np.random.Generator) -> Array:
    angle = rng.uniform(0, 2 * np.pi, size=len(true))
    return centre(true) + distance * np.stack([np.cos(angle), np.sin(angle)], -1)


def over_seeds(run: Callable[[np.random.Generator], list[float]], seeds: int) -> list[str]:
    table = np.array([run(np.random.default_rng(seed)) for seed in range(seeds)])
    return [f"{mean:.3f}+-{std:.3f}" for mean, std in zip(table.mean(0), table.std(0, ddof=1), strict=True)]


def show(title: str, columns: list[str], rows: dict[str, list[str]]) -> None:
    print(f"\n{title}\n{'':26}" + "".join(f"{column:>15}" for column in columns))
    for name, cells in rows.items():
        print(f"{name:26}" + "".join(f"{cell:>15}" for cell in cells))


# --- the three questions ---------------------------------------------------------------------------------------------

DENSE: dict[str, Reward] = {
    "hit": hit,
    "IoU": overlap,
    "point": point,
    "point + coverage": lambda p, g: point(p, g) + coverage(p, g),
    "both, sigma 40 px": lambda p, g: point(p, g, 40.0) + coverage(p, g, 40.0),
}


def plateau(seeds: int) -> None:
    """A start 120 pixels off targets of 40 pixels, where a draw varies by 20 pixels: five standard deviations to a hit."""
    updates = (0, 25, 50, 100, 200)

    def run(reward: Reward) -> Callable[[np.random.Generator], list[float]]:
        def one(rng: np.random.Generator) -> list[float]:
            true = targets(100, 40, rng)
            policy = Policy(centre=shifted(true, 120, rng), log_sides=np.full((100, 2), np.log(40.0)), jitter=20.0)
            rates = []
            for update in range(max(updates) + 1):
                if update in updates:
                    rates.append(float(hit(policy.boxes(), true).mean()))
                policy.learn(true, reward, 0.3, rng)
            return rates

        return one

    rows = {name: over_seeds(run(reward), seeds) for name, reward in DENSE.items()}
    show("1a. S078: hit rate after updates, from a start that misses", [str(update) for update in updates], rows)


def widths(seeds: int) -> None:
    """By target size, a start two sides off and half too large; a draw varies by a quarter of a side plus 2 pixels."""
    sizes = (8, 40, 200)

    def run(reward: Reward) -> Callable[[np.random.Generator], list[float]]:
        def one(rng: np.random.Generator) -> list[float]:
            means = []
            for side in sizes:
                true = targets(100, side, rng)
                policy = Policy(
                    centre=shifted(true, 2 * side, rng),
                    log_sides=np.full((100, 2), np.log(1.5 * side)),
                    jitter=side / 4 + 2,
                )
                for _ in range(200):
                    policy.learn(true, reward, 0.3, rng)
                means += [float(measure(policy.boxes(), true).mean()) for measure in (hit, overlap)]
            return means

        return one

    names = ("hit", "point", "point + coverage", "both, sigma 40 px")
    rows = {name: over_seeds(run(DENSE[name]), seeds) for name in names}
    columns = [f"{side} px: {what}" for side in sizes for what in ("hit", "IoU")]
    show("1b. S078: hit rate and IoU of the mean box after 200 updates, by the target's side", columns, rows)


def sizes(seeds: int) -> None:
    """Targets of 60 pixels, boxes right at the start. A draw misses by 20 pixels whatever its size, or by 0.35 of its own
    side: how the errors of a language model grow with a box is not known, so both are shown."""
    rewards: dict[str, Reward] = {
        "hit": hit,
        "IoU": overlap,
        "hit + IoU/4": lambda p, g: hit(p, g) + 0.25 * overlap(p, g),
        "hit + IoU/4 + close/8": lambda p, g: hit(p, g) + 0.25 * overlap(p, g) + 0.125 * closeness(p, g),
        "closeness": closeness,
    }

    def run(reward: Reward) -> Callable[[np.random.Generator], list[float]]:
        def one(rng: np.random.Generator) -> list[float]:
            found = []
            for jitter, relative in ((20.0, 0.0), (0.0, 0.35)):
                true = targets(100, 60, rng)
                policy = Policy(centre=centre(true), log_sides=np.log(sides(true)), jitter=jitter, relative=relative)
                for _ in range(300):
                    policy.learn(true, reward, 0.3, rng)
                drawn = policy.draw(*rng.normal(size=(2, 100, 64, 2)))
                found.append(float(np.exp(2 * (policy.log_sides - np.log(sides(true))).mean())))
                found += [float(measure(drawn, true[:, None]).mean()) for measure in (hit, overlap)]
            return found

        return one

    rows = {name: over_seeds(run(reward), seeds) for name, reward in rewards.items()}
    columns = ["20 px: area", "hit rate", "IoU", "0.35: area", "hit rate", "IoU"]
    show("2. S072: boxes after 300 updates, area in true areas (1 at the start)", columns, rows)


def stages(seeds: int) -> None:
    """Boxes 0.25 of a side off at the start. 400 updates; the stage changes after 200."""
    schedules: dict[str, Callable[[int], Stage | None]] = {
        "staged": lambda update: FIRST_STAGE if update < 200 else SECOND_STAGE,
        "first stage only": lambda update: FIRST_STAGE,
        "second stage only": lambda update: SECOND_STAGE,
        "no staircase (GIoU)": lambda update: None,
    }

    def run(schedule: Callable[[int], Stage | None]) -> Callable[[np.random.Generator], list[float]]:
        def one(rng: np.random.Generator) -> list[float]:
            true = targets(100, 100, rng)
            policy = Policy(
                centre=shifted(true, 25, rng), log_sides=np.full((100, 2), np.log(100.0)), jitter=4.0, size_jitter=0.04
            )
            contrast = []
            for update in range(400):
                stage = schedule(update)

                def reward(p: Array, g: Array, stage: Stage | None = stage) -> Array:
                    value = generalised(p, g)
                    return value if stage is None else staircase(value, stage)

                contrast.append(policy.learn(true, reward, 0.1, rng))
            final = overlap(policy.boxes(), true)
            rates = [float((final >= level).mean()) for level in (0.5, 0.75, 0.9)]
            return [
                *rates,
                float(np.mean(contrast[:50])),
                float(np.mean(contrast[150:200])),
                float(np.mean(contrast[350:])),
            ]

        return one

    rows = {name: over_seeds(run(schedule), seeds) for name, schedule in schedules.items()}
    columns = ["mean IoU", ">= 0.75", ">= 0.9", ">= 0.95", "contrast 0-50", "150-200", "350-400"]
    show("3. S053: final boxes, and the share of groups with a contrast on the way", columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    compare_with_the_package()
    for part in (plateau, widths, sizes, stages):
        part(seeds)


if __name__ == "__main__":
    main()
