"""Win rates: how often a sample beats the others of its group. Spread over 0..1 whatever the scale of the scores (S008).

Shape legend: B samples; G members of one group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plaudit.rewards.compose.groups import within_groups

ROUNDING = 1e-5  # of differences of a grid's scores, 0.3 - 0.2


def win_rate(scores: Tensor, *, group: Tensor, margin: float = 0.0) -> Tensor:
    """Share of the other members of its group that a sample beats; scores no more than `margin` apart tie, for half a win.

    Equal infinities tie. Missing members are no opponents; a member without opponents is missing. S008 rounds to three
    digits; we do not.
    """
    if margin < 0:
        raise ValueError(f"margin {margin:g} is negative")

    def rates(rows: Tensor) -> Tensor:
        ahead = rows[:, None] - rows[None, :]
        tied = (ahead.abs() <= margin * (1 + ROUNDING)) | (rows[:, None] == rows[None, :])
        points = ((ahead > 0) & ~tied).to(rows.dtype) + 0.5 * tied
        opponents = int((~rows.isnan()).sum()) - 1
        won = (points.sum(1) - 0.5) / opponents if opponents > 0 else torch.full_like(rows, torch.nan)
        return torch.where(rows.isnan(), rows, won)  # -0.5: everyone ties with themselves

    return within_groups(rates, scores.detach(), group)


def win_rate_of_verdicts(verdicts: Tensor) -> Tensor:
    """Win rates `[G]` from both orders of every pair.

    `verdicts [G, G]`: entry i, j is 1 if i won when it was shown first and j second, 0 if j won, 0.5 for a tie and NaN for
    an answer that could not be parsed, which counts as half a win for both (S008). A judge that always prefers the first
    thus gives everyone 0.5. The diagonal is not read. A member with no parsed verdict at all is missing and no opponent.
    """
    size = len(verdicts)
    assert verdicts.shape == (size, size), verdicts.shape
    others = ~torch.eye(size, dtype=torch.bool, device=verdicts.device)
    parsed = ~verdicts.isnan() & others
    judged = parsed.any(0) | parsed.any(1)
    filled = torch.where(parsed, verdicts, torch.full_like(verdicts, 0.5))
    points = (filled + 1 - filled.T) / 2
    counted = others & judged[None, :] & judged[:, None]
    rates = (points * counted).sum(1) / counted.sum(1)  # 0 / 0 = NaN for those who were not judged
    return rates


def asked_once(verdicts: Tensor) -> Tensor:
    """Both orders from verdicts `[G, G]` of which only i < j were asked, as S008 does: the other order is the mirror image."""
    upper = verdicts.triu(1)
    return upper + (1 - verdicts.T).tril(-1)
