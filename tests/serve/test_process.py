"""A reward in a process of its own: the same scores, and nothing it does harms its parent."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.serve.harness import LONG, texts_request, wait_for

from plaudit.data.prompt import Prompt
from plaudit.errors import RewardError
from plaudit.http import Client
from plaudit.recipe.rewards import RewardConfig
from plaudit.rewards.base import Status
from plaudit.rewards.calling.request import make_request
from plaudit.rewards.load import load_reward
from plaudit.rewards.pinned import agrees, load_pinned
from plaudit.serve.process import Isolated, WorkerProcess

ODD = {"type": "tests.serve.odd_rewards:odd"}
ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def isolated(**config):
    reward = load_reward("odd", RewardConfig(**{**ODD, "python": sys.executable, **config}))
    try:
        yield reward
    finally:
        reward.caller.function.close()


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch) -> None:
    monkeypatch.chdir(ROOT)


def scores_of(reward, *texts: str):
    return reward.score(texts_request(list(texts)))


def running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_the_same_scores_as_in_this_process_for_who_knows_the_token() -> None:
    pinned = load_pinned("scene_match")
    reward = load_reward("match", RewardConfig(type="scene_match", python=sys.executable))
    try:
        found = reward.score(pinned.request)
        assert all(agrees(score, want, 1e-9) for score, want in zip(found, pinned.expected, strict=True))
        assert found == load_reward("match", RewardConfig(type="scene_match")).score(pinned.request)
        assert reward.waits and reward.card.kind == "image"
        worker = reward.caller.function.worker
        client = worker.connection()
        until = time.monotonic() + LONG
        assert client.ask("GET", "/v1/rewards", until).status == 200
        stranger = Client(client.url, "wrong")
        assert stranger.ask("GET", "/v1/rewards", until).status == 401
        assert client.url.startswith("http://127.0.0.1:")
        arguments = Path(f"/proc/{worker.child.process.pid}/cmdline").read_bytes()
        environment = Path(f"/proc/{worker.child.process.pid}/environ").read_bytes()
        assert worker.token.encode() not in arguments + environment
    finally:
        reward.caller.function.close()
    assert not worker.alive


def test_a_crash_a_print_a_kill_and_the_end() -> None:
    with isolated(batch=1) as reward:
        assert (reward.card.revision, reward.card.high) == ("7", 1e9)
        first = int(scores_of(reward, "pid")[0].value)
        assert first != os.getpid() and running(first)
        assert [score.value for score in scores_of(reward, "a", "print", "bbb")] == [1.0, 5.0, 3.0]
        crashed = scores_of(reward, "a", "crash", "bb")
        assert [score.status for score in crashed] == [Status.OK, Status.ERRORED, Status.OK] and crashed[1].note
        second = int(scores_of(reward, "pid")[0].value)  # started again
        assert second != first and not running(first)
        os.kill(second, signal.SIGKILL)
        assert scores_of(reward, "aa")[0].value == 2.0
        third = int(scores_of(reward, "pid")[0].value)
    wait_for(lambda: not running(third))


def test_a_hanging_reward_is_ended_and_restarts_are_bounded() -> None:
    def score(text: str):
        return reward([""], [text], make_request([Prompt(id="0", text="")], [text]))[0]

    reward = Isolated("odd", RewardConfig(**ODD, python=sys.executable), max_restarts=1)
    try:
        pid = int(score("pid").value)
        reward.timeout_s = 0.3
        assert score("hang").status is Status.TIMED_OUT
        wait_for(lambda: not running(pid))
        reward.timeout_s = LONG
        assert score("aaa").value == 3.0
        assert score("crash").status is Status.ERRORED
        gone = score("a")
        assert gone.status is Status.ERRORED and "died too often" in gone.note
    finally:
        reward.close()


def test_it_ends_with_its_parent() -> None:
    """The parent is killed, so that it can tidy nothing up."""
    program = (
        "import sys, time\n"
        "from plaudit.serve.process import WorkerProcess\n"
        f"worker = WorkerProcess(python=sys.executable, config={{'rewards': {{'odd': {ODD!r}}}}})\n"
        "worker.connection()\n"
        "print(worker.child.process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        assert running(pid)
        parent.kill()
        wait_for(lambda: not running(pid))


def test_a_reward_with_a_memory_stays_in_the_trainers_process() -> None:
    """A process that is started again would have forgotten."""
    with pytest.raises(RewardError, match=r"^rewards\.new remembers earlier calls.*run it in the trainer's process"):
        load_reward("new", RewardConfig(type="text_novelty", python=sys.executable))


def test_scores_are_cached_by_what_runs_where_and_its_card() -> None:
    with isolated() as reward, isolated(batch=3) as same:
        assert reward.caller.function.cache_identity() == same.caller.function.cache_identity()
        source, name, card = json.loads(reward.caller.function.cache_identity())
        assert source == {"python": sys.executable, "rewards": {"odd": {**ODD, "arguments": {}}}}
        assert (name, card["revision"]) == ("odd", "7")


@pytest.mark.parametrize(
    "python, config, message",
    [
        ("/no/such/python", {"rewards": {"odd": ODD}}, "must be an interpreter"),
        ("/bin/true", {"rewards": {"odd": ODD}}, "ended with code 0"),
        ("/bin/cat", {"rewards": {"odd": ODD}}, "ended with code 1"),
        (sys.executable, {"rewards": {"odd": {"type": "no_such_reward"}}}, "no_such_reward"),
        (sys.executable, {"rewards": {}}, "rewards"),
    ],
)
def test_a_process_that_does_not_start_says_why(python: str, config: dict, message: str) -> None:
    worker = WorkerProcess(python=python, config=config, start_s=20)
    with pytest.raises(RewardError, match=message):
        worker.connection()
    assert not worker.alive


def test_a_process_that_never_greets_is_given_up(tmp_path) -> None:
    sleeper = tmp_path / "sleeper"
    sleeper.write_text("#!/bin/sh\nexec sleep 60\n")
    sleeper.chmod(0o700)
    with pytest.raises(RewardError, match=r"did not start within 0\.3 s"):
        WorkerProcess(python=sleeper, config={"rewards": {"odd": ODD}}, start_s=0.3).connection()
