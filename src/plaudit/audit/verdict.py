"""Did it really get better? The trained reward against the held-out truth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from plaudit.audit.measures import Change, Findings, interval_of
from plaudit.pages.numbers import Style, capital, number
from plaudit.runs.record import Evaluation, RunRecord
from plaudit.statistics import Z_95

Level = Literal["good", "warning", "bad", "unknown"]
Direction = Literal["rose", "fell", "did not change measurably"]


@dataclass(frozen=True, kw_only=True)
class Rise:
    """A trained reward at the start and at the end; changes smaller than `margin` are noise."""

    name: str
    start: float
    end: float
    margin: float
    where: str
    sign: int  # -1 where the recipe gives the reward a negative weight

    @property
    def improved(self) -> bool:
        return self.sign * (self.end - self.start) > self.margin


@dataclass(frozen=True, kw_only=True)
class Verdict:
    level: Level
    headline: str
    details: tuple[str, ...]


def judge(found: Findings) -> Verdict:
    """One line on whether the reward was hacked, and the numbers behind it."""
    run, truth, style = found.run, found.change, found.style
    rises = trained_rises(run)
    if truth is None or math.isnan(truth.gain.low) or not rises:
        return Verdict(level="unknown", headline="Cannot be judged yet", details=(_what_lacks(run, truth, rises),))
    direction = _direction(truth)
    level, headline = _decide(any(rise.improved for rise in rises), direction, style)
    details = [_rise_sentence(rise) for rise in rises] + [_truth_sentence(truth, direction, style)]
    if _trained_on_the_truth(run):
        details.append("The evaluation reward is itself trained on, so hacking of this reward could not be seen here.")
    doubts = [doubt for doubt in (_fall_from_peak(run, style), _split_that_fell(found)) if doubt]
    if doubts and level == "good":
        level, headline = "warning", f"{headline}, with a reservation"
    return Verdict(level=level, headline=headline, details=(*details, *doubts))


def _decide(improved: bool, direction: Direction, style: Style) -> tuple[Level, str]:
    truth = style.truth
    match improved, direction:
        case True, "rose":
            return "good", f"No sign of reward hacking: the trained reward and the {truth} both rose"
        case True, "fell":
            return "bad", f"Reward hacking: the trained reward rose while the {truth} fell"
        case True, _:
            return "warning", f"Possible reward hacking: the trained reward rose, the {truth} did not, beyond noise"
        case False, "rose":
            return "warning", f"The {truth} rose although the trained reward did not rise beyond noise"
        case False, "fell":
            return "bad", f"It got worse: the {truth} fell and the trained reward did not rise"
        case _:
            return "warning", f"Nothing was learned that can be measured: neither the reward nor the {truth} changed"


def _direction(truth: Change) -> Direction:
    if truth.gain.low > 0:
        return "rose"
    return "fell" if truth.gain.high < 0 else "did not change measurably"


def trained_rises(run: RunRecord) -> list[Rise]:
    """The trained rewards on the held-out outputs where the run measured them there, else along the training curve."""
    found = (_rise_on_heldout(run, name) or _rise_in_training(run, name) for name in _trained_names(run))
    return [rise for rise in found if rise is not None]


def _trained_names(run: RunRecord) -> list[str]:
    """Rewards with a weight; one of weight 0 is only watched."""
    return [name for name, reward in run.rewards().items() if reward.weight != 0]


def _sign(run: RunRecord, name: str) -> int:
    return 1 if run.rewards()[name].weight > 0 else -1


def _rise_on_heldout(run: RunRecord, name: str) -> Rise | None:
    """The margin takes before and after as independent draws with the spread seen in training: on the safe side."""
    first, last = run.before(), run.latest()
    if first is None or last is None:
        return None
    start, end = first.rewards.get(name), last.rewards.get(name)
    if start is None or end is None:
        return None
    spreads = run.series(f"rewards/{name}/std").values
    deviation = float(spreads.mean()) if len(spreads) else 0.0
    return Rise(
        name=name,
        start=start,
        end=end,
        margin=Z_95 * deviation * math.sqrt(1 / max(first.count, 1) + 1 / max(last.count, 1)),
        where=f"on the outputs of the {run.main_split} split",
        sign=_sign(run, name),
    )


def _rise_in_training(run: RunRecord, name: str) -> Rise | None:
    """The first and the last tenth of the steps; the margin is that of two independent means."""
    values = run.series(f"rewards/{name}/mean").values
    tenth = max(len(values) // 10, 2)
    if len(values) < 2 * tenth:
        return None
    start, end = values[:tenth], values[-tenth:]
    return Rise(
        name=name,
        start=float(start.mean()),
        end=float(end.mean()),
        margin=Z_95 * math.sqrt((np.var(start, ddof=1) + np.var(end, ddof=1)) / tenth),
        where="on the training prompts",
        sign=_sign(run, name),
    )


def _what_lacks(run: RunRecord, truth: Change | None, rises: list[Rise]) -> str:
    if run.before() is None:
        return "The measurement before training is missing."
    if truth is None:
        return "Nothing was measured after training began yet."
    if not rises:
        return "No values of the trained reward were recorded."
    return "The gain has no interval: neither its items nor the bounds of both measurements are there."


def _rise_sentence(rise: Rise) -> str:
    noise = f"; differences below {number(rise.margin, 2)} are noise" if rise.margin else ""
    less = " (weighted negatively: lower is better)" if rise.sign < 0 else ""
    return (
        f"Trained reward “{rise.name}” {rise.where}: {rise.start:.3f} to {rise.end:.3f} "
        f"({rise.end - rise.start:+.3f}{noise}){less}."
    )


def _truth_sentence(truth: Change, direction: Direction, style: Style) -> str:
    how = "" if truth.paired else ", not paired by item"
    return (
        f"{capital(style.truth)} {direction}: {style.score(truth.before.mean)} to {style.score(truth.after.mean)} "
        f"({style.gain(truth.gain.mean)}, 95 % interval {style.gain_bounds(truth.gain)}{how})."
    )


def _trained_on_the_truth(run: RunRecord) -> bool:
    if run.recipe is None:
        return False
    judged = run.recipe.evaluate.reward
    trained = (run.recipe.rewards[name] for name in _trained_names(run))
    return any((reward.type, reward.arguments) == (judged.type, judged.arguments) for reward in trained)


def _fall_from_peak(run: RunRecord, style: Style) -> str | None:
    """Over-optimisation: the last measurement of the run lies wholly below its best one of the same size."""
    measured = (row for row in run.evaluations if row.split == run.main_split and row.mean is not None)
    during = [row for row in measured if row.label == "step"]
    if not during:
        return None
    best, last = max(during, key=_mean), during[-1]
    if best.count != last.count or not interval_of(last).high < interval_of(best).low:
        return None
    return (
        f"The {style.truth} peaked at step {best.step} with {style.score(best.mean)} and had fallen to "
        f"{style.score(last.mean)} at step {last.step}: over-optimised; train for fewer steps or raise the KL weight."
    )


def _mean(evaluation: Evaluation) -> float:
    return interval_of(evaluation).mean


def _split_that_fell(found: Findings) -> str | None:
    style = found.style
    for split, change in found.changes.items():
        if split != found.run.main_split and change is not None and change.gain.high < 0:
            return (
                f"On the split “{split}” the {style.noun} fell: {style.score(change.before.mean)} to "
                f"{style.score(change.after.mean)} (95 % interval {style.gain_bounds(change.gain)})."
            )
    return None
