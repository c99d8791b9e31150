"""Pretraining the language network: its batches, its loss, its resumption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from plaudit.builds import language as module
from plaudit.builds.language import IGNORED, PLAN, Packed, build_language, cross_entropy, rows_of, training_batch
from plaudit.builds.training import rate
from plaudit.lab.language import LanguageNetwork, Shape, initialise
from plaudit.lab.sums.grammar import END_ID, PAD_ID, decode, encode, evaluation_prompts, find_prompt


def test_batches_are_planted_solutions_and_nothing_of_the_problem_is_learnt() -> None:
    batch = training_batch(3, 5, 16)
    assert torch.equal(batch.ids, training_batch(3, 5, 16).ids)
    assert not torch.equal(batch.ids[:2], training_batch(4, 5, 16).ids[:2])
    assert not torch.equal(batch.ids[:2], training_batch(3, 6, 16).ids[:2])
    found = unpacked(batch)
    assert len(found) == 16
    for row, after in found:
        text, learnt = decode(row), after[after != IGNORED].tolist()
        start = text.index("=") + 1
        assert find_prompt(text[:start]) is not None
        assert learnt == [*encode(text[start:]), END_ID]
        assert after[start - 1 :].tolist() == learnt


def unpacked(batch: Packed) -> list[tuple[Tensor, Tensor]]:
    """The items of a batch, told apart by their positions."""
    items = []
    for ids, following, place in zip(batch.ids, batch.following, batch.positions, strict=True):
        starts = [i for i in range(len(ids)) if place[i] == 0 and ids[i] != PAD_ID]
        ends = [*starts[1:], int((ids != PAD_ID).sum())]
        items += [(ids[a:b], following[a:b]) for a, b in zip(starts, ends, strict=True)]
    return items


@pytest.mark.parametrize(
    ("lengths", "rows"),
    (([50, 60, 40, 50], [[1, 2], [0, 3]]), ([100, 1], [[0], [1]]), ([30, 30, 30, 10], [[0, 1, 2, 3]])),
)
def test_rows_are_filled_first_fit(lengths: list[int], rows: list[list[int]]) -> None:
    assert rows_of(lengths, 100) == rows


def test_the_loss_is_the_mean_over_solution_characters() -> None:
    """Each solution alone gives what it gives in its row."""
    network, batch = (
        initialise(LanguageNetwork(Shape(layers=2)), torch.Generator().manual_seed(0)),
        training_batch(0, 0, 6),
    )
    with torch.no_grad():
        for matrix in (p for p in network.parameters() if p.ndim == 2):
            matrix.mul_(5.0)  # so that attention is far from uniform
    assert len(batch.ids) < 6
    total, count = 0.0, 0
    with torch.no_grad():
        for row, after in unpacked(batch):
            L = len(row)
            logits = network(row[None], torch.arange(L)[None], torch.ones(1, L, L, dtype=torch.bool).tril())
            log_prob = F.log_softmax(logits[0], dim=-1)
            for i, token in enumerate(after.tolist()):
                if token != IGNORED:
                    total, count = total - log_prob[i, token].item(), count + 1
        assert cross_entropy(network, batch).item() == pytest.approx(total / count, abs=1e-4)


def test_the_rate_rises_stays_and_falls_to_zero() -> None:
    plan = replace(PLAN, warmup=200, decay_from=0.4)
    rates = [rate(plan, 3_000, step) for step in (0, 99, 199, 1_000, 1_200, 2_100, 2_999)]
    np.testing.assert_allclose(rates, [0.005, 0.5, 1, 1, 1, 0.5, 1 / 1_800])


def test_a_stopped_build_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PLAN", replace(PLAN, batch=4, log_every=4, save_every=2))
    monkeypatch.setattr(module, "evaluation_prompts", lambda split, count: evaluation_prompts(split, 4))
    whole = load_file(build_language("sums", tmp_path / "whole", steps=4))
    calls, right = [], module.cross_entropy

    def failing(*args) -> Tensor:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return right(*args)

    monkeypatch.setattr(module, "cross_entropy", failing)
    with pytest.raises(KeyboardInterrupt):
        build_language("sums", tmp_path / "stopped", steps=4)
    resumed = load_file(build_language("sums", tmp_path / "stopped", steps=4))
    assert len(calls) == 4 + 2
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    other = load_file(build_language("sums", tmp_path / "other", steps=4, seed=1))
    assert not torch.equal(whole["lm_head.weight"], other["lm_head.weight"])
