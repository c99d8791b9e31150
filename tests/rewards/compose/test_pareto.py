from __future__ import annotations

import itertools
import math

import torch
from hypothesis import strategies as st
from tests.rewards.compose.batches import NAN, grouped, groups, law, same, tensor

from plaudit.rewards.compose.pareto import chain_advantage, dominance_chain, pareto
from plaudit.shaping.credit import group_advantage


def beats(a: list[float], b: list[float]) -> bool:
    return all(x >= y for x, y in zip(a, b, strict=True)) and any(x > y for x, y in zip(a, b, strict=True))


@law(batch=grouped(3))
def test_front_as_a_loop_says(batch) -> None:
    parts, group = batch
    rows = torch.stack(parts, 1).tolist()
    missing = [any(map(math.isnan, row)) for row in rows]
    for within, same_rivals in (("batch", lambda i, j: True), ("group", lambda i, j: group[i] == group[j])):
        expected = []
        for i, row in enumerate(rows):
            rivals = [rows[j] for j in range(len(rows)) if same_rivals(i, j)]
            expected.append(NAN if missing[i] else float(not any(beats(rival, row) for rival in rivals)))
        assert same(pareto(parts, group=group, within=within), tensor(*expected))


@law(batch=grouped(2))
def test_front_needs_no_scale(batch) -> None:
    (first, second), group = [(part * 8).round() / 8 for part in batch[0]], batch[1]  # ties stay ties
    assert same(pareto([first.exp(), second * 7 - 3], group=group), pareto([first, second], group=group))


def test_equal_samples_are_all_kept_and_a_dominated_one_is_not() -> None:
    result = pareto([tensor(1, 1, 0, 2, NAN), tensor(1, 1, 1, 0, 9)], group=groups(0, 0, 0, 0, 0))
    assert same(result, tensor(1, 1, 0, 1, NAN))


def test_with_many_parts_the_filter_stops_selecting() -> None:
    parts = list(torch.rand(10, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    assert pareto(parts, group=torch.zeros(32)).mean() > 0.9


# --- chains (S032) ---------------------------------------------------------------------------------------------------

vectors = st.lists(st.tuples(*[st.integers(0, 3)] * 2) | st.just((NAN, 1.0)), min_size=1, max_size=8)


@law(rows=vectors)
def test_chain_is_a_longest_one(rows) -> None:
    table = torch.tensor(rows, dtype=torch.float64)
    chain = dominance_chain(table)
    assert all(beats(table[b].tolist(), table[a].tolist()) for a, b in itertools.pairwise(chain))
    present = [i for i, row in enumerate(rows) if not math.isnan(row[0])]
    longest = 0
    for size in range(len(present), 0, -1):
        if any(
            all(beats(table[b].tolist(), table[a].tolist()) for a, b in itertools.pairwise(order))
            for chosen in itertools.combinations(present, size)
            for order in [sorted(chosen, key=lambda i: rows[i])]
        ):
            longest = size
            break
    assert len(chain) == longest and not any(math.isnan(table[i, 0]) for i in chain)


def test_chain_where_a_sum_of_floats_would_lose_the_order() -> None:
    assert dominance_chain(torch.tensor([[1e20, 2.0], [1e20, 1.0], [1e20, 0.0]], dtype=torch.float64)) == [2, 1, 0]


def test_chain_lengths_of_independent_rewards() -> None:
    """The card: about 5.8 of 16 samples with two rewards, 3.6 with three."""
    generator = torch.Generator().manual_seed(0)
    for num_parts, expected in ((2, 5.8), (3, 3.6)):
        draws = [torch.rand(16, num_parts, generator=generator) for _ in range(200)]
        assert abs(sum(len(dominance_chain(draw)) for draw in draws) / 200 - expected) < 0.3


@law(batch=grouped(2))
def test_credit_rise_along_the_chain_and_stay_when_centred_again(batch) -> None:
    parts, group = batch
    result = chain_advantage(parts, group=group)
    assert torch.equal(result.isnan(), torch.stack(parts).isnan().any(0))
    for g in group.unique():
        rows = (group == g) & ~result.isnan()
        assert abs(result[rows].sum()) < 1e-9
        on = result[rows] != 0
        if on.any():
            better = {
                tuple(v): a
                for v, a in zip(torch.stack(parts, 1)[rows][on].tolist(), result[rows][on].tolist(), strict=True)
            }
            assert all(a < b for (u, a), (v, b) in itertools.permutations(better.items(), 2) if beats(list(v), list(u)))


def test_chain_advantage_by_hand() -> None:
    """Chain (0,0) < (1,1) < (2,1) < (3,3); the others are off it and stay at 0 after the trainer's own normalisation."""
    first, second = tensor(3, 0, 1, 0, 2, NAN), tensor(3, 0, 1, 2, 1, 1)
    result = chain_advantage([first, second], group=torch.zeros(6, dtype=torch.long))
    step = 1 / math.sqrt(5 / 3)
    assert same(result, tensor(1.5 * step, -1.5 * step, -0.5 * step, 0, 0.5 * step, NAN))
    assert abs(group_advantage(result, torch.zeros(6, dtype=torch.long)).value[3]) < 1e-12


def test_short_chains_teach_nothing() -> None:
    parts, group = [tensor(0, 1), tensor(0, 1)], groups(0, 0)
    assert chain_advantage(parts, group=group).tolist() == [0, 0]
    assert chain_advantage(parts, group=group, shortest=2).tolist() != [0, 0]
