"""What changed between before and after, and how such numbers are written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from plaudit.audit.runs import AFTER, HELDOUT, Evaluation, RunRecord, ScoredItems
from plaudit.audit.statistics import Gain, Interval, is_binary, mean_interval, paired_gain

ABSENT = "missing"


@dataclass(frozen=True, kw_only=True)
class Style:
    """How scores of one reward are written: an accuracy in percent, anything else as a plain number."""

    accuracy: bool
    noun: str
    where: str

    @property
    def truth(self) -> str:
        """What the headline is about, for example `held-out accuracy`."""
        return f"{self.where} {self.noun}"

    def score(self, value: float | None) -> str:
        if _absent(value):
            return ABSENT
        return f"{100 * value:.1f} %" if self.accuracy else f"{value:.3f}"

    def gain(self, value: float | None) -> str:
        if _absent(value):
            return ABSENT
        return f"{100 * value:+.1f} points" if self.accuracy else f"{value:+.3f}"

    def bounds(self, low: float | None, high: float | None) -> str:
        if _absent(low) or _absent(high):
            return ABSENT
        return f"{100 * low:.1f} to {100 * high:.1f}" if self.accuracy else f"{low:.3f} to {high:.3f}"

    def gain_bounds(self, gain: Gain) -> str:
        if _absent(gain.low) or _absent(gain.high):
            return ABSENT
        if self.accuracy:
            return f"{100 * gain.low:+.1f} to {100 * gain.high:+.1f}"
        return f"{gain.low:+.3f} to {gain.high:+.3f}"


@dataclass(frozen=True, kw_only=True)
class Change:
    """One population measured before training and `step` steps later; `finished` when that was the end of the run."""

    name: str
    before: Interval
    after: Interval
    gain: Gain
    step: int
    finished: bool
    paired: bool


def capital(text: str) -> str:
    """The first letter large, the rest as it is."""
    return text[:1].upper() + text[1:]


def _absent(value: float | None) -> bool:
    return value is None or math.isnan(value)


def number(value: float | int | None, digits: int = 4) -> str:
    """Counts with thin thousands, other numbers with a few significant digits, and a word where there is none."""
    if _absent(value):
        return ABSENT
    if float(value).is_integer():
        return f"{int(value):,}".replace(",", "\u202f")
    return f"{value:.{digits}g}"


def style_of(run: RunRecord) -> Style:
    """The evaluation reward is an accuracy when every held-out score is 0 or 1."""
    scores = [score for items in run.items.values() for score in items.items().scores]
    accuracy = is_binary(scores)
    first = next(iter(run.evaluations), None)
    noun = "accuracy" if accuracy else first.reward if first else "reward"
    where = "held-out" if run.main_split == HELDOUT else f"{run.main_split}-split"
    return Style(accuracy=accuracy, noun=noun, where=where)


def interval_of(evaluation: Evaluation) -> Interval:
    bounds = (evaluation.mean, evaluation.low, evaluation.high)
    mean, low, high = (math.nan if bound is None else bound for bound in bounds)
    return Interval(mean=mean, low=low, high=high, count=evaluation.count, missing=evaluation.missing)


def change(run: RunRecord, split: str | None = None) -> Change | None:
    """A split, the main one by default, before and after; None until both were measured."""
    split = split or run.main_split
    first, last = run.before(split), run.latest(split)
    if first is None or last is None:
        return None
    before, after = interval_of(first), interval_of(last)
    first_items, last_items = run.items_of(first), run.items_of(last)
    gain, paired = _unpaired_gain(before, after), False
    if first_items and last_items:
        gain, paired = paired_gain(first_items.items(), last_items.items()), True
    stated = _stated_gain(run, gain) if split == run.main_split and last.label == AFTER else None
    return Change(
        name=split,
        before=before,
        after=after,
        gain=stated or gain,
        step=last.step,
        finished=last.label == AFTER,
        paired=paired or stated is not None,
    )


def _stated_gain(run: RunRecord, computed: Gain) -> Gain | None:
    """The gain of summary.json, so that a report never contradicts what the run printed."""
    summary = run.summary
    if summary is None or summary.gain is None or summary.gain_low is None or summary.gain_high is None:
        return None
    return Gain(
        mean=summary.gain,
        low=summary.gain_low,
        high=summary.gain_high,
        count=computed.count,
        missing=computed.missing,
        unpaired=computed.unpaired,
    )


def _unpaired_gain(before: Interval, after: Interval) -> Gain:
    """Difference of two independent means: wider than the paired interval, and all there is without the items."""
    half = math.hypot(before.high - before.low, after.high - after.low) / 2
    mean = after.mean - before.mean
    return Gain(
        mean=mean, low=mean - half, high=mean + half, count=min(before.count, after.count), missing=0, unpaired=0
    )


def category_changes(run: RunRecord, split: str | None = None) -> list[Change]:
    """Every category of a split, the main one by default, before and after, in the order of the evaluation."""
    first, last = run.before(split), run.latest(split)
    if first is None or last is None:
        return []
    before, after = _by_category(run, first), _by_category(run, last)
    items = run.items_of(first), run.items_of(last)
    return [
        Change(
            name=name,
            before=before[name],
            after=after[name],
            gain=_category_gain(name, before[name], after[name], items),
            step=last.step,
            finished=last.label == AFTER,
            paired=None not in items,
        )
        for name in before
        if name in after
    ]


def _category_gain(name: str, before: Interval, after: Interval, items: Sequence[ScoredItems | None]) -> Gain:
    first, last = items
    if first is None or last is None:
        return _unpaired_gain(before, after)
    return paired_gain(first.items(name), last.items(name))


def _by_category(run: RunRecord, evaluation: Evaluation) -> dict[str, Interval]:
    """Intervals from the items; without them the means alone."""
    items = run.items_of(evaluation)
    if items is None:
        return {
            name: Interval(
                mean=math.nan if found.mean is None else found.mean, low=math.nan, high=math.nan, count=found.count
            )
            for name, found in evaluation.by_category.items()
        }
    names = dict.fromkeys(name for name in items.category if name is not None)
    return {name: mean_interval(items.items(name).scores) for name in names}
