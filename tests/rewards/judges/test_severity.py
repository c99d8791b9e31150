from __future__ import annotations

import json

import pytest
import torch

from plaudit.data.prompt import Prompt
from plaudit.rewards.base import Score, Status
from plaudit.rewards.calling.call import call_reward
from plaudit.rewards.judges.severity import VisualDifferences, parse_severities, severity_score


def test_the_score_by_hand() -> None:
    assert [severity_score(total) for total in (0, 1, 25, 50, 200)] == [2, 1.98, 1.5, 1, 1]
    assert severity_score(3, budget=6) == 1.5


TWO = '{"category": "data", "severity": 2}'


@pytest.mark.parametrize(
    "text, severities",
    [
        (f'{{"errors": [{TWO}]}}', [2]),
        (f'Here you go:\n```json\n{{"errors": [{TWO}, {TWO},]}}\n```\n', [2, 2]),
        (f'Here you go:\n{{"errors": [{TWO}]}}', [2]),
        ("{'errors': [{'category': 'text', 'severity': '3', 'description': 'a brace'}]}", [3]),
        ('{"errors": [{"severity": 1, "description": "a } brace and a \\" quote"}]}', [1]),
        ('{"errors": []}', []),
        (f'<think>{{"errors": [{TWO}]}} no, wait</think>{{"errors": []}}', []),
        (f'{{"errors": []}} or rather {{"errors": [{TWO}]}}', None),
        ('{"result": {"errors": [{"severity": 1}]}}', None),
        ('{"errors": [{"severity": true}]}', None),
        ("no errors", None),
        ("", None),
        ('{"errors": [{"severity": 1}', None),
        ('{"errors": "none"}', None),
        ('{"errors": [{"severity": 4}]}', None),
        ('{"errors": [{"severity": 0}]}', None),
        ('{"errors": [{"category": "data"}]}', None),
        ('{"errors": ["wrong colour"]}', None),
        ('{"faults": []}', None),
    ],
)
def test_parsing_is_tolerant_of_form_and_strict_of_content(text: str, severities: list[int] | None) -> None:
    assert parse_severities(text) == severities


def judged(answer: str, picture: torch.Tensor) -> Score:
    reward = VisualDifferences(judge=lambda target, picture, prompt: answer)
    prompts = [Prompt(id="p", text="", inputs={"target": torch.zeros(3, 8, 8)})]
    return call_reward("v", reward, prompts, picture[None])[0]


def test_an_unreadable_judge_is_missing_and_an_empty_page_worthless() -> None:
    grey = torch.full((3, 8, 8), 0.5)
    assert judged("I see three errors.", grey).status is Status.PARSE_FAILED
    assert judged(json.dumps({"errors": [{"severity": 3}] * 10}), grey).value == pytest.approx(1.4)
    assert judged('{"errors": []}', torch.ones(3, 8, 8)).value == 0
