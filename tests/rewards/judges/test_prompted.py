"""A judge that is written in a recipe."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.docs.pages import blocks, page
from tests.rewards.judges.backends import Scripted

from plaudit.data.prompt import Prompt
from plaudit.errors import RecipeError
from plaudit.recipe.load import load
from plaudit.rewards.base import Score, Status
from plaudit.rewards.calling.call import call_reward
from plaudit.rewards.judges.ask import Answer, Judge
from plaudit.rewards.judges.endpoint import Endpoint
from plaudit.rewards.judges.prompted import PromptedJudge
from plaudit.rewards.load import find_reward

TEMPLATE = "{prompt}: is {output} like {reference}? yes or no"


def scored(said: Any, read: dict[str, Any], facts: dict[str, Any] | None = None, **options: Any) -> Score:
    judge = Judge(Scripted(lambda asked: said, None))
    reward = PromptedJudge(template=TEMPLATE, read=read, judge=judge, kind="text", **options)
    prompts = [Prompt(id="p", text="2 + 2", facts={"reference": "4"} if facts is None else facts)]
    return call_reward("j", reward, prompts, ["four"])[0]


def first(**tokens: float) -> Answer:
    return Answer(text="x", cut=True, log_probs=({token: math.log(p) for token, p in tokens.items()},))


def half(answer: Answer) -> Score:
    return Score(value=0.5, note=answer.text)


def half_maker() -> Any:
    return half


@pytest.mark.parametrize(
    "said, read, value",
    [
        ('{"score": 4}', {"type": "score"}, 0.4),
        ('{"score": 4}', {"type": "score", "low": 1, "high": 4}, 1.0),
        ('{"score": 5}', {"type": "score", "low": 1, "high": 4}, Status.PARSE_FAILED),
        (first(yes=0.6, no=0.2), {"type": "probability"}, 0.75),
        (first(ja=0.6, nein=0.2), {"type": "probability", "of": "ja", "against": "nein"}, 0.75),
        (first(ja=0.6), {"type": "probability"}, Status.PARSE_FAILED),
        ("I think so.\nYES", {"type": "word"}, 1.0),
        ("No.", {"type": "word"}, 0.0),
        ("yes, no", {"type": "word"}, Status.PARSE_FAILED),
        ("tie", {"type": "word", "right": ["win"], "wrong": ["loss", "tie"]}, 0.0),
        ('{"points": {"a": 4, "b": "N/A", "c": 1}}', {"type": "rubric", "points": ["a", "b", "c"], "low": 1, "high": 4}, 0.5),
        ("anything", {"type": "tests.rewards.judges.test_prompted:half_maker"}, 0.5),
    ],
)  # fmt: skip
def test_readers_bring_an_answer_to_0_to_1(said: Any, read: dict[str, Any], value: float | Status) -> None:
    score = scored(said, read)
    assert score.status is value if isinstance(value, Status) else score.value == pytest.approx(value)


def test_the_places_are_prompt_output_and_facts() -> None:
    backend = Scripted(lambda asked: "yes", None)
    reward = PromptedJudge(template=TEMPLATE, read={"type": "word"}, judge=Judge(backend), kind="text")
    prompts = [Prompt(id="a", text="2 + 2", facts={"reference": "4"}), Prompt(id="b", text="1 + 1")]
    found = call_reward("j", reward, prompts, ["four", "two"])
    assert [score.status for score in found] == [Status.OK, Status.NOT_APPLICABLE] and "`reference`" in found[1].note
    (asked,) = backend.asked
    (sent,) = asked.question.parts
    assert isinstance(sent, str) and all(f"\n{text}\n" in sent for text in ("2 + 2", "four", "4"))


def test_it_judges_pictures_and_says_what_it_judges() -> None:
    judge = Judge(Scripted(lambda asked: "yes" if len(asked.question.parts) == 3 else "no", None))
    reward = PromptedJudge(template="Is {output} red? yes or no", read={"type": "word"}, judge=judge)
    assert call_reward("j", reward, [Prompt(id="a", text="?")], torch.ones(1, 3, 8, 8))[0].value == 1
    assert reward.card.kind == "image" and PromptedJudge.card.kind == "image"


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"template": "Is it good?"}, r"arguments.template has no place \{output\}"),
        ({"read": {"type": "scores"}}, "'scores' is not a dotted path .*; did you mean score"),
        (
            {"read": "yes"},
            r"arguments.read is 'yes'; write \{type: NAME\} with one of score, probability, word, rubric",
        ),
        ({"read": {"type": "rubric"}}, "arguments.read.*points"),
        ({"read": {"type": "word", "right": [True]}}, "arguments.read.right"),
        ({"read": {"type": "probability", "of": "Yes"}}, "arguments.read.of"),
    ],
)
def test_mistakes_are_one_line(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        PromptedJudge(**{"template": TEMPLATE, "read": {"type": "word"}, "judge": lambda: "yes", **changed})
    assert "\n" not in str(caught.value)


def test_the_recipe_in_the_documentation_makes_its_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = [block for block in blocks(page("docs/rewards.md"), "yaml") if block.startswith("# judged.yaml")]
    (tmp_path / "judged.yaml").write_text(block)
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    config = load([tmp_path / "judged.yaml"]).rewards["clean"]
    reward = find_reward("clean", config.type, config.arguments)
    assert isinstance(reward, PromptedJudge) and reward.card.kind == "image"
    endpoint = reward.judge.backend
    assert isinstance(endpoint, Endpoint) and endpoint.body["top_logprobs"] == 10 and not endpoint.draws
    assert reward.read(first(yes=0.2, no=0.6)).value == pytest.approx(0.75)
