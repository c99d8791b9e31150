"""Nothing is scored twice, and the end loses nothing that was begun."""

from __future__ import annotations

import asyncio
import functools
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.serve.harness import (
    LONG,
    Counting,
    ask,
    get,
    number_in,
    post_raw,
    remote,
    serving,
    text_items,
    texts_request,
    values,
    wait_for,
)

from plaudit.rewards.base import card
from plaudit.serve.stores import Answer, AnswerStore

# --- nothing twice -----------------------------------------------------------------------------------------------------


def test_a_repeat_is_given_the_same_answer() -> None:
    counting = Counting()
    with serving({"n": counting}) as (url, _, _):
        key = {"Idempotency-Key": "k1"}
        first, second = ask(url, ["1"], headers=key), ask(url, ["1"], headers=key)
        assert first == second and values(first[1]) == [1.0]
        assert counting.seen == {"1": 1}
        status, document = ask(url, ["2"], headers=key)
        assert status == 422 and document["field"] == "Idempotency-Key"
        assert ask(url, ["1"], headers={"Idempotency-Key": "x" * 300})[0] == 422
        ask(url, ["1"])
        assert counting.seen == {"1": 2}  # without a key everything is scored


def test_a_repeat_waits_for_the_first() -> None:
    counting = Counting()
    counting.go_on.clear()
    with serving({"n": counting}) as (url, _, _), ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(ask, url, ["1"], headers={"Idempotency-Key": "k"}) for _ in range(3)]
        assert counting.entered.wait(LONG)
        time.sleep(0.1)
        assert not any(job.done() for job in jobs)
        counting.go_on.set()
        assert [values(job.result()[1]) for job in jobs] == [[1.0]] * 3
    assert counting.seen == {"1": 1}


def test_a_client_that_hangs_up_has_been_scored_once() -> None:
    counting = Counting()
    counting.go_on.clear()
    body = json.dumps({"reward": "n", "items": text_items(["1"])}).encode()
    head = f"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    with serving({"n": counting}) as (url, _, _):
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as client:
            client.sendall(head.encode() + b"Idempotency-Key: k\r\n\r\n" + body)
            assert counting.entered.wait(LONG)
        counting.go_on.set()
        assert values(ask_raw(url, body)) == [1.0]
    assert counting.seen == {"1": 1}


def ask_raw(url: str, body: bytes):
    return json.loads(post_raw(url, body, headers={"Idempotency-Key": "k"}).body)


def test_a_refusal_is_not_kept() -> None:
    with serving({"n": number_in}) as (url, service, _):
        key = {"Idempotency-Key": "k"}
        assert ask(url, ["1"], "m", headers=key)[0] == 404
        assert ask(url, ["1"], headers=key)[0] == 200  # other body, but the key is free again
        assert len(service.answers.kept) == 1


def test_an_answer_with_items_that_came_late_or_failed_is_not_given_again() -> None:
    """The retry of a client is scored; what is decided, even as missing, is not scored again."""
    counting = Counting()
    counting.go_on.clear()

    @card(kind="text", batch_invariant=True)
    def first_fails(prompts, outputs):
        counting(prompts, outputs)
        if "2" in outputs and counting.seen["2"] == 1:
            raise OSError("once")
        return [None if text == "3" else float(text) for text in outputs]

    def statuses(key: str, *texts: str, **headers: str) -> list[str]:
        document = ask(url, list(texts), headers={"Idempotency-Key": key, **headers})[1]
        return [result["status"] for result in document["results"]]

    with serving({"n": first_fails}) as (url, service, _):
        assert statuses("late", "1", **{"X-Deadline-Ms": "50"}) == ["timed_out"]
        counting.go_on.set()
        wait_for(lambda: "1" in counting.seen)
        assert statuses("late", "1") == ["ok"] == statuses("late", "1")
        assert statuses("failed", "2") == ["errored"]
        assert statuses("failed", "2") == ["ok"] == statuses("failed", "2")
        assert statuses("missing", "3") == ["not_applicable"] == statuses("missing", "3")
        assert counting.seen == {"1": 2, "2": 2, "3": 1}
        assert set(service.answers.kept) == {"late", "failed", "missing"}


def test_a_first_request_that_is_cancelled_at_once_leaves_no_repeat_waiting() -> None:
    async def work() -> tuple[Answer, bool]:
        store = AnswerStore(4, 2**20)

        async def answered() -> Answer:
            await asyncio.sleep(0.01)
            return Answer(status=200, body=b"1", final=True)

        first = asyncio.ensure_future(store.once("k", lambda: b"d", answered))
        await asyncio.sleep(0)  # it has begun, and waits for the work to begin
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        return await asyncio.wait_for(store.once("k", lambda: b"d", answered), 2)

    answer, repeated = asyncio.run(work())
    assert answer.body == b"1" and repeated


def test_answers_that_end_together_are_counted_once() -> None:
    async def work() -> None:
        store, go_on = AnswerStore(1, 2**20), asyncio.Event()

        async def answered(final: bool) -> Answer:
            await go_on.wait()
            return Answer(status=200, body=b"12345", final=final)

        finals = [True, False, True, False, True]
        jobs = [
            asyncio.ensure_future(store.once(str(i), lambda: b"d", functools.partial(answered, final)))
            for i, final in enumerate(finals)
        ]
        await asyncio.sleep(0.01)
        failures: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: failures.append(context))
        go_on.set()
        assert len(await asyncio.gather(*jobs)) == 5
        assert list(store.kept) == ["4"] and store.bytes == 5 and not failures

    asyncio.run(work())


def test_the_store_of_answers_is_bounded() -> None:
    with serving({"n": number_in}, max_keys=5) as (url, service, _):
        for i in range(12):
            assert ask(url, [str(i)], headers={"Idempotency-Key": str(i)})[0] == 200
        assert list(service.answers.kept) == ["7", "8", "9", "10", "11"]
    with serving({"n": number_in}, answers_mb=0.001) as (url, service, _):
        for i in range(12):
            assert ask(url, ["1"] * 10, headers={"Idempotency-Key": str(i)})[0] == 200
        kept = [entry.task.result() for entry in service.answers.kept.values()]
        assert kept and sum(len(answer.body) for answer in kept) == service.answers.bytes <= 0.001 * 2**20


# --- the end ------------------------------------------------------------------------------------------------------------


def test_what_is_held_is_finished_and_what_comes_is_refused() -> None:
    counting = Counting()
    counting.go_on.clear()
    with serving({"n": counting}, drain_s=10) as (url, service, server), ThreadPoolExecutor(2) as pool:
        held = [pool.submit(ask, url, ["1"]), pool.submit(ask, url, ["2"])]
        assert counting.entered.wait(LONG)
        wait_for(lambda: service.held == 2)
        server.loop.call_soon_threadsafe(server.begin_to_stop)
        wait_for(lambda: service.draining)
        reply = post_raw(url, json.dumps({"reward": "n", "items": text_items(["3"])}).encode())
        assert reply.status == 503 and "retry-after" in reply.headers
        assert get(url, "/healthz").status == 503
        counting.go_on.set()
        assert sorted(values(job.result()[1])[0] for job in held) == [1.0, 2.0]
    assert counting.seen == {"1": 1, "2": 1}


def test_the_end_is_bounded() -> None:
    counting = Counting()
    counting.go_on.clear()
    with ThreadPoolExecutor(1) as pool:
        with serving({"n": counting}, drain_s=0.2) as (url, _, server):
            pool.submit(remote(url, timeout_s=8, retries=0), texts_request(["1"]))
            assert counting.entered.wait(LONG)
        assert server.unfinished and not counting.go_on.is_set()
        counting.go_on.set()


def test_a_reward_of_whole_batches_is_never_merged() -> None:
    """Ranks in a batch: with strangers in it they would be others."""
    sizes = []

    @card(kind="text", batch_invariant=False)
    def rank(prompts, outputs):
        sizes.append(len(outputs))
        time.sleep(0.01)
        return [float(sorted(outputs).index(text)) for text in outputs]

    jobs = [[f"{k}{i:02}" for k in "bca"] for i in range(20)]
    with serving({"rank": rank}, max_wait_ms=20) as (url, _, _), ThreadPoolExecutor(10) as pool:
        clients = [remote(url) for _ in range(10)]
        assert not clients[0].card.batch_invariant and clients[0].whole_batch
        found = list(pool.map(lambda i: clients[i % 10](texts_request(jobs[i])), range(20)))
    assert [[score.value for score in scores] for scores in found] == [[1.0, 2.0, 0.0]] * 20
    assert sizes == [3] * 20
