"""Requests that are merged score as they would alone."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch
from tests.serve.harness import LONG, Counting, number_in, texts_request

from plaudit.data.prompt import Prompt
from plaudit.errors import RewardError
from plaudit.rewards.base import Status, card
from plaudit.rewards.calling.call import Caller
from plaudit.rewards.calling.request import Request, make_request
from plaudit.rewards.load import Reward
from plaudit.serve.batching import Batcher, QueueFull, merge_key, merged


def batcher(function, **options) -> Batcher:
    reward = Reward(name="r", caller=Caller("r", function))
    given = {"max_batch": 16, "max_wait_s": 0.0, "max_queue": 100, "arriving": lambda: False, **options}
    return Batcher(reward, **given)


def test_groups_of_different_requests_never_collide() -> None:
    prompts = [Prompt(id="p", text="t")] * 3
    requests = [make_request(prompts, list("abc"), group) for group in ([0, 0, 1], [1, 0, 0], [5, 6, 5])]
    together = merged(requests)
    assert together.outputs == list("abcabcabc")
    for i in range(9):
        for k in range(9):
            same = i // 3 == k // 3 and requests[i // 3].group[i % 3] == requests[k // 3].group[k % 3]
            assert (together.group[i] == together.group[k]) == same
    assert merged(requests[1:2]).group == [1, 0, 0], "alone a request keeps its own"


def test_only_what_cannot_change_a_score_is_merged() -> None:
    def request(outputs, step=0, **facts) -> Request:
        return make_request([Prompt(id=str(i), text="", facts=facts) for i in range(len(outputs))], outputs, step=step)

    small, large = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 8, 8)
    assert merge_key(request(small)) == merge_key(request(small[:1])) == merge_key(request(small + 1))
    others = [
        request(small),
        request(large),
        request(small.double()),
        request(list(small)),
        request(list(small.double())),
        request(["a", "b"]),
        request(small, step=1),
        request(small, answer="4"),
    ]
    assert len({merge_key(each) for each in others}) == len(others)


def test_stacks_are_joined_in_order() -> None:
    pictures = torch.rand(5, 3, 2, 2)
    requests = [make_request([Prompt(id="", text="")] * len(part), part) for part in pictures.split([2, 1, 2])]
    assert torch.equal(merged(requests).outputs, pictures)


def test_what_waits_while_the_reward_is_busy_is_merged() -> None:
    counting = Counting()
    counting.go_on.clear()

    async def work():
        queue = batcher(counting, max_batch=5)
        jobs = [
            asyncio.ensure_future(queue.score(texts_request([str(10 * i), str(10 * i + 1)]), LONG)) for i in range(5)
        ]
        await asyncio.to_thread(counting.entered.wait, LONG)
        await asyncio.sleep(0.02)
        assert queue.queued == 8
        counting.go_on.set()
        found = await asyncio.gather(*jobs)
        queue.close()
        return [[score.value for score in scores] for scores in found]

    assert asyncio.run(work()) == [[10.0 * i, 10.0 * i + 1] for i in range(5)]
    assert counting.batches == [2, 4, 4]  # never more than five


@pytest.mark.parametrize("function, sizes", [("carded", [4, 4, 2]), ("ranks", [10]), ("plain", [10])])
def test_a_request_larger_than_a_batch_is_scored_in_pieces_where_that_cannot_change_it(function, sizes) -> None:
    seen, told = [], []

    def plain(prompts, outputs, group):
        seen.append((len(outputs), group))
        return [float(text) for text in outputs]

    @card(kind="text")
    def carded(prompts, outputs, group):
        return plain(prompts, outputs, group)

    @card(kind="text", batch_invariant=False)
    def ranks(prompts, outputs, group):
        return plain(prompts, outputs, group)

    async def work() -> list[float]:
        queue = batcher(locals_[function], max_batch=4, on_batch=told.append)
        scores = await queue.score(texts_request([str(i) for i in range(10)]), LONG)
        queue.close()
        return [score.value for score in scores]

    locals_ = {"plain": plain, "carded": carded, "ranks": ranks}
    assert asyncio.run(work()) == [float(i) for i in range(10)]
    assert [size for size, _ in seen] == told == sizes
    assert [member for _, group in seen for member in group] == list(range(10))


def test_pieces_that_nobody_waits_for_any_more_are_not_scored() -> None:
    counting = Counting(seconds=0.1)

    async def work():
        queue = batcher(counting, max_batch=1)
        scores = await queue.score(texts_request([str(i) for i in range(9)]), 0.15)
        assert (await queue.score(texts_request(["9"]), LONG))[0].value == 9.0
        queue.close()
        return scores

    assert [score.status for score in asyncio.run(work())] == [Status.TIMED_OUT] * 9
    assert "9" in counting.seen and len(counting.seen) <= 4


def test_an_idle_reward_does_not_wait() -> None:
    async def work() -> None:
        queue = batcher(number_in, max_wait_s=2 * LONG)
        assert (await queue.score(texts_request(["1"]), LONG))[0].value == 1.0
        queue.close()

    asyncio.run(work())


def test_a_reward_waits_for_requests_that_are_arriving_but_not_longer_than_told() -> None:
    counting = Counting()

    async def work() -> None:
        async def ask(queue: Batcher, *texts: str) -> None:
            assert [score.status for score in await queue.score(texts_request(list(texts)), LONG)] == [Status.OK] * len(
                texts
            )

        brief, patient = (batcher(counting, max_wait_s=s, arriving=lambda: True, max_batch=4) for s in (0.15, 2 * LONG))
        await asyncio.gather(ask(brief, "1"), ask(brief, "2"))  # nobody else came
        await asyncio.gather(ask(patient, "3", "4"), ask(patient, "5", "6"))  # full: at once
        for queue in (brief, patient):
            queue.close()

    asyncio.run(work())
    assert counting.batches == [2, 4]


def test_one_request_that_lacks_a_column_does_not_harm_the_others() -> None:
    entered, go_on = threading.Event(), threading.Event()

    @card(kind="text")
    def strict(prompts, outputs, facts):
        entered.set()
        assert go_on.wait(LONG)
        if any(fact["answer"] is None for fact in facts):
            raise RewardError("an answer is needed")
        return [float(text) for text in outputs]

    async def work():
        queue = batcher(strict)
        requests = [texts_request(["0"], answer=1), texts_request(["1"], answer=1)]
        requests += [texts_request(["2"], answer=None), texts_request(["3"], answer=1)]
        jobs = [asyncio.ensure_future(queue.score(request, LONG)) for request in requests]
        await asyncio.to_thread(entered.wait, LONG)
        go_on.set()
        found = await asyncio.gather(*jobs, return_exceptions=True)
        queue.close()
        return found

    found = asyncio.run(work())
    assert [found[i][0].value for i in (0, 1, 3)] == [0.0, 1.0, 3.0]
    assert isinstance(found[2], RewardError)


def test_a_request_that_is_late_already_is_not_scored() -> None:
    counting = Counting()

    async def work():
        queue = batcher(counting)
        scores = await queue.score(texts_request(["1", "2"]), 0.0)
        await asyncio.sleep(0.05)
        queue.close()
        return scores

    assert [score.status for score in asyncio.run(work())] == [Status.TIMED_OUT] * 2
    assert counting.seen == {}


def test_a_full_queue_says_when_to_come_back() -> None:
    counting = Counting(seconds=0.05)

    async def work():
        queue = batcher(counting, max_queue=3)
        await queue.score(texts_request(["0"]), LONG)  # so that the pace is known
        jobs = [asyncio.ensure_future(queue.score(texts_request([str(i)]), LONG)) for i in range(4)]
        await asyncio.sleep(0.01)
        with pytest.raises(QueueFull) as caught:
            await queue.score(texts_request(["9"]), LONG)
        await asyncio.gather(*jobs)
        queue.close()
        return caught.value.retry_after_s

    assert 0.1 < asyncio.run(work()) < 1
