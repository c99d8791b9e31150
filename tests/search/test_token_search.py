"""Search of token models from names to folders: prompts, sampler, records and exports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.reference.bigram import Bigram
from typer.testing import CliRunner

import plaudit
from plaudit.cli import app
from plaudit.data.prompt import Prompt
from plaudit.data.sources import read_prompts
from plaudit.errors import RecipeError
from plaudit.lab.sums.grammar import evaluation_prompts, split_of
from plaudit.models.lab_text import LabTokenModel
from plaudit.recipe.load import load
from plaudit.rewards.rules.sums import sum_correct
from plaudit.search.setup import make_token_sampling
from plaudit.search.text_table import shown


def length(prompts: list[str], outputs: list[str]) -> list[float]:
    return [len(text) / 100 for text in outputs]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("method", ("best_of_n", "streaming", "smc"))
def test_the_command_line_writes_texts_that_train(method: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ("--option", "particles=4") if method == "smc" else ("--option", "candidates=5")
    asked = ("search", "--model", "lab/sums", "--reward", "tests.search.test_token_search:length", "--method", method)
    rest = ("--budget", "800nfe", "--count", "3", "--truth", "sum_correct", "--out", str(out), "--keep-all")
    done = CliRunner().invoke(app, [*asked, *rest, *options])
    assert done.exit_code == 0, done.output
    saved, best = json.loads((out / "search.json").read_text()), lines(out / "best.jsonl")
    assert [row["text"] for row in saved["prompts"]] == [p.text for p in evaluation_prompts("heldout", 3)]
    assert all(split_of(p) == "heldout" for p in evaluation_prompts("heldout", 3))
    assert saved["sampler"]["max_new_tokens"] == 96 and saved["sampler"]["temperature"] == 1.0
    assert max(saved["ledger"]["per_prompt"]["network_calls"]) <= 800
    every = lines(out / "candidates.jsonl")
    assert all(row["score"] == length([""], [row["output"]])[0] for row in every)
    for p, row in enumerate(best):
        own = [one for one in every if one["prompt"] == p]
        assert row["score"] == max(one["score"] for one in own) and row["facts"]["operands"]
        assert row["completion"] in {one["output"] for one in own}
        worst = min(one["score"] for one in own)
        pairs = [pair for pair in lines(out / "pairs.jsonl") if pair["prompt"] == row["prompt"]]
        assert len(pairs) == (worst < row["score"])
        for pair in pairs:
            assert pair["chosen"] == row["completion"]
            assert pair["rejected"] in {one["output"] for one in own if one["score"] == worst}
        assert row["completion"][:40] in (out / "texts.md").read_text()
    assert saved["truth"]["sum_correct"]["best"] == pytest.approx(
        sum(sum_correct([r["prompt"]], [r["completion"]], [r["facts"]])[0].value for r in best) / 3
    )
    assert lines(out / "pairs.jsonl") and not (out / "grid.png").exists()
    read = {prompt.text: prompt for prompt in read_prompts(str(out / "best.jsonl"), "prompts.train")}
    assert {text: prompt.inputs["completion"] for text, prompt in read.items()} == {
        r["prompt"]: r["completion"] for r in best
    }


def test_plain_texts_are_those_that_an_evaluation_draws() -> None:
    from plaudit.sampling.drawers import make_drawer
    from plaudit.sampling.noise import SampleKey
    from plaudit.search.base import PLAIN_STEP

    recipe, asked, model = load(["sums-grpo"]), evaluation_prompts("heldout", 5), LabTokenModel()
    keys = [SampleKey(seed=3, step=PLAIN_STEP, prompt=prompt.id, index=0) for prompt in asked]
    expected = make_drawer(model, recipe.sampler, recipe.evaluate.sampler).evaluation(asked, keys)
    result = plaudit.search("lab/sums", "sum_correct", method="none", budget="96nfe", count=5, seed=3)
    assert result.outputs == expected.outputs
    again = plaudit.search(model, "sum_correct", method="none", budget="96nfe", count=5, seed=3)
    assert again.outputs == expected.outputs and again.ledger.total == result.ledger.total
    assert result.ledger.total.network_calls == expected.samples.network_calls


def test_a_model_of_your_own_wants_prompts_and_takes_a_sampler() -> None:
    with pytest.raises(RecipeError, match="Bigram brings none of its own; give some"):
        plaudit.search(Bigram(), length, budget="20nfe")
    asked = [Prompt(id="p", text="p")]
    result = plaudit.search(Bigram(), length, budget="30nfe", prompts=asked, max_new_tokens=3, temperature=2.0)
    assert max(map(len, result.outputs)) <= 3
    assert len(result.candidates) > 10, "texts that end early leave room for more"
    assert 30 - 3 < result.ledger.total.network_calls <= 30, "until not even one more is sure to be paid for"
    assert result.about["sampler"]["temperature"] == 2.0


def test_wrong_words_are_named_before_anything_is_drawn() -> None:
    for keywords, said in (
        ({"steps": 4}, "search: steps: 4: Extra inputs are not permitted; a token model's sampler has max_new_tokens"),
        ({"temperature": 0.0}, "temperature 0 draws the same text every time"),
        ({"temperature": -1.0}, "search: temperature: -1.0"),
        ({"method": "beam"}, "method beam does not search tokens models; allowed: none, best_of_n"),
        ({"budget": "5decodes"}, "none of which is limited; give one, for example 400nfe"),
        ({"budget": "95nfe"}, "one plain sample costs 96 network_calls and 95 are allowed"),
    ):
        with pytest.raises(RecipeError, match=said):
            plaudit.search("lab/sums", "sum_correct", **({"budget": "200nfe"} | keywords))


def test_where_an_evaluation_is_greedy_candidates_are_drawn_as_in_training() -> None:
    greedy = load(["sums-grpo", {"evaluate": {"sampler": {"temperature": 0}}, "sampler": {"temperature": 0.9}}])
    assert make_token_sampling(greedy, {"tile": 7}).model_dump() | {"pack": 0} == greedy.sampler.model_dump() | {
        "tile": 7,
        "pack": 0,
    }


def test_a_cell_of_the_table_is_one_short_line() -> None:
    assert shown("a|b\n c") == "a\\|b c"
    assert len(shown("x" * 500)) == 120
