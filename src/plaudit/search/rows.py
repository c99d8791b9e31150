"""Candidates as rows of a batch, on the way and finished.

Shape legend: B rows, P prompts, * latent dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Rows:
    """States `x [B, *]` with the prompt `[B]` and the candidate number `[B]` of each.

    Noise is a function of prompt and candidate, so that a row is the same in any company; two rows of one prompt with
    the same number draw the same noise. Copies (children, resampled particles) therefore need `numbered()`.
    """

    x: Tensor
    prompt: Tensor
    candidate: Tensor

    def __post_init__(self) -> None:
        assert self.x.shape[:1] == self.prompt.shape == self.candidate.shape, (self.x.shape, self.prompt.shape)

    def __len__(self) -> int:
        return len(self.prompt)

    def select(self, rows: Tensor) -> Rows:
        """Rows by index or mask; an index may repeat."""
        return Rows(x=self.x[rows], prompt=self.prompt[rows], candidate=self.candidate[rows])

    def at(self, x: Tensor) -> Rows:
        """The same candidates at other states."""
        return replace(self, x=x)

    def repeat(self, times: int) -> Rows:
        """Each row `times` times in a row, numbered anew."""
        return self.select(torch.arange(len(self)).repeat_interleave(times)).numbered()

    def numbered(self, start: int = 1) -> Rows:
        """Candidates of each prompt numbered `start`, `start` + 1, ... in the order of the rows; 0 is the plain sample."""
        return replace(self, candidate=start + places(self.prompt))

    @staticmethod
    def cat(parts: Sequence[Rows]) -> Rows:
        return Rows(
            x=torch.cat([part.x for part in parts]),
            prompt=torch.cat([part.prompt for part in parts]),
            candidate=torch.cat([part.candidate for part in parts]),
        )


@dataclass(frozen=True, kw_only=True)
class Found:
    """Finished candidates `[B]`: outputs (pictures `[B, 3, H, W]`, or a list of texts), their scores in float64 with NaN
    where one is missing, and where there are any the clean latents `[B, *]`. Candidate 0 is the plain sample."""

    outputs: Any
    score: Tensor
    prompt: Tensor
    candidate: Tensor
    latents: Tensor | None = None

    def __post_init__(self) -> None:
        assert self.score.shape == self.prompt.shape == self.candidate.shape == (len(self.outputs),)

    def __len__(self) -> int:
        return len(self.prompt)


def places(prompt: Tensor) -> Tensor:
    """Place `[B]` of every row among the rows of its prompt, from 0."""
    order = prompt.argsort(stable=True)
    ordered = prompt[order]
    first = torch.searchsorted(ordered, ordered)
    return torch.empty_like(prompt).scatter_(0, order, torch.arange(len(prompt)) - first)


def best_rows(score: Tensor, prompt: Tensor, count: int) -> Tensor:
    """Indices of the `count` highest scores of every prompt, prompt by prompt, best first. A missing score comes after
    all others; of equal ones the earlier row comes first."""
    order = score.nan_to_num(nan=-torch.inf, neginf=torch.finfo(score.dtype).min).argsort(descending=True, stable=True)
    order = order[prompt[order].argsort(stable=True)]
    return order[places(prompt[order]) < count]
