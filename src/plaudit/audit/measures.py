"""What changed between before and after."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from plaudit.pages.numbers import Style
from plaudit.runs.record import AFTER, HELDOUT, Evaluation, RunRecord
from plaudit.statistics import Gain, Interval, Items, matched, mean_interval, paired_gain


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


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a report says of a run, computed once: every gain has the bounds of a bootstrap."""

    run: RunRecord
    style: Style
    changes: Mapping[str, Change | None]
    categories: Mapping[str, Sequence[Change]]

    @property
    def change(self) -> Change | None:
        """That of the main split."""
        return self.changes[self.run.main_split]


def findings(run: RunRecord) -> Findings:
    splits = dict.fromkeys((run.main_split, *run.splits()))
    return Findings(
        run=run,
        style=style_of(run),
        changes={split: change(run, split) for split in splits},
        categories={split: category_changes(run, split) for split in splits},
    )


def style_of(run: RunRecord) -> Style:
    """The evaluation reward is an accuracy where its card says that it tells right from wrong."""
    first = next(iter(run.evaluations), None)
    accuracy = first is not None and first.verdict
    noun = "accuracy" if accuracy else first.reward if first else "reward"
    where = "held-out" if run.main_split == HELDOUT else f"{run.main_split}-split"
    return Style(accuracy=accuracy, noun=noun, where=where)


def interval_of(evaluation: Evaluation) -> Interval:
    bounds = (evaluation.mean, evaluation.low, evaluation.high)
    mean, low, high = (math.nan if bound is None else bound for bound in bounds)
    return Interval(mean=mean, low=low, high=high, count=evaluation.count, missing=evaluation.missing)


def change(run: RunRecord, split: str | None = None) -> Change | None:
    """A split, the main one by default, before and after; None until both were measured.

    Measurements during a run are smaller than those around it; both sides are then those of the items in common.
    """
    split = split or run.main_split
    first, last = run.before(split), run.latest(split)
    if first is None or last is None:
        return None
    first_items, last_items = run.items_of(first), run.items_of(last)
    if first_items is not None and last_items is not None:
        found = _paired_change(split, last, first_items.items(), last_items.items())
    else:
        found = _unpaired_change(split, last, interval_of(first), interval_of(last))
    stated = _stated_gain(run, found.gain) if split == run.main_split and found.finished else None
    return found if stated is None else dataclasses.replace(found, gain=stated, paired=True)


def category_changes(run: RunRecord, split: str | None = None) -> list[Change]:
    """Every category of a split, the main one by default, before and after, in the order of the evaluation."""
    first, last = run.before(split), run.latest(split)
    if first is None or last is None:
        return []
    first_items, last_items = run.items_of(first), run.items_of(last)
    if first_items is None or last_items is None:
        common = [name for name in first.by_category if name in last.by_category]
        return [
            _unpaired_change(name, last, _category_mean(first, name), _category_mean(last, name)) for name in common
        ]
    names = dict.fromkeys(name for name in first_items.category if name is not None)
    return [
        _paired_change(name, last, first_items.items(name), last_items.items(name))
        for name in names
        if name in last_items.category
    ]


def _paired_change(name: str, last: Evaluation, before: Items, after: Items) -> Change:
    first, second = matched(before, after)
    return Change(
        name=name,
        before=mean_interval(first.scores),
        after=mean_interval(second.scores),
        gain=paired_gain(before, after),
        step=last.step,
        finished=last.label == AFTER,
        paired=True,
    )


def _unpaired_change(name: str, last: Evaluation, before: Interval, after: Interval) -> Change:
    """Difference of two independent means: wider than the paired interval, and all there is without the items."""
    half = math.hypot(before.high - before.low, after.high - after.low) / 2
    mean, count = after.mean - before.mean, min(before.count, after.count)
    gain = Gain(mean=mean, low=mean - half, high=mean + half, count=count, missing=0, unpaired=0)
    return Change(
        name=name, before=before, after=after, gain=gain, step=last.step, finished=last.label == AFTER, paired=False
    )


def _category_mean(evaluation: Evaluation, name: str) -> Interval:
    """The mean alone: without the items there is no interval."""
    found = evaluation.by_category[name]
    mean = math.nan if found.mean is None else found.mean
    return Interval(mean=mean, low=math.nan, high=math.nan, count=found.count)


def _stated_gain(run: RunRecord, computed: Gain) -> Gain | None:
    """The gain of summary.json, so that a report never contradicts what the run printed."""
    summary = run.summary
    if summary is None or summary.gain is None or summary.gain_low is None or summary.gain_high is None:
        return None
    return dataclasses.replace(computed, mean=summary.gain, low=summary.gain_low, high=summary.gain_high)
