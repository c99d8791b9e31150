"""Group advantages by plain loops over exact fractions where they matter."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from fractions import Fraction


def _members(scores: Sequence[float], groups: Sequence[int], wanted: int) -> list[float]:
    return [s for s, g in zip(scores, groups, strict=True) if g == wanted and math.isfinite(s)]


def group_advantage(
    scores: Sequence[float], groups: Sequence[int], *, std: str, floor: float, clip: float | None
) -> list[float]:
    """Advantage of every score; 0 where it is missing, alone, or in a group of equal scores."""
    centred_all = []
    for g in set(groups):
        members = _members(scores, groups, g)
        if len(members) >= 2:
            mean = statistics.fmean(members)
            centred_all.append([m - mean for m in members])
    freedom = sum(len(c) - 1 for c in centred_all)
    finite = [s for s in scores if math.isfinite(s)]
    overall = {
        "pooled": math.sqrt(sum(d * d for c in centred_all for d in c) / freedom) if freedom else 0.0,
        "batch": statistics.stdev(finite) if len(finite) > 1 else 0.0,
        "global": statistics.pstdev(finite) if finite else 0.0,
    }
    advantages = []
    for index, (score, g) in enumerate(zip(scores, groups, strict=True)):
        members = _members(scores, groups, g)
        if not math.isfinite(score) or len(members) < 2 or len(set(members)) == 1:
            advantages.append(0.0)
            continue
        exact = [Fraction(m) for m in members]
        baseline = sum(exact) / len(exact)
        if std == "loo":
            others = [
                Fraction(s)
                for j, (s, h) in enumerate(zip(scores, groups, strict=True))
                if h == g and j != index and math.isfinite(s)
            ]
            baseline = sum(others) / len(others)
        value = float(Fraction(score) - baseline)
        if std == "group":
            value /= max(statistics.stdev(members), floor)
        elif std in overall:
            value /= max(overall[std], floor)
        if clip is not None:
            value = min(max(value, -clip), clip)
        advantages.append(value)
    return advantages
