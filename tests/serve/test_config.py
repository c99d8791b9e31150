"""rewards.yaml: strict, and safe by default."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.serve.harness import LONG, connected, get, text_items, wait_for

from plaudit.cli.serve import UNFINISHED
from plaudit.errors import RecipeError, RewardError, RunError
from plaudit.serve.config import ServeConfig, read_file, read_mapping, token_of, with_address
from plaudit.serve.server import listen
from plaudit.serve.service import make_service

ROOT = Path(__file__).parents[2]
GOOD = {"rewards": {"quality": "scene_match"}}


def test_the_short_form_and_the_defaults() -> None:
    file = read_mapping(GOOD, "x")
    assert file.rewards["quality"].type == "scene_match"
    assert (file.serve.host, file.serve.port, file.serve.token_env) == ("127.0.0.1", 8000, None)
    assert token_of(file.serve) is None


@pytest.mark.parametrize(
    "content, message",
    [
        ({}, "`rewards` is missing"),
        ({"rewards": {}}, "`rewards`"),
        ([1], "top level"),
        ({**GOOD, "sevre": {}}, "unknown key `sevre`; did you mean `serve`"),
        ({**GOOD, "serve": {"max_bach": 3}}, "unknown key `serve.max_bach`; did you mean `serve.max_batch`"),
        (
            {"rewards": {"q": {"type": "x", "argumens": {}}}},
            "unknown key `rewards.q.argumens`; did you mean `rewards.q.arguments`",
        ),
        ({"rewards": {"q": {"type": "x", "weight": 2.0}}}, "rewards.q.weight: a service returns raw scores"),
        ({**GOOD, "serve": {"port": 70000}}, "`serve.port` is 70000"),
        ({**GOOD, "serve": {"max_batch": 0}}, "`serve.max_batch` is 0"),
        ({**GOOD, "serve": {"max_queue": 10}}, "never fit"),
        ({**GOOD, "serve": {"host": "0.0.0.0"}}, "serve.token_env"),
        ({**GOOD, "serve": {"host": "::"}}, "serve.token_env"),
        ({**GOOD, "serve": {"host": "example.org"}}, "serve.token_env"),
    ],
    ids=str,
)
def test_mistakes_are_named(content, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_mapping(content, "rewards.yaml")
    assert message in str(caught.value) and "rewards.yaml" in str(caught.value)


def test_other_machines_need_a_token(monkeypatch) -> None:
    config = ServeConfig(host="0.0.0.0", token_env="PLAUDIT_TEST_TOKEN")
    monkeypatch.delenv("PLAUDIT_TEST_TOKEN", raising=False)
    for empty in (None, "", "  "):
        if empty is not None:
            monkeypatch.setenv("PLAUDIT_TEST_TOKEN", empty)
        with pytest.raises(RecipeError, match="PLAUDIT_TEST_TOKEN is not set"):
            token_of(config)
    monkeypatch.setenv("PLAUDIT_TEST_TOKEN", "s")
    assert token_of(config) == "s"
    for host in ("127.0.0.1", "127.3.2.1", "::1", "localhost"):
        assert ServeConfig(host=host).token_env is None


def test_the_command_line_cannot_get_around_the_token() -> None:
    file = read_mapping(GOOD, "x")
    assert with_address(file, None, 9000).serve.port == 9000 and with_address(file, None, None) == file
    with pytest.raises(RecipeError, match="token_env"):
        with_address(file, "0.0.0.0", None)


def test_a_port_that_is_taken() -> None:
    with listen(ServeConfig(port=0)) as taken, pytest.raises(RunError, match="cannot listen"):
        listen(ServeConfig(port=taken.getsockname()[1]))


def test_a_reward_with_a_memory_is_not_served() -> None:
    with pytest.raises(RewardError, match=r"rewards\.new remembers earlier calls.*checkpoints from another process"):
        make_service(read_mapping({"rewards": {"new": "text_novelty"}}, "x"))


def test_files(tmp_path) -> None:
    path = tmp_path / "rewards.yaml"
    with pytest.raises(RecipeError, match="cannot be read"):
        read_file(path)
    path.write_text("rewards: {q: scene_match}\nrewards: {}\n")
    with pytest.raises(RecipeError, match="already on line 1"):
        read_file(path)


@pytest.mark.parametrize("drain_s, signals", [(0.2, 1), (LONG, 2)])
def test_a_reward_that_hangs_does_not_keep_the_service(tmp_path, drain_s: float, signals: int) -> None:
    """The end says that something was not finished; a second signal is not needed, and does not wait."""
    path = tmp_path / "rewards.yaml"
    path.write_text(f"rewards: {{odd: 'tests.serve.odd_rewards:odd'}}\nserve: {{drain_s: {drain_s}}}\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "plaudit", "serve", str(path), "--port", "0"], stdout=subprocess.PIPE, text=True,
        stderr=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"}, cwd=ROOT,
    )  # fmt: skip
    try:
        line = next(text for text in process.stdout if text.startswith("serving"))
        body = json.dumps({"reward": "odd", "items": text_items(["hang"])}).encode()
        client = connected(line.split(" on ")[1].split()[0])
        head = f"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        half = connected(line.split(" on ")[1].split()[0])
        half.sendall(head.encode() + body[:-5])
        wait_for(lambda: "plaudit_requests_held 1" in get(line.split(" on ")[1].split()[0], "/metrics").body.decode())
        process.send_signal(signal.SIGTERM)
        if signals == 2:
            wait_for(lambda: get(line.split(" on ")[1].split()[0], "/healthz").status == 503)
            process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=LONG)
        assert process.returncode == UNFINISHED, errors
        assert "not finished within serve.drain_s" in errors and "Traceback" not in errors
        for waiting in (client, half):
            head, _, answer = waiting.makefile("rb").read().partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503") and b"retry-after" in head.lower()
            assert json.loads(answer) == {"error": "the service is shutting down"}
            waiting.close()
    finally:
        process.kill()
        process.wait()


def test_the_command_serves_until_it_is_told_to_stop(tmp_path) -> None:
    path = tmp_path / "rewards.yaml"
    path.write_text("rewards: {tone: brightness}\nserve: {drain_s: 2}\n")
    program = f"from pathlib import Path; from plaudit.cli.serve import run; run(Path({str(path)!r}), None, 0)"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("serving tone on http://127.0.0.1:")
        url = line.split(" on ")[1].split()[0]
        until = time.monotonic() + LONG
        while time.monotonic() < until:
            try:
                assert get(url, "/healthz").status == 200
                break
            except Exception:
                time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(LONG) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
