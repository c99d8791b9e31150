"""`plaudit compare --suite search` on the lab."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from plaudit.audit import compare_search as comparing
from plaudit.audit.compare_search import Contestant, compare_search, defaults_of, verdict
from plaudit.cli import app
from plaudit.errors import Interrupted, RecipeError, RewardError
from plaudit.search.best_of_n import BestOfN
from plaudit.statistics import Gain


def method(label: str, **options) -> Contestant:
    return Contestant(label=label, method=label.partition("[")[0], options=options)


def compare(tmp_path, **changes):
    asked = {
        "model": "lab/slots",
        "verifiers": ["scene_proxy"],
        "truth": "scene_exact",
        "contestants": [],
        "budgets": ["8nfe", "16nfe"],
        "seeds": [0, 1],
        "count": 3,
        "out": tmp_path,
        "sampler": {"steps": 4},
    }
    return compare_search(**(asked | changes))


def test_best_of_n_is_always_there_and_what_is_done_is_not_done_again(tmp_path, monkeypatch):
    page = compare(tmp_path)
    markdown = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert page.is_file() and (tmp_path / "scene_proxy-truth.png").is_file()
    assert sum(line.startswith("| best_of_n | ") for line in markdown.splitlines()) == 2
    monkeypatch.setattr(comparing, "_search", lambda *asked: pytest.fail("searched again"))
    compare(tmp_path)
    assert (tmp_path / "comparison.md").read_text(encoding="utf-8") == markdown


def test_an_earlier_comparison_is_gone_on_with_or_left_alone(tmp_path):
    short = {"seeds": [0], "budgets": ["8nfe"]}
    compare(tmp_path / "a", contestants=[method("none")], **short)
    before = (tmp_path / "a" / "comparison.html").read_bytes()
    for changes, lost in (
        ({"contestants": []}, "contestants none"),
        ({"contestants": [method("prune")]}, "contestants none"),
        ({"truth": "brightness"}, "truth scene_exact"),
        ({"verifiers": ["brightness"]}, "verifiers scene_proxy"),
        ({"budgets": ["16nfe"]}, "budgets 8nfe"),
    ):
        with pytest.raises(RecipeError, match=f"holds a comparison with the {lost}"):
            compare(tmp_path / "a", **{"contestants": [method("none")], **short, **changes})
    assert (tmp_path / "a" / "comparison.html").read_bytes() == before
    compare(tmp_path / "a", contestants=[method("none"), method("best_of_n[candidates=1]", candidates=1)], **short)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "comparison.html").write_text("of recipes")
    with pytest.raises(RecipeError, match="holds another comparison"):
        compare(tmp_path / "b", **short)


def test_a_method_with_other_options_is_another_contestant(tmp_path):
    compare(tmp_path, contestants=[method("best_of_n[candidates=1]", candidates=1)], seeds=[0])
    searches = sorted((tmp_path / "searches" / "scene_proxy").glob("*.json"))
    assert [file.stem for file in searches] == [
        f"{name}-{budget}nfe-seed0" for name in ("best_of_n", "best_of_n_candidates=1") for budget in (16, 8)
    ]
    found = {file.stem: json.loads(file.read_text())["found"] for file in searches}
    assert found["best_of_n-16nfe-seed0"]["network_calls"] == 16
    assert found["best_of_n_candidates=1-16nfe-seed0"]["network_calls"] == 4
    assert found["best_of_n_candidates=1-16nfe-seed0"]["method"] == "best_of_n[candidates=1]"


def test_costs_are_those_of_the_ledger(tmp_path):
    compare(tmp_path)
    file = tmp_path / "searches" / "scene_proxy" / "best_of_n-16nfe-seed1.json"
    found = json.loads(file.read_text(encoding="utf-8"))["found"]
    assert (found["network_calls"], found["reward_calls"], len(found["truth_best"])) == (16, 4, 3)
    assert all(best >= plain for best, plain in zip(found["proxy_best"], found["proxy_plain"], strict=True))


def test_another_comparison_in_the_same_folder_is_refused(tmp_path):
    compare(tmp_path)
    with pytest.raises(RecipeError, match="is of another comparison"):
        compare(tmp_path, count=2)


def test_a_method_that_cannot_use_a_verifier_is_left_out_and_named(tmp_path):
    compare(tmp_path, verifiers=["scene_match"], contestants=[method("noise")], seeds=[0])
    assert (
        "- noise by scene_match at 8nfe: rewards.scene_match has no gradient"
        in (tmp_path / "comparison.md").read_text()
    )


def test_wrong_methods_are_refused_before_anything_runs(tmp_path):
    with pytest.raises(RecipeError, match="did you mean beam"):
        compare(tmp_path, contestants=[method("beem")])
    assert not list(tmp_path.iterdir())


def test_an_interrupted_search_is_no_result_and_the_next_comparison_makes_up_for_it(tmp_path, monkeypatch):
    expected = compare(tmp_path / "whole").parent / "comparison.md"
    began, whole = [], comparing._search

    def interrupted(*asked):
        began.append(asked)
        if len(began) < 3:
            return whole(*asked)
        with monkeypatch.context() as patch:  # Ctrl-C inside of the third search
            patch.setattr(BestOfN, "run", stopped)
            return whole(*asked)

    def stopped(self, task):
        yield task.plain()
        raise KeyboardInterrupt

    monkeypatch.setattr(comparing, "_search", interrupted)
    with pytest.raises(Interrupted, match="the same command goes on after them"):
        compare(tmp_path / "pieces")
    assert len(began) == 3 and len(list((tmp_path / "pieces" / "searches").rglob("*.json"))) == 2
    monkeypatch.setattr(comparing, "_search", whole)
    said = []
    compare(tmp_path / "pieces", say=said.append)
    assert sum("done before" in line for line in said) == 2
    rows = [file.read_text().split("seconds")[0] for file in (expected, tmp_path / "pieces" / "comparison.md")]
    assert rows[0] == rows[1]


def test_a_seed_without_a_result_is_said_and_the_others_are_searched(tmp_path, monkeypatch):
    whole = comparing._search

    def failing(*asked):
        if asked[3:6] == (Contestant(label="best_of_n", method="best_of_n", options={}), "16nfe", 0):
            raise RewardError("the judge is away")
        return whole(*asked)

    monkeypatch.setattr(comparing, "_search", failing)
    compare(tmp_path, seeds=[0, 1, 2])
    written = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert "| best_of_n (2 of 3 seeds) | 16nfe |" in written and "| best_of_n | 8nfe |" in written
    assert "- best_of_n by scene_proxy at 16nfe, seed 0: the judge is away" in written


@pytest.mark.parametrize(
    ("changes", "said"),
    (
        ({"truth": "scene_exakt"}, "did you mean scene_exact"),
        ({"verifiers": ["scene_proxi"]}, "did you mean scene_proxy"),
        ({"truth": "sum_correct"}, "judges outputs of kind text"),
    ),
)
def test_wrong_rewards_are_refused_before_anything_runs(tmp_path, changes, said):
    with pytest.raises(RecipeError, match=said):
        compare(tmp_path, say=lambda text: pytest.fail(text), **changes)


def test_a_world_brings_its_own_defaults():
    flow, tokens = defaults_of("lab/slots", needed=True), defaults_of("lab/sums", needed=True)
    assert {"beam", "best_of_n"} < set(flow.methods) and flow.truth == "scene_exact"
    assert set(tokens.methods) == {"best_of_n", "smc", "streaming"} and tokens.truth == "sum_correct"
    assert tokens.verifiers == ("sum_proxy", "sum_steps")
    assert defaults_of("lm-grpo", needed=False).verifiers == ()
    with pytest.raises(RecipeError, match="lm-grpo has prompts of its own; give --reward"):
        defaults_of("lm-grpo", needed=True)


def test_verdicts():
    def gain(low, high):
        return Gain(mean=(low + high) / 2, low=low, high=high, count=9, missing=0, unpaired=0)

    up, down, even = gain(0.1, 0.2), gain(-0.2, -0.1), gain(-0.1, 0.1)
    assert verdict(up, down).startswith("hacked")
    assert verdict(up, up) == "better by both"
    assert verdict(up, even).endswith("not told apart") and verdict(even, even) == "nothing gained"


def test_on_the_command_line(tmp_path):
    command = "compare --suite search beam[beams=1,children=2,lookahead=1] --count 2 --seeds 0"
    command += " --budgets 40nfe --reward scene_proxy"
    result = CliRunner().invoke(app, [*command.split(), "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert (
        "| beam[beams=1,children=2,lookahead=1] | 40nfe |" in result.output and "| best_of_n | 40nfe |" in result.output
    )
