"""`plaudit search` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from plaudit.cli import app

SMALL = ("--model", "lab/slots", "--steps", "4", "--count", "2", "--budget", "12nfe")


def invoke(*args: str):
    return CliRunner().invoke(app, ["search", *args], prog_name="plaudit")


def record(folder: Path) -> dict:
    return json.loads((folder / "search.json").read_text())


def test_a_search_prints_its_scores_and_its_bill(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = invoke(*SMALL, "--reward", "match", "--truth", "scene_exact", "--out", str(out), "--seed", "3")
    assert done.exit_code == 0, done.output
    saved = record(out)
    assert saved["ledger"]["total"] == {"network_calls": 24, "decodes": 6, "reward_calls": 6, "gradient_calls": 0}
    rows = {line.split("  ")[0]: line.split() for line in done.stdout.splitlines() if line}
    assert rows["network calls"][2:4] == ["24", "12"] and rows["reward calls"][2:4] == ["6", "3"]
    assert rows["match"][1:] == [f"{saved['mean'][which]:.4f}" for which in ("plain", "best")]
    assert rows["truth scene_exact"][2:] == [
        f"{saved['truth']['scene_exact'][which]:.4f}" for which in ("plain", "best")
    ]
    assert (saved["seed"], saved["rewards"], saved["sampler"]["times"][1]) == (3, ["match"], 0.75)
    assert "75% of the budget  nothing finished yet" in done.stdout and f"wrote {out}" in done.stdout


def test_everything_that_is_said_is_heard(tmp_path: Path) -> None:
    out, file = tmp_path / "run", tmp_path / "prompts.txt"
    file.write_text("a red circle\ntwo blue squares\na green triangle\n")
    done = invoke(
        *SMALL,
        *("--prompts", str(file), "--reward", "a=brightness", "--reward", "b=contrast"),
        *("--combine", "a - rescale(b, 0, 0.5)", "--guidance", "2", "--kernel", "cps", "--level", "0.3", "--tile", "5"),
        *("--option", "candidates=1", "--keep-all", "--out", str(out)),
    )
    assert done.exit_code == 0, done.output
    saved = record(out)
    assert saved["combine"] == "a - rescale(b, 0, 0.5)" and saved["options"] == {"candidates": 1}
    assert saved["sampler"] | {"times": 0} == {"times": 0} | dict(
        guidance=2.0, solver="euler", kernel="cps", level=0.3, tile=5
    )
    assert [prompt["text"] for prompt in saved["prompts"]] == ["a red circle", "two blue squares"]
    assert saved["ledger"]["total"]["network_calls"] == 2 * 4 * 2 and saved["ledger"]["total"]["reward_calls"] == 4
    assert sorted(path.name for path in (out / "outputs").iterdir() if "candidate" in path.name) == [
        "0000_candidate_0000.png",
        "0001_candidate_0000.png",
    ]


def test_the_reward_of_the_recipe_is_the_default(tmp_path: Path) -> None:
    named, default = tmp_path / "named", tmp_path / "default"
    assert invoke(*SMALL, "--reward", "match", "--out", str(named)).exit_code == 0
    assert invoke(*SMALL, "--out", str(default)).exit_code == 0
    assert (named / "candidates.jsonl").read_text() == (default / "candidates.jsonl").read_text()


def test_no_method_is_plain_sampling(tmp_path: Path) -> None:
    assert invoke(*SMALL, "--method", "none", "--out", str(tmp_path / "run")).exit_code == 0
    saved = record(tmp_path / "run")
    assert saved["candidates"] == 2 and saved["mean"]["plain"] == saved["mean"]["best"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--budget", "12nfes"), "did you mean nfe"),
        (("--budget", "3nfe"), "one plain sample costs 4 network_calls and 3 are allowed"),
        (("--method", "best_of_m"), "did you mean best_of_n"),
        (("--option", "candidats=2"), "did you mean candidates"),
        (("--model", "lab/pixel"), "pixels"),
        (("--model", "no-such-recipe"), "no-such-recipe"),
        (("--reward", "scene_macht"), "did you mean scene_match"),
        (("--reward", "brightness", "--reward", "brightness"), "named twice"),
        (("--kernel", "odd"), "kernel: 'odd'"),
        (("--prompt", "a", "--prompts", "b"), "give one of the two"),
        (("--prompts", "absent.txt"), "absent.txt does not exist"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing_behind(args: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = invoke(*SMALL, "--out", str(tmp_path / "run"), *args)
    assert done.exit_code == 2 and said in done.stderr and done.stderr.startswith("error: ")
    assert not (tmp_path / "run").exists()


def test_an_earlier_search_is_not_overwritten_by_accident(tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    assert invoke(*SMALL, "--out", out).exit_code == 0
    refused = invoke(*SMALL, "--out", out)
    assert refused.exit_code == 2 and "--overwrite" in refused.stderr
    assert invoke(*SMALL, "--out", out, "--overwrite").exit_code == 0


def test_ctrl_c_writes_what_was_found_and_says_so(tmp_path: Path, monkeypatch) -> None:
    from plaudit.search.best_of_n import BestOfN

    whole = BestOfN.run

    def stopped(self, task):
        yield next(whole(self, task))
        raise KeyboardInterrupt

    monkeypatch.setattr(BestOfN, "run", stopped)
    done = invoke(*SMALL, "--tile", "2", "--out", str(tmp_path / "run"))
    assert done.exit_code == 130 and "stopped by the user" in done.stdout
    assert record(tmp_path / "run")["candidates"] == 2


def test_a_run_folder_brings_its_weights_prompts_and_rewards(tmp_path: Path) -> None:
    from tests.reference.toys import LORA, toy_recipe

    from plaudit.verbs import align

    recipe = toy_recipe(tmp_path, LORA)
    align(recipe)
    run = tmp_path / "runs/toy"
    base = {}
    for name, model in (("trained", str(run)), ("base", str(run / "recipe.yaml"))):
        done = invoke("--model", model, "--method", "none", "--count", "3", "--out", str(tmp_path / name))
        assert done.exit_code == 0, done.output
        base[name] = record(tmp_path / name)
    assert base["trained"]["rewards"] == ["red"] and len(base["trained"]["sampler"]["times"]) == 3
    assert [prompt["text"] for prompt in base["trained"]["prompts"]] == [f"caption number {i}" for i in range(20, 23)]
    measured = json.loads(next(run.glob("evaluations/after_*")).read_text())["score"][:3]
    assert [prompt["plain"]["score"] for prompt in base["trained"]["prompts"]] != [
        prompt["plain"]["score"] for prompt in base["base"]["prompts"]
    ]
    again = invoke(
        *(
            "--model",
            str(run),
            "--method",
            "none",
            "--count",
            "3",
            "--seed",
            "20000003",
            "--out",
            str(tmp_path / "same"),
        )
    )
    assert again.exit_code == 0
    assert [prompt["plain"]["score"] for prompt in record(tmp_path / "same")["prompts"]] == pytest.approx(
        measured, abs=1e-6
    )
