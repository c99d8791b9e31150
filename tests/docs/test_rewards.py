"""docs/rewards.md: its files are written, its commands run, its Python prints what it says, its tables are current."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.docs.pages import blocks, commands, page, write_files

from plaudit.recipe.load import load
from plaudit.rewards.catalogue import markdown_tables
from plaudit.rewards.pinned.media import make

PAGE = page("docs/rewards.md")
MARK = "<!-- the output of `plaudit rewards list --markdown` -->\n"
RUN = [arguments for arguments in commands(PAGE) if arguments[0] != "serve"]


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    write_files(PAGE, tmp_path)
    (tmp_path / "pictures").mkdir()
    for i, caption in enumerate(("a red circle", "a blue square", "a green triangle")):
        picture = (make({"scene": caption, "seed": i}) * 255).round().to(torch.uint8)
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(tmp_path / "pictures" / f"{i}.png")
        (tmp_path / "pictures" / f"{i}.txt").write_text(caption)
    rows = [{"prompt": "1+1", "output": "2", "answer": "2"}, {"prompt": "2+2", "output": "red 5", "answer": "4"}]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def run(arguments: list[str], workplace: Path) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=workplace, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("arguments", RUN, ids=" ".join)
def test_commands_run(arguments: list[str], workplace: Path) -> None:
    short = ["--evaluate.final_prompts", "6", "--run.threads", "1"] if arguments[0] == "align" else []
    printed = run([sys.executable, "-m", "plaudit", *arguments, *short], workplace)
    if arguments[0] == "score":
        assert "card" in printed.splitlines()[0] and any("missing" in line for line in printed.splitlines())
        rows = [json.loads(line) for line in (workplace / "scores.jsonl").read_text().splitlines()]
        assert all(score["status"] == "ok" for row in rows for score in row["scores"].values())


def test_python_prints_what_it_says(workplace: Path) -> None:
    script = "\n".join(block for block in blocks(PAGE, "python") if not block.startswith("# my_rewards.py"))
    assert "tensor([1., 0.], dtype=torch.float64)" in run([sys.executable, "-c", script], workplace)


def test_a_picture_can_be_asked_about_with_curl(workplace: Path) -> None:
    from tests.serve.harness import Client, serving

    from plaudit.rewards.rules.pixels import brightness

    line = next(line for block in blocks(PAGE, "") for line in block.splitlines() if line.startswith("curl "))
    _, _, data, _, header, address = shlex.split(line)
    with serving({"bright": brightness}) as (url, _, _):
        path = address.removeprefix("http://127.0.0.1:8000")
        name, _, value = header.partition(": ")
        reply = Client(url, None).ask(
            "POST", path, time.monotonic() + 300, (workplace / data.removeprefix("@")).read_bytes(), {name: value}
        )
    (result,) = json.loads(reply.body)["results"]
    assert reply.status == 200 and 0 < result["value"] < 1


def test_the_service_has_a_valid_configuration(workplace: Path) -> None:
    from plaudit.serve.config import read_file

    assert set(read_file(workplace / "service.yaml").rewards) == {"match", "bright"}
    assert load([workplace / "taste.yaml"]).combine


def test_the_request_is_answered(workplace: Path) -> None:
    testclient = pytest.importorskip("fastapi.testclient")
    from plaudit.serve.config import read_file
    from plaudit.serve.server import make_app
    from plaudit.serve.service import make_service

    (block,) = blocks(PAGE, "json")
    with testclient.TestClient(make_app(make_service(read_file(workplace / "service.yaml")), None)) as client:
        answer = client.post("/v1/score", json=json.loads(block))
    assert answer.status_code == 200, answer.text
    assert answer.json()["results"][0]["value"] == 1.0


def test_the_tables_are_current() -> None:
    assert PAGE.partition(MARK)[2].strip() == markdown_tables().strip(), "run: plaudit rewards list --markdown"
