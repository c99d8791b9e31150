"""EditScore's arithmetic, by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.rewards.judges.backends import Scripted

from plaudit.data.prompt import Prompt
from plaudit.errors import RecipeError
from plaudit.lab.edits.grammar import Edit, sample_edits
from plaudit.lab.scenes.render import rasterise
from plaudit.rewards.base import Score, Status
from plaudit.rewards.calling.call import call_reward
from plaudit.rewards.judges.ask import Answer, Asked, Judge, declined
from plaudit.rewards.judges.edits import EditScore
from plaudit.rewards.judges.lab import biased_edit, exact_edit, noisy_edit
from plaudit.rewards.load import find_reward

SOURCE, EDITED = torch.zeros(3, 8, 8), torch.full((3, 8, 8), 0.5)


def scored(say: Callable[[str, int], Any], **options: Any) -> Score:
    backend = Scripted(lambda asked: say(asked.question.fields["aspect"], asked.k), None)
    prompts = [Prompt(id="p", text="make it grey", inputs={"source": SOURCE}, facts={})]
    return call_reward("e", EditScore(Judge(backend), **options), prompts, EDITED[None])[0]


def by_pass(*rows: tuple[list[float], list[float]]) -> Callable[[str, int], str]:
    return lambda aspect, k: f'{{"reasoning": "so", "score": {rows[k][aspect == "quality"]}}}'


def test_the_least_of_two_and_the_geometric_mean() -> None:
    score = scored(by_pass(([25, 10], [5, 20])))
    assert score.value == pytest.approx(math.sqrt(10 / 25 * 5 / 25))
    assert score.components == {"consistency": pytest.approx(0.4), "quality": pytest.approx(0.2), "passes": 1}
    assert scored(by_pass(([25, 25], [25, 25]))).value == 1
    assert scored(by_pass(([0, 25], [25, 25]))).value == 0


PASSES = ([16, 20], [9, 25]), ([4, 25], [25, 25])


def test_the_two_ensembles() -> None:
    """O in the paper's scale of 0..10 is sqrt(SC * PQ) with parts divided by 2.5; the reward is O / 10."""
    each = [math.sqrt(16 / 2.5 * 9 / 2.5) / 10, math.sqrt(4 / 2.5 * 25 / 2.5) / 10]
    assert scored(by_pass(*PASSES), samples=2).value == pytest.approx(sum(each) / 2)
    means = scored(by_pass(*PASSES), samples=2, ensemble="means")
    assert means.value == pytest.approx(math.sqrt((16 + 4) / 50 * (9 + 25) / 50)) != pytest.approx(sum(each) / 2)


@pytest.mark.parametrize("lost", ["no verdict", declined(Status.REFUSED, "no"), '{"score": [26, 1]}', Answer(cut=True)])
@pytest.mark.parametrize("aspect", ["consistency", "quality"])
def test_a_pass_with_half_an_answer_counts_for_nothing(lost: Any, aspect: str) -> None:
    """The middle of the scale in its place would give 0.5 or more."""
    said = by_pass(*PASSES)
    score = scored(lambda asked, k: lost if (asked, k) == (aspect, 1) else said(asked, k), samples=2)
    assert score.value == pytest.approx(scored(by_pass(PASSES[0])).value) and score.components["passes"] == 1
    alone = scored(lambda asked, k: lost if asked == aspect else said(asked, k), samples=2)
    assert alone.status is (Status.REFUSED if isinstance(lost, Answer) and not lost.cut else Status.PARSE_FAILED)
    assert math.isnan(alone.value)


def test_quality_is_asked_without_source_and_instruction() -> None:
    seen = dict[str, Asked]()

    def say(asked: Asked) -> str:
        seen[asked.question.fields["aspect"]] = asked
        return '{"score": [1, 1]}'

    prompts = [Prompt(id="p", text="make it grey", inputs={"source": SOURCE})]
    call_reward("e", EditScore(Judge(Scripted(say, None))), prompts, EDITED[None])
    texts = {aspect: "".join(p for p in one.question.parts if isinstance(p, str)) for aspect, one in seen.items()}
    pictures = {aspect: sum(not isinstance(p, str) for p in one.question.parts) for aspect, one in seen.items()}
    assert "make it grey" in texts["consistency"] and "make it grey" not in texts["quality"]
    assert pictures == {"consistency": 2, "quality": 1}


def test_without_a_source_there_is_nothing_to_ask() -> None:
    prompts = [Prompt(id="a", text="x", inputs={"source": SOURCE}), Prompt(id="b", text="x")]
    found = call_reward("e", EditScore(lambda: '{"score": [25, 25]}'), prompts, torch.stack([EDITED, EDITED]))
    assert [score.status for score in found] == [Status.OK, Status.NOT_APPLICABLE]


def test_an_unknown_ensemble_is_named() -> None:
    with pytest.raises(RecipeError, match=r"arguments.ensemble` is .mean.; allowed: scores, means"):
        find_reward("e", "edit_score", {"judge": lambda: "", "ensemble": "mean"})


# --- the lab's judges ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def edits() -> list[Edit]:
    return sample_edits("train", 20, np.random.default_rng(0))


def judged(edits: list[Edit], outputs: torch.Tensor, judge: Callable[..., str], samples: int = 1) -> np.ndarray:
    found = call_reward("e", EditScore(judge, samples=samples), [one.prompt for one in edits], outputs)
    return np.array([score.value for score in found])


def pictures(scenes: list[torch.Tensor]) -> torch.Tensor:
    return rasterise(torch.stack(scenes))


def test_the_exact_judge_knows_what_was_asked_for(edits: list[Edit]) -> None:
    assert (judged(edits, pictures([one.target for one in edits]), exact_edit) == 1).all()
    assert (judged(edits, pictures([one.source for one in edits]), exact_edit) == 0).all()


def test_the_noisy_judge_says_the_same_of_the_same_and_less_noise_of_several(edits: list[Edit]) -> None:
    right, wrong = (pictures([getattr(one, name) for one in edits]) for name in ("target", "source"))
    once, four = (judged(edits, right, noisy_edit, samples) for samples in (1, 4))
    assert (once == judged(edits, right, noisy_edit)).all() and 0 < once.std() < 1
    assert four.std() < 0.7 * once.std()
    assert four.mean() > 2 * judged(edits, wrong, noisy_edit, 4).mean(), "it is noise and no bias"


def test_the_biased_judge_misses_what_should_be_gone(edits: list[Edit]) -> None:
    removed = [one for one in edits if one.prompt.facts["category"] == "remove"]
    assert (judged(removed, pictures([one.source for one in removed]), biased_edit) == 1).all()
    assert (judged(removed, pictures([one.source for one in removed]), exact_edit) == 0).all()
