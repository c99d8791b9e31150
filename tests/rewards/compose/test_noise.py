"""Inverted scores against the documented hash, and what an inversion touches."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from tests.rewards.compose.batches import NAN, same, tensor
from torch import Tensor

from plaudit.errors import RecipeError
from plaudit.rewards.compose.formula import parse

IDS = [f"q{i}" for i in range(400)]


def noisy(scores: Tensor, ids: list[str], options: str, step: int = 0) -> Tensor:
    numbers = {name: i for i, name in enumerate(dict.fromkeys(ids))}
    group = torch.tensor([numbers[name] for name in ids])
    formula = parse(f"flipped(right, {options})", ["right"])
    formula.check_units({"right": (0.0, 1.0)})
    return formula.evaluate({"right": scores}, group, step, prompts=ids).total


def ones(count: int) -> Tensor:
    return torch.ones(count, dtype=torch.float64)


def test_the_draw_is_the_documented_hash() -> None:
    found = noisy(ones(50), IDS[:50], "probability=0.3, seed=7", step=5)
    for name, score in zip(IDS, found.tolist(), strict=False):
        digest = hashlib.blake2b(f"7|5|{name}|0|reward noise".encode(), digest_size=16).digest()
        bits = np.random.Philox(key=int.from_bytes(digest, "little"), counter=[0, 0, 0, 0])
        draw = np.random.Generator(bits).random(1, dtype=np.float32)[0]
        assert score == (0.0 if draw < 0.3 else 1.0)


def test_a_group_is_inverted_together_and_samples_are_not() -> None:
    ids = [name for name in IDS[:100] for _ in range(4)]
    scores = tensor(1, 0, 1, 0).repeat(100)
    grouped = noisy(scores, ids, "probability=0.4").view(100, 4)
    single = noisy(scores, ids, 'probability=0.4, each="sample"').view(100, 4)
    assert {tuple(row) for row in grouped.tolist()} == {(1, 0, 1, 0), (0, 1, 0, 1)}
    assert len({tuple(row) for row in single.tolist()}) > 10
    for rows in (grouped, single):
        assert abs((rows[:, 0] == 0).double().mean() - 0.4) < 0.15  # 3 sigma


def test_samples_of_scattered_groups_have_their_places() -> None:
    together = noisy(ones(6), ["a", "a", "a", "b", "b", "b"], 'probability=0.5, each="sample", seed=3')
    apart = noisy(ones(6), ["a", "b", "a", "b", "a", "b"], 'probability=0.5, each="sample", seed=3')
    assert together.tolist() == apart[[0, 2, 4, 1, 3, 5]].tolist()


def test_noise_is_new_each_step_and_for_each_seed_and_touches_no_global_state() -> None:
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    runs = [
        noisy(ones(400), IDS, f"probability=0.5, seed={seed}", step).tolist()
        for seed, step in ((0, 0), (0, 0), (0, 1), (1, 0))
    ]
    assert runs[0] == runs[1] and runs[0] != runs[2] and runs[0] != runs[3]
    assert torch.equal(state, torch.get_rng_state()) and (numpy_state == np.random.get_state()[1]).all()


def test_the_ends_of_the_probability_and_what_is_missing() -> None:
    assert same(noisy(tensor(1, 0.25, NAN), IDS[:3], "probability=0"), tensor(1, 0.25, NAN))
    assert same(noisy(tensor(1, 0.25, NAN), IDS[:3], "probability=1"), tensor(0, 0.75, NAN))
    with pytest.raises(RecipeError, match=r"probability 1.5 is not in 0..1"):
        parse("flipped(right, probability=1.5)", ["right"])
    with pytest.raises(RecipeError, match=r"right is in 0..2; bring it to 0..1 first"):
        parse("flipped(right, probability=0.5)", ["right"]).check_units({"right": (0.0, 2.0)})


def test_an_output_without_answer_may_be_left_alone() -> None:
    formula = parse("has * flipped(right, probability=1) + (1 - has) * right", ["right", "has"])
    parts = {"right": tensor(1, 0.25, 0), "has": tensor(1, 1, 0)}
    assert same(formula.evaluate(parts, torch.arange(3), prompts=IDS[:3]).total, tensor(0, 0.75, 0))
