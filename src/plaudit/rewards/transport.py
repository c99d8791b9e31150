"""Optimal transport between two small sets: exact by linear programming, smooth by Sinkhorn's iterations.

Shape legend: n sources, m targets; `...` any leading batch axes.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.optimize import linear_sum_assignment, linprog
from torch import Tensor

MASS_TOLERANCE = 1e-6


def emd(cost: ArrayLike | Tensor, a: ArrayLike | Tensor | None = None, b: ArrayLike | Tensor | None = None) -> float:
    """Exact earth mover's distance, min over plans P >= 0 with margins `a [n]` and `b [m]` of sum P * cost `[n, m]`.

    Margins are uniform with total 1 when left out; given ones must be non-negative and of equal total.
    """
    costs = _array(cost)
    if a is None and b is None and costs.shape[0] == costs.shape[1]:
        _check_cost(costs)
        rows, columns = linear_sum_assignment(costs)
        return float(costs[rows, columns].mean())
    return float((emd_plan(costs, a, b) * costs).sum())


def emd_plan(
    cost: ArrayLike | Tensor, a: ArrayLike | Tensor | None = None, b: ArrayLike | Tensor | None = None
) -> NDArray[np.float64]:
    """An optimal plan `[n, m]` of `emd`."""
    costs = _array(cost)
    _check_cost(costs)
    n, m = costs.shape
    source, target = _margin(a, n, "a"), _margin(b, m, "b")
    if not math.isclose(source.sum(), target.sum(), rel_tol=MASS_TOLERANCE):
        raise ValueError(f"a holds {source.sum():g} and b {target.sum():g}; transport needs equal totals")
    # One of the n + m equations follows from the others; rounding could make it contradict them.
    row_sums = sparse.kron(sparse.eye(n), np.ones((1, m)))
    column_sums = sparse.kron(np.ones((1, n)), sparse.eye(m))
    equations = sparse.vstack([row_sums, column_sums]).tocsr()[: n + m - 1]
    totals = np.concatenate([source, target * (source.sum() / target.sum())])[: n + m - 1]
    solved = linprog(costs.ravel(), A_eq=equations, b_eq=totals, bounds=(0, None), method="highs")
    if not solved.success:
        raise ValueError(f"the transport problem could not be solved: {solved.message}")
    return np.asarray(solved.x, dtype=np.float64).reshape(n, m)


def sinkhorn_plan(
    cost: Tensor,
    epsilon: float,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    iterations: int = 1000,
    tolerance: float = 1e-6,
) -> Tensor:
    """Plan `[..., n, m]` that minimises <P, cost> - epsilon * entropy(P) among those with margins `a` and `b`.

    Works on logarithms, so that a small epsilon (in units of the cost) neither overflows nor underflows. Differentiable
    through its iterations, which stop when the potentials move by less than `tolerance` * epsilon.
    """
    if epsilon <= 0:
        raise ValueError(f"epsilon {epsilon:g}: the entropy's weight must be positive; use emd for the exact distance")
    n, m = cost.shape[-2:]
    log_a = (cost.new_full((n,), 1 / n) if a is None else a).log()
    log_b = (cost.new_full((m,), 1 / m) if b is None else b).log()
    kernel = -cost / epsilon
    g = torch.zeros_like(cost[..., 0, :])
    for _ in range(iterations):
        f = log_a - torch.logsumexp(kernel + g[..., None, :], dim=-1)
        previous, g = g, log_b - torch.logsumexp(kernel + f[..., :, None], dim=-2)
        if _largest_move(previous, g) < tolerance:
            break
    return (kernel + f[..., :, None] + g[..., None, :]).exp()


def sinkhorn(
    cost: Tensor,
    epsilon: float,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    iterations: int = 1000,
    tolerance: float = 1e-6,
) -> Tensor:
    """<P, cost> `[...]` of the entropic plan P: never below `emd`, and equal to it as epsilon goes to zero."""
    plan = sinkhorn_plan(cost, epsilon, a, b, iterations=iterations, tolerance=tolerance)
    return (plan * cost).sum((-2, -1))


def _largest_move(previous: Tensor, new: Tensor) -> float:
    moved = (new - previous).detach()
    return moved[torch.isfinite(moved)].abs().max().item()  # a target without mass keeps the potential -inf


def _array(values: ArrayLike | Tensor) -> NDArray[np.float64]:
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)


def _check_cost(cost: NDArray[np.float64]) -> None:
    if cost.ndim != 2 or 0 in cost.shape or not np.isfinite(cost).all():
        raise ValueError(f"cost of shape {cost.shape}: it must be a finite matrix with at least one row and column")


def _margin(mass: ArrayLike | Tensor | None, count: int, name: str) -> NDArray[np.float64]:
    if mass is None:
        return np.full(count, 1 / count)
    margin = _array(mass)
    if margin.shape != (count,) or not (margin >= 0).all() or not 0 < margin.sum() < math.inf:
        raise ValueError(f"{name} of shape {margin.shape}: expected {count} non-negative masses, not all zero")
    return margin
