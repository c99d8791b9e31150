"""Rewards normalised each on its own before they are mixed."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import Tensor

from plaudit.shaping.credit import Credit, group_advantage
from plaudit.shaping.mix import mixed_advantage

GROUP = [0, 0, 0, 0, 7, 7, 7, 7]
RIGHT = [1.0, 0, 0, 1, 1, 1, 1, 0]
BRIEF = [0.2, 0.9, 0.1, 0.4, 0.3, 0.3, 0.8, 0.1]


def mix(scores: dict[str, list[float]], weights: dict[str, float], group: list[int] | None = None, **rest) -> Credit:
    tensors = {name: torch.tensor(values, dtype=torch.float64) for name, values in scores.items()}
    return mixed_advantage(tensors, weights, torch.tensor(GROUP if group is None else group), **rest)


def by_loops(scores: list[list[float]], weights: list[float], group: list[int]) -> list[float]:
    total = [0.0] * len(group)
    for values, weight in zip(scores, weights, strict=True):
        for i, g in enumerate(group):
            members = [v for v, h in zip(values, group, strict=True) if h == g]
            if len(set(members)) > 1:
                total[i] += weight * (values[i] - statistics.fmean(members)) / max(statistics.stdev(members), 1e-4)
    return total


def test_the_mix_is_the_loops() -> None:
    found = mix({"right": RIGHT, "brief": BRIEF}, {"right": 1.0, "brief": 0.1})
    assert found.value.tolist() == pytest.approx(by_loops([RIGHT, BRIEF], [1.0, 0.1], GROUP))
    assert max(abs(v) for v in found.value.tolist()) > 0.5 and found.valid.all()
    assert (found.groups, found.constant_groups) == (2, 0)


def test_one_reward_is_its_own_advantage() -> None:
    alone = group_advantage(torch.tensor(BRIEF, dtype=torch.float64), torch.tensor(GROUP), floor=1e-4)
    assert torch.equal(mix({"b": BRIEF}, {"b": 1.0}).value, alone.value)
    for std in ("group", "batch", "none", "loo"):
        alone = group_advantage(torch.tensor(BRIEF).double(), torch.tensor(GROUP), floor=1e-4, std=std)
        assert mix({"b": BRIEF}, {"b": 2.0}, std=std).value.tolist() == pytest.approx(
            (2 * alone.value).tolist(), abs=1e-6
        )


def test_the_scale_and_offset_of_a_reward_do_not_matter_but_they_do_in_a_sum() -> None:
    def summed(scale: float) -> Tensor:
        both = torch.tensor(RIGHT) + scale * torch.tensor(BRIEF)
        return group_advantage(both, torch.tensor(GROUP)).value

    plain = mix({"r": RIGHT, "b": BRIEF}, {"r": 1.0, "b": 1.0}).value
    scaled = mix({"r": RIGHT, "b": [10 * b - 3 for b in BRIEF]}, {"r": 1.0, "b": 1.0}).value
    assert scaled.tolist() == pytest.approx(plain.tolist(), rel=1e-9)
    assert (summed(10.0) - summed(1.0)).abs().max() > 0.1


def test_a_constant_reward_adds_exactly_nothing_and_a_still_group_gets_zero() -> None:
    constant = [0.1 + 0.2] * 4 + [0.5] * 4
    assert torch.equal(
        mix({"r": RIGHT, "c": constant}, {"r": 1.0, "c": 5.0}).value, mix({"r": RIGHT}, {"r": 1.0}).value
    )
    still = mix({"r": [1.0] * 4 + RIGHT[4:], "c": constant}, {"r": 1.0, "c": 5.0})
    assert still.value[:4].tolist() == [0] * 4 and still.valid.all() and still.constant_groups == 1


def test_a_nearly_constant_reward_is_bounded_by_the_floor() -> None:
    nearly = [1 + 1e-7, 1.0, 1.0, 1.0, 0, 0, 0, 0]
    assert mix({"n": nearly}, {"n": 1.0}).value.abs().max() < 1e-3


def test_a_sample_that_lacks_a_score_is_left_out_of_all() -> None:
    gap = [math.nan, *BRIEF[1:]]
    found = mix({"r": RIGHT, "b": gap}, {"r": 1.0, "b": 0.5})
    rest = mix({"r": RIGHT[1:], "b": BRIEF[1:]}, {"r": 1.0, "b": 0.5}, GROUP[1:])
    assert found.valid.tolist() == [False] + [True] * 7 and found.value[0] == 0
    assert found.value[1:].tolist() == pytest.approx(rest.value.tolist())


def test_rescaling_mixes_what_there_is_at_the_same_total_weight() -> None:
    gap = [math.nan, *BRIEF[1:]]
    found = mix({"r": RIGHT, "b": gap}, {"r": 1.0, "b": 0.5}, on_missing="rescale")
    whole = mix({"r": RIGHT}, {"r": 1.0})
    assert found.valid.all() and found.value[0] == pytest.approx(1.5 * float(whole.value[0]))
    brief = group_advantage(torch.tensor(gap).double(), torch.tensor(GROUP), floor=1e-4)
    expected = whole.value[1:] + 0.5 * brief.value[1:]
    assert found.value[1:].tolist() == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.parametrize("on_missing", ["drop", "rescale"])
def test_a_sample_with_no_score_at_all_is_never_valid(on_missing: str) -> None:
    gap = [math.nan, *BRIEF[1:]]
    found = mix({"a": gap, "b": gap}, {"a": 1.0, "b": 1.0}, on_missing=on_missing)
    assert not found.valid[0] and found.value[0] == 0 and found.valid[1:].all()


def test_a_reward_of_weight_zero_is_not_looked_at() -> None:
    found = mix({"r": RIGHT, "x": [math.nan] * 8}, {"r": 1.0, "x": 0.0})
    assert torch.equal(found.value, mix({"r": RIGHT}, {"r": 1.0}).value) and found.valid.all()


def test_negative_weights_turn_a_reward_round() -> None:
    found = mix({"b": BRIEF}, {"b": -1.0})
    assert torch.equal(found.value, -mix({"b": BRIEF}, {"b": 1.0}).value)


def test_permuting_samples_permutes_advantages() -> None:
    order = [5, 0, 3, 7, 1, 6, 2, 4]
    weights = {"r": 1.0, "b": 0.1}
    straight = mix({"r": RIGHT, "b": BRIEF}, weights).value
    moved = mix(
        {"r": [RIGHT[i] for i in order], "b": [BRIEF[i] for i in order]}, weights, [GROUP[i] for i in order]
    ).value
    assert moved.tolist() == pytest.approx([float(straight[i]) for i in order])


def test_mistakes_are_refused() -> None:
    with pytest.raises(ValueError, match="drop, rescale"):
        mix({"r": RIGHT}, {"r": 1.0}, on_missing="zero")
    with pytest.raises(AssertionError):
        mix({"r": RIGHT}, {"b": 1.0})
    with pytest.raises(AssertionError):
        mix({"r": RIGHT}, {"r": 0.0})
