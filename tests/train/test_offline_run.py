"""Runs that learn from data: the lab's pairs and demonstrations, and a user's JSONL files with a language model."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tests.models.tiny_causal import build
from tests.reference.token_toys import sums_recipe
from typer.testing import CliRunner

from plaudit.cli import app
from plaudit.cli.align import summary_line
from plaudit.errors import DataError, PlauditError, RewardError
from plaudit.lab.sums.check import read
from plaudit.recipe.load import load
from plaudit.recipe.rewards import RewardConfig
from plaudit.rewards.rules import sums as sum_rewards
from plaudit.rewards.suite import Suite
from plaudit.runs.display import Silent
from plaudit.train import loop
from plaudit.train.checkpoint import Progress
from plaudit.train.doctor.doctor import cheap_checks, examine
from plaudit.train.feeds import feed
from plaudit.train.setup import prepare
from plaudit.verbs import align

PAIRS = {
    "prompts": {"problems": 12, "answers": "pairs", "noise": 0.25},
    "objective": {"type": "dpo", "sft_weight": 0.05},
    "train": {"samples_per_prompt": 1, "prompts_per_step": 6, "micro_batch": 4},
}
DEMONSTRATIONS = {
    "prompts": {"answers": "demonstrations"},
    "objective": {"type": "sft"},
    "train": {"samples_per_prompt": 1, "prompts_per_step": 6, "micro_batch": 4},
}
OFFLINE = {"pairs": PAIRS, "demonstrations": DEMONSTRATIONS}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def rows(root: Path, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (root / name).read_text().splitlines()]


# --- the lab's ---------------------------------------------------------------------------------------------------------


def test_a_model_does_not_prefer_what_it_has_not_learned(tmp_path: Path) -> None:
    metrics = rows(loop.train(sums_recipe(tmp_path, PAIRS)).folder)
    assert metrics[0]["loss/policy"] == pytest.approx(math.log(2), abs=1e-6)
    assert metrics[0]["rewards/margins"] == pytest.approx(0, abs=1e-5) != metrics[2]["rewards/margins"]


def test_pairs_are_right_and_wrong_but_for_the_noise_and_always_the_same(tmp_path: Path) -> None:
    setup = prepare(sums_recipe(tmp_path, PAIRS, {"prompts": {"problems": 60}, "train": {"prompts_per_step": 60}}))
    batch = feed(setup, 0, 0).batch
    model = setup.policy.model

    def right(rows: Sequence[Sequence[int]]) -> list[bool]:
        asked = zip(rows, batch.prompts, strict=True)
        return [read(model.decode(row), prompt.facts["operands"]).correct for row, prompt in asked]

    chosen, rejected = right(batch.pairs.chosen.rows()), right(batch.pairs.rejected.rows())
    assert [a != b for a, b in zip(chosen, rejected, strict=True)] == [True] * 60
    assert 3 <= sum(rejected) <= 27, "a quarter is swapped"
    again = feed(setup, 1, 0).batch
    said = {p.id: row for p, row in zip(batch.prompts, batch.pairs.chosen.rows(), strict=True)}
    assert {p.id: row for p, row in zip(again.prompts, again.pairs.chosen.rows(), strict=True)} == said
    assert Counter(p.id for p in batch.prompts).most_common(1)[0][1] == 1, "every pair once in a pass"


RECIPES = ("likelihood", "mrn", "par", "rpo", "format-length", "sft", "rft")


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_takes_a_step(name: str) -> None:
    few = ["--train.prompts_per_step", "4", "--train.micro_batch", "16", "--run.threads", "1"]
    setup = prepare(load([f"sums-{name}"], few))
    before = {key: value.detach().clone() for key, value in setup.policy.trainable.items()}
    metrics = loop.Alignment(setup).step(Progress()).metrics
    assert metrics["grad_norm"] > 1e-4 and math.isfinite(metrics["loss"])
    assert any(not torch.equal(value, before[key]) for key, value in setup.policy.trainable.items())


# --- a user's files ----------------------------------------------------------------------------------------------------

SAID = ("four", "seven", "two and two", "nine")
QUESTIONS = [(f"{a} plus {b}?", SAID[(a + b) % 4] + " yes", SAID[a]) for a in range(4) for b in range(3)]
FILES = {
    "pairs": [{"prompt": q, "chosen": yes, "rejected": no} for q, yes, no in QUESTIONS],
    "conversations": [
        {"prompt": [{"role": "user", "content": q}]}
        | {name: [{"role": "assistant", "content": text}] for name, text in (("chosen", yes), ("rejected", no))}
        for q, yes, no in QUESTIONS
    ],
    "completions": [{"prompt": q, "completion": yes} for q, yes, _ in QUESTIONS],
    "messages": [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": yes}]} for q, yes, _ in QUESTIONS
    ],
}
DIGITS = {
    "pairs": [
        {"prompt": f"{a}+{b}=", "chosen": f"{a + b}#{a + b}", "rejected": f"{a}#{a}"} for a in (1, 2) for b in (1, 2, 3)
    ],
    "completions": [{"prompt": f"{a}+{b}=", "completion": f"{a + b}#{a + b}"} for a in (1, 2) for b in (1, 2, 3)],
}
RECIPE_OF = {"pairs": "lm-dpo", "conversations": "lm-dpo", "completions": "lm-sft", "messages": "lm-sft"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("llama"))


def written(path: Path, name: str) -> str:
    file = path / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in FILES[name]), encoding="utf-8")
    return str(file)


def small(folder: Path, path: Path, file: str) -> list[str]:
    settings = {"model.path": folder, "prompts.train": file, "run.folder": path / "runs", "run.name": "r"}
    settings |= {"train.steps": 3, "train.prompts_per_step": 6, "train.micro_batch": 4, "train.lr": 1e-2}
    settings |= {"evaluate.every": 2, "evaluate.prompts": 4, "evaluate.final_prompts": 8, "run.threads": 1}
    settings |= {"sampler.max_new_tokens": 6, "evaluate.sampler.max_new_tokens": 6}
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_learned_from(name: str, folder: Path, tmp_path: Path) -> None:
    """The measurement is of the data itself, and it rises."""
    recipe = load([RECIPE_OF[name]], small(folder, tmp_path, written(tmp_path, name)))
    assert list(recipe.rewards) == (["prefers"] if RECIPE_OF[name] == "lm-dpo" else ["likelihood"])
    result = align(recipe, quiet=True)
    before, after = result.summary["before"], result.summary["after"]
    assert after > before + 0.1 and (before == 0.5 if RECIPE_OF[name] == "lm-dpo" else before < -1)
    assert "<html" in result.report.read_text(encoding="utf-8")[:200].lower()
    assert (result.folder / "final").is_dir()


def test_texts_and_conversations_say_the_same(folder: Path, tmp_path: Path) -> None:
    """What differs is the chat template, which a plain text goes through as a user's turn."""

    def first(name: str):
        return feed(prepare(load([RECIPE_OF[name]], small(folder, tmp_path, written(tmp_path, name)))), 0, 0).batch

    assert first("pairs").pairs.chosen.rows() == first("conversations").pairs.chosen.rows()
    completions, messages = first("completions").completions, first("messages").completions
    assert completions.rows() == messages.rows() and completions.prompt_ids == messages.prompt_ids


def test_the_command_checks_trains_and_goes_on(folder: Path, tmp_path: Path) -> None:
    asked = ["lm-dpo", *small(folder, tmp_path, written(tmp_path, "pairs"))]
    checked = CliRunner().invoke(app, ["doctor", *asked])
    assert checked.exit_code == 0, checked.output
    for command in (["align", *asked, "--train.steps", "1"], ["align", *asked, "--resume"]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
    root = tmp_path / "runs" / "r"
    assert [row["step"] for row in rows(root)] == [1, 2, 3]
    assert json.loads((root / "summary.json").read_text())["reward"] == "pair_accuracy"
    assert (root / "report.html").is_file()


# --- what a user may get wrong -----------------------------------------------------------------------------------------


def test_wrong_columns_are_named(folder: Path, tmp_path: Path) -> None:
    """Before there is a folder."""
    for recipe, name, lacks in (("lm-dpo", "completions", "chosen"), ("lm-sft", "pairs", "completion")):
        message = rf"prompts.train: .*{name}\.jsonl row 1: prompt .* has no `{lacks}`; objective .* needs rows with .*`{lacks}`"
        with pytest.raises(DataError, match=message):
            loop.train(load([recipe], small(folder, tmp_path, written(tmp_path, name))))
        assert not (tmp_path / "runs").exists()


def test_one_wrong_row_among_right_ones_is_named(folder: Path, tmp_path: Path) -> None:
    rows = [*FILES["completions"][:7], {"prompt": "and?"}, {"text": "number", "inputs": {"completion": 3}}]
    file = tmp_path / "rows.jsonl"
    for kept, message in (
        (rows, r"row 8: prompt .*'and\?'.* has no `completion`"),
        (rows[:7] + rows[8:], r"row 8: .*'3', which is no text"),
    ):
        file.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        with pytest.raises(DataError, match=message):
            prepare(load(["lm-sft"], small(folder, tmp_path, str(file))))


@pytest.mark.parametrize("answers", ("none", "demonstrations"))
def test_a_source_that_makes_no_pairs_is_named(answers: str, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=f"prompts.answers: {answers}: .*has no `chosen`; objective dpo needs prompts.answers: pairs"
    ):
        prepare(sums_recipe(tmp_path, PAIRS, {"prompts": {"answers": answers, "noise": 0.0}}))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, "goes with a `completion`, or with `chosen` and `rejected`"),
        ({"prompt": 3, "completion": "b"}, "expected a text or a list of messages"),
        ({"messages": [{"role": "user", "content": "a"}]}, "must be a conversation that ends with the assistant"),
        ({"question": "a", "chosen": "b", "rejected": "c"}, "expected an object with `text`"),
    ],
)
def test_a_row_that_is_none_is_named_with_its_line(row: dict, message: str, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(FILES["pairs"][0]) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=rf"line 2.*{message}"):
        prepare(load(["lm-dpo"], small(folder, tmp_path, str(file))))


def test_a_truth_that_cannot_judge_texts_is_refused(folder: Path, tmp_path: Path) -> None:
    """And what could judge them is named: a file of pairs is measured by itself."""
    options = small(folder, tmp_path, written(tmp_path, "pairs"))
    with pytest.raises(PlauditError, match=r"scene_exact looks at pictures.*`plaudit rewards list --kind text`"):
        loop.train(load(["lm-dpo"], [*options, "--evaluate.reward", "scene_exact"]))
    listed = CliRunner().invoke(app, ["rewards", "list", "--kind", "text"]).output
    assert "pair_accuracy" in listed and "completion_likelihood" in listed


# --- what such a run says of itself ------------------------------------------------------------------------------------


class Told(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.parametrize("file", ("pairs", "completions"))
def test_an_evaluation_that_scores_nothing_stops_the_run(file: str, tmp_path: Path) -> None:
    """And leaves the name free."""
    fits = {"pairs": "pair_accuracy", "completions": "completion_likelihood"}[file]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in DIGITS[file]), encoding="utf-8")
    settings = {"type": "file", "train": str(tmp_path / "rows.jsonl")}
    layers = {**OFFLINE[{"pairs": "pairs", "completions": "demonstrations"}[file]], "prompts": settings}
    recipe = sums_recipe(tmp_path, layers)
    message = (
        r"evaluate\.reward: sum_correct scored none of 6 outputs before training: the first is not_applicable \(the prompt is "
        rf"not .*operands.*\)\. Name a reward that fits .*{fits} judges rows with"
    )
    with pytest.raises(RewardError, match=message):
        loop.train(recipe)
    assert not (tmp_path / "runs" / "sums-toy" / "evaluations.jsonl").exists()
    result = loop.train(
        recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"reward": RewardConfig(type=fits)})})
    )
    assert math.isfinite(result.summary["gain"])


def test_a_partly_missing_evaluation_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = sum_rewards.sum_correct

    def half(prompts, outputs, facts):
        return [score if i % 2 else None for i, score in enumerate(real(prompts, outputs, facts))]

    monkeypatch.setattr(sum_rewards, "sum_correct", half)
    result = loop.train(
        sums_recipe(tmp_path, DEMONSTRATIONS, {"rewards": {"correct": None, "format": {"weight": 1.0}}})
    )
    assert math.isfinite(result.summary["before"])
    monkeypatch.setattr(sum_rewards, "sum_correct", lambda prompts, outputs: 1 / 0)
    with pytest.raises(
        RewardError, match=r"first is errored \(ZeroDivisionError: .* \(test_offline_run\.py:\d+\)\)\. Mend the reward"
    ):
        loop.train(
            sums_recipe(tmp_path / "broken", DEMONSTRATIONS, {"rewards": {"correct": None, "format": {"weight": 1.0}}})
        )


@pytest.mark.parametrize("kind", OFFLINE)
def test_nothing_is_drawn_to_check_a_run_that_learns_from_data(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checks that need samples say that they were left out; the doctor makes them."""
    setup = prepare(sums_recipe(tmp_path, OFFLINE[kind]))

    def drawn(*args: object) -> None:
        raise AssertionError("the checks drew samples")

    monkeypatch.setattr(type(setup.drawer), "training", drawn)
    monkeypatch.setattr(Suite, "score", drawn)
    found = {check.name: check for check in cheap_checks(setup)}
    left = [name for name, check in found.items() if "plaudit doctor" in check.value]
    assert left == [
        "completions end where they should",
        "permuting the batch permutes the rewards",
        "scoring twice gives the same scores",
    ]
    assert all(found[name].passed is None for name in left)
    assert found["padding changes nothing"].passed is True and found["something is trainable"].passed is True
    monkeypatch.undo()
    thorough = {check.name: check.passed for check in examine(setup.recipe)}
    assert [thorough[name] for name in left] == [True] * 3


def test_the_checks_are_announced(tmp_path: Path) -> None:
    display = Told()
    loop.train(sums_recipe(tmp_path, PAIRS), display=display)
    assert display.lines[0] == "checking the recipe before the first step"


def test_the_doctor_does_not_judge_what_has_no_scores(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in DIGITS["pairs"]), encoding="utf-8")
    settings = {"type": "file", "train": str(tmp_path / "rows.jsonl")}
    recipe = sums_recipe(tmp_path, {**PAIRS, "prompts": settings}, {"rewards": {"format": None, "brief": None}})
    found = {check.name: check for check in examine(recipe)}
    for name in (
        "permuting the batch permutes the rewards",
        "scoring twice gives the same scores",
        "mismatched prompts score lower",
    ):
        assert (found[name].passed, found[name].value) == (None, "no output of the small rollout has a score")


def test_a_truth_about_the_data_is_called_by_its_name(folder: Path, tmp_path: Path) -> None:
    """Before training every pair is a tie, so the score is no accuracy, whatever it is later; and it is not about the texts."""
    recipe = load(["lm-dpo"], small(folder, tmp_path, written(tmp_path, "pairs")))
    result = align(recipe, quiet=True)
    after = json.loads((result.folder / "evaluations" / "after_000003_train.json").read_text())["score"]
    assert set(after) <= {0.0, 0.5, 1.0}
    assert result.summary["accuracy"] is False and "pair_accuracy 0.500 -> " in summary_line(result.summary)
    assert all(
        row["looks_at_outputs"] is False and row["of_the_data"] == ["prefers"]
        for row in rows(result.folder, "evaluations.jsonl")
    )
    page = result.report.read_text(encoding="utf-8")
    assert (
        "The truth (pair_accuracy) and prefers judge the answers that stand in the data of a prompt, not the outputs"
        in page
    )
    assert "network calls" not in page and "it drew no samples and asked no reward" in page
