"""Supervised fine-tuning against torch and transformers, and rejection sampling: only what was kept is learned."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.reference.token_toys import TinyLanguage, drawn_batch, plain_logits, token_batch
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.objectives.batch import Batch
from plaudit.objectives.sft import KEPT, Sft, best_of_group
from plaudit.recipe.objectives import SftConfig
from plaudit.sampling.tokens import given_completions
from plaudit.shaping.credit import Credit
from plaudit.train.learn import accumulate
from plaudit.train.trainable import Policy

PROMPTS = [(9, 12, 10, 13, 14), (5, 14), (4, 12, 9, 14)]
GIVEN, BEST = SftConfig(type="sft"), SftConfig(type="sft", keep="best")
REACHES = SftConfig(type="sft", keep="threshold", threshold=0.5)
KEEPS = {"given": GIVEN, "best": BEST, "threshold": REACHES}


def gradients(network: torch.nn.Module) -> Tensor:
    parts = [(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in network.parameters()]
    return torch.cat(parts)


def prepared() -> tuple[TinyLanguage, Batch]:
    """Three groups of four: scores with a tie, one missing, and a group that nothing was scored of."""
    model = TinyLanguage()
    model.end_ids = frozenset({1, 4, 8})
    batch = drawn_batch(model, PROMPTS, 4, limit=9)
    nan = math.nan
    score = torch.tensor([0.0, 0.7, 0.5, 0.7, nan, 0.2, 0.4, 0.1, nan, nan, nan, nan], dtype=torch.float64)
    assert len(set(batch.completions.length.tolist())) > 3
    return model, dataclasses.replace(batch, score=score, credit=Credit(value=torch.zeros(12), valid=score.isfinite()))


def cross_entropy(model: TinyLanguage, batch: Batch, rows: list[int]) -> Tensor:
    """The mean over all tokens of these samples: long ones weigh more."""
    losses = []
    for i in rows:
        prompt, row = batch.completions.prompt_ids[i], batch.completions.rows()[i]
        logits = plain_logits(model, (*prompt, *row))[len(prompt) - 1 : -1]
        losses.append(F.cross_entropy(logits.double(), torch.tensor(row), reduction="none"))
    return torch.cat(losses).mean()


KEPT_ROWS = {"given": [0, 1, 2, 3, 5, 6, 7], "best": [1, 6], "threshold": [1, 2, 3]}


@pytest.mark.parametrize("keep", KEEPS)
def test_the_loss_is_the_mean_cross_entropy_of_what_was_kept(keep: str) -> None:
    model, batch = prepared()
    expected = cross_entropy(model, batch, KEPT_ROWS[keep])
    expected.backward()
    theirs = gradients(model.network)
    model.network.zero_grad()
    sums = accumulate(Policy(model), Sft(KEEPS[keep], pack=64), batch, 5)
    assert sums.totals["loss/nll"] == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(gradients(model.network), theirs, rtol=1e-3, atol=1e-5)
    assert theirs.norm() > 1e-2 and sums.totals["entropy"] > 0.1
    assert sums.totals.get("kept_frac") == (None if keep == "given" else pytest.approx(len(KEPT_ROWS[keep]) / 12))


def test_it_is_the_loss_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from tests.models.tiny_causal import build

    from plaudit.models.causal import CausalTokenModel

    folder = build(tmp_path)
    model = CausalTokenModel(
        *(auto.from_pretrained(folder) for auto in (transformers.AutoModelForCausalLM, transformers.AutoTokenizer))
    )
    prompts = [Prompt(id="a", text="two and two"), Prompt(id="b", text="hi")]
    prompt_ids = model.encode(prompts)
    answers = [model.encode_completion(text) for text in ("four", "hello there")]
    rows = [torch.tensor((*p, *a)) for p, a in zip(prompt_ids, answers, strict=True)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0)
    valid = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    labels = torch.where(valid, ids, -100)
    for i, prompt in enumerate(prompt_ids):
        labels[i, : len(prompt)] = -100
    theirs = model.network(input_ids=ids, attention_mask=valid.long(), labels=labels).loss
    theirs.backward()
    expected = gradients(model.network)
    model.network.zero_grad()
    batch = token_batch(given_completions(prompt_ids, answers), 1)
    sums = accumulate(Policy(model), Sft(GIVEN, pack=0), batch, 1)
    assert sums.totals["loss/nll"] == pytest.approx(theirs.item(), rel=1e-5)
    torch.testing.assert_close(gradients(model.network), expected, rtol=1e-3, atol=1e-5)
    assert all(answer[-1] in model.end_ids for answer in answers) and expected.norm() > 0.1


def test_the_best_of_a_group_is_its_first_highest() -> None:
    score = torch.tensor([0.1, 0.9, 0.9, math.nan, -2.0, math.nan, math.nan, math.nan], dtype=torch.float64)
    group = torch.tensor([7, 7, 7, 7, 3, 3, 5, 5])
    assert best_of_group(score, group).tolist() == [False, True, False, False, True, False, False, False]
    turned = torch.arange(7, -1, -1)
    assert best_of_group(score[turned], group[turned]).tolist() == [0, 0, 0, 1, 0, 1, 0, 0]


@pytest.mark.parametrize("keep", ("best", "threshold"))
def test_what_was_not_kept_has_no_influence(keep: str) -> None:
    """Other texts in its place leave the gradient as it is."""

    def found(change: bool) -> Tensor:
        model, batch = prepared()
        if change:
            others = torch.tensor([i for i in range(12) if i not in KEPT_ROWS[keep]])
            ids = batch.completions.ids.clone()
            ids[others] = (ids[others] + 3) % 19
            batch = dataclasses.replace(batch, samples=dataclasses.replace(batch.completions, ids=ids))
        accumulate(Policy(model), Sft(KEEPS[keep]), batch, 4)
        return gradients(model.network)

    torch.testing.assert_close(found(True), found(False), rtol=0, atol=0)
    assert found(False).norm() > 1e-2


def test_where_nothing_was_kept_nothing_is_learned() -> None:
    model, batch = prepared()
    high = SftConfig(type="sft", keep="threshold", threshold=2.0)
    assert accumulate(Policy(model), Sft(high), batch, 4).totals == {}
    assert all(p.grad is None for p in model.network.parameters())


def test_the_update_as_a_whole_decides_what_is_best() -> None:
    """Not its micro-batches: what `prepare` found out stays."""
    _, batch = prepared()
    objective = Sft(BEST)
    known = objective.prepare(Policy(TinyLanguage()), batch)
    assert known.extra[KEPT].nonzero()[:, 0].tolist() == [1, 6]
    assert not objective.computed(known.select(torch.tensor([0, 2, 3]))).any()
    assert objective.needs.whole_groups and not Sft(REACHES).needs.whole_groups
    assert (Sft(GIVEN).needs.feed, Sft(BEST).needs.feed) == ("demonstrations", "rollouts")


@pytest.mark.parametrize("keep", KEEPS)
def test_the_split_changes_nothing(keep: str) -> None:
    def run(micro_batch: int, pack: int) -> tuple[Tensor, dict[str, float]]:
        model, batch = prepared()
        totals = accumulate(Policy(model), Sft(KEEPS[keep], pack), batch, micro_batch).totals
        return gradients(model.network), totals

    whole, totals = run(64, 0)
    assert whole.norm() > 1e-2
    for micro_batch, pack in ((1, 0), (3, 64)):
        found, metrics = run(micro_batch, pack)
        torch.testing.assert_close(found, whole, rtol=1e-3, atol=1e-6)
        assert metrics == pytest.approx(totals, rel=1e-4, abs=1e-7)
