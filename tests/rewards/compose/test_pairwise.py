from __future__ import annotations

import math

import pytest
import torch
from hypothesis import strategies as st
from tests.rewards.compose.batches import NAN, grouped, groups, law, same, tensor

from plaudit.rewards.compose.groups import rank
from plaudit.rewards.compose.pairwise import asked_once, win_rate, win_rate_of_verdicts
from plaudit.shaping.credit import group_advantage


@law(batch=grouped(), margin=st.sampled_from([0.0, 0.3, 2.0]))
def test_as_a_loop_over_pairs_says(batch, margin) -> None:
    (scores,), group = batch
    values, members, expected = scores.tolist(), group.tolist(), []
    for i, mine in enumerate(values):
        rivals = [v for j, v in enumerate(values) if j != i and members[j] == members[i] and not math.isnan(v)]
        points = [0.5 if abs(mine - rival) <= margin else float(mine > rival) for rival in rivals]
        expected.append(sum(points) / len(points) if points and not math.isnan(mine) else NAN)
    assert same(win_rate(scores, group=group, margin=margin), tensor(*expected))


@law(batch=grouped())
def test_win_rate_is_rank_on_the_unit_interval(batch) -> None:
    (scores,), group = batch
    rates, ranks = win_rate(scores, group=group), rank(scores, group=group)
    for g in group.unique():
        n = int((~scores[group == g].isnan()).sum())
        if n > 1:
            assert same(rates[group == g], (ranks[group == g] - 1) / (n - 1))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_a_margin_on_a_grid_is_not_decided_by_rounding(dtype: torch.dtype) -> None:
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=dtype)
    found = win_rate(scores, group=torch.zeros(4).long(), margin=0.1)
    torch.testing.assert_close(found, torch.tensor([1 / 6, 1 / 3, 2 / 3, 5 / 6], dtype=dtype))


def test_equal_infinities_tie() -> None:
    scores, group = tensor(math.inf, 3.0, math.inf, -math.inf, NAN, -math.inf), groups(0, 0, 0, 0, 0, 0)
    assert same(win_rate(scores, group=group), tensor(0.875, 0.5, 0.875, 0.125, NAN, 0.125))
    assert same(win_rate(scores, group=group, margin=1.0), tensor(0.875, 0.5, 0.875, 0.125, NAN, 0.125))


@law(scale=st.sampled_from([1e-6, 1e-3, 1.0, 1e6]))
def test_score_gaps_are_not_blown_up_and_scales_not_seen(scale) -> None:
    """S008: by score, two clusters 1e-4 apart and an outlier decide the size; by win rate only the order does."""
    scores = tensor(0.8, 0.8001, 0.8002, 0.8003) * scale
    assert same(win_rate(scores, group=groups(0, 0, 0, 0)), tensor(0, 1 / 3, 2 / 3, 1))
    tied = win_rate(scores, group=groups(0, 0, 0, 0), margin=0.01 * scale)
    assert tied.tolist() == [0.5] * 4
    assert group_advantage(tied, groups(0, 0, 0, 0)).value.tolist() == [0] * 4


verdicts = st.integers(2, 6).flatmap(
    lambda g: st.lists(
        st.lists(st.sampled_from([0.0, 0.5, 1.0, NAN]), min_size=g, max_size=g), min_size=g, max_size=g
    ).map(lambda rows: torch.tensor(rows, dtype=torch.float64))
)


@law(matrix=verdicts)
def test_verdicts_as_a_loop_says(matrix) -> None:
    size, asked = len(matrix), matrix.tolist()
    judged = [
        any(not math.isnan(asked[i][j]) or not math.isnan(asked[j][i]) for j in range(size) if j != i)
        for i in range(size)
    ]
    expected = []
    for i in range(size):
        points = []
        for j in range(size):
            if j != i and judged[i] and judged[j]:
                first = 0.5 if math.isnan(asked[i][j]) else asked[i][j]
                second = 0.5 if math.isnan(asked[j][i]) else 1 - asked[j][i]
                points.append((first + second) / 2)
        expected.append(sum(points) / len(points) if points else NAN)
    found = win_rate_of_verdicts(matrix)
    assert same(found, tensor(*expected))
    present = found[~found.isnan()]
    assert abs(present.sum() - len(present) / 2) < 1e-9 and (present >= 0).all() and (present <= 1).all()


def test_a_judge_that_always_prefers_the_first_shown_says_nothing() -> None:
    assert win_rate_of_verdicts(torch.ones(4, 4, dtype=torch.float64)).tolist() == [0.5] * 4


def test_unparsed_is_half_and_never_judged_is_missing() -> None:
    matrix = torch.tensor([[NAN, 1, NAN, NAN], [0, NAN, NAN, NAN], [0, NAN, NAN, NAN], [NAN] * 4], dtype=torch.float64)
    # 0 beats 1 twice, 2 once of two; 1 and 2 are unparsed; 3 was never judged and is nobody's opponent
    assert same(win_rate_of_verdicts(matrix), tensor((1 + 0.75) / 2, (0 + 0.5) / 2, (0.25 + 0.5) / 2, NAN))


def test_asked_once_reads_only_the_upper_triangle() -> None:
    matrix = torch.tensor([[9, 1, NAN], [9, 9, 1], [9, 9, 9]], dtype=torch.float64)
    assert same(win_rate_of_verdicts(asked_once(matrix)), tensor(0.75, 0.5, 0.25))


@law(batch=grouped())
def test_scores_and_their_verdicts_agree(batch) -> None:
    (scores,), _ = batch
    scores = scores[~scores.isnan()]
    if len(scores) > 1:
        matrix = (scores[:, None] > scores).double() + 0.5 * (scores[:, None] == scores)
        assert same(win_rate_of_verdicts(matrix), win_rate(scores, group=torch.zeros(len(scores))))


def test_a_negative_margin_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        win_rate(tensor(1, 2), group=groups(0, 0), margin=-1)
