"""Length rewards that look at how the whole group does: press for brevity only where a prompt is already solved."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from plaudit.errors import RecipeError
from plaudit.rewards.base import Card, Score
from plaudit.rewards.calling.request import Request
from plaudit.rewards.rules.lengths import scored, within
from plaudit.rewards.rules.outcomes import Outcome, OutcomeReward, positive
from plaudit.sampling.noise import SampleKey, generator

STD_FLOOR = 1e-4


# --- formulas --------------------------------------------------------------------------------------------------------


def pass_rates(correct: Sequence[bool | None], group: Sequence[int]) -> dict[int, Fraction]:
    """The share of right outputs in each group, exactly; None is not counted, and a group of only None has no rate."""
    members: dict[int, list[bool]] = {}
    for right, g in zip(correct, group, strict=True):
        if right is not None:
            members.setdefault(g, []).append(right)
    return {g: Fraction(sum(rights), len(rights)) for g, rights in members.items()}


def most_solved(rates: Mapping[int, Fraction], share: float, tie_break: Mapping[int, float]) -> set[int]:
    """The ceil(share * Q) groups of the highest rates, at least one, less those that never succeed.

    Groups of equal rate go by the lower `tie_break`.
    """
    count = max(1, math.ceil(round(share * len(rates), 9)))  # 0.07 * 100 is 7.000000000000001
    ranked = sorted(rates, key=lambda g: (-rates[g], tie_break[g]))
    return {g for g in ranked[:count] if rates[g] > 0}


def penalised(length: int, correct_lengths: Sequence[int], alpha: float) -> float:
    """1 - alpha * sigmoid((L - mean) / std) over the group's right outputs; plain 1 where there are fewer than two.

    The paper does not say which standard deviation: this is the population's, never below STD_FLOOR.
    """
    if len(correct_lengths) < 2:
        return 1.0
    mean, std = statistics.fmean(correct_lengths), statistics.pstdev(correct_lengths)
    sigmoid = 0.5 * (1 + math.tanh((length - mean) / max(std, STD_FLOOR) / 2))  # tanh does not overflow
    return 1 - alpha * sigmoid


# --- rewards ---------------------------------------------------------------------------------------------------------


class ShortWhereSolved(OutcomeReward):
    """GRPO-lambda. Which of equally solved prompts are pressed is drawn anew each step, from `seed`, the step and the
    prompt's id, so that it depends neither on the batch's order nor on a resume."""

    card = Card(
        summary="1 where right, less up to alpha for length in the groups that are solved best; 0 where wrong.",
        kind="text",
        low=0,
        high=1,
        batch_invariant=False,
        systems=("S100",),
        cost_ms=0.05,
    )

    def __init__(
        self,
        share: float = 0.2,
        alpha: float = 0.6,
        unit: str = "tokens",
        correct: Mapping[str, Any] | None = None,
        threshold: float = 1.0,
        seed: int = 0,
    ) -> None:
        for name, value in (("share", share), ("alpha", alpha)):
            if not 0 < value <= 1:
                raise RecipeError(f"reward short_where_solved: `{name}` {value:g}; allowed: more than 0, at most 1")
        super().__init__("short_where_solved", unit, correct, threshold)
        self.share, self.alpha, self.seed = share, alpha, seed

    def worth(self, outcomes: Sequence[Outcome | Score], request: Request) -> list[Score]:
        group = request.group
        rates = pass_rates([rightness(o) for o in outcomes], group)
        pressed = most_solved(rates, self.share, self._draws(request))
        lengths: dict[int, list[int]] = {g: [] for g in group}
        for outcome, g in zip(outcomes, group, strict=True):
            if isinstance(outcome, Outcome) and outcome.correct:
                lengths[g].append(outcome.length)
        return [
            o if isinstance(o, Score) else self._score(o, lengths[g], g in pressed)
            for o, g in zip(outcomes, group, strict=True)
        ]

    def _draws(self, request: Request) -> dict[int, float]:
        names = {g: prompt.id or prompt.text for g, prompt in zip(request.group, request.prompts, strict=True)}
        keys = {g: SampleKey(seed=self.seed, step=request.step, prompt=name, index=0) for g, name in names.items()}
        return {g: generator(key, "short_where_solved").random() for g, key in keys.items()}

    def _score(self, outcome: Outcome, correct_lengths: Sequence[int], pressed: bool) -> Score:
        if not outcome.correct:
            return scored(0.0, outcome, pressed=float(pressed))
        value = penalised(outcome.length, correct_lengths, self.alpha) if pressed else 1.0
        return scored(value, outcome, pressed=float(pressed))


class CorrectWithinTiers(OutcomeReward):
    """DA-DLER: the short limit where at least `rate` of the group is right within the long one (what is cut off there
    cannot be right), else the long one."""

    card = Card(
        summary="1 where right within a limit that is the shorter one for prompts mostly solved, else 0.",
        kind="text",
        low=0,
        high=1,
        batch_invariant=False,
        systems=("S113",),
        cost_ms=0.03,
    )

    def __init__(
        self,
        short: int = 2000,
        long: int = 4000,
        rate: float = 0.5,
        unit: str = "tokens",
        correct: Mapping[str, Any] | None = None,
        threshold: float = 1.0,
    ) -> None:
        positive("correct_within_tiers", "short", short)
        if not short <= long:
            raise RecipeError(f"reward correct_within_tiers: `short` {short} is longer than `long` {long}")
        super().__init__("correct_within_tiers", unit, correct, threshold)
        self.short, self.long, self.rate = short, long, rate

    def worth(self, outcomes: Sequence[Outcome | Score], request: Request) -> list[Score]:
        finished = [None if isinstance(o, Score) else bool(within(o, self.long)) for o in outcomes]
        rates = pass_rates(finished, request.group)
        limits = {g: self.short if rate >= self.rate else self.long for g, rate in rates.items()}
        return [
            o if isinstance(o, Score) else scored(within(o, limits[g]), o, limit=float(limits[g]))
            for o, g in zip(outcomes, request.group, strict=True)
        ]


def rightness(outcome: Outcome | Score) -> bool | None:
    return None if isinstance(outcome, Score) else outcome.correct
