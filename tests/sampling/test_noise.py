"""Counter-based randomness: a number belongs to its key and to nothing else."""

from __future__ import annotations

import dataclasses
import itertools
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tests.reference.toys import keys, prompts

from plaudit.sampling.noise import SampleKey, gaussian, generator, uniform
from plaudit.train.collect import expand_groups


def key(**changes) -> SampleKey:
    return dataclasses.replace(SampleKey(seed=3, step=5, prompt="abc", index=2), **changes)


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(6)), parts=st.integers(1, 6))
def test_a_sample_has_the_same_noise_in_any_batch_and_order(order: list[int], parts: int) -> None:
    whole = gaussian(keys(6), "transition", (2, 3), decision=4)
    again = torch.cat(
        [
            gaussian([keys(6)[i] for i in rows.tolist()], "transition", (2, 3), decision=4)
            for rows in np.array_split(np.array(order), parts)
        ]
    )
    assert torch.equal(again, whole[torch.tensor(order)])
    assert torch.equal(
        uniform([keys(6)[i] for i in order], "times", 5), uniform(keys(6), "times", 5)[torch.tensor(order)]
    )


def test_batches_hold_the_numbers_of_each_samples_own_generator() -> None:
    """Odd counts leave half of a word over, which must not reach the next sample; nor must threads disturb each other."""
    few = keys(5)

    def alone() -> tuple[torch.Tensor, torch.Tensor]:
        normal = [generator(k, "transition", 4).standard_normal((3, 7), dtype=np.float32) for k in few]
        flat = [generator(k, "tokens").random(7, dtype=np.float32) for k in few]
        return torch.from_numpy(np.stack(normal)), torch.from_numpy(np.stack(flat))

    def together(_: int) -> tuple[torch.Tensor, torch.Tensor]:
        return gaussian(few, "transition", (3, 7), decision=4), uniform(few, "tokens", 7)

    expected = alone()
    with ThreadPoolExecutor(4) as pool:
        for found in (together(0), *pool.map(together, range(40))):
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_every_part_of_the_key_matters() -> None:
    changes = [
        {},
        {"seed": 4},
        {"step": 6},
        {"prompt": "abd"},
        {"index": 3},
        {"step": 52, "index": 0},
        {"seed": 35, "step": 5},
    ]
    drawn = [gaussian([key(**c)], "initial", (4,)) for c in changes]
    drawn += [gaussian([key()], stream, (4,)) for stream in ("transition", "forward")]
    drawn += [gaussian([key()], "initial", (4,), decision) for decision in (1, 2, 2**20)]
    for a, b in itertools.combinations(drawn, 2):
        assert not torch.equal(a, b)


def test_keys_that_read_alike_do_not_collide() -> None:
    """Numbers side by side in a text must not run into each other."""
    alike = [
        key(seed=1, step=23),
        key(seed=12, step=3),
        key(prompt="a1", index=2),
        key(prompt="a", index=12),
        key(prompt="a|1", index=2),
    ]
    assert len({tuple(gaussian([k], "initial", (2,))[0].tolist()) for k in alike}) == len(alike)


def test_decisions_do_not_overlap_however_long_they_are() -> None:
    """A long draw of one decision must not run into the next one's numbers."""
    first = gaussian([key()], "transition", (50_000,), 0)[0].tolist()
    second = gaussian([key()], "transition", (50_000,), 1)[0].tolist()
    assert len(set(first) & set(second)) < 500  # float32 normals coincide now and then


def test_members_of_a_group_differ() -> None:
    """Pitfall 15: one generator reused gave identical members."""
    members, group, sample_keys = expand_groups(prompts(3), 5, seed=0, step=0)
    assert len(set(sample_keys)) == 15
    noise = gaussian(sample_keys, "initial", (4, 2)).flatten(1)
    assert torch.unique(noise, dim=0).shape[0] == 15
    assert (torch.corrcoef(noise) - torch.eye(15)).abs().max() < 0.999
    assert group.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert [m.id for m in members] == ["p0"] * 5 + ["p1"] * 5 + ["p2"] * 5


def test_a_prompt_that_comes_twice_in_a_step_gets_other_noise_and_its_own_group() -> None:
    asked = [prompts(2)[0], prompts(2)[1], prompts(2)[0]]
    _, group, sample_keys = expand_groups(asked, 3, seed=0, step=0)
    assert len(set(sample_keys)) == 9
    assert [k.index for k in sample_keys] == [0, 1, 2, 0, 1, 2, 3, 4, 5]
    assert group.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_noise_changes_from_step_to_step() -> None:
    """Pitfall 15: a group seed that never changes."""
    a, b = (expand_groups(prompts(1), 2, seed=0, step=step)[2] for step in (0, 1))
    assert not torch.equal(gaussian(a, "initial", (3,)), gaussian(b, "initial", (3,)))


def test_gaussian_is_standard_normal_within_and_across_keys() -> None:
    within = gaussian(keys(1), "initial", (40_000,))[0].numpy()
    across = gaussian(keys(5_000), "initial", (1,))[:, 0].numpy()
    decisions = np.array([gaussian(keys(1), "transition", (1,), d).item() for d in range(3000)])
    for sample in (within, across, decisions):
        assert stats.kstest(sample, "norm").pvalue > 1e-4
    assert abs(np.corrcoef(within[:-1], within[1:])[0, 1]) < 4 / np.sqrt(len(within))


def test_uniform_is_uniform_and_below_one() -> None:
    sample = uniform(keys(2_000), "times", 5).numpy()
    assert sample.min() >= 0 and sample.max() < 1
    assert stats.kstest(sample.ravel(), "uniform").pvalue > 1e-4


def test_global_generators_are_neither_used_nor_moved() -> None:
    """Pitfall 17."""
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first = gaussian(keys(3), "initial", (5,)), uniform(keys(3), "times", 2), generator(key(), "window").integers(9)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all() and random.getstate() == before[2]
    torch.manual_seed(2), np.random.seed(2), random.seed(2)
    again = gaussian(keys(3), "initial", (5,)), uniform(keys(3), "times", 2), generator(key(), "window").integers(9)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1]) and first[2] == again[2]


@pytest.mark.parametrize("seed", (0, 1))
def test_numbers_are_pinned(seed: int) -> None:
    """Golden: another numpy or hash would silently change every published seed."""
    pinned = {0: (0.85581, 0.64539), 1: (0.38542, -0.53319)}[seed]
    drawn = gaussian([SampleKey(seed=seed, step=0, prompt="a red circle", index=0)], "initial", (2,))[0]
    assert drawn.tolist() == pytest.approx(pinned, abs=1e-4)
