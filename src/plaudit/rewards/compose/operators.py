"""Operators that look at one sample at a time: sums, products, means, gates. NaN is a missing score.

Every operator here needs all its parts: where one is missing the result is missing, except where its docstring says that
the part is not needed. Shape legend: B samples; each part is `[B]`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plaudit.rewards.compose.groups import group_mean


def weighted_sum(parts: Sequence[Tensor], *, weights: tuple[float, ...]) -> Tensor:
    """Sum of the parts, each times its weight."""
    if len(weights) != len(parts):
        raise ValueError(f"{len(weights)} weights for {len(parts)} parts; give one each")
    return torch.stack([weight * part for weight, part in zip(weights, parts, strict=True)]).sum(0)


def mean(parts: Sequence[Tensor]) -> Tensor:
    """Arithmetic mean of the parts."""
    return torch.stack(list(parts)).mean(0)


def minimum(parts: Sequence[Tensor]) -> Tensor:
    """The lowest of the parts."""
    return torch.stack(list(parts)).amin(0)


def maximum(parts: Sequence[Tensor]) -> Tensor:
    """The highest of the parts."""
    return torch.stack(list(parts)).amax(0)


def product(parts: Sequence[Tensor], *, floor: float | None = None) -> Tensor:
    """Product of the parts; a `floor` such as 0.05 keeps one part of 0 from silencing the others (S022)."""
    stacked = torch.stack(list(parts))
    return (stacked if floor is None else stacked.clamp(min=floor)).prod(0)


def geometric_mean(parts: Sequence[Tensor], *, floor: float = 0.0) -> Tensor:
    """n-th root of the product of n parts of at least `floor`, which lower ones are raised to; 0 if a part is 0."""
    _require(floor >= 0, f"floor {floor:g} is negative; a geometric mean needs parts of at least 0")
    return torch.stack(list(parts)).clamp(min=floor).log().mean(0).exp()


def harmonic_mean(parts: Sequence[Tensor], *, floor: float = 0.0) -> Tensor:
    """n over the sum of the inverses of n parts of at least `floor`, which lower ones are raised to; 0 if a part is 0."""
    _require(floor >= 0, f"floor {floor:g} is negative; a harmonic mean needs parts of at least 0")
    return len(parts) / torch.stack(list(parts)).clamp(min=floor).reciprocal().sum(0)


def lambda_harmonic(first: Tensor, second: Tensor, *, balance: float = 0.5) -> Tensor:
    """Harmonic mean of two similarities in 0..1 with weight `balance` on the first; 0 is the second alone (S107)."""
    _require(0 <= balance <= 1, f"balance {balance:g} is not in 0..1")
    return 1 / (balance / (first + 1e-8) + (1 - balance) / (second + 1e-8))


# --- a necessary condition and what is only worth something with it --------------------------------------------------


def base_bonus(gate: Tensor, bonus: Tensor, *, base: float = 0.5) -> Tensor:
    """gate * (base + (1 - base) * bonus), both in 0..1: the bonus is paid only in so far as the gate is met (S044).

    A gate of exactly 0 gives 0 even where the bonus is missing. Grades of 1..5 must be rescaled by (s - 1) / 4: with s / 5
    a gate is never closed.
    """
    _require(0 <= base <= 1, f"base {base:g} is not in 0..1")
    return gate * (base + (1 - base) * _unneeded_where_closed(bonus, gate))


def cme(execution: Tensor, consistency: Tensor) -> Tensor:
    """execution * (0.6 + 0.4 * consistency): FIRM's reward for edits, which leaving the input alone does not earn (S044)."""
    return base_bonus(execution, consistency, base=0.6)


def qma(following: Tensor, quality: Tensor) -> Tensor:
    """following * (0.4 + 0.6 * quality): FIRM's reward for generated pictures (S044)."""
    return base_bonus(following, quality, base=0.4)


def outcome_gate(outcome: Tensor, bonus: Tensor, *, group: Tensor, alpha: float = 0.5, anneal: float = 1.0) -> Tensor:
    """outcome * (1 + alpha * bonus * (anneal + the group's mean outcome)): a wrong answer earns 0, whatever its bonus (S091).

    `bonus` (conciseness) is clipped to 0.1..1; `anneal` is usually `linear(0, 1, steps)` over the first 30 % of training.
    The bonus of a wrong answer is not needed, so it may be missing. Values of alpha, anneal and difficulty are our choice.
    """
    _require(alpha >= 0, f"alpha {alpha:g} is negative")
    difficulty = group_mean(outcome.detach(), group)
    return outcome * (1 + alpha * _unneeded_where_closed(bonus, outcome).clamp(0.1, 1.0) * (anneal + difficulty))


def _unneeded_where_closed(bonus: Tensor, gate: Tensor) -> Tensor:
    # Replaced before the multiplication, because the gradient of a NaN is NaN even behind a closed gate.
    return torch.where(bonus.isnan() & (gate == 0), torch.zeros_like(bonus), bonus)


# --- which part counts -----------------------------------------------------------------------------------------------


def fallback(parts: Sequence[Tensor]) -> Tensor:
    """The first part that is not missing: a rule where it applies, else a model (S103); missing only where all are."""
    result = parts[-1]
    for part in reversed(parts[:-1]):
        result = torch.where(part.isnan(), result, part)
    return result


def rule_first(rule: Tensor, scores: Tensor) -> Tensor:
    """1 where the rule is met (1), else sigmoid(score), also where the rule does not apply (missing) (S116)."""
    return torch.where(rule == 1, torch.ones_like(rule), torch.sigmoid(scores))


def overlength(scores: Tensor, length: Tensor, *, limit: float, rate: float) -> Tensor:
    """Score minus `rate` for every unit of length beyond `limit`; S101 subtracts it before shaping, not after."""
    return scores - rate * (length - limit).clamp(min=0)


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)
