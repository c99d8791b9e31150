"""Best-of-N that judges unfinished texts and drops the worst on the way (SDR, S079).

At a checkpoint every candidate has ended or has so many pieces (sentences); its whole pieces are scored, and the best
`keep` of them go on. The published abstract names the idea alone: checkpoints after 2, 4 and 6 pieces, half of the candidates
kept and at least one are our choice. The reward has to make sense of a beginning, as `bank_similarity` does.

Candidate 0 is the plain sample: it is drawn first and to its end, judged at every checkpoint like the others, and
stays among the results even where it would have been dropped.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from plaudit.errors import RecipeError
from plaudit.rewards.encoders.sets import SENTENCE_END
from plaudit.search.rows import Found, best_rows
from plaudit.search.text.task import TokenTask

ROUND = 8  # candidates where neither the option nor the budget says how many


def has_pieces(text: str, boundary: re.Pattern[str], count: int) -> bool:
    """Whether the text has come to the end of this many pieces."""
    return sum(1 for _ in itertools.islice(boundary.finditer(text), count)) == count


def whole_pieces(text: str, boundary: re.Pattern[str], count: int) -> str:
    """The first `count` pieces of a text, or all of it where there are fewer."""
    ends = [match.end() for match in itertools.islice(boundary.finditer(text), count)]
    return text[: ends[-1]] if len(ends) == count else text


def compiled(boundary: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(boundary)
    except re.error as error:
        raise RecipeError(f"boundary: {boundary!r} is no regular expression: {error}") from None
    if pattern.match(""):
        raise RecipeError(
            f"boundary: {boundary!r} matches the empty text, so a piece would never end; give one that does not"
        )
    return pattern


@dataclass(frozen=True, kw_only=True)
class Streaming:
    """`candidates` per prompt; None draws as many as the budget would pay for if none were dropped. What is saved stays
    unspent."""

    candidates: int | None = None
    checkpoints: tuple[int, ...] = (2, 4, 6)
    keep: float = 0.5
    boundary: str = SENTENCE_END.pattern

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in itertools.pairwise((0, *self.checkpoints)))
        if not rising or not 0 < self.keep <= 1:
            raise RecipeError(
                f"streaming: checkpoints {list(self.checkpoints)}, keep {self.keep}; checkpoints must rise from 1 or more, "
                "and keep be more than 0 and at most 1"
            )
        compiled(self.boundary)

    def run(self, task: TokenTask) -> Iterator[Found]:
        every = torch.arange(len(task.prompts))
        count = self._count(task)
        with task.untimed():
            plain = task.drawn(every, torch.zeros_like(every))
            found = task.finished(plain)
        yield found
        first = 1
        while count is None or first < count:
            last = first + ROUND - 1 if count is None else count
            yield from self._round(task, found, range(first, last))
            first = last

    def _round(self, task: TokenTask, plain: Found, candidates: range) -> Iterator[Found]:
        """The candidates of every prompt, beside the plain sample, which is finished."""
        P, boundary = len(task.prompts), compiled(self.boundary)
        rows = task.start(torch.arange(P).repeat_interleave(len(candidates)), torch.tensor(candidates).repeat(P))
        plain_texts, judged = list(plain.outputs), _Judged(plain)
        for checkpoint in self.checkpoints:
            rows = task.extend(rows, until=partial(has_pieces, boundary=boundary, count=checkpoint))
            whole = [whole_pieces(text, boundary, checkpoint) for text in (*plain_texts, *task.texts(rows))]
            prompt = torch.cat([torch.arange(P), rows.prompt])
            score = judged(task, whole, prompt, torch.cat([plain.candidate, rows.candidate]))
            rows = rows.select(staying(score, prompt, self.keep))
            if len(rows) == 0:
                return
        rows = task.extend(rows)
        texts = task.texts(rows)
        yield task.found(rows, texts, judged(task, texts, rows.prompt, rows.candidate))

    def _count(self, task: TokenTask) -> int | None:
        """Scores at checkpoints count; a plain sample is judged there too."""
        each = task.cost(tokens=task.longest, scores=1 + len(self.checkpoints))
        fits = task.fits(each)
        if self.candidates is None:
            return None if fits is None else max(fits, 1)
        if self.candidates < 1:
            raise RecipeError(f"streaming: {self.candidates} candidates; draw at least 1")
        if fits is not None and self.candidates > fits:
            raise RecipeError(
                f"streaming: the budget {task.budget} pays for {fits} of {self.candidates} candidates, should none be dropped; "
                "give it more, or leave the option out"
            )
        return self.candidates


class _Judged:
    """Scores of beginnings and whole texts; one that has not changed since it was judged is not judged again."""

    def __init__(self, plain: Found) -> None:
        names = zip(plain.prompt.tolist(), plain.candidate.tolist(), strict=True)
        judged = zip(plain.outputs, plain.score.tolist(), strict=True)
        self.known: dict[tuple[int, int], tuple[str, float]] = dict(zip(names, judged, strict=True))

    def __call__(self, task: TokenTask, texts: list[str], prompt: Tensor, candidate: Tensor) -> Tensor:
        names = list(zip(prompt.tolist(), candidate.tolist(), strict=True))
        new = [i for i, name in enumerate(names) if self.known.get(name, (None,))[0] != texts[i]]
        if new:
            score = task.score([texts[i] for i in new], prompt[new])
            self.known |= {names[i]: (texts[i], value) for i, value in zip(new, score.tolist(), strict=True)}
        return torch.tensor([self.known[name][1] for name in names], dtype=torch.float64)


def staying(score: Tensor, prompt: Tensor, keep: float) -> Tensor:
    """Of scores that begin with one plain sample per prompt, the other rows that stay: the best `keep` of each prompt's
    candidates, at least one, and all of them where all are level. Indices count from the first row that is no plain
    sample."""
    stay = []
    for p in prompt.unique().tolist():
        own = (prompt == p).nonzero()[:, 0]
        count = max(math.floor(keep * len(own)), 1)
        alike = bool((score[own] == score[own[0]]).all())  # scores that tell nothing apart drop nobody
        stay.append(own if alike else own[best_rows(score[own], torch.zeros_like(own), count)])
    P = len(stay)
    chosen = torch.cat(stay).sort().values - P
    return chosen[chosen >= 0]
