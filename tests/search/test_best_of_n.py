"""Best-of-N against a slow version of it, and how it uses its budget."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from tests.reference.toys import ToyFlowModel, prompts
from tests.search.toys import CountingModel, Green, make_task

from plaudit.errors import RecipeError
from plaudit.models.flow import EMPTY_PROMPT
from plaudit.sampling.noise import SampleKey, gaussian
from plaudit.search.best_of_n import BestOfN, Plain
from plaudit.search.budget import Cost
from plaudit.search.run import run_search


def slow_candidate(model: ToyFlowModel, prompt, index: int, steps: int, guidance: float) -> torch.Tensor:
    """Euler steps of one sample, written out."""
    x = gaussian([SampleKey(seed=0, step=-1, prompt=prompt.id, index=index)], "initial", model.latent_shape)
    for k in range(steps):
        t = torch.tensor([1 - k / steps])
        with_prompt = model.velocity(x, t, model.encode([prompt]))
        without = model.velocity(x, t, model.encode([EMPTY_PROMPT]))
        x = x - (without + guidance * (with_prompt - without)) / steps
    return model.decode(x)[0]


@pytest.mark.parametrize("tile", (1, 5, 64))
@pytest.mark.parametrize("guidance", (1.0, 3.0))
@torch.no_grad()
def test_the_best_of_n_separate_draws(tile: int, guidance: float) -> None:
    model, asked = ToyFlowModel(), prompts(3)
    each = 5 * (1 if guidance == 1 else 2)
    task = make_task(model, Green(), f"{each * 7 + 3}nfe", asked=asked, guidance=guidance, tile=tile)
    result = run_search(task, BestOfN())
    for p, prompt in enumerate(asked):
        pictures = torch.stack([slow_candidate(model, prompt, i, 5, guidance) for i in range(7)])
        green = pictures[:, 1].mean((1, 2))
        assert result.best[p].candidate == int(green.argmax()) and result.worst[p].candidate == int(green.argmin())
        assert result.best[p].score == pytest.approx(green.max().item(), abs=1e-6)
        assert result.plain_scores[p] == pytest.approx(green[0].item(), abs=1e-6)
        torch.testing.assert_close(result.outputs[p], pictures[green.argmax()], rtol=0, atol=1e-6)
    assert [one.candidate for one in result.best] != [0, 0, 0]
    assert Counter((one.prompt, one.candidate) for one in result.candidates) == Counter(
        (p, i) for p in range(3) for i in range(7)
    )
    assert all(task.ledger.spent(p) == Cost(network_calls=7 * each, decodes=7, reward_calls=7) for p in range(3))


@pytest.mark.parametrize(
    ("budget", "count"), [("60nfe", 12), ("64rewards", 64), ("60nfe,5rewards", 5), ("60nfe,9s", 12), ("7decodes", 7)]
)
def test_as_many_candidates_as_the_budget_pays_for(budget: str, count: int) -> None:
    result = run_search(make_task(None, Green(), budget), BestOfN())
    assert len(result.candidates) == 3 * count and result.stopped == "finished"


def test_asked_for_fewer_it_draws_fewer_and_for_more_it_refuses() -> None:
    assert len(run_search(make_task(None, Green(), "60nfe"), BestOfN(candidates=2)).candidates) == 6
    with pytest.raises(RecipeError, match="pays for 12 of 13 candidates"):
        run_search(make_task(None, Green(), "60nfe"), BestOfN(candidates=13))
    with pytest.raises(RecipeError, match="draw at least 1"):
        run_search(make_task(None, Green(), "60nfe"), BestOfN(candidates=0))


def test_network_calls_are_as_large_as_the_tile() -> None:
    """All prompts and candidates share the batches: 3 x 12 candidates in tiles of 9 are 4 batches of 9, 5 steps each."""
    model = CountingModel()
    run_search(make_task(model, Green(), "60nfe", tile=9), BestOfN())
    assert model.rows == [9] * 20 and model.decoded == [9] * 4


def test_a_candidate_without_a_score_never_wins() -> None:
    everything = run_search(make_task(None, Green(), "60nfe", count=4), BestOfN())
    cut = everything.scores.median().item()
    result = run_search(make_task(None, Green(lost=lambda value: value >= cut - 1e-7), "60nfe", count=4), BestOfN())
    for p in range(4):
        mine = [one for one in everything.candidates if one.prompt == p and one.score < cut - 1e-7]
        assert result.best[p].candidate == max(mine, key=lambda one: one.score).candidate
        assert result.worst[p].candidate == min(mine, key=lambda one: one.score).candidate
    assert sum(math.isnan(one.score) for one in result.candidates) > 0


def test_where_all_scores_of_a_prompt_are_missing_its_plain_sample_is_the_result() -> None:
    def only_the_first(prompts: list[str], outputs: torch.Tensor) -> list[float | None]:
        return [float(o[1].mean()) if p == prompts[0] else None for p, o in zip(prompts, outputs, strict=True)]

    result = run_search(make_task(None, only_the_first, "60nfe"), BestOfN())
    assert [one.candidate for one in result.best][1:] == [0, 0] and result.scores.isnan().tolist() == [
        False,
        True,
        True,
    ]
    assert result.worst[0] is not None and result.worst[1:] == (None, None)


def test_plain_is_one_sample() -> None:
    result = run_search(make_task(None, Green(), "60nfe"), Plain())
    assert [one.candidate for one in result.candidates] == [0, 0, 0]
    assert result.ledger.total == Cost(network_calls=15, decodes=3, reward_calls=3)


def test_a_budget_that_it_does_not_spend_is_refused() -> None:
    with pytest.raises(RecipeError, match="would never end; add network calls or seconds"):
        run_search(make_task(reward=Green(), budget="4gradients"), BestOfN())
