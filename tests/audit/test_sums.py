"""What is measured of a model on sums, and what the shipped one does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from plaudit.builds import sums_report as sums
from plaudit.builds.sums_report import Attempt, attempts, summary, table
from plaudit.lab.sums.check import read
from plaudit.lab.sums.grammar import END_ID, MAX_COMPLETION, decode, encode, evaluation_prompts, find_prompt
from plaudit.models.lab_text import LabTokenModel


def test_greedy_attempts_are_the_likeliest_tokens_read_anew_each_time() -> None:
    model, prompts = LabTokenModel(), evaluation_prompts("heldout", 3)
    for prompt, found in zip(prompts, attempts(model, prompts, temperature=0.0), strict=True):
        ids = list(encode(prompt.text))
        while ids[-1] != END_ID and len(ids) < len(prompt.text) + MAX_COMPLETION:
            L = len(ids)
            causal = torch.ones(1, L, L, dtype=torch.bool).tril()
            with torch.no_grad():
                logits = model.logits(torch.tensor([ids]), torch.arange(L)[None], causal)
            ids.append(int(logits[0, -1].argmax()))
        assert decode(ids[len(prompt.text) :]) == found.text


def attempt(problem: str, text: str) -> Attempt:
    prompt = find_prompt(problem)
    return Attempt(prompt=prompt, text=text, reading=read(text, prompt.facts["operands"]))


def test_a_summary_counts_shares_and_right_lengths() -> None:
    texts = ("#122", "122#122", "122", "112#112", "")
    found = summary([attempt("37+85=", text) for text in texts])
    assert (found["count"], found["pass"], found["well_formed"]) == (5, 0.4, 0.6)
    assert found["answer"] == pytest.approx(0.6)
    assert found["length"] == pytest.approx((4 + 7 + 3 + 7) / 5)
    assert (found["right_q50"], found["right_q05"]) == (5.5, pytest.approx(4.15))
    assert "right_q50" not in summary([attempt("37+85=", "122")])


def test_the_table_splits_the_sampled_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    written = {"digits": "1:", "pair": "1=1", "mixed": "1?", "triple": "1"}

    def given(model, prompts, *, temperature: float, **__) -> list[Attempt]:
        assert model == "a model"
        return [
            attempt(p.text, f"#{p.facts['answer']}" if temperature == 0 else written[p.facts["category"]])
            for p in prompts
        ]

    monkeypatch.setattr(sums, "attempts", given)
    found = table("a model", 40)
    assert found["greedy"]["pass"] == 1 and found["sampled"]["pass"] == 0
    assert all(found[f"category {name}"]["count"] == 10 for name in written)
    styles = ("verbose", "plain", "recheck", "short")
    assert [found[f"style {name}"]["length"] for name in styles] == [2, 3, 2, 1]


def test_the_shipped_network_is_often_right_and_often_wrong() -> None:
    """Room for training in both directions: it solves about half of the problems, and greedily far from all of them."""
    model, prompts = LabTokenModel(), evaluation_prompts("heldout", 256)
    sampled = attempts(model, prompts, temperature=1.0)
    greedy = attempts(model, prompts, temperature=0.0)
    assert 0.30 < np.mean([a.reading.correct for a in sampled]) < 0.60
    assert 0.70 < np.mean([a.reading.well_formed for a in sampled]) < 0.90
    assert np.mean([a.reading.correct for a in greedy]) < 0.90
    lengths = [len(a.text) for a in sampled if a.reading.correct]
    assert np.quantile(lengths, 0.9) > 3 * np.quantile(lengths, 0.1)
    for prompt, attempt in zip(prompts, sampled, strict=True):
        assert attempt.reading == read(attempt.text, prompt.facts["operands"])
