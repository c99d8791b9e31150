"""What box rewards teach a policy, without a network (S053, S072, S078).

The policy answers every target with a Gaussian over centre and log side lengths, and learns its mean from group-normalised
rewards (groups of 8), as a language model does that writes boxes. The rewards are vectorised here; that they are the
package's own is checked before anything is learned.

Shape legend: Q targets, G answers in a group; boxes [..., 4].
"""

from __future__ import annotations

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


# --- the three questions ---------------------------------------------------------------------------------------------

DENSE: dict[str, Reward] = {
    "hit": hit,
    "IoU": overlap,
    "point": point,
    "point + coverage": lambda p, g: point(p, g) + coverage(p, g),
    "both, sigma 40 px": lambda p, g: point(p, g, 40.0) + coverage(p, g, 40.0),
}


MIXED: dict[str, Reward] = {
    "hit": hit,
    "IoU": overlap,
    "hit and IoU": lambda p, g: hit(p, g) + 0.25 * overlap(p, g),
    "closeness": closeness,
}


def plateau(*, seed: int, quick: bool, reward: str) -> dict[str, float]:
    """Hit rate from a start 120 pixels off targets of 40, where a draw varies by 20: five standard deviations to a hit."""
    compare_with_the_package()
    rng = np.random.default_rng(seed)
    true = targets(100, 40, rng)
    policy = Policy(centre=shifted(true, 120, rng), log_sides=np.full((100, 2), np.log(40.0)), jitter=20.0)
    for _ in range(2 if quick else 50):
        policy.learn(true, DENSE[reward], 0.3, rng)
    return {"hit": float(hit(policy.boxes(), true).mean())}


def widths(*, seed: int, quick: bool, reward: str, side: float) -> dict[str, float]:
    """From a start two sides off and half too large; a draw varies by a quarter of a side plus 2 pixels."""
    compare_with_the_package()
    rng = np.random.default_rng(seed)
    true = targets(100, side, rng)
    large = np.full((100, 2), np.log(1.5 * side))
    policy = Policy(centre=shifted(true, 2 * side, rng), log_sides=large, jitter=side / 4 + 2)
    for _ in range(2 if quick else 200):
        policy.learn(true, DENSE[reward], 0.3, rng)
    return {name: float(one(policy.boxes(), true).mean()) for name, one in (("hit", hit), ("iou", overlap))}


def sizes(*, seed: int, quick: bool, reward: str, relative: bool) -> dict[str, float]:
    """Targets of 60 pixels, boxes right at the start. A draw misses by 20 pixels whatever its size, or by 0.35 of its own
    side: how the errors of a language model grow with a box is not known."""
    compare_with_the_package()
    rng = np.random.default_rng(seed)
    true, noise = targets(100, 60, rng), {"relative": 0.35} if relative else {"jitter": 20.0}
    policy = Policy(centre=centre(true), log_sides=np.log(sides(true)), **noise)
    for _ in range(2 if quick else 300):
        policy.learn(true, MIXED[reward], 0.3, rng)
    drawn = policy.draw(*rng.normal(size=(2, 100, 64, 2)))
    return {
        "area": float(np.exp(2 * (policy.log_sides - np.log(sides(true))).mean())),
        "hit": float(hit(drawn, true[:, None]).mean()),
        "iou": float(overlap(drawn, true[:, None]).mean()),
    }


STAGES: dict[str, tuple[Stage | None, Stage | None]] = {
    "staged": (FIRST_STAGE, SECOND_STAGE),
    "first": (FIRST_STAGE, FIRST_STAGE),
    "second": (SECOND_STAGE, SECOND_STAGE),
    "none": (None, None),
}


def stages(*, seed: int, quick: bool, schedule: str) -> dict[str, float]:
    """Boxes 0.25 of a side off at the start; the stage changes half-way. The final IoU, and the share of groups with a contrast
    before and after the change."""
    compare_with_the_package()
    rng = np.random.default_rng(seed)
    true, updates, contrast = targets(100, 100, rng), 4 if quick else 400, []
    sides_of = np.full((100, 2), np.log(100.0))
    policy = Policy(centre=shifted(true, 25, rng), log_sides=sides_of, jitter=4.0, size_jitter=0.04)
    for update in range(updates):
        stage = STAGES[schedule][2 * update // updates]

        def reward(p: Array, g: Array, stage: Stage | None = stage) -> Array:
            value = generalised(p, g)
            return value if stage is None else staircase(value, stage)

        contrast.append(policy.learn(true, reward, 0.1, rng))
    half, eighth = updates // 2, max(updates // 8, 1)
    return {
        "iou": float(overlap(policy.boxes(), true).mean()),
        "contrast_before": float(np.mean(contrast[half - eighth : half])),
        "contrast_after": float(np.mean(contrast[half : half + eighth])),
    }
