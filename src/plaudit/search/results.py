"""The result of a search."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.pages.showing import Showing, Shown
from plaudit.search.budget import Budget
from plaudit.search.ledger import Ledger
from plaudit.search.track import Candidate, Kept


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Another reward's scores `[P]` of the plain samples and of the best, measured afterwards and outside of the budget:
    where they part from the scores that were searched for, the reward is being hacked."""

    plain: Tensor
    best: Tensor


@dataclass(frozen=True, kw_only=True, repr=False)
class SearchResult(Shown):
    """Per prompt the best candidate, the plain sample and the worst, and what was spent. `stopped` is `finished`, `time`
    or `interrupted`; after an interruption a prompt may have no candidate, which is None. `kept` holds all candidates
    with the prompts' numbers if they were asked for."""

    prompts: Sequence[Prompt]
    method: str
    options: Mapping[str, Any]
    budget: Budget
    seed: int
    stopped: str
    seconds: float
    ledger: Ledger
    candidates: Sequence[Candidate]
    best: Sequence[Kept | None]
    worst: Sequence[Kept | None]
    plain: Sequence[Kept | None]
    kept: Sequence[tuple[int, Kept]] = ()
    truth: Mapping[str, Truth] = field(default_factory=dict)
    first_missing: str | None = None  # why the first score that is missing is
    about: Mapping[str, Any] = field(default_factory=dict)

    def showing(self) -> Showing:
        """The means of the plain samples and of the best."""
        how = {"finished": "", "time": "; the time was up", "interrupted": "; stopped by the user"}[self.stopped]
        lost = f" ({self.missing_scores} without a score)" if self.missing_scores else ""
        names = self.about.get("rewards") or []
        told = [(names[0] if len(names) == 1 else "total", self.plain_scores, self.scores)]
        told += [(f"truth {name}", scores.plain, scores.best) for name, scores in self.truth.items()]
        return Showing(
            title=f"{self.method}: {len(self.candidates)} candidates{lost} for {len(self.prompts)} prompts, budget {self.budget} "
            f"per prompt, {self.seconds:.1f} s{how}",
            header=("mean", "plain", "best"),
            rows=[(name, *(_mean_shown(scores) for scores in pair)) for name, *pair in told],
        )

    def picture(self) -> bytes | None:
        """The plain samples and the best, where they are pictures."""
        from plaudit.search.grid import grid_png

        return grid_png(self)

    @property
    def missing_scores(self) -> int:
        """Candidates without a score."""
        return sum(math.isnan(one.score) for one in self.candidates)

    @property
    def outputs(self) -> list[Any]:
        """The best output of every prompt."""
        return [None if kept is None else kept.output for kept in self.best]

    @property
    def scores(self) -> Tensor:
        """Of the best, `[P]`."""
        return scores_of(self.best)

    @property
    def plain_scores(self) -> Tensor:
        """Of the plain samples, `[P]`."""
        return scores_of(self.plain)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write everything: `search.json`, `candidates.jsonl`, `pairs.jsonl`, `best.jsonl`, `outputs/`, `grid.png`."""
        from plaudit.search.folder import claim, write

        path = Path(folder)
        claim(path, overwrite=overwrite)
        return write(self, path)


def scores_of(kept: Sequence[Kept | None]) -> Tensor:
    return torch.tensor([math.nan if one is None else one.score for one in kept], dtype=torch.float64)


def mean_of(scores: Tensor) -> float:
    """Over the scores that are there, NaN without any."""
    return scores.nanmean().item()


def _mean_shown(scores: Tensor) -> str:
    mean = mean_of(scores)
    return "-" if math.isnan(mean) else f"{mean:.4f}"
