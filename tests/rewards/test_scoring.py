"""Scoring what exists already: piece by piece, to the end or to Ctrl-C, and what is written down."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from plaudit.cli import app
from plaudit.data.outputs import gather
from plaudit.data.prompt import Prompt
from plaudit.errors import DataError, RecipeError, RewardError
from plaudit.recipe.rewards import RewardConfig
from plaudit.rewards.base import Status, card, missing
from plaudit.rewards.scoring import CHUNK, score, score_request, summarise, write_scores
from plaudit.rewards.suite import load_suite


@card(kind="text", low=0, high=999)
def length(prompts, outputs):
    """Words."""
    return [float(len(o.split())) if o else missing(Status.NOT_APPLICABLE, "silence") for o in outputs]


@card(kind="text", low=0, high=1, batch_invariant=False)
def share(prompts, outputs):
    """Place among all outputs."""
    order = sorted(outputs, key=len)
    return [order.index(o) / len(outputs) for o in outputs]


@pytest.fixture(autouse=True)
def mine(monkeypatch) -> None:
    module = types.ModuleType("mine")
    module.length, module.share = length, share  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mine", module)


def test_one_reward_is_its_own_total_and_several_stand_side_by_side() -> None:
    batch = score(["p"] * 3, ["a b", "", "c"], "mine:length")
    assert batch.total[[0, 2]].tolist() == [2, 1] and batch.total[1].isnan()
    batch = score(["p"] * 2, ["a b", "c"], {"long": "mine:length", "place": {"type": "mine:share"}})
    assert (
        batch.total.isnan().all()
        and batch.parts["long"].tolist() == [2, 1]
        and batch.parts["place"].tolist() == [0.5, 0]
    )


def test_functions_facts_pictures_of_pillow_and_paths(tmp_path: Path) -> None:
    def right(prompts, completions, answer):
        return [float(c == a) for c, a in zip(completions, answer, strict=True)]

    batch = score(
        ["p"] * 2, ["x", "y"], {"right": right, "long": "mine:length"}, facts=[{"answer": "x"}, {"answer": "x"}]
    )
    assert batch.parts["right"].tolist() == [1, 0] and batch.parts["long"].tolist() == [1, 1]
    assert score(["p"], ["x"], right, facts=[{"answer": "x"}]).total.tolist() == [1]
    grey = Image.new("RGB", (4, 4), (51, 51, 51))
    grey.save(tmp_path / "g.png")
    assert score(["p"] * 2, [grey, tmp_path / "g.png"], "brightness").total.tolist() == pytest.approx([0.2, 0.2])
    for wrong in (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.full((1, 3, 4, 4), 255.0)):
        with pytest.raises(RewardError, match=r"must be floats in 0..1, so divide by 255"):
            score(["p"], wrong, "brightness")
    with pytest.raises(RewardError, match=r"a picture is \[3, height, width\], not \[4, 4, 3\]"):
        score(["p"], torch.zeros(1, 4, 4, 3), "brightness")
    with pytest.raises(DataError, match="1 facts for 2 prompts"):
        score(["p"] * 2, ["x", "y"], right, facts=[{}])


def test_a_number_that_the_card_rules_out_is_an_error_not_a_score() -> None:
    @card(kind="text", low=0, high=1)
    def twelve(prompts, outputs):
        """A judge that answers on another scale."""
        return [12.5, 1.0]

    batch = score(["p"] * 2, ["a", "b"], twelve)
    assert batch.total[0].isnan() and batch.total[1] == 1
    assert (
        batch.scores["twelve"][0].status is Status.ERRORED and "12.5 is outside 0..1" in batch.scores["twelve"][0].note
    )


def test_a_picture_that_cannot_be_read_harms_no_other(tmp_path: Path) -> None:
    for name in ("a", "c"):
        Image.new("RGB", (4, 4), "white").save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes(b"rubbish")
    gathered = gather(tmp_path)
    suite = load_suite({"b": RewardConfig(type="brightness"), "q": RewardConfig(type="png_size")}, add=False)
    found = score_request(suite, gathered.prompts, gathered.outputs).batch.scores["b"]
    assert [s.status for s in found] == [Status.OK, Status.ERRORED, Status.OK] and "b.png cannot be read" in found[
        1
    ].note


def test_a_reference_picture_is_named_in_the_file(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "white").save(tmp_path / "a.png")
    rows = [{"prompt": "p", "image": "a.png", "inputs": {"reference": {"image": "a.png"}}}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    gathered = gather(tmp_path / "rows.jsonl")
    suite = load_suite({"l": RewardConfig(type="negative_l2")})
    assert score_request(suite, gathered.prompts, gathered.outputs).batch.total.tolist() == pytest.approx([0], abs=1e-5)


def test_formulas_and_scales_that_are_measured_here() -> None:
    rewards = {"long": {"type": "mine:length", "calibrate": {"type": "minmax"}}, "place": "mine:share"}
    texts = ["x " * n for n in range(1, 11)]
    batch = score(["p"] * 10, texts, rewards, combine="long * place")
    assert batch.total[-1].item() == pytest.approx(0.9) and batch.total[0] == 0
    with pytest.raises(RecipeError, match="at least 8 are needed"):
        score(["p"] * 3, texts[:3], rewards, combine="long * place")


def test_large_sets_are_scored_in_pieces_but_for_those_that_must_see_all() -> None:
    sizes: dict[str, list[int]] = {"length": [], "share": []}
    suite = load_suite({n: RewardConfig(type=f"mine:{n}") for n in sizes}, "rank_sum(length, share)")
    for reward in suite.rewards:
        call = reward.caller.function
        reward.caller.function = lambda prompts, outputs, c=call, n=reward.name: (
            sizes[n].append(len(outputs)),
            c(prompts, outputs),
        )[1]
    count, seen = 2 * CHUNK + 5, []
    prompts, texts = [Prompt(id="p", text="p")] * count, ["x " * (i + 1) for i in range(count)]
    found = score_request(suite, prompts, lambda rows: [texts[i] for i in rows], progress=seen.append)
    assert sizes == {"length": [CHUNK, CHUNK, 5], "share": [count]} and seen == [CHUNK, 2 * CHUNK, count]
    assert found.count == count and not found.interrupted and found.batch.total.argmax() == count - 1


def test_ctrl_c_keeps_what_is_there() -> None:
    suite = load_suite(
        {"length": RewardConfig(type="mine:length"), "share": RewardConfig(type="mine:share")}, "length * share"
    )

    def progress(done: int) -> None:
        if done > CHUNK:
            raise KeyboardInterrupt

    prompts, texts = [Prompt(id="p", text="p")] * (3 * CHUNK), ["x"] * (3 * CHUNK)
    found = score_request(suite, prompts, lambda rows: [texts[i] for i in rows], progress=progress)
    assert found.interrupted and found.count == 2 * CHUNK == len(found.batch.total) == len(found.batch.scores["share"])


def test_what_is_written_has_null_for_missing(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "output": "a b"}, {"prompt": "q", "output": ""}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    gathered = gather(tmp_path / "rows.jsonl")
    suite = load_suite({"length": RewardConfig(type="mine:length")})
    batch = score_request(suite, gathered.prompts, gathered.outputs).batch
    lines = write_scores(tmp_path / "deep" / "out.jsonl", gathered, batch).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"name": "1", "prompt": "p", "scores": {"length": {"value": 2.0, "status": "ok"}}, "total": 2.0},
        {
            "name": "2",
            "prompt": "q",
            "scores": {"length": {"value": None, "status": "not_applicable", "note": "silence"}},
            "total": None,
        },
    ]
    (row,) = summarise(suite, batch)
    assert (row.mean, row.low, row.std, dict(row.missing)) == (2, 2, None, {"not_applicable": 1})


def warm(prompts, outputs):
    """More red than blue; without a card, as the tour writes it."""
    assert outputs.ndim == 4
    return (outputs[:, 0] - outputs[:, 2]).mean(dim=(1, 2)).tolist()


def test_a_picture_reward_without_a_card_is_handed_the_same_by_every_verb(tmp_path: Path) -> None:
    """One tensor, from Python as from files and from a search, also of unlike sizes."""
    sys.modules["mine"].warm = warm  # type: ignore[attr-defined]
    colours = ("red", "blue", "red")
    for i, (colour, size) in enumerate(zip(colours, (4, 4, 6), strict=True)):
        Image.new("RGB", (size, size), colour).save(tmp_path / f"{i}.png")
    gathered = gather(tmp_path)
    pictures, expected = gathered.outputs(range(3)), [1.0, -1.0, 1.0]
    for outputs in (pictures, [tmp_path / name for name in gathered.names], torch.stack(pictures[:2])):
        assert score(["p"] * len(outputs), outputs, "mine:warm").total.tolist() == expected[: len(outputs)]
    done = run(["score", str(tmp_path), "--reward", "mine:warm", "--out", str(tmp_path / "s.jsonl")])
    assert done.exit_code == 0 and "1 missing" not in done.output, done.output
    clips = [torch.zeros(2, 3, 4, 4)] * 2
    assert score(["p"] * 2, clips, lambda prompts, outputs: [float(outputs.ndim)] * 2).total.tolist() == [5, 5]


def half(prompts, outputs):
    return [None if "b" in o else 1.0 for o in outputs]


def nothing(prompts, outputs):
    raise ValueError("no model here")


def test_nothing_scored_is_a_failure_and_the_total_counts_what_is_missing(tmp_path: Path) -> None:
    sys.modules["mine"].half, sys.modules["mine"].nothing = half, nothing  # type: ignore[attr-defined]
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"prompt": "p", "output": "{o}"}}\n' for o in ("a b", "c", "d")))
    common = ["score", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "s.jsonl"), "--reward", "mine:length"]
    done = run([*common, "--reward", "mine:half", "--combine", "length * clip(half, 0, 1)"])
    total = next(line for line in done.output.splitlines() if line.startswith("total"))
    assert done.exit_code == 0 and "1 missing" in total
    for arguments in (
        [*common[:-2], "--reward", "mine:nothing"],
        [*common, "--reward", "mine:nothing", "--combine", "length * clip(nothing, 0, 1)"],
    ):
        done = run(arguments)
        (error,) = [line for line in done.output.splitlines() if line.startswith("error:")]
        assert done.exit_code == 2, "a total that is missing everywhere is no score"
        assert error.startswith(
            "error: none of the 3 outputs was scored; the first: rewards.nothing: errored: ValueError:"
        )
        assert len((tmp_path / "s.jsonl").read_text().splitlines()) == 3, "what was found is written all the same"
    assert run([*common, "--reward", "mine:nothing"]).exit_code == 0, "one of two that stand side by side has scored"


def run(arguments: list[str]):
    return CliRunner().invoke(app, arguments)


def test_the_command_line_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "p", "output": "a b"}\n')
    rows = str(tmp_path / "rows.jsonl")
    for arguments, message in (
        ([rows], "nothing to score with: give --reward NAME"),
        ([rows, "--reward", "long={type: mine:length, wieght: 2}"], "wieght"),
        ([rows, "--reward", "brightness"], "looks at pictures, and these outputs are texts"),
        ([rows, "--reward", "mine:lenght"], "cannot import 'mine:lenght'"),
        ([rows, "--rewards", str(tmp_path / "no.yaml")], "no such file"),
        ([rows, "--reward", "a=mine:length", "--combine", "a + b"], "b"),
        ([str(tmp_path / "nothing"), "--reward", "mine:length"], "nothing to score there"),
        ([rows, "--reward", "a=mine:length", "--reward", "a=mine:share"], "'a' is named twice"),
        ([rows, "--reward", "mine:length", "--count", "3"], "--count says how many outputs to draw from a run"),
    ):
        done = run(["score", *arguments])
        assert done.exit_code == 2 and message in done.output, done.output


def test_rewards_by_file_by_name_and_with_arguments(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "p", "output": "a b"}\n{"prompt": "p", "output": "a"}\n')
    (tmp_path / "r.yaml").write_text("rewards:\n  long: mine:length\ncombine: clip(long, 0, 1)\n")
    out = tmp_path / "s.jsonl"
    common = ["score", str(tmp_path / "rows.jsonl"), "--out", str(out)]
    done = run([*common, "--rewards", str(tmp_path / "r.yaml")])
    assert done.exit_code == 0 and "long" in done.output and "total" in done.output
    assert [json.loads(line)["total"] for line in out.read_text().splitlines()] == [1, 1]
    done = run(
        [*common, "--reward", "{type: brevity, arguments: {limit: 4, unit: words}}", "--reward", "n=mine:length"]
    )
    assert done.exit_code == 0, done.output
    first = json.loads(out.read_text().splitlines()[0])
    assert set(first["scores"]) == {"brevity", "n"} and first["total"] is None


def test_a_run_folder_is_scored_by_what_it_was_trained_on(tmp_path: Path) -> None:
    from tests.reference.toys import toy_recipe

    import plaudit.train.loop as loop

    folder = loop.train(toy_recipe(tmp_path)).folder
    done = run(["score", str(folder), "--count", "4", "--out", str(tmp_path / "s.jsonl")])
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    after = json.loads(next((folder / "evaluations").glob("after_*_heldout.json")).read_text())
    assert [row["scores"]["red"]["value"] for row in rows] == pytest.approx(after["score"], abs=1e-6)


def test_the_list_and_the_cards_print() -> None:
    done = run(["rewards", "list", "--kind", "audio"])
    assert done.exit_code == 0 and "si_sdr" in done.output and "scene_exact" not in done.output
    done = run(["rewards", "show", "jpeg_size"])
    assert done.exit_code == 0 and "quality=95" in done.output and "600 true pictures" in done.output
    assert "to n" in run(["rewards", "show", "rank"]).output
    assert "allowed: image, text, audio, video" in run(["rewards", "list", "--kind", "smell"]).output
    done = run(["rewards", "verify", "brightness"])
    assert done.exit_code == 0 and "ok" in done.output
    assert torch.is_tensor(score(["p"], ["a"], "mine:length").total)
