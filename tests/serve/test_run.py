"""A run that is scored by a service in another process, which is killed while the run goes on."""

from __future__ import annotations

import contextlib
import functools
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.reference.toys import toy_recipe
from tests.serve.harness import LONG, get, wait_for

from plaudit.data.prompt import Prompt
from plaudit.errors import RewardError
from plaudit.http import Failed
from plaudit.recipe.rewards import RewardConfig
from plaudit.rewards.load import load_reward
from plaudit.serve.remote import Remote
from plaudit.verbs import align

TILE = 4  # outputs in a call of the remote reward; a step has two such pieces
PROGRAM = """
import sys
from pathlib import Path
import plaudit.rewards.load, plaudit.serve.server
from plaudit.cli.serve import run
sys.stdin.readline()
run(Path(sys.argv[1]), None, int(sys.argv[2]))
"""


class Server:
    """`plaudit serve` on one port, with a second process in reserve that has its imports behind it."""

    def __init__(self, folder: Path) -> None:
        (folder / "rewards.yaml").write_text("rewards: {tone: brightness}\n")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [sys.executable, "-c", PROGRAM, str(folder / "rewards.yaml"), str(port)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
        self.waiting = [subprocess.Popen(command, **pipes) for _ in range(2)]
        self.url, self.all = f"http://127.0.0.1:{port}", list(self.waiting)

    def start(self) -> None:
        self.running = self.waiting.pop()
        self.running.stdin.write("go\n")
        self.running.stdin.flush()
        wait_for(self._answers)

    def _answers(self) -> bool:
        assert self.running.poll() is None, "the service did not start"
        with contextlib.suppress(Failed):
            return get(self.url, "/healthz").status == 200
        return False

    def kill(self) -> None:
        self.running.kill()
        self.running.wait(LONG)


@pytest.fixture
def server(tmp_path) -> Iterator[Server]:
    made = Server(tmp_path)
    try:
        made.start()
        yield made
    finally:
        for process in made.all:
            process.kill()
            process.wait()
            process.stdin.close()


def before_calls(monkeypatch, events: dict[tuple[int, int], Callable[[], None]]) -> None:
    """Do something before the remote reward's given call of a given step."""
    call, seen = Remote.__call__, {}

    @functools.wraps(call)
    def watched(self, prompts, outputs, request):
        if len(prompts) == TILE:
            seen[request.step] = seen.get(request.step, 0) + 1
            events.get((request.step, seen[request.step]), lambda: None)()
        return call(self, prompts, outputs, request)

    monkeypatch.setattr(Remote, "__call__", watched)


def remote(url: str) -> dict:
    return {"type": "remote", "arguments": {"url": url, "retries": 1, "backoff_s": 0.01}}


def patchy(prompts, outputs, step):
    """The brightness, as far as it is known in a run whose service is away for the second half of step 1 and in step 2."""
    known = load_reward("tone", RewardConfig(type="brightness"))(
        [Prompt(id="", text=text) for text in prompts], outputs
    )
    first_missing = {1: TILE, 2: 0}.get(step, len(known))
    return known[:first_missing] + [None] * (len(known) - first_missing)


def recipe(folder: Path, far: dict, **rest):
    train = {"train": {"steps": 5}, "sampler": {"tile": TILE}, "run": {"name": "far", "save_every": 1}}
    return toy_recipe(folder, {"rewards": {"red": None, "far": far}, **train, **rest})


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_outlives_its_service(tmp_path, monkeypatch, server) -> None:
    """Half of the second step has no scores and the third has none; then the service is back at the same address."""
    before_calls(monkeypatch, {(1, 2): server.kill, (3, 1): server.start})
    far, tolerant = remote(server.url), {"missing": {"max_missing_fraction": 1.0}}
    steps = lines(align(recipe(tmp_path, far, **tolerant)).folder)
    assert [step["rewards/far/missing_frac"] for step in steps] == [0.0, 0.5, 1.0, 0.0, 0.0]
    assert [step["reward"] is None for step in steps] == [False, False, True, False, False]
    for step in steps[:2] + steps[3:]:
        assert 0 < step["reward"] == step["rewards/far/mean"] < 1
    masked = lines(align(recipe(tmp_path / "here", {"type": f"{__name__}:patchy"}, **tolerant)).folder)
    assert steps == masked, "what is missing is left out, and the rest counts as it would without the service"


def test_a_run_whose_service_stays_away_stops_and_says_why(tmp_path, monkeypatch, server) -> None:
    before_calls(monkeypatch, {(1, 2): server.kill})
    with pytest.raises(RewardError, match=r"rewards.far: 4 of 8 scores are missing.* 0\.05 allows .*errored.*refused"):
        align(recipe(tmp_path, remote(server.url)))
    assert len(lines(tmp_path / "runs" / "far")) == 1, "the step that was not scored is not in the log"
