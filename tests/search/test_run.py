"""What every method owes, and what becomes of a search: time, interruption, folder, exports."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from tests.search.test_ledger import Clock
from tests.search.toys import CountingModel, Green, make_task, suite_of
from torch import Tensor

import plaudit
from plaudit.data.outputs import gather
from plaudit.errors import RecipeError, RewardError, RunError
from plaudit.lab.scenes.grammar import evaluation_prompts
from plaudit.models.lab import LabFlowModel
from plaudit.recipe.rewards import RewardConfig
from plaudit.rewards.base import Card, Status, missing
from plaudit.rewards.scoring import score
from plaudit.rewards.suite import load_suite
from plaudit.search import folder
from plaudit.search.base import Task
from plaudit.search.best_of_n import BestOfN, Plain
from plaudit.search.budget import KINDS, BudgetExceeded, Cost
from plaudit.search.options import find_method, read_options
from plaudit.search.rows import Found
from plaudit.search.run import run_search
from plaudit.search.table import METHODS
from plaudit.search.track import Tracker

FLOW = [name for name, entry in METHODS.items() if "flow" in entry.families]


# --- what every method owes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", ("60nfe", "73nfe,40rewards", "200nfe,60gradients"))
@pytest.mark.parametrize("name", FLOW)
def test_every_method_keeps_to_its_budget_and_counts_right(name: str, budget: str) -> None:
    model, reward = CountingModel(), Green()
    task = make_task(model, reward, budget, count=3)
    result = run_search(task, find_method(name, {}, "flow"))
    total = task.ledger.total
    assert (total.network_calls, total.decodes) == (sum(model.rows), sum(model.decoded))
    assert total.reward_calls == sum(reward.seen)
    for kind, limit in task.budget.limits().items():
        assert (task.ledger.counts[kind] <= limit).all()
    assert (result.scores >= result.plain_scores).all()
    plain = make_task(CountingModel(), Green(), "60nfe").plain()
    torch.testing.assert_close(torch.stack([one.output for one in result.plain]), plain.outputs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", FLOW)
def test_every_method_finds_the_same_for_any_tile(name: str) -> None:
    results = [
        run_search(make_task(None, Green(), "120nfe,60gradients", tile=tile), find_method(name, {}, "flow"))
        for tile in (1, 4, 64)
    ]
    for other in results[1:]:
        torch.testing.assert_close(other.scores, results[0].scores, rtol=0, atol=1e-4)
        assert {(c.prompt, c.candidate) for c in other.candidates} == {
            (c.prompt, c.candidate) for c in results[0].candidates
        }
        assert other.ledger.total == results[0].ledger.total


@pytest.mark.parametrize("name", FLOW)
def test_without_a_reward_every_method_is_plain_sampling_bit_for_bit(name: str) -> None:
    model, asked = LabFlowModel("slots"), evaluation_prompts("heldout", 4)
    result = run_search(make_task(model, None, "200nfe", asked=asked), find_method(name, {}, "flow"))
    plain = make_task(model, None, "200nfe", asked=asked).plain()
    assert torch.equal(torch.stack(result.outputs), plain.outputs)
    assert result.ledger.total == Cost(network_calls=20, decodes=4)


@pytest.mark.parametrize("name", FLOW)
def test_every_entry_says_what_it_is(name: str) -> None:
    assert METHODS[name].summary and set(METHODS[name].families) <= {"flow", "tokens"}


# --- time and interruption -------------------------------------------------------------------------------------------


class Slow(Green):
    """Takes a second of a made-up clock per output."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def __call__(self, prompts: list[str], outputs: Tensor) -> Tensor:
        self.clock.now += len(outputs)
        return super().__call__(prompts, outputs)


def test_seconds_are_those_of_all_prompts_together() -> None:
    clock = Clock()
    task = make_task(None, Slow(clock), "4s", count=3, tile=3, clock=clock)
    result = run_search(task, BestOfN())
    assert result.stopped == "time" and len(result.candidates) == 12  # the deadline is at 3 x 4 seconds
    assert result.seconds == 12 and result.ledger.total_seconds()["reward_calls"] == 12


def test_the_plain_samples_come_however_short_the_time() -> None:
    clock = Clock()
    result = run_search(make_task(None, Slow(clock), "0.1s", count=3, tile=1, clock=clock), BestOfN())
    assert result.stopped == "time" and [one.candidate for one in result.candidates] == [0, 0, 0]


class Impatient(Green):
    """The user stops the search while the third batch is judged."""

    def __init__(self, stop) -> None:
        super().__init__()
        self.stop = stop

    def __call__(self, prompts: list[str], outputs: Tensor) -> Tensor:
        value = super().__call__(prompts, outputs)
        if len(self.seen) == 3:
            self.stop()
        return value


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("stop", (interrupt, lambda: os.kill(os.getpid(), signal.SIGTERM)), ids=("ctrl-c", "sigterm"))
def test_a_stopped_search_returns_and_writes_what_it_has(stop, tmp_path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    whole = run_search(make_task(None, Green(), "60nfe", tile=9), BestOfN())
    result = run_search(make_task(None, Impatient(stop), "60nfe", tile=9), BestOfN())
    assert result.stopped == "interrupted" and len(result.candidates) == 18
    assert [(c.prompt, c.candidate, c.score) for c in result.candidates] == [
        (c.prompt, c.candidate, c.score) for c in whole.candidates[:18]
    ]
    assert (result.scores >= result.plain_scores).all()
    result.save(tmp_path / "out")
    assert json.loads((tmp_path / "out/search.json").read_text())["stopped"] == "interrupted"
    assert signal.getsignal(signal.SIGTERM) is before


def test_stopped_before_anything_was_found(tmp_path) -> None:
    @dataclass(frozen=True)
    class Stopped:
        def run(self, task: Task) -> Iterator[Found]:
            raise KeyboardInterrupt
            yield

    result = run_search(make_task(None, Green()), Stopped())
    assert result.outputs == [None] * 3 and result.scores.isnan().all()
    saved = json.loads((result.save(tmp_path / "out") / "search.json").read_text())
    assert saved["mean"] == {"plain": None, "best": None} and saved["prompts"][0]["best"] is None


def test_progress_grows_to_the_whole_budget() -> None:
    shares: list[float] = []
    run_search(make_task(None, Green(), "60nfe", tile=9), BestOfN(), watch=lambda share, tracker: shares.append(share))
    assert shares == sorted(shares) and shares[-1] == 1.0 and len(shares) > 20


# --- methods at fault ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Careless:
    """Owes the plain sample, or works beyond its budget."""

    spend: bool = False

    def run(self, task: Task) -> Iterator[Found]:
        while self.spend:
            yield task.plain()
        yield task.sample(torch.tensor([0, 1, 2]), torch.tensor([1, 1, 1]))


def test_a_method_without_plain_samples_is_told() -> None:
    with pytest.raises(RunError, match="no plain sample for prompt 0"):
        run_search(make_task(None, Green()), Careless())


def test_a_method_that_overspends_is_stopped_before_it_does() -> None:
    model = CountingModel()
    with pytest.raises(BudgetExceeded, match="would exceed the budget's 12"):
        run_search(make_task(model, Green(), "12nfe"), Careless(spend=True))
    assert sum(model.rows) == 3 * 12  # five steps twice, and two of the third round


def test_a_search_with_a_broken_reward_ends_after_the_plain_samples_with_the_reason() -> None:
    model = CountingModel()
    task = make_task(model, Green(lost=lambda value: value < 2), "200nfe")
    with pytest.raises(
        RewardError, match=r"none of 3 candidates of 3 prompts has a score \(rewards.r0: errored: .*nan"
    ):
        run_search(task, find_method("beam", {}, "flow"))
    assert sum(model.rows) == 3 * 5


class Declining:
    """Says nothing of the first `many` outputs."""

    card = Card(summary="", low=0, high=1)

    def __init__(self, many: int) -> None:
        self.left = many

    def __call__(self, prompts, outputs):
        given = [missing(Status.NOT_APPLICABLE, "no opinion") if i < self.left else 0.5 for i in range(len(outputs))]
        self.left = max(self.left - len(outputs), 0)
        return given


def test_a_reward_that_declines_the_plain_samples_may_judge_others() -> None:
    beam = find_method("beam", {}, "flow")
    assert run_search(make_task(None, Declining(3), "200nfe"), beam).scores.tolist() == [0.5] * 3
    model = CountingModel()
    with pytest.raises(RewardError, match=r"none of .* has a score \(rewards.r0: not_applicable: no opinion\)"):
        run_search(make_task(model, Declining(10_000), "200nfe"), beam)
    assert sum(model.rows) > 3 * 5, "all was tried"


def test_missing_scores_are_counted_and_the_first_has_its_reason() -> None:
    middle = make_task(None, Green(), "60nfe").plain().score.median()
    result = run_search(make_task(None, Green(lost=lambda value: value > middle), "200nfe"), BestOfN())
    lost = [one for one in result.candidates if one.score != one.score]
    assert 0 < len(lost) == result.missing_scores < len(result.candidates)
    assert result.first_missing.startswith("rewards.r0: errored: ")
    assert run_search(make_task(None, Green(), "60nfe"), BestOfN()).first_missing is None


def test_a_budget_below_one_sample_is_refused_before_any_work() -> None:
    model = CountingModel()
    with pytest.raises(RecipeError, match="one plain sample costs 5 network_calls and 4 are allowed"):
        run_search(make_task(model, Green(), "4nfe"), BestOfN())
    assert not model.rows


# --- names and options -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("best_of_m", {}, "did you mean best_of_n"),
        ("best_of_n", {"candidate": 3}, "did you mean candidates"),
        ("best_of_n", {"candidates": "many"}, "option candidates: 'many'"),
        ("none", {"candidates": 3}, "allowed: none"),
        ("plaudit.search.rows:places", {}, "not a dataclass of options"),
    ],
)
def test_wrong_methods_and_options_are_named(name: str, options: dict, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        find_method(name, options, "flow")


def test_options_are_read_as_yaml() -> None:
    assert read_options(["candidates=8", "scale=1e-2", "steps=[2, 6]", "kind=on"]) == {
        "candidates": 8,
        "scale": 0.01,
        "steps": [2, 6],
        "kind": "on",
    }
    assert find_method("best_of_n", read_options(["candidates=8"]), "flow") == BestOfN(candidates=8)
    assert find_method("tests.search.test_run:Careless", {"spend": True}, "flow") == Careless(spend=True)
    with pytest.raises(RecipeError, match="expected KEY=VALUE"):
        read_options(["candidates"])
    with pytest.raises(RecipeError, match="given twice"):
        read_options(["a=1", "a=2"])


def test_a_method_of_another_family_is_refused(monkeypatch) -> None:
    from plaudit.search.table import Entry

    monkeypatch.setitem(METHODS, "blocks", Entry(path="x:y", families=("tokens",), summary="tokens only"))
    with pytest.raises(RecipeError, match="does not search flow models; allowed: none, best_of_n"):
        find_method("blocks", {}, "flow")


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_ties_go_to_the_smaller_number_whatever_the_order() -> None:
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        tracker = Tracker(1)
        for i in order:
            tracker.add(
                Found(
                    outputs=torch.full((1, 3, 2, 2), float(i)),
                    score=torch.tensor([[1.0, 2.0, 2.0, 1.0][i]]).double(),
                    prompt=torch.tensor([0]),
                    candidate=torch.tensor([i]),
                )
            )
        assert (tracker.best[0].candidate, tracker.worst[0].candidate, tracker.plain[0].candidate) == (1, 0, 0)
        assert tracker.best[0].output[0, 0, 0] == 1.0


# --- folder and exports ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def searched():
    asked = evaluation_prompts("heldout", 6)
    suite = load_suite({"graded": RewardConfig(type="scene_graded")})
    task = make_task(LabFlowModel("slots"), suite, "48nfe", asked=asked, steps=8)
    return run_search(task, BestOfN(), name="best_of_n", keep_all=True, about={"model": "lab/slots"})


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_exports_are_training_data(searched, tmp_path) -> None:
    folder = searched.save(tmp_path / "run")
    best = lines(folder / "best.jsonl")
    assert [row["score"] for row in best] == searched.scores.tolist()
    gathered = gather(folder / "best.jsonl")  # as `plaudit score` reads it, with its facts
    again = score(gathered.prompts, gathered.outputs(range(6)), "scene_graded").total
    torch.testing.assert_close(again, searched.scores, rtol=0, atol=0.05)  # the pictures are rounded to bytes
    pairs = lines(folder / "pairs.jsonl")
    assert pairs and all(pair["margin"] == pair["score_chosen"] - pair["score_rejected"] > 0 for pair in pairs)
    by_text = {prompt.text: p for p, prompt in enumerate(searched.prompts)}
    for pair in pairs:
        p = by_text[pair["prompt"]]
        assert pair["score_chosen"] == searched.best[p].score
        assert pair["score_rejected"] == min(c.score for c in searched.candidates if c.prompt == p)
        assert (folder / pair["chosen"]).is_file() and (folder / pair["rejected"]).is_file()
    flat = [p for p in range(6) if len({c.score for c in searched.candidates if c.prompt == p}) == 1]
    assert len(pairs) == 6 - len(flat)


def test_the_record_says_everything(searched, tmp_path) -> None:
    folder = searched.save(tmp_path / "run")
    saved = json.loads((folder / "search.json").read_text())
    assert saved["ledger"]["total"] == {kind: getattr(searched.ledger.total, kind) for kind in KINDS}
    assert saved["ledger"]["per_prompt"]["network_calls"] == [48] * 6
    assert (saved["method"], saved["budget"], saved["seed"], saved["model"]) == ("best_of_n", "48nfe", 0, "lab/slots")
    assert saved["mean"]["best"] == searched.scores.mean() >= saved["mean"]["plain"]
    candidates = lines(folder / "candidates.jsonl")
    assert [(row["prompt"], row["candidate"]) for row in candidates] == [(p, c) for p in range(6) for c in range(6)]
    assert all((folder / row["output"]).is_file() for row in candidates)
    assert (folder / "grid.png").stat().st_size > 0 and set(saved["versions"]) == {"plaudit", "torch", "python"}


def test_a_search_that_was_killed_while_it_wrote_can_be_replaced(searched, tmp_path, monkeypatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for name in ("_pairs", "summary"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(folder, name, killed)
            searched.save(tmp_path / "run")
        with pytest.raises(RunError, match="--overwrite"):
            searched.save(tmp_path / "run")
        searched.save(tmp_path / "run", overwrite=True)
        shutil.rmtree(tmp_path / "run")
    searched.save(tmp_path / "run")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(folder.shutil, "rmtree", killed)  # amid the emptying
        searched.save(tmp_path / "run", overwrite=True)
    searched.save(tmp_path / "run", overwrite=True)
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / folder.BEGUN).touch()
    searched.save(tmp_path / "run")  # killed before anything was written: nothing to lose
    assert not (tmp_path / "run" / folder.BEGUN).exists()


@pytest.mark.parametrize("as_text", (False, True))
def test_a_model_of_ones_own_takes_arguments(as_text: bool) -> None:
    given = {"factory": "tests.reference.toys:ToyFlowModel", "arguments": {"width": 8}}
    model = json.dumps(given) if as_text else given
    result = plaudit.search(model, "brightness", budget="40nfe", prompts=["caption 1"])
    assert len(result.candidates) == 4
    with pytest.raises((TypeError, RecipeError), match="wide"):
        plaudit.search({**given, "arguments": {"wide": 8}}, "brightness", budget="40nfe", prompts=["caption 1"])


def test_a_folder_is_not_reused_by_accident(searched, tmp_path) -> None:
    searched.save(tmp_path / "run")
    with pytest.raises(RunError, match="--overwrite"):
        searched.save(tmp_path / "run")
    (tmp_path / "run/outputs/stale.png").write_text("old")
    searched.save(tmp_path / "run", overwrite=True)
    assert not (tmp_path / "run/outputs/stale.png").exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("precious")
    with pytest.raises(RunError, match="not the folder of a search"):
        searched.save(tmp_path / "thesis", overwrite=True)
    assert (tmp_path / "thesis/chapter.txt").read_text() == "precious"


# --- plaudit.search --------------------------------------------------------------------------------------------------


def test_search_in_python(tmp_path) -> None:
    asked = ["a red circle", "two blue squares"]
    found = plaudit.search(
        "lab/slots", "match", budget="30nfe", prompts=asked, steps=5, truth="scene_exact", out=tmp_path / "run"
    )
    assert len(found.candidates) == 12 and len(found.outputs) == 2
    named = plaudit.search("lab/slots", {"mine": "scene_match"}, budget="30nfe", prompts=asked, steps=5)
    assert torch.equal(named.scores, found.scores)
    judged = score(asked, torch.stack(found.outputs), "scene_exact").total
    assert torch.equal(found.truth["scene_exact"].best, judged)
    saved = json.loads((tmp_path / "run/search.json").read_text())
    assert saved["truth"]["scene_exact"]["best"] == judged.mean() and saved["rewards"] == ["match"]


def test_search_takes_objects_and_functions() -> None:
    found = plaudit.search(CountingModel(), Green(), budget="60nfe", prompts=["caption 1", "caption 2"], steps=5)
    assert len(found.candidates) == 24 and (found.scores > found.plain_scores).any()
    plain = plaudit.search(CountingModel(), budget="60nfe", prompts=["caption 1"], steps=5)
    assert plain.scores.isnan().all() and len(plain.candidates) == 1


def test_the_package_is_the_function_whatever_was_imported_first() -> None:
    import plaudit.search.flow.task  # binds plaudit.search to the package

    assert callable(plaudit.search) and plaudit.search.flow.task.FlowTask
    with pytest.raises(RecipeError, match="budget 'much'"):
        plaudit.search("lab/slots", "match", budget="much")


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"kernel": "odd"}, "search: kernel: 'odd'"),
        ({"step": 5}, "search: step"),
        ({"method": "best"}, "method 'best' is not known"),
        ({"truth": "scene_exakt"}, "scene_exact"),
        ({"combine": "match * nothing"}, "nothing"),
        ({"budget": 200}, "budget: 200 has no unit; give a text"),
        ({"method": 3}, "method: 3 is not a name"),
        ({"truth": "sum_correct"}, "reward sum_correct judges outputs of kind text, and this model makes images"),
        ({"prompts": "a red circle"}, r"to search for one prompt give a list of it, \['a red circle'\]"),
    ],
)
def test_wrong_words_are_named_before_anything_is_drawn(keywords: dict, said: str, tmp_path) -> None:
    with pytest.raises(RecipeError, match=said):
        plaudit.search("lab/slots", "match", **{"budget": "30nfe"} | keywords, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_many_rewards_need_a_common_unit_or_a_formula() -> None:
    both = suite_of(Green(), Green(), combine="r0 * r1")
    result = run_search(make_task(None, both, "60nfe"), Plain())
    assert result.ledger.total.reward_calls == 6
