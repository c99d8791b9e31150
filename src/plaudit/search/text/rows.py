"""Candidates of a token model on their way: what has been drawn, and what the network has read of it.

Shape legend: B rows, T tokens at most, S columns of the cache, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from plaudit.models.caches import arranged, joined


@dataclass(frozen=True, kw_only=True)
class TokenRows:
    """Texts that are being drawn, `ids [B, T]` with their `length [B]`; `log_prob [B, T]` of the distribution they were drawn
    from, 0 where there is no token; `ended [B]` where one ends the text.

    `seen [B, S]` are the columns of the cache that a row attends to, in the order of their positions. The last token of a
    row has not been read yet, unless it has none: then `logits [B, V]` follow its prompt, or None where it is read again.
    Two rows of a prompt with the same candidate number draw the same numbers, so copies need others or a fresh stream.
    """

    prompt: Tensor
    candidate: Tensor
    ids: Tensor
    log_prob: Tensor
    length: Tensor
    ended: Tensor
    cache: Any
    seen: Tensor
    logits: Tensor | None = None

    def __post_init__(self) -> None:
        assert self.prompt.shape == self.candidate.shape == self.length.shape == self.ended.shape == self.ids.shape[:1]
        assert self.log_prob.shape == self.ids.shape and self.seen.shape[:1] == self.prompt.shape

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def finished(self) -> Tensor:
        """Ended `[B]`, or at the limit."""
        return self.ended | (self.length == self.ids.shape[1])

    def select(self, rows: Tensor) -> TokenRows:
        """Rows by index or mask, with their caches; an index may repeat."""
        rows = rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows
        return replace(
            self,
            **{name: getattr(self, name)[rows] for name in ("prompt", "candidate", "ids", "log_prob")},
            length=self.length[rows],
            ended=self.ended[rows],
            cache=arranged(self.cache, rows),
            seen=self.seen[rows],
            logits=None if self.logits is None else self.logits[rows],
        )

    def numbered(self, candidate: Tensor) -> TokenRows:
        return replace(self, candidate=candidate)

    def rewound(self, position: Tensor, prompt_length: Tensor) -> TokenRows:
        """The same rows with their first tokens alone, `position [B]` of them; shorter ones stay as they are."""
        length = torch.minimum(self.length, position)
        there = torch.arange(self.ids.shape[1]) < length[:, None]
        read = torch.minimum(self.seen.sum(1), prompt_length + length - 1)  # the last token is to be read again
        return replace(
            self,
            ids=self.ids.masked_fill(~there, 0),
            log_prob=self.log_prob.masked_fill(~there, 0.0),
            length=length,
            ended=self.ended & (length == self.length),
            seen=self.seen & (self.seen.cumsum(1) <= read[:, None]),
            logits=None,
        )

    @staticmethod
    def cat(parts: Sequence[TokenRows]) -> TokenRows:
        """Rows below each other; of those that wait for their first token it is forgotten what followed the prompt."""
        whole = {
            name: torch.cat([getattr(part, name) for part in parts])
            for name in ("prompt", "candidate", "ids", "log_prob", "length", "ended")
        }
        waiting = [part.seen for part in map(reading_again, parts)]
        return TokenRows(**whole, cache=joined([part.cache for part in parts]), seen=stacked(waiting))


def reading_again(rows: TokenRows) -> TokenRows:
    """Without logits: a row without a token reads the last one of its prompt again."""
    if rows.logits is None:
        return rows
    before = rows.seen.sum(1) - (rows.length == 0).long()
    return replace(rows, logits=None, seen=rows.seen & (rows.seen.cumsum(1) <= before[:, None]))


def stacked(seen: Sequence[Tensor]) -> Tensor:
    """Masks below each other, with nothing where one has fewer columns."""
    width = max(part.shape[1] for part in seen)
    return torch.cat([pad(part, (0, width - part.shape[1])) for part in seen])


def compacted(cache: Any, seen: Tensor, rows: Tensor) -> tuple[Any, Tensor]:
    """The rows `[B]` of a cache without the columns that nobody sees, seen ones to the left in their order."""
    wanted = seen[rows]
    width = int(wanted.sum(1).max()) if len(rows) else 0
    columns = (~wanted).long().argsort(dim=1, stable=True)[:, :width]
    return arranged(cache, rows, columns), wanted.gather(1, columns)
