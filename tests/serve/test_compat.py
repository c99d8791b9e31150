"""OpenRLHF and vLLM clients, as they ask today."""

from __future__ import annotations

import json

import pytest
from tests.serve.harness import number_in, post, post_raw, red_mean, serving

from plaudit.rewards.base import card


@card(kind="text", low=0, high=1)
def same_as(prompts, outputs, group, answer=None, reference=None):
    """1 where the output is the answer; nothing where there is none."""
    wanted = answer or reference or [None] * len(outputs)
    same_as.groups = list(group)
    return [
        None if right is None else float(text.strip() == right) for text, right in zip(outputs, wanted, strict=True)
    ]


@pytest.fixture(scope="module")
def url():
    with serving({"same": same_as, "red": red_mean}) as (url, _, _):
        yield url


def test_openrlhf(url) -> None:
    """The response is what follows the prompt; labels are the column `answer`; a missing score is null."""
    asked = {
        "query": ["2+2= 4", "2+2= 5", "3+3= 6", "template without the prompt"],
        "prompts": ["2+2=", "2+2=", "3+3=", "?"],
        "labels": ["4", "4", None, "template without the prompt"],
    }
    status, document = post(url, asked, "/get_reward")
    assert status == 200
    assert document["rewards"] == document["scores"] == [1.0, 0.0, None, 1.0]
    assert document["statuses"] == ["ok", "ok", "not_applicable", "ok"]
    assert same_as.groups == [0, 0, 1, 2]


def test_openrlhf_with_the_reward_and_the_column_named(url) -> None:
    asked = {"query": ["ab"], "prompts": ["a"], "labels": ["b"]}
    assert post(url, asked, "/get_reward?reward=same&label=reference")[1]["rewards"] == [1.0]
    status, document = post(url, asked, "/get_reward?reward=red")
    assert status == 404 and "served: same" in document["error"]


def test_openrlhf_of_old_sends_only_queries(url) -> None:
    assert post(url, {"query": ["a", "b"]}, "/get_reward")[1]["rewards"] == [None, None]


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"query": "text"},
        {"query": []},
        {"query": [1]},
        {"query": ["a"], "prompts": []},
        {"query": ["a"], "labels": "x"},
        [],
    ],
    ids=str,
)
def test_openrlhf_malformed(url, asked) -> None:
    assert post(url, asked, "/get_reward")[0] == 422


def test_vllm_classify() -> None:
    def some(prompts, outputs):
        return [float(text) if text.isdecimal() else None for text in outputs]

    with serving({"some": some, "n": number_in}) as (url, _, _):
        status, document = post(url, {"model": "some", "input": ["7", "x"]}, "/classify")
        assert status == 200 and document["object"] == "list" and document["model"] == "some"
        assert document["data"] == [
            {"index": 0, "label": "some", "probs": [7.0], "num_classes": 1, "status": "ok"},
            {"index": 1, "label": None, "probs": [None], "num_classes": 1, "status": "not_applicable"},
        ]
        assert post(url, {"model": "n", "input": "3"}, "/classify")[1]["data"][0]["probs"] == [3.0]
        assert post(url, {"input": "3"}, "/classify")[0] == 404  # two rewards: which one?
        assert post(url, {"model": "n", "input": [[1, 2]]}, "/classify")[0] == 422


def test_the_number_of_texts_is_limited_for_good() -> None:
    """429 would ask for a repeat, which never could succeed."""
    texts = [str(i) for i in range(5)]
    with serving({"n": number_in}, max_items=4, max_queue=4) as (url, _, _):
        for path, asked in (("/classify", {"input": texts}), ("/get_reward", {"query": texts})):
            reply = post_raw(url, json.dumps(asked).encode(), path)
            assert reply.status == 413 and b"at most 4" in reply.body and "retry-after" not in reply.headers
        assert post(url, {"input": texts[1:]}, "/classify")[0] == 200


@pytest.mark.parametrize("path, name", [("/classify", "input"), ("/get_reward", "query")])
def test_an_answer_without_all_scores_is_not_given_again(path: str, name: str) -> None:
    failing = [True]

    def sometimes(prompts, outputs):
        if failing[0]:
            raise OSError("the judge is away")
        return [1.0] * len(outputs)

    with serving({"sometimes": sometimes}) as (url, _, _):
        statuses = []
        for _ in range(2):
            document = post(url, {name: ["a"]}, path, {"Idempotency-Key": "k"})[1]
            statuses += document.get("statuses") or [each["status"] for each in document["data"]]
            failing[0] = False
    assert statuses == ["errored", "ok"]


def test_a_form_of_a_web_page_is_refused(url) -> None:
    for path in ("/classify", "/get_reward", "/v1/score"):
        reply = post_raw(url, b"{}", path, {"Content-Type": "text/plain"})
        assert reply.status == 415
