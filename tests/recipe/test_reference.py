"""Keys in words: every one has a description, `plaudit recipe KEY` finds it, docs/recipe.md is what the schema says."""

from __future__ import annotations

import pytest
from tests.docs.pages import page
from typer.testing import CliRunner

from plaudit.cli import app
from plaudit.recipe.load import load, shipped
from plaudit.recipe.reference import describe, entries, markdown, shipped_rows


def invoke(*arguments: str):
    return CliRunner().invoke(app, ["recipe", *arguments], prog_name="plaudit")


def test_every_key_has_a_description():
    known = list(entries())
    assert [entry.path for entry in known if not entry.meaning] == []
    assert len(known) > 200


def test_the_page_is_current():
    assert page("docs/recipe.md") == markdown(), "run: plaudit recipe --markdown > docs/recipe.md"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("train.lr", ["train.lr: Learning rate", "  takes    number above 0", "  default  0.0003"]),
        ("train.steps", ["train.steps: ", "  takes    integer above 0 or null", "  default  null"]),
        ("train.ema", ["train.ema: ", "  takes    number at least 0 and below 1", "  default  0.0"]),
        ("model.dtype", ["model.sd3.dtype: ", "  takes    float32, bfloat16, float16", "model.transformers.dtype: "]),
        ("model.sd3.dtype", ["model.sd3.dtype: ", "  takes    float32, bfloat16, float16", "  default  float32"]),
        ("model.path", ["model.sd3.path: ", "  takes    text", "  default  required"]),
        ("objective", ["  takes    mapping with `type` grpo, nft,", "  objective.grpo: Clipped likelihood ratio"]),
        ("objective.grpo", ["objective.grpo: Clipped likelihood ratio", "  objective.grpo.clip_low: "]),
        ("objective.class", ["objective.custom.class: Its dotted path `package.module:Class`."]),
        ("objective.grpo.kl.weight", ["objective.grpo.kl.weight: ", "  takes    number at least 0"]),
        ("rewards.match.weight", ["rewards.NAME.weight: Its factor", "  default  1.0"]),
        ("rewards.match.calibrate.std", ["rewards.NAME.calibrate.zscore.std: ", "number above 0 or null"]),
        ("prompts.heldout", ["prompts.puzzles.heldout: ", "  takes    integer above 0", "prompts.file.heldout: "]),
        ("train.betas", ["  takes    list of 2: number at least 0 and at most 1", "  default  [0.9, 0.99]"]),
    ],
)
def test_a_key_is_explained(key, expected):
    result = invoke(key)
    assert result.exit_code == 0, result.output
    assert all(part in result.output for part in expected), result.output


def test_a_recipe_goes_before_a_key_and_both_are_guessed(tmp_path, monkeypatch):
    assert not set(shipped()) & {name for entry in entries() for name in (entry.key, entry.path)}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train").mkdir()
    assert invoke("train").output.startswith("train: How much is drawn")
    (tmp_path / "train" / "recipe.yaml").write_text("base: slots-grpo\n")
    assert invoke("train").output.startswith("name: train\n")
    wrong = invoke("objectve.grpo")
    assert wrong.exit_code == 1
    assert "no such file" in wrong.output
    assert wrong.output.startswith(
        "error: 'objectve.grpo' is no key; did you mean `objective.grpo`? Nor is it a recipe: "
    )
    assert invoke("objective.grpo").output.count("KL to the reference policy.") == 1
    assert "did you mean slots-grpo?" in invoke("slots-grp").output
    assert describe("nothing.here") is None


def test_the_list_has_a_line_for_every_shipped_recipe():
    lines = invoke("--list").output.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(shipped())
    assert all(summary and load(name).summary == summary for name, _, _, summary in shipped_rows())
    (drpo,) = [line for line in lines if line.startswith("sums-drpo")]
    assert drpo.split()[1:3] == ["tokens", "S127"] and drpo.endswith(load("sums-drpo").summary)
