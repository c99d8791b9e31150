"""The service under many clients, rude clients, and its own end."""

from __future__ import annotations

import base64
import contextlib
import json
import random
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tests.serve.harness import (
    LONG,
    Counting,
    ask,
    connected,
    get,
    number_in,
    pictures_request,
    post,
    post_raw,
    red_mean,
    remote,
    serving,
    text_items,
    texts_request,
    values,
    wait_for,
)

from plaudit.rewards.base import Score, Status, card, missing
from plaudit.rewards.calling.call import Caller
from plaudit.rewards.rules.code import UnitTests
from plaudit.sandbox import levels


@pytest.fixture(scope="module")
def numbers():
    with serving({"n": number_in}) as (url, _, _):
        yield url


def test_bodies_that_arrive_slowly_starve_nobody() -> None:
    """Four times as many as requests may be held; each is answered when it is there at last."""
    body = json.dumps({"reward": "n", "items": text_items(["7"])}).encode()
    head = (
        f"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with serving({"n": number_in}, max_requests=2) as (url, service, _):
        slow = [connected(url) for _ in range(8)]
        for client in slow:
            client.sendall(head.encode() + body[:10])
        wait_for(lambda: service.reading == 8)
        assert values(ask(url, ["5"])[1]) == [5.0] and service.reading == 8
        for client in slow:
            client.sendall(body[10:])
            assert b"200 OK" in client.recv(4096)
            client.close()
        wait_for(lambda: service.reading == service.arrived_bytes == 0)


def test_what_is_arriving_takes_no_more_room_than_full_requests() -> None:
    with serving({"n": number_in}, max_requests=1, max_request_mb=0.001) as (url, service, _):
        head = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 900\r\n\r\n"
        first, second = connected(url), connected(url)
        first.sendall(head + b"x" * 800)
        wait_for(lambda: service.arrived_bytes == 800)
        second.sendall(head + b"x" * 800)
        assert b" 429 " in second.recv(4096).splitlines()[0]
        first.close()
        second.close()
        wait_for(lambda: service.arrived_bytes == 0)
        for _ in range(3):  # larger than is taken, in pieces whose sizes were not announced
            with contextlib.suppress(OSError), connected(url) as third:
                third.sendall(
                    b"POST /v1/score HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
                    + b"800\r\n"
                    + b"x" * 2048
                )
                assert b" 413 " in third.recv(4096).splitlines()[0]
        wait_for(lambda: service.arrived_bytes == service.reading == 0)


# --- what comes back --------------------------------------------------------------------------------------------------


def test_scores_of_every_kind_are_json() -> None:
    @card(kind="text")
    def mixed(prompts, outputs):
        return [
            0.1,
            None,
            Score(value=1.0, components={"a": 2.0, "b": float("nan")}, sigma=0.5, note="why", dense=torch.arange(2.0)),
            missing(Status.PARSE_FAILED, "no verdict"),
            float("nan"),
        ]

    with serving({"mixed": mixed}) as (url, _, _):
        status, document = ask(url, list("abcde"), "mixed")
    assert status == 200 and document["reward"] == "mixed"
    assert document["results"][0] == {"value": 0.1, "status": "ok"}
    assert document["results"][1] == {"value": None, "status": "not_applicable"}
    rich = document["results"][2]
    assert rich["components"] == {"a": 2.0, "b": None} and (rich["sigma"], rich["note"]) == (0.5, "why")
    assert base64.b64decode(rich["dense"]["data"]) == torch.arange(2.0).numpy().tobytes()
    assert document["results"][3] == {"value": None, "status": "parse_failed", "note": "no verdict"}
    assert document["results"][4]["value"] is None and document["results"][4]["status"] == "errored"


def test_every_client_gets_exactly_its_own_scores() -> None:
    """Two rewards, many clients at once, every item with a tag of its own, merged in whatever order they come."""
    draw = random.Random(0)
    tags = list(range(1024))
    draw.shuffle(tags)
    jobs = [tags[i : i + size] for i, size in zip(range(0, 1024, 16), [1, 3, 16, 7] * 16, strict=True)]

    def work(i: int) -> bool:
        job, client = jobs[i], clients[i % len(clients)]
        if i % 2:
            scores = client[0](texts_request([str(tag) for tag in job], offset=i))
            return [score.value for score in scores] == [float(tag + i) for tag in job]
        scores = client[1](pictures_request([tag / 1024 for tag in job]))
        return [score.value for score in scores] == [tag / 1024 for tag in job]

    with serving({"n": number_in, "red": red_mean}, max_wait_ms=5) as (url, service, _):
        clients = [(remote(url, "n"), remote(url, "red")) for _ in range(8)]
        with ThreadPoolExecutor(16) as pool:
            for _ in range(3):
                assert all(pool.map(work, range(64)))
        outputs = sum(service.metrics.counters["plaudit_outputs_total"].values())
        batches = sum(service.metrics.counters["plaudit_batches_total"].values())
    assert outputs == 3 * sum(map(len, jobs))
    assert batches < 3 * len(jobs), "nothing was merged, so nothing was tested"


def test_the_catalogue_has_the_cards() -> None:
    def plain(prompts, outputs):
        return [0.0] * len(outputs)

    with serving({"n": number_in, "red": red_mean, "plain": plain}) as (url, _, _):
        document = json.loads(get(url, "/v1/rewards").body)
        assert document["rewards"]["n"]["kind"] == "text" and document["rewards"]["n"]["high"] == 1e9
        assert document["rewards"]["red"]["summary"] == "Mean of the red channel: every picture has its own tag."
        assert document["rewards"]["plain"] is None and document["limits"]["max_request_bytes"] == 64 * 2**20
        assert remote(url, "plain").card is None, "what has no card here has none there"
        assert json.loads(get(url, "/healthz").body) == {"status": "ok"}


def test_the_health_page_tells_how_far_programs_are_kept_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "problem_of", lambda level: None if level is levels.Level.LANDLOCK else "not here")
    monkeypatch.delenv(levels.DEMAND, raising=False)
    levels._found.cache_clear()
    with serving({"tests": UnitTests()}) as (url, _, _):
        told = json.loads(get(url, "/healthz").body)["sandbox"]
        assert told["level"] == "landlock" and "namespaces: not here" in told["lacks"]
    monkeypatch.setenv(levels.DEMAND, "namespaces")
    with serving({"tests": UnitTests()}) as (url, _, _):
        told = json.loads(get(url, "/healthz").body)["sandbox"]
        assert told["level"] is None and "not here" in told["lacks"][0]
    with serving({"tests": UnitTests()}, token="t") as (url, _, _):  # strangers may ask whether it lives
        assert json.loads(get(url, "/healthz").body)["sandbox"] == {"level": None}
    levels._found.cache_clear()


def test_an_open_range_is_null() -> None:
    @card(kind="text")
    def unbounded(prompts, outputs):
        """Anything."""
        return [-1e30] * len(outputs)

    with serving({"u": unbounded}) as (url, _, _):
        content = json.loads(get(url, "/v1/rewards").body)["rewards"]["u"]
        assert (content["low"], content["high"]) == (None, None)
        assert remote(url).card.unit is None and remote(url)(texts_request(["a"]))[0].value == -1e30


def test_metrics_count_what_happened() -> None:
    def sometimes(prompts, outputs):
        return [1.0 if text == "a" else None for text in outputs]

    with serving({"s": sometimes}) as (url, _, _):
        ask(url, ["a", "b", "b"], "s")
        ask(url, ["a"], "nothing")
        text = get(url, "/metrics").body.decode()
    assert 'plaudit_requests_total{path="/v1/score",code="200"} 1' in text
    assert 'plaudit_requests_total{path="/v1/score",code="404"} 1' in text
    assert 'plaudit_outputs_total{reward="s"} 3' in text
    assert 'plaudit_missing_total{reward="s",status="not_applicable"} 2' in text
    assert 'plaudit_queue_outputs{reward="s"} 0' in text
    assert 'plaudit_latency_seconds_bucket{reward="s",le="+Inf"} 1' in text
    assert 'plaudit_latency_seconds_count{reward="s"} 1' in text
    for line in text.splitlines():
        assert line.startswith("# ") or re.fullmatch(r'[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? [0-9.e+-]+', line)


# --- what is refused ---------------------------------------------------------------------------------------------------


def test_errors_say_what_is_wrong_and_nothing_of_the_inside() -> None:
    def broken(prompts, outputs):
        raise RuntimeError("secret of the reward")

    with serving({"n": number_in, "broken": broken}) as (url, service, _):
        status, document = ask(url, ["1"], "m")
        assert status == 404 and "there are n, broken" in document["error"]
        service.metrics.observe = None  # a mistake of ours, after the scoring
        status, document = ask(url, ["1"])
        assert status == 500 and "Traceback" not in json.dumps(document) and "NoneType" not in json.dumps(document)
        assert get(url, "/healthz").status == 200


def test_a_missing_column_is_told_to_the_one_who_left_it_out() -> None:
    @card(kind="text")
    def needs(prompts, outputs, answer):
        return [float(text == right) for text, right in zip(outputs, answer, strict=True)]

    with serving({"needs": needs}) as (url, _, _):
        status, document = ask(url, ["1"], "needs")
        assert status == 422 and "'answer'" in document["error"]
        items = text_items(["1", "2"], facts={"answer": "1"})
        assert values(post(url, {"reward": "needs", "items": items})[1]) == [1.0, 0.0]


def test_the_token_is_asked_for() -> None:
    with serving({"n": number_in}, token="right") as (url, _, _):
        good = {"reward": "n", "items": text_items(["1"])}
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "right"},
            {"Authorization": "Basic right"},
        ):
            for path in ("/v1/score", "/get_reward", "/classify"):
                assert post(url, good, path, headers)[0] == 401
        assert post_raw(url, b"x" * 2**20).status == 401
        assert [get(url, path).status for path in ("/v1/rewards", "/metrics", "/healthz")] == [401, 401, 200]
        assert get(url, "/v1/rewards", token="right").status == 200
        assert post(url, good, token="right")[0] == 200


def test_a_remote_reward_shows_the_token(monkeypatch) -> None:
    monkeypatch.setenv("PLAUDIT_TEST_TOKEN", "right")
    with serving({"n": number_in}, token="right") as (url, _, _):
        assert remote(url, token_env="PLAUDIT_TEST_TOKEN")(texts_request(["5"]))[0].value == 5.0
        monkeypatch.setenv("PLAUDIT_TEST_TOKEN", "wrong")
        with pytest.raises(Exception, match="401"):
            remote(url, token_env="PLAUDIT_TEST_TOKEN")


def test_bodies_are_limited_while_they_arrive() -> None:
    with serving({"n": number_in}, max_request_mb=0.1) as (url, service, _):
        assert post_raw(url, b" " * 200_000).status == 413
        port = int(url.rpartition(":")[2])
        for head in (b"Transfer-Encoding: chunked", b"Content-Length: 99999999999"):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.settimeout(LONG)
                client.sendall(
                    b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + head + b"\r\n\r\n"
                )
                sent = 0
                try:
                    while sent < 50 * 2**20:  # far more than the limit, if it is let
                        client.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
                        sent += 65536
                except OSError:
                    pass
            assert sent < 40 * 2**20
        assert ask(url, ["1"])[0] == 200
        wait_for(lambda: service.held == 0)


def test_half_of_a_request_holds_nothing_for_long() -> None:
    with serving({"n": number_in}, header_s=0.3, body_s=0.3) as (url, service, _):
        port = int(url.rpartition(":")[2])
        head = b"POST /v1/score HTTP/1.1\r\nHost: x\r\n"
        begun = [b"", b"POST /v1", head, head + b"Content-Length: 100\r\n\r\n{", head + b"X: " + b"y" * 2**18]
        for start in begun:
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.settimeout(LONG)
                try:
                    client.sendall(start)
                    said = client.recv(65536)
                except TimeoutError:
                    pytest.fail("it is still open")
                except OSError:
                    said = b""
                assert said == b"" or b" 408 " in said
        assert ask(url, ["1"])[0] == 200
        wait_for(lambda: service.held == 0)


TRICKLED = {
    "a wrong token": b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n",
    "nothing to read a body for": b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n",
    "no such path": b"POST /nothing HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n",
    "empty lines between requests": b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("case", TRICKLED)
def test_a_body_that_is_not_read_holds_the_connection_no_longer_than_one_that_is(case: str) -> None:
    drop = b"\r\n" if case.startswith("empty") else b"x"
    with serving({"n": number_in}, token="right", header_s=0.3, body_s=0.3) as (url, _, _), connected(url) as client:
        client.sendall(TRICKLED[case])
        assert client.recv(65536).startswith(b"HTTP/1.1 ")
        client.settimeout(0.02)
        wait_for(lambda: _is_over(client, drop))


def _is_over(client: socket.socket, drop: bytes) -> bool:
    try:
        client.sendall(drop)
        return client.recv(4096) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_a_body_that_is_not_read_is_not_endless() -> None:
    """The answer can be read while the body is thrown away, but not more than a body may have."""
    with serving({"n": number_in}, token="right", max_request_mb=1) as (url, _, _), connected(url) as client:
        client.sendall(b"POST /v1/score HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 401")
        sent = 0
        with pytest.raises(OSError):
            while sent < 50 * 2**20:
                client.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
                sent += 65536
    with serving({"n": number_in}, token="right") as (url, _, _), connected(url) as client:
        client.sendall(b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 401")
        client.sendall(b" " * 2_000_000)
        assert client.recv(65536) == b"", "closed, not reset"


def test_pipelined_requests_are_all_answered() -> None:
    body = json.dumps({"reward": "n", "items": text_items(["1"])}).encode()
    head = (
        f"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with serving({"n": number_in}) as (url, _, _), connected(url) as client:
        client.sendall(3 * (head.encode() + body) + head.encode() + body[:10])
        time.sleep(0.1)
        client.sendall(body[10:])
        said = b""
        while said.count(b"HTTP/1.1 200") < 4:
            some = client.recv(65536)
            assert some
            said += some


def test_a_flood_is_told_to_come_back() -> None:
    counting = Counting()
    counting.go_on.clear()
    with serving({"n": counting}, max_queue=8, max_items=8, max_batch=8) as (url, service, _):
        with ThreadPoolExecutor(12) as pool:
            first = pool.submit(ask, url, ["0"])
            assert counting.entered.wait(LONG)  # the thread is busy: what comes now has to wait
            others = [pool.submit(ask, url, [str(i), str(i)]) for i in range(1, 9)]
            wait_for(lambda: sum(job.done() for job in others) >= 4)
            refused = [job.result() for job in others if job.done()]
            counting.go_on.set()
            answers = [job.result() for job in others]
            assert values(first.result()[1]) == [0.0]
        assert all(status == 429 and "full" in document["error"] for status, document in refused)
        taken = [i for i, (status, _) in enumerate(answers, 1) if status == 200]
        assert len(taken) == 4  # eight outputs found room
        assert all(values(answers[i - 1][1]) == [float(i)] * 2 for i in taken)
        assert counting.seen == {"0": 1, **{str(i): 2 for i in taken}}
        assert service.held == 0


def test_retry_after_is_given_and_kept() -> None:
    counting = Counting()
    counting.go_on.clear()
    with serving({"n": counting}, max_requests=1) as (url, _, _), ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, url, ["1"])
        assert counting.entered.wait(LONG)
        reply = post_raw(url, b"{}")
        assert reply.status == 429 and int(reply.headers["retry-after"]) >= 1
        scores = pool.submit(remote(url, timeout_s=0.9), texts_request(["2"])).result()
        assert scores[0].status is Status.ERRORED and "429" in scores[0].note  # no time left to come back
        counting.go_on.set()
        assert first.result()[0] == 200


# --- deadlines ---------------------------------------------------------------------------------------------------------


def test_late_items_are_timed_out_and_those_that_waited_too_long_are_never_scored() -> None:
    counting = Counting()
    counting.go_on.clear()
    with serving({"n": counting}) as (url, _, _):
        status, document = ask(url, ["1"], headers={"X-Deadline-Ms": "100"})
        assert status == 200 and document["results"][0]["status"] == "timed_out" and values(document) == [None]
        status, document = ask(url, ["2", "3"], deadline_ms=50)
        assert [result["status"] for result in document["results"]] == ["timed_out"] * 2
        counting.go_on.set()
        assert values(ask(url, ["4"])[1]) == [4.0]
    assert counting.seen == {"1": 1, "4": 1}


def test_a_deadline_is_a_number_of_milliseconds(numbers) -> None:
    for text in ("0", "-5", "soon", "nan", "inf"):
        status, document = ask(numbers, ["1"], headers={"X-Deadline-Ms": text})
        assert status == 422 and document["field"] == "X-Deadline-Ms"


def test_other_clients_do_not_notice_one_that_never_reads(numbers) -> None:
    body = json.dumps({"reward": "n", "items": text_items(["1"] * 4000)}).encode()
    head = (
        f"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", int(numbers.rpartition(":")[2]))) as client:
        for _ in range(5):
            client.sendall(head.encode() + body)
        threads = [threading.Thread(target=ask, args=(numbers, ["1"])) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(5)
            assert not thread.is_alive()


def test_a_local_caller_and_the_service_agree_on_everything() -> None:
    request = texts_request(["1", "x", "3"], offset=2)
    with serving({"n": number_in}) as (url, _, _):
        assert [(s.status, s.note) for s in remote(url)(request)] == [
            (s.status, s.note) for s in Caller("n", number_in)(request)
        ]
