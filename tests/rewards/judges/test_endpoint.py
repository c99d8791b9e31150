"""An endpoint that misbehaves: what it declines stays missing, what it says is counted, and asking ends."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.serve.harness import Misbehaving, answer

from plaudit.rewards.base import Status
from plaudit.rewards.judges.ask import Answer, AnswerCache, Judge, Question
from plaudit.rewards.judges.endpoint import Endpoint


def asking(url: str, tmp_path: Path, **options: Any) -> Judge:
    given = {"timeout_s": 5.0, "retries": 2, "retry_budget": 1.0, "backoff_s": 0.001, "concurrency": 1, **options}
    return Judge(Endpoint(url=url, model="tiny", **given), cache=AnswerCache(tmp_path))


def questions(count: int = 1, **fields: Any) -> list[Question]:
    return [Question(template="Judge {text}", fields={"text": f"text {i}", **fields}) for i in range(count)]


def choice(text: Any = "fine", finish: str = "stop", **more: Any) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text, **more}, "finish_reason": finish}


def said(*choices: dict[str, Any], status: str = "200 OK", **more: Any) -> bytes:
    document = {"choices": choices or [choice()], "usage": {"total_tokens": 7}, **more}
    return answer(json.dumps(document).encode(), status)


def body_of(request: bytes) -> dict[str, Any]:
    return json.loads(request.partition(b"\r\n\r\n")[2])


def one(answers: list[Any], tmp_path: Path, **options: Any) -> tuple[Answer, Misbehaving]:
    with Misbehaving(answers) as server:
        return asking(server.url, tmp_path, **options).ask(questions())[0][0], server


def test_a_healthy_answer(tmp_path: Path) -> None:
    """The guard of this file: the cases below differ from this one in the fault only."""
    found, server = one([said()], tmp_path)
    assert (found.text, found.status, found.cut) == ("fine", Status.OK, False)
    assert found.cost.calls == 1 and found.cost.tokens == 7 and found.cost.seconds > 0
    (request,) = server.requests
    assert request.startswith(b"POST /chat/completions ") and b"authorization" not in request.lower()
    sent = body_of(request)
    assert {name: sent[name] for name in ("model", "temperature", "max_tokens", "seed", "n")} == {
        "model": "tiny", "temperature": 0.7, "max_tokens": 1024, "seed": 0, "n": 1
    }  # fmt: skip
    assert isinstance(sent["messages"][0]["content"], str) and "text 0" in sent["messages"][0]["content"]


def test_each_answer_has_a_seed_and_pictures_lose_nothing(tmp_path: Path) -> None:
    pixels = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(0))
    with Misbehaving([said()]) as server:
        judge = asking(server.url, tmp_path, seed=10, options={"top_p": 0.5})
        judge.ask([Question(template="{a} or {b}?", fields={"a": pixels, "b": pixels * 0})], samples=3)
    bodies = [body_of(request) for request in server.requests]
    assert [body["seed"] for body in bodies] == [10, 11, 12] and bodies[0]["top_p"] == 0.5
    first, text, second, last = bodies[0]["messages"][0]["content"]
    assert (text, last) == ({"type": "text", "text": " or "}, {"type": "text", "text": "?"})
    kind, _, data = first["image_url"]["url"].partition(",")
    assert kind == "data:image/png;base64" and second["type"] == "image_url"
    shown = torch.tensor(list(Image.open(io.BytesIO(base64.b64decode(data))).get_flattened_data())).T.reshape(3, 5, 4)
    assert torch.equal(shown, (pixels * 255).round().long())


def test_token_probabilities(tmp_path: Path) -> None:
    rows = [{"token": "yes", "logprob": -0.1}, {"token": "no", "logprob": -3}, {"token": "odd", "logprob": "x"}, 5]
    places = [
        {"token": "yes", "logprob": -0.1, "top_logprobs": rows},
        {"token": "!", "logprob": -0.2, "top_logprobs": None},
    ]
    given = {**choice("yes"), "logprobs": {"content": places}}
    found, server = one([said(given)], tmp_path, top_logprobs=5)
    assert found.log_probs == ({"yes": -0.1, "no": -3.0}, {"!": -0.2})
    assert body_of(server.requests[0])["logprobs"] is True and body_of(server.requests[0])["top_logprobs"] == 5
    for odd in (None, [], {"content": None}, {"content": [None, {"token": 1}]}):
        kept, _ = one([said({**choice("yes"), "logprobs": odd})], tmp_path / repr(odd)[:9])
        assert kept.text == "yes" and not any(kept.log_probs)


def test_the_end_of_an_answer_is_told(tmp_path: Path) -> None:
    assert one([said(choice("half a", "length"))], tmp_path)[0].cut


REFUSED = {
    "the model refuses": said(choice(None, refusal="I will not")),
    "a filter stops the answer": said(choice("bad", "content_filter")),
    "a filter stops the question": answer(b'{"error": {"code": "content_filter"}}', "400 Bad Request"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_refusal_stays_missing_and_is_not_asked_again(fault: str, tmp_path: Path) -> None:
    with Misbehaving([REFUSED[fault]]) as server:
        judge = asking(server.url, tmp_path)
        found = [judge.ask(questions())[0][0] for _ in range(3)]
    assert {one.status for one in found} == {Status.REFUSED} and len(server.requests) == 1 == judge.cost.calls
    assert all(one.text == "" and one.note for one in found)


GARBAGE = {
    "400": answer(b'{"error": {"message": "x"}}', "400 Bad Request"),
    "401": answer(b'{"error": "x"}', "401 Unauthorized"),
    "404": answer(b"<html>", "404 Not Found"),
    "no JSON": answer(b"<html>welcome</html>"),
    "half of the JSON": answer(b'{"choices": [{"message": {"content": "fi'),
    "a list": answer(b"[1]"),
    "deep JSON": answer(b"[" * 100_000),
    "no choices": answer(b'{"usage": {}}'),
    "no choice": answer(b'{"choices": []}'),
    "two choices": said(choice(), choice()),
    "a choice is null": answer(b'{"choices": [null]}'),
    "no message": answer(b'{"choices": [{"finish_reason": "stop"}]}'),
    "no text": said(choice(None)),
    "a text is a list": said(choice([{"type": "text", "text": "fine"}])),
}


@pytest.mark.parametrize("fault", GARBAGE)
def test_what_was_answered_badly_is_missing_and_paid_once(fault: str, tmp_path: Path) -> None:
    with Misbehaving([GARBAGE[fault], said()]) as server:
        judge = asking(server.url, tmp_path)
        found = judge.ask(questions())[0][0]
        assert found.status is Status.ERRORED and found.text == "" and server.url in found.note
        assert len(server.requests) == 1 == judge.cost.calls
        assert judge.ask(questions())[0][0].text == "fine", "a failure says nothing of what was asked"


@pytest.mark.parametrize(
    "fault",
    [answer(b"{}", "500 Oops"), answer(b"{}", "429 Slow", "Retry-After: 0"), answer(b'{"a"', length=500), b"", b"HTTP/1.1 2"],
    ids=["500", "429", "half a body", "nothing", "half a head"],
)  # fmt: skip
def test_what_may_succeed_is_asked_again_within_bounds(fault: bytes, tmp_path: Path) -> None:
    with Misbehaving([fault, fault, said()]) as server:
        judge = asking(server.url, tmp_path)
        assert judge.ask(questions())[0][0].text == "fine"
    assert len(server.requests) == 3 == judge.cost.calls and judge.cost.tokens == 7
    with Misbehaving([fault]) as server:
        judge = asking(server.url, tmp_path / "second")
        found = judge.ask(questions())[0][0]
    assert found.status is Status.ERRORED and found.note and len(server.requests) == 3 == judge.cost.calls


def test_retry_after_beyond_the_deadline_is_not_waited_for(tmp_path: Path) -> None:
    found, server = one([answer(b"{}", "429 Slow", "Retry-After: 3600")], tmp_path)
    assert found.status is Status.ERRORED and "429" in found.note and len(server.requests) == 1


def test_a_batch_shares_its_repeats(tmp_path: Path) -> None:
    """Twenty questions at a dead service: a fifth of them again, not three times each."""
    with Misbehaving([answer(b"{}", "503 Away")]) as server:
        judge = asking(server.url, tmp_path, retry_budget=0.2, retries=3)
        found = judge.ask(questions(20))
    assert len(server.requests) == 24 == judge.cost.calls
    assert all(one.status is Status.ERRORED for some in found for one in some)


def hang(connection: socket.socket, request: bytes) -> None:
    hung.wait(60)


hung = threading.Event()


def test_a_hanging_service_is_left(tmp_path: Path) -> None:
    hung.clear()
    with Misbehaving([hang, said()]) as server:
        judge = asking(server.url, tmp_path, timeout_s=0.2)
        found = judge.ask(questions())[0][0]
        assert found.status is Status.TIMED_OUT and found.cost.calls == 1
        hung.set()
        assert judge.ask(questions())[0][0].text == "fine"


def test_the_deadline_of_a_batch_holds_for_what_was_not_yet_asked(tmp_path: Path) -> None:
    hung.clear()
    with Misbehaving([hang]) as server:
        found = asking(server.url, tmp_path, timeout_s=60.0, deadline_s=0.3).ask(questions(5))
        hung.set()
    assert [one.status for some in found for one in some] == [Status.TIMED_OUT] * 5


def test_one_bad_question_does_not_harm_the_others(tmp_path: Path) -> None:
    def by_content(connection: socket.socket, request: bytes) -> None:
        bad = b"text 1" in request
        connection.sendall(answer(b"no", "400 Bad Request") if bad else said(choice(f"{body_of(request)['seed']}")))

    with Misbehaving([by_content]) as server:
        judge = asking(server.url, tmp_path, concurrency=4)
        found = judge.ask(questions(3), samples=2)
    assert [[one.text for one in some] for some in found] == [["0", "1"], ["", ""], ["0", "1"]]
    assert [one.status for one in found[1]] == [Status.ERRORED] * 2


def test_the_key_is_sent_and_never_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    refused = answer(b'{"error": "wrong key sk-secret"}', "401 Unauthorized")
    record = tmp_path / "record.jsonl"
    with Misbehaving([refused, said(choice("fine"))]) as server:
        judge = asking(server.url, tmp_path / "cache", key_env="JUDGE_KEY")
        judge = Judge(judge.backend, cache=judge.cache, record=record)
        found = judge.ask(questions())[0][0]
        assert judge.ask(questions())[0][0].text == "fine"
    assert b"authorization: bearer sk-secret" in server.requests[0].lower()
    assert "sk-secret" not in found.note and "[key]" in found.note
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert written and not any(b"sk-secret" in file.read_bytes() for file in written)
