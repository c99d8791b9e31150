from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import strategies as st
from tests.rewards.compose.batches import NAN, grouped, groups, law, same, tensor

from plaudit.errors import RewardError
from plaudit.rewards.compose import groups as gr
from plaudit.rewards.compose.pairwise import win_rate
from plaudit.rewards.compose.pareto import chain_advantage, pareto

OPERATORS = {
    "minmax": lambda parts, group: gr.group_minmax(parts[0], group),
    "centre": lambda parts, group: gr.centre(parts[0], group=group),
    "mean": lambda parts, group: gr.group_mean(parts[0], group),
    "rank": lambda parts, group: gr.rank(parts[0], group=group),
    "rank_sum": lambda parts, group: gr.rank_sum(parts, group=group),
    "win_rate": lambda parts, group: win_rate(parts[0], group=group),
    "pareto": lambda parts, group: pareto(parts, group=group, within="group"),
    "balanced": lambda parts, group: gr.balanced_mean([parts[:1], parts], group),
    "log_taming": lambda parts, group: gr.log_taming([p.abs() for p in parts], group=group),
}


@pytest.mark.parametrize("name", OPERATORS)
@law(batch=grouped(2), seed=st.integers(0, 99))
def test_shuffling_the_batch_shuffles_the_result(name, batch, seed) -> None:
    parts, group = batch
    order = torch.randperm(len(group), generator=torch.Generator().manual_seed(seed))
    shuffled = OPERATORS[name]([part[order] for part in parts], group[order])
    assert same(shuffled, OPERATORS[name](parts, group)[order])


@pytest.mark.parametrize("name", [name for name in OPERATORS if name != "log_taming"])
@law(batch=grouped(2))
def test_groups_do_not_see_each_other(name, batch) -> None:
    parts, group = batch
    together = OPERATORS[name](parts, group)
    for g in group.unique():
        rows = group == g
        assert same(together[rows], OPERATORS[name]([part[rows] for part in parts], group[rows]))


@law(batch=grouped())
def test_minmax_as_a_loop_says(batch) -> None:
    (scores,), group = batch
    expected = []
    for score, g in zip(scores.tolist(), group.tolist(), strict=True):
        peers = [s for s, h in zip(scores.tolist(), group.tolist(), strict=True) if h == g and not math.isnan(s)]
        span = max(peers, default=0) - min(peers, default=0)
        expected.append(score if math.isnan(score) else (score - min(peers)) / span if span else 0.5)
    assert same(gr.group_minmax(scores, group), tensor(*expected))


@law(batch=grouped(), scale=st.sampled_from([0.5, 2.0, 64.0]), shift=st.integers(-8, 8))
def test_minmax_and_rank_need_no_scale(batch, scale, shift) -> None:
    (scores,), group = batch
    scores = (scores * 8).round() / 8  # so that scaling and shifting are exact, and ties stay ties
    assert same(gr.group_minmax(scores * scale + shift, group), gr.group_minmax(scores, group))
    assert same(gr.rank(scores * scale + shift, group=group), gr.rank(scores, group=group))
    assert same(gr.rank(scores.exp(), group=group), gr.rank(scores, group=group))


def test_minmax_of_a_constant_group_is_half_and_noise_below_the_floor_is_constant() -> None:
    scores, group = tensor(3, 3, NAN, 1, 1 + 1e-9), groups(0, 0, 0, 1, 1)
    assert same(gr.group_minmax(scores, group), tensor(0.5, 0.5, NAN, 0, 1))
    assert same(gr.group_minmax(scores, group, floor=1e-6), tensor(0.5, 0.5, NAN, 0.5, 0.5))


def test_balanced_mean_by_hand() -> None:
    """S005: one full-reference metric weighs as much as three without a reference."""
    group = groups(0, 0, 0)
    full, rising, falling = tensor(0, 1, 4), tensor(10, 20, 30), tensor(3, 2, 1)
    result = gr.balanced_mean([[full], [rising, rising, falling]], group)
    assert same(result, tensor(0.5 * 0 + 0.5 / 3, 0.5 * 0.25 + 0.5 * 0.5, 0.5 * 1 + 0.5 * 2 / 3))


def test_ranks_by_hand() -> None:
    result = gr.rank(tensor(5, 1, 5, NAN, 9, 2), group=groups(0, 0, 0, 0, 0, 1))
    assert same(result, tensor(2.5, 1, 2.5, NAN, 4, 1))


@law(batch=grouped(2))
def test_ranks_add_up(batch) -> None:
    (first, second), group = batch
    for g in group.unique():
        n = int((~first[group == g].isnan()).sum())
        assert gr.rank(first, group=group)[group == g].nansum().item() == n * (n + 1) / 2
    total = gr.rank_sum([first, second], group=group)
    assert same(total, gr.rank(first, group=group) + gr.rank(second, group=group))


@law(batch=grouped())
def test_centring(batch) -> None:
    (scores,), group = batch
    result = gr.centre(scores, group=group)
    for g in group.unique():
        present = [s for s in scores[group == g].tolist() if not math.isnan(s)]
        mean = statistics.fmean(present) if present else NAN
        assert same(result[group == g], scores[group == g] - mean)


@pytest.mark.parametrize("value", [0.1, 1e6 + 0.1, -3.3])
def test_a_constant_group_is_centred_to_exactly_zero(value) -> None:
    assert gr.centre(tensor(value, value, value), group=groups(4, 4, 4)).tolist() == [0, 0, 0]


def test_a_missing_member_spoils_no_gradient() -> None:
    for operator in (gr.group_minmax, lambda s, g: gr.centre(s, group=g)):
        scores = tensor(0.1, NAN, 0.7, 0.4).requires_grad_()
        operator(scores, groups(0, 0, 0, 0))[3].backward()
        assert scores.grad[[0, 2, 3]].isfinite().all() and scores.grad[3] > 0.5


def test_minmax_gradient() -> None:
    scores, group = tensor(0.1, 0.9, 0.4, 0.2).requires_grad_(), groups(0, 0, 0, 0)
    assert torch.autograd.gradcheck(lambda s: gr.group_minmax(s, group), scores)


# --- S082 ------------------------------------------------------------------------------------------------------------


def test_log_taming_as_the_card_says() -> None:
    calm, wild = tensor(0.8, 0.9, 0.7, 0.8), tensor(0.1, 8.0, 0.2, 3.0)
    group = groups(0, 0, 1, 1)

    def h(part):
        return part.std() / (part.mean() + 1e-6)

    assert h(wild) > (h(wild) + h(calm)) / 2 > h(calm)
    total = 0.7 * calm + 0.3 * torch.log(1 + wild)
    expected = total - torch.stack([total[:2].mean(), total[:2].mean(), total[2:].mean(), total[2:].mean()])
    result = gr.log_taming([calm, wild], group=group, weights=(0.7, 0.3))
    assert same(result, expected)
    assert abs(result[:2].sum()) < 1e-12 and (result < 0).any()  # centred: not the raw positive sum


def test_log_taming_keeps_parts_that_vary_alike() -> None:
    part = tensor(1, 2, 3)
    assert same(gr.log_taming([part, part], group=groups(0, 0, 0)), tensor(-2, 0, 2))


def test_log_taming_missing_and_out_of_domain() -> None:
    result = gr.log_taming([tensor(1, NAN, 1), tensor(0, 1, 8)], group=groups(0, 0, 0))
    assert same(result, tensor(-math.log(9) / 2, NAN, math.log(9) / 2))
    with pytest.raises(RewardError, match="above -1"):
        gr.log_taming([tensor(1, 1, 1), tensor(-2, 8, 9)], group=groups(0, 0, 0))
    with pytest.raises(ValueError, match="2 weights for 1"):
        gr.log_taming([tensor(1.0)], group=groups(0), weights=(1, 2))


@law(batch=grouped(2, 0, 4))
def test_log_taming_is_centred_where_nothing_is_missing(batch) -> None:
    parts, group = batch
    result = gr.log_taming(parts, group=group)
    for g in group.unique():
        assert abs(result[group == g].nansum()) < 1e-9


def test_chain_in_groups() -> None:
    """Groups of 3: a chain of 3 and none, whose members get 0."""
    first, second = tensor(1, 2, 3, 1, 2, 3), tensor(1, 2, 3, 3, 2, 1)
    result = chain_advantage([first, second], group=groups(0, 0, 0, 1, 1, 1))
    assert same(result, tensor(-1, 0, 1, 0, 0, 0))
