"""Values on tokens or on steps to credit.

Shape legend: B samples, T tokens, D decisions; `group [B]` holds integer group ids.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plaudit.shaping.credit import Credit, Deviation, group_advantage


def padded(values: list[Tensor | None], width: int) -> Tensor:
    """Ragged values as `[B, width]`, 0 behind the end of each; a sample without any is NaN throughout."""
    rows = torch.full((len(values), width), torch.nan, dtype=torch.float64)
    for row, value in zip(rows, values, strict=True):
        if value is not None:
            assert len(value) <= width, (len(value), width)
            row[: len(value)] = value
            row[len(value) :] = 0.0
    return rows


def position_credit(
    score_BT: Tensor, after_end: Tensor, there_BT: Tensor, group: Tensor, *, floor: float = 1e-6
) -> Credit:
    """Credit `[B, T]` among the group's scores at the same position, 0 where there is no token.

    An output that has ended still takes part with `after_end [B]`, its score as a whole, so that late positions are not compared
    among long outputs only. Departure: `floor` bounds the deviation, where the released code of DECS adds 1e-6 to it.
    """
    assert score_BT.shape == there_BT.shape and after_end.shape == group.shape == score_BT.shape[:1], score_BT.shape
    width = score_BT.shape[1]
    _, index = torch.unique(group, return_inverse=True)
    filled_BT = torch.where(there_BT, score_BT, after_end[:, None])
    place_BT = index[:, None] * width + torch.arange(width, device=index.device)
    found = group_advantage(filled_BT.flatten(), place_BT.flatten(), floor=floor)
    counted_BT = found.valid.view_as(there_BT) & there_BT
    value_BT = torch.where(counted_BT, found.value.view_as(score_BT), torch.zeros_like(score_BT))
    return _by_decision(value_BT, counted_BT.any(1), index)


def step_gains(value: Tensor) -> Tensor:
    """What each step gained `[B, D]`, of the worth `[B, D + 1]` of the states around the steps; the gains of a sample add up to
    last minus first (DenseGRPO)."""
    return value[:, 1:] - value[:, :-1]


def per_step_credit(
    gain_BD: Tensor, group: Tensor, *, std: Deviation = "group", floor: float = 1e-3, clip: float | None = None
) -> Credit:
    """Each step's gains against those of the group at the same step. A sample that lacks one is left out."""
    whole = gain_BD.isfinite().all(1)
    _, index = torch.unique(group, return_inverse=True)
    gain_BD = torch.where(whole[:, None], gain_BD, torch.nan)
    steps = [group_advantage(gain, group, std=std, floor=floor, clip=clip) for gain in gain_BD.unbind(1)]
    return _by_decision(torch.stack([step.value for step in steps], 1), steps[0].valid, index)


def _by_decision(value: Tensor, valid: Tensor, index: Tensor) -> Credit:
    groups, moving = int(index.max()) + 1, torch.unique(index[(value != 0).any(1)])
    return Credit(value=value, valid=valid, groups=groups, constant_groups=groups - len(moving))
