"""Whatever a service does wrong, the client makes of it a missing score with a reason: never a number, never a hang."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from dataclasses import fields

import pytest
import torch
from tests.serve.harness import (
    Counting,
    Misbehaving,
    Remembering,
    answer,
    number_in,
    pictures_request,
    read_request,
    red_mean,
    remote,
    results,
    serving,
    texts_request,
)

from plaudit.data.prompt import Prompt
from plaudit.errors import RecipeError, RewardError
from plaudit.rewards.base import Card, Status, card
from plaudit.rewards.calling.call import Caller
from plaudit.rewards.calling.request import make_request
from plaudit.serve.remote import Remote

TEXTS = texts_request(["1", "2"])


def scored(answers: list, **options):
    with Misbehaving(answers) as server:
        scores = remote(server.url, **options)(TEXTS)
        return scores, server.requests


def body(**document) -> bytes:
    return answer(json.dumps(document).encode())


def test_a_healthy_answer_is_read() -> None:
    """The guard of this file: the cases below differ from this one in the fault only."""
    scores, requests = scored([results(1.5, 2)])
    assert [score.value for score in scores] == [1.5, 2.0]
    assert [score.status for score in scores] == [Status.OK, Status.OK]
    assert len(requests) == 1


GARBAGE = {
    "not HTTP": b"hello, this is not HTTP\r\n\r\n",
    "nothing": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-",
    "no JSON": answer(b"<html>welcome</html>"),
    "half of the JSON": answer(b'{"results": [{"value": 1.0, "status": "ok"}, {"val'),
    "a list": answer(b"[1.0, 2.0]"),
    "no results": body(scores=[1.0, 2.0]),
    "results are a mapping": body(results={"0": 1.0}),
    "too few": results(1.0),
    "too many": results(1.0, 2.0, 3.0),
    "half of the body": answer(b'{"results": []}', length=500),
    "longer than it says": answer(b'{"results": [{"value": 1.0, "status": "ok"}', length=20),
    "negative length": answer(b"{}", length=-5),
    "a length in words": b"HTTP/1.1 200 OK\r\nContent-Length: many\r\nConnection: close\r\n\r\n{}",
    "500": answer(b'{"error": "x"}', "500 Internal Server Error"),
    "500 with scores": results(1.0, 2.0).replace(b"200 OK", b"500 Oops"),
    "422": answer(b'{"error": "x"}', "422 Unprocessable"),
    "redirect": answer(b"", "302 Found", "Location: http://127.0.0.1:1/"),
    "204": b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
    "a binary flood": bytes(range(256)) * 400,
    "deep JSON": answer(b"[" * 100_000),
    "endless digits": answer(b'{"results": [{"value": ' + b"9" * 6000 + b', "status": "ok"}]}'),
    "a head without end": b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 100_000,
}


@pytest.mark.parametrize("fault", GARBAGE)
def test_an_answer_that_is_none_is_missing(fault: str) -> None:
    scores, _ = scored([GARBAGE[fault]])
    assert len(scores) == 2
    for score in scores:
        assert math.isnan(score.value) and score.status in (Status.ERRORED, Status.REFUSED) and score.note


BAD_RESULTS = {
    "NaN": '{"value": NaN, "status": "ok"}',
    "Infinity": '{"value": Infinity, "status": "ok"}',
    "overflow": '{"value": 1e999, "status": "ok"}',
    "text": '{"value": "1.0", "status": "ok"}',
    "true": '{"value": true, "status": "ok"}',
    "null": '{"value": null, "status": "ok"}',
    "a list": '{"value": [1.0], "status": "ok"}',
    "no value": '{"status": "ok"}',
    "no status": '{"value": 1.0}',
    "unknown status": '{"value": 1.0, "status": "fine"}',
    "a number that is missing": '{"value": 1.0, "status": "errored"}',
    "a bare number": "1.0",
    "above the range": '{"value": 100.5, "status": "ok"}',
    "below the range": '{"value": -0.5, "status": "ok"}',
    "components are a list": '{"value": 1.0, "status": "ok", "components": [1]}',
    "a component is text": '{"value": 1.0, "status": "ok", "components": {"a": "b"}}',
    "sigma is text": '{"value": 1.0, "status": "ok", "sigma": "b"}',
    "note is a number": '{"value": 1.0, "status": "ok", "note": 3}',
    "dense is short": '{"value": 1.0, "status": "ok", "dense": {"dtype": "float32", "shape": [9], "data": "AAAA"}}',
    "dense is nothing of a huge shape": (
        f'{{"value": 1.0, "status": "ok", "dense": {{"dtype": "float32", "shape": [0, {2**63 - 1}, {2**63 - 1}], "data": ""}}}}'
    ),
    "dense is odd": '{"value": 1.0, "status": "ok", "dense": {"dtype": "object", "shape": [1], "data": "AAAA"}}',
}


@pytest.mark.parametrize("fault", BAD_RESULTS)
def test_a_bad_result_is_missing(fault: str) -> None:
    good = '{"value": 2.0, "status": "ok"}'
    scores, _ = scored([answer(f'{{"results": [{BAD_RESULTS[fault]}, {good}]}}'.encode())])
    assert math.isnan(scores[0].value) and scores[0].status is Status.ERRORED and scores[0].note
    if fault not in ("NaN", "Infinity"):  # these make the whole answer something that is not JSON
        assert scores[1].value == 2.0


def test_infinity_is_no_score_even_where_the_range_is_open() -> None:
    overflow = answer(b'{"results": [{"value": 1e999, "status": "ok"}, {"value": -1e300, "status": "ok"}]}')
    with Misbehaving([overflow], card={"low": None, "high": None}) as server:
        scores = remote(server.url)(TEXTS)
    assert scores[0].status is Status.ERRORED and scores[1].value == -1e300


def test_the_edge_of_the_range_in_float32_is_inside() -> None:
    scores, _ = scored([results(100.00001, -1e-7)])
    assert [score.status for score in scores] == [Status.OK, Status.OK]


def test_missing_and_rich_scores_come_as_they_are() -> None:
    rich = {"value": 3.0, "status": "ok", "components": {"a": 1.5, "b": None}, "sigma": 0.25, "note": "seen"}
    parse_failed = {"value": None, "status": "parse_failed", "note": "no verdict"}
    scores, _ = scored([body(results=[rich, parse_failed])])
    assert scores[0].components["a"] == 1.5 and math.isnan(scores[0].components["b"])
    assert (scores[0].sigma, scores[0].note) == (0.25, "seen")
    assert (scores[1].status, scores[1].note) == (Status.PARSE_FAILED, "no verdict") and math.isnan(scores[1].value)


def test_a_service_that_recovers_is_asked_again_with_the_same_key() -> None:
    failed = answer(b"{}", "503 Unavailable", "Retry-After: 0")
    scores, requests = scored([failed, b"", results(1.0, 2.0)])
    assert [score.value for score in scores] == [1.0, 2.0]
    keys = [line for request in requests for line in request.split(b"\r\n") if line.startswith(b"Idempotency-Key")]
    assert len(keys) == 3 and len(set(keys)) == 1


def test_attempts_are_bounded() -> None:
    scores, requests = scored([answer(b"{}", "500 Oops")])
    assert len(requests) == 3  # one and two retries
    assert "500" in scores[0].note
    assert len(scored([answer(b"{}", "422 No")])[1]) == 1  # asking again would not help


def test_a_mistake_in_the_configuration_is_an_error_and_too_many_bytes_are_a_refusal() -> None:
    """What the service says is the note; only the size is about the outputs."""
    for status in ("401 Unauthorized", "404 Not Found", "415 Type", "422 No"):
        scores, _ = scored([answer(b'{"error": "mend this"}', status)])
        assert [(score.status, score.note[-14:]) for score in scores] == [
            (Status.ERRORED, f"{status[:3]}: mend this")
        ] * 2
    assert scored([answer(b"{}", "413 Too large")])[0][0].status is Status.REFUSED


def test_a_reward_that_is_not_served_any_more() -> None:
    with serving({"n": number_in}) as (url, _, _):
        caller = remote(url)
    with serving({"other": number_in}, port=int(url.rpartition(":")[2])):
        gone = caller(TEXTS)
    assert {score.status for score in gone} == {Status.ERRORED} and "there are other" in gone[0].note


def test_a_reward_with_a_memory_is_not_asked_for_elsewhere() -> None:
    """Measuring would change it, and no checkpoint would have what it remembers."""
    with serving({"memory": Remembering(), "n": number_in}) as (url, _, _):
        with pytest.raises(RewardError, match=r"'memory' remembers earlier calls.*run it in the trainer's process"):
            remote(url, "memory")
        assert remote(url, "n")(TEXTS)[0].value == 1.0


def test_scores_are_cached_by_the_service_the_reward_and_the_whole_card() -> None:
    @card(kind="text", low=0, high=1e9, revision="2")
    def revised(prompts, outputs):
        return [0.0] * len(outputs)

    def plain(prompts, outputs):
        return [0.0] * len(outputs)

    def identity(name: str) -> str:
        return Remote(url, name).cache_identity()

    with serving({"a": number_in, "b": number_in, "r": revised, "plain": plain}) as (url, _, _):
        assert identity("a") == identity("a")
        assert len({identity(name) for name in "abr"}) == 3
        source, name, served = json.loads(identity("r"))
        assert (source, name, served["revision"], served["high"]) == (url, "r", "2", 1e9)
        assert set(served) == {field.name for field in fields(Card)}
        with pytest.raises(RewardError, match="no card with a revision"):
            identity("plain")
        before = identity("a")
    with serving({"a": revised}, port=int(url.rpartition(":")[2])):
        assert identity("a") != before, "another revision at the same place"


def test_a_slow_service_is_left_at_the_deadline() -> None:
    def slow(connection, request):
        time.sleep(0.8)

    scores, _ = scored([slow], timeout_s=0.3)
    assert [score.status for score in scores] == [Status.TIMED_OUT] * 2


def test_a_service_that_drips_is_left_at_the_deadline() -> None:
    """Each byte comes in time, the whole answer does not."""

    def drip(connection, request):
        for byte in results(1.0, 2.0):
            connection.sendall(bytes([byte]))
            time.sleep(0.02)

    scores, _ = scored([drip], timeout_s=0.5)
    assert [score.status for score in scores] == [Status.TIMED_OUT] * 2


def test_an_endless_answer_is_cut(monkeypatch) -> None:
    monkeypatch.setattr("plaudit.http.MAX_ANSWER_BYTES", 2**20)

    def flood(connection, request):
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while True:
            connection.sendall(b" " * 2**16)

    scores, _ = scored([flood], retries=0)
    assert scores[0].status is Status.ERRORED and "larger than" in scores[0].note


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    reward = Remote(f"http://127.0.0.1:{port}", "tags", retries=1, backoff_s=0.01)
    scores = reward(["?"], ["1"], make_request([Prompt(id="0", text="?")], ["1"]))
    assert scores[0].status is Status.ERRORED and "refused" in scores[0].note.lower() and "2 attempts" in scores[0].note
    with pytest.raises(RewardError, match="plaudit serve"):  # a run would start without knowing what it scores
        Caller("tags", reward)


def test_what_the_service_does_not_have() -> None:
    with serving({"a": number_in, "b": number_in}) as (url, _, _):
        with pytest.raises(RewardError, match="serves no reward 'c'; it serves a, b"):
            remote(url, "c")
        with pytest.raises(RewardError, match="serves no reward None"):
            remote(url)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"url": "127.0.0.1:8000"}, "write it like"),
        ({"url": "ftp://host"}, "write it like"),
        ({"url": "http://user:secret@host"}, "write it like"),
        ({"url": "http://host:port"}, "not a URL"),
        ({"url": "http://host", "token_env": "PLAUDIT_NO_SUCH"}, "PLAUDIT_NO_SUCH"),
        ({"url": "http://host", "by_hash": "some"}, "by_hash"),
        ({"url": "http://host", "timeout_s": 0}, "timeout_s"),
    ],
)
def test_mistakes_in_the_arguments(options: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Remote(**options)


# --- with the real service --------------------------------------------------------------------------------------------


def test_pictures_are_scored_as_in_this_process() -> None:
    request = pictures_request([i / 64 for i in range(64)])
    here = Caller("here", red_mean)(request)
    with serving({"red": red_mean}) as (url, _, _):
        caller = remote(url)
        assert caller.card.summary == red_mean.card.summary and caller.card.unit == (0, 1)
        assert caller(request) == here
        assert [score.value for score in here] == [i / 64 for i in range(64)]


def test_pictures_of_many_sizes_and_kinds_of_numbers() -> None:
    pictures = [torch.full((3, 4 + i % 3, 5), i / 16, dtype=torch.float64) for i in range(16)]
    request = make_request([Prompt(id=str(i), text="") for i in range(16)], pictures)
    with serving({"red": red_mean}) as (url, _, _):
        assert remote(url)(request) == Caller("here", red_mean)(request)


def test_columns_groups_and_steps_arrive() -> None:
    seen = []

    def nosy(prompts, outputs, ids, group, step, facts, inputs):
        seen.append((list(prompts), list(outputs), ids, group, step, facts, inputs))
        return [0.0] * len(prompts)

    mask = torch.arange(6, dtype=torch.uint8).reshape(2, 3)
    inputs = {"mask": mask, "words": "ä\ud800", "number": 1.5, "chat": [{"role": "user", "content": "x"}]}
    facts = {"objects": [{"count": 1, "ratio": 0.1}], "none": None, "deep": {"a": [[1], "é"]}}
    prompts = [Prompt(id="p", text="naïve\n\x00", facts=facts, inputs=inputs), Prompt(id="q", text="", facts={})]
    with serving({"nosy": nosy}) as (url, _, _):
        remote(url)(make_request(prompts, ["a", "b\ud800"], [7, 3], step=12))
    texts, outputs, ids, group, step, facts_seen, inputs_seen = seen[0]
    assert (texts, outputs, ids, group, step) == (["naïve\n\x00", ""], ["a", "b\ud800"], ["p", "q"], [7, 3], 12)
    assert facts_seen == [facts, {}]
    assert torch.equal(inputs_seen[0].pop("mask"), mask)
    assert inputs_seen[0] == {key: value for key, value in inputs.items() if key != "mask"} and inputs_seen[1] == {}


def test_what_cannot_be_sent_is_missing_with_a_reason() -> None:
    with serving({"n": number_in}) as (url, _, _):
        caller = remote(url)
        odd = [{"x": {1, 2}}, {"x": math.nan}, {"x": torch.zeros(1)}, {"x": {7: 1.0}}, {"x": [{"y": {7: 1.0}}]}]
        for facts in odd:
            scores = caller(make_request([Prompt(id="0", text="", facts=facts)], ["1"]))
            assert scores[0].status is Status.ERRORED and "cannot be sent" in scores[0].note
        assert "facts.x.y has the key 7;" in scores[0].note


def test_an_answer_that_was_dropped_is_asked_for_again_and_nothing_is_scored_twice() -> None:
    """A proxy hands the request on and swallows the first answer."""
    counting = Counting()
    with serving({"tags": counting}) as (url, service, _):
        port = int(url.rpartition(":")[2])

        def forwarded(request: bytes) -> bytes:
            with socket.create_connection(("127.0.0.1", port)) as onward:
                onward.sendall(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
                return b"".join(iter(lambda: onward.recv(65536), b""))

        def swallow(connection, request):
            forwarded(request)

        def half(connection, request):
            connection.sendall(forwarded(request)[:-30])

        def through(connection, request):
            connection.sendall(forwarded(request))

        scores, _ = scored([swallow, half, through])
        assert [score.value for score in scores] == [1.0, 2.0]
        assert counting.seen == {"1": 1, "2": 1}
        assert service.metrics.counters["plaudit_replayed_total"][()] == 2


def test_a_service_that_is_killed_and_started_again_in_mid_run() -> None:
    request = texts_request(["4"])
    with serving({"n": number_in}) as (url, _, _):
        caller = remote(url, retries=1)
        assert caller(request)[0].value == 4.0
    gone = caller(request)
    assert gone[0].status is Status.ERRORED and math.isnan(gone[0].value)
    with serving({"n": number_in}, port=int(url.rpartition(":")[2])):
        assert caller(request)[0].value == 4.0  # over a new connection, without a retry by the user


def test_a_reward_that_fails_on_one_output_fails_there_only() -> None:
    with serving({"n": number_in}) as (url, _, _):
        scores = remote(url)(texts_request(["1", "no number", "3"]))
        assert [score.status for score in scores] == [Status.OK, Status.ERRORED, Status.OK]
        assert (scores[0].value, scores[2].value) == (1.0, 3.0) and "ValueError" in scores[1].note


def test_media_that_come_again_are_named_by_their_hash() -> None:
    source = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    sizes = []

    def difference(prompts, outputs, source):
        return [float((out - src).abs().mean()) for out, src in zip(outputs, source, strict=True)]

    outputs = torch.stack([torch.full((3, 64, 64), i / 4) for i in range(4)])
    prompts = [Prompt(id="0", text="", inputs={"source": source})] * 4
    expected = [float((output - source).abs().mean()) for output in outputs]
    with serving({"difference": difference}) as (url, service, _):
        reward = Remote(url, by_hash="all")
        ask = reward.client.ask
        reward.client.ask = lambda *given: sizes.append(len(given[3]) if len(given) > 3 else 0) or ask(*given)
        caller = Caller("difference", reward)
        sizes.clear()
        for _ in range(2):
            assert [score.value for score in caller(make_request(prompts, outputs))] == pytest.approx(expected)
        assert len(sizes) == 3  # names only, then the media; the second time the names are enough
        assert sizes[1] > 5 * 64 * 64 * 3 * 4 > 50 * sizes[0] and sizes[2] == sizes[0]
        service.media.kept.clear()
        service.media.bytes = 0
        assert [score.value for score in caller(make_request(prompts, outputs))] == pytest.approx(expected)


def test_a_service_that_forgets_at_once_is_sent_everything() -> None:
    source = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))

    def total(prompts, outputs, source):
        return [float(each.sum()) for each in source]

    request = make_request([Prompt(id="0", text="", inputs={"source": source})], ["x"])
    with serving({"total": total}, media_cache_mb=0) as (url, _, _):
        assert remote(url)(request)[0].value == pytest.approx(float(source.sum()))


def test_two_threads_share_a_reward() -> None:
    with serving({"n": number_in}) as (url, _, _):
        caller = remote(url)
        found: dict[int, list[float]] = {}

        def work(i: int) -> None:
            found[i] = [
                caller(texts_request([str(100 * i + k) for k in range(3)]))[k].value for k in range(3) for _ in range(5)
            ]

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == {i: [float(100 * i + k) for k in range(3) for _ in range(5)] for i in range(8)}
        assert len(caller.function.client.pool.connections) <= 8


def test_read_request_reads_what_the_client_sends() -> None:
    """The misbehaving server would hang if the client's heads were not what it expects."""
    left, right = socket.socketpair()
    with left, right:
        left.sendall(b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc")
        assert read_request(right).endswith(b"abc")
