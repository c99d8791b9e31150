"""Length as credit rather than score: per token (DECS) or among the right outputs only (DRPO).

Shape legend: B samples, T tokens; `group [B]` holds integer group ids, `valid [B, T]` marks the tokens an output has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import torch
from torch import Tensor

from plaudit.shaping.credit import Credit

# --- DECS: token scores, advantages by position, the share of easy prompts -------------------------------------------


def decoupled_scores(correct: Tensor, length: Tensor, redundant_BT: Tensor, *, limit: int, beta: float = 0.1) -> Tensor:
    """Token scores `[B, T]` of outputs that are right (`correct [B]` 1, else 0; NaN stays NaN) and `length [B]` long.

    s (1 + beta) for needed and answer tokens, s + beta (1 - L / limit) for redundant ones, 0 in wrong outputs. Departure:
    L counts at most `limit`, so that a redundant token of a right output is never worth less than s.
    """
    assert redundant_BT.ndim == 2 and correct.shape == length.shape == redundant_BT.shape[:1], redundant_BT.shape
    bonus = beta * (1 - length / limit).clamp(min=0)
    each_BT = torch.where(redundant_BT, 1 + bonus[:, None], torch.full_like(bonus[:, None], 1 + beta))
    return correct[:, None] * each_BT


def next_kappa(kappa: float, share: float, share_before: float, gain: float = 0.2) -> float:
    """The weight of easy prompts follows the needed share of reasoning: kappa + gain * (now - before).

    The steps telescope to gain * (now - first), so no clamp is needed; below 0 no easy prompt is added.
    """
    return kappa + gain * (share - share_before)


def kept_groups(rates: Mapping[int, Fraction], kappa: float, draws: Mapping[int, float]) -> set[int]:
    """Which groups to learn from: all mixed ones, floor(kappa * mixed / (1 - kappa)) of those that are all right (lowest
    `draws` first), none that are all wrong."""
    assert kappa < 1, kappa
    mixed = {g for g, rate in rates.items() if 0 < rate < 1}
    solved = sorted((g for g, rate in rates.items() if rate == 1), key=lambda g: draws[g])
    added = math.floor(round(max(kappa, 0.0) * len(mixed) / (1 - kappa), 9)) if kappa > 0 else 0
    return mixed | set(solved[:added])


# --- DRPO: length tilts the right outputs, wrong ones are a contrast -------------------------------------------------


def tilt(preference: Tensor, right: Tensor, group: Tensor, temperature: float) -> Tensor:
    """omega_i / sum omega: exp(preference / temperature) over each group's right outputs, 0 elsewhere `[B]`.

    `preference` is 1 - L / C for length; any other score will do. An infinite temperature weighs them equally.
    """
    return _softmax_within(preference / temperature, right, group)


def contrast(score: Tensor, wrong: Tensor, group: Tensor, temperature: float) -> Tensor:
    """softmax(s_j / tau) over each group's wrong outputs, 0 elsewhere `[B]`: the gradient of tau log mean exp(s_j / tau)."""
    return _softmax_within(score / temperature, wrong, group)


def decoupled_credit(
    mean_log_prob: Tensor,
    preference: Tensor,
    correct: Tensor,
    group: Tensor,
    *,
    temperature: float = 0.1,
    contrast_temperature: float = 10.0,
) -> Credit:
    """DRPO's coefficient of each output's mean-token log-probability `[B]`: tilt of the right, minus contrast of the wrong.

    `correct [B]` is 1 or 0, NaN where it is not known; a right output without a preference is left out. Groups all right or
    all wrong get 0, yet stay in `groups`, by which the caller divides. `mean_log_prob` is the current policy's; no gradient
    flows through the coefficients.
    """
    assert mean_log_prob.shape == preference.shape == correct.shape == group.shape, mean_log_prob.shape
    known = torch.isfinite(correct) & (torch.isfinite(preference) | (correct == 0))
    right, wrong = known & (correct == 1), known & (correct == 0)
    _, index = torch.unique(group, return_inverse=True)
    groups = int(index.max()) + 1
    both = _any_within(right, index, groups) & _any_within(wrong, index, groups)
    value = tilt(preference, right, group, temperature)
    value = value - contrast(mean_log_prob.detach(), wrong, group, contrast_temperature)
    value = torch.where(both[index], value, torch.zeros_like(value))
    return Credit(value=value, valid=known, groups=groups, constant_groups=int((~both).sum()))


def barrier_weight(kl: Tensor, *, strength: float = 1e3, margin: float = 1e-4) -> Tensor:
    """b max(KL - d, 0): what the gradient of KL is multiplied by, the derivative of (b / 2) max(KL - d, 0)^2."""
    return strength * (kl.detach() - margin).clamp(min=0)


def _any_within(member: Tensor, index: Tensor, groups: int) -> Tensor:
    return torch.zeros(groups, dtype=torch.int64, device=index.device).index_add_(0, index, member.long()) > 0


def _softmax_within(logits: Tensor, member: Tensor, group: Tensor) -> Tensor:
    """exp(logits) over the members of each group, which sum to 1; 0 for the others."""
    _, index = torch.unique(group, return_inverse=True)
    groups = int(index.max()) + 1
    held = torch.where(member, logits, torch.full_like(logits, float("-inf"))).double()
    highest = torch.full((groups,), float("-inf"), dtype=held.dtype, device=held.device)
    highest = highest.scatter_reduce(0, index, held, "amax")
    raised = torch.where(member, held - highest[index], torch.full_like(held, float("-inf"))).exp()
    total = torch.zeros_like(highest).index_add_(0, index, raised)
    return (raised / total[index].clamp(min=torch.finfo(held.dtype).tiny)).to(logits.dtype)
