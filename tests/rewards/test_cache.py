"""Scores kept on disk: found again exactly when nothing that could change them has changed."""

from __future__ import annotations

import math
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from plaudit.data.content import media_hash
from plaudit.data.prompt import Prompt
from plaudit.errors import RecipeError, RewardError
from plaudit.recipe.rewards import RewardConfig
from plaudit.rewards.base import Score, Status, card, missing
from plaudit.rewards.calling import cache as cache_module
from plaudit.rewards.calling.cache import ScoreCache, identity
from plaudit.rewards.calling.call import Cached, Caller
from plaudit.rewards.calling.request import make_request
from plaudit.rewards.load import load_reward


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt(id=f"id-{text}", text=text) for text in texts]


@pytest.fixture
def store(tmp_path: Path) -> ScoreCache:
    return ScoreCache(tmp_path)


class Counting:
    """Length of the output; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, prompts, outputs):
        self.asked += outputs
        return [missing(Status.ERRORED) if o == "bad" else None if o == "none" else float(len(o)) for o in outputs]


def cached(function, store: ScoreCache, name: str = "it") -> Caller:
    return Caller(name, function, cache=Cached(store=store, identity=name))


def test_what_was_scored_is_not_scored_again(store: ScoreCache) -> None:
    counting = Counting()
    asked = make_request(prompts("a", "b", "c"), ["xx", "yyy", "xx"])
    first, second = cached(counting, store), cached(counting, store)
    assert [s.value for s in first(asked)] == [2, 3, 2] == [s.value for s in second(asked)]
    assert counting.asked == ["xx", "yyy", "xx"], "another prompt is another question"
    assert first.meter.cache_hits == 0 and second.meter.cache_hits == 3 and second.meter.calls == 0


def test_equal_outputs_of_a_batch_are_scored_once(store: ScoreCache) -> None:
    counting = Counting()
    same = prompts("a")[0]
    assert [s.value for s in cached(counting, store)(make_request([same] * 4, ["x", "yy", "x", "x"]))] == [1, 2, 1, 1]
    assert counting.asked == ["x", "yy"]


def test_errors_are_not_kept_and_verdicts_are(store: ScoreCache) -> None:
    counting = Counting()
    asked = make_request(prompts("a", "b"), ["bad", "none"])
    for _ in range(2):
        assert [s.status for s in cached(counting, store)(asked)] == [Status.ERRORED, Status.NOT_APPLICABLE]
    assert counting.asked == ["bad", "none", "bad"]


def test_everything_a_score_carries_comes_back(store: ScoreCache) -> None:
    full = Score(value=0.1, components={"a": 1 / 3}, sigma=0.2, dense=torch.tensor([1.0, math.nan]), note="ü")
    key = b"k" * 32
    store.keep({key: full})
    found = store.find([key])[key]
    assert (found.value, found.components, found.sigma, found.note) == (0.1, {"a": 1 / 3}, 0.2, "ü")
    assert torch.equal(found.dense.nan_to_num(9), torch.tensor([1.0, 9.0], dtype=torch.float64))


def test_hashes_tell_all_outputs_apart() -> None:
    unlike = [
        *("a", "ab", b"a", "", ["a", "b"], ["ab"], ["a", ["b"]], {"a": "b"}, {"a": ["b"]}, 1, 1.0, True, None),
        torch.zeros(4),
        torch.zeros(4, dtype=torch.float64),
        torch.zeros(2, 2),
        torch.tensor([0.0, 0.0, 0.0, -0.0]),
        torch.zeros(4).numpy(),
        torch.tensor(0.0),
        torch.tensor(0.12345),
        torch.tensor(0.12346),
        {1: "a"},
        {"1": "a"},
        torch.zeros(0),
    ]
    assert len({media_hash(value) for value in unlike}) == len(unlike)
    picture = torch.rand(3, 8, 8)
    assert media_hash(picture) == media_hash(picture.clone()) == media_hash(torch.stack([picture, picture])[1])
    assert (
        media_hash(picture.transpose(1, 2)) == media_hash(picture.transpose(1, 2).contiguous()) != media_hash(picture)
    )
    changed = picture.clone()
    changed[2, 7, 7] = torch.nextafter(changed[2, 7, 7], torch.tensor(2.0))
    assert media_hash(changed) != media_hash(picture)
    assert media_hash({"a": 1, "b": 2}) == media_hash({"b": 2, "a": 1})


@pytest.mark.parametrize("change", ("text", "facts", "inputs"))
def test_a_changed_prompt_is_another_question(store: ScoreCache, change: str) -> None:
    base = {"id": "a", "text": "x", "facts": {"answer": 1}, "inputs": {"image": torch.zeros(2)}}
    other = {"text": "y", "facts": {"answer": 2}, "inputs": {"image": torch.ones(2)}}
    counting = Counting()
    for fields in (base, base | {change: other[change]}):
        cached(counting, store)(make_request([Prompt(**fields)], ["o"]))
    assert len(counting.asked) == 2


def test_ids_and_step_count_only_for_those_who_ask(store: ScoreCache) -> None:
    asked: list = []

    def plain(prompts, outputs):
        asked.append("plain")
        return [1.0] * len(outputs)

    def curious(prompts, outputs, ids, step):
        asked.append("curious")
        return [1.0] * len(outputs)

    for name, function in (("plain", plain), ("curious", curious)):
        for id_, step in (("a", 0), ("b", 0), ("a", 1)):
            cached(function, store, name)(make_request([Prompt(id=id_, text="x")], ["o"], step=step))
    assert asked == ["plain", "curious", "curious", "curious"]


def test_identity_is_type_arguments_and_revision() -> None:
    @card(revision="1")
    def carded(prompts, outputs):
        """It."""

    @card(revision="2")
    def newer(prompts, outputs):
        """It."""

    def source(prompts, outputs):
        return [1.0]

    def changed(prompts, outputs):
        return [2.0]

    found = {
        identity("x", "t", {}, carded),
        identity("x", "t", {"a": 1}, carded),
        identity("x", "u", {}, carded),
        identity("x", "t", {}, newer),
        identity("x", "t", {}, source),
        identity("x", "t", {}, changed),
    }
    assert len(found) == 6 and identity("y", "t", {}, carded) in found
    with pytest.raises(RecipeError, match=r"rewards.x.cache: 't' has neither a card"):
        identity("x", "t", {}, len)


def test_edits_are_noticed_behind_arguments_and_adapters(tmp_path, monkeypatch) -> None:
    import importlib
    import linecache

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    store = ScoreCache(tmp_path / "cache")
    asked = [Prompt(id="a", text="", facts={"answer": "1"})]

    def value(source: str, **config) -> float:
        (tmp_path / "edited.py").write_text(source)
        sys.modules.pop("edited", None)
        importlib.invalidate_caches(), linecache.clearcache()
        return load_reward("r", RewardConfig(cache=True, **config), store)(asked, ["x"])[0].value

    plain = "def f(prompts, outputs, k=1):\n    return [{} * k for _ in outputs]\n"
    verl = "def f(data_source, solution_str, ground_truth, extra_info=None):\n    return {}\n"
    rlhf = "def f(queries, prompts, labels):\n    return [{}] * len(queries)\n"
    for source, config in (
        (plain, {"type": "edited:f", "arguments": {"k": 1}}),
        (verl, {"type": "verl", "arguments": {"function": "edited:f"}}),
        (rlhf, {"type": "openrlhf", "arguments": {"function": "edited:f"}}),
    ):
        assert [value(source.format(n), **config) for n in (1.0, 1.0, 99.0)] == [1, 1, 99]


def test_pictures_of_pillow_are_told_apart_and_what_has_no_content_is_refused(store: ScoreCache) -> None:
    red, green = (Image.new("RGB", (4, 4), colour) for colour in ("red", "green"))
    assert media_hash(red) == media_hash(red.copy()) != media_hash(green) != media_hash(red.resize((2, 8)))
    with pytest.raises(TypeError, match="a object has no content"):
        media_hash({"x": object()})
    strange = [Prompt(id="a", text="a", inputs={"x": object()})]
    with pytest.raises(RewardError, match=r"a object has no content .* leave `cache` out"):
        store.keys("r", strange, ["a"])
    assert strange[0].key == strange[0].key != Prompt(id="a", text="a", inputs={"x": object()}).key
    assert media_hash("\ud800") != media_hash("?")


def test_numbers_of_numpy_are_kept(store: ScoreCache) -> None:
    key = b"n" * 32
    store.keep({key: Score(value=0.5, components={"a": np.float32(0.25)}, sigma=np.float64(0.1))})
    assert store.find([key])[key].components == {"a": 0.25}


def test_a_refusal_is_asked_again(store: ScoreCache) -> None:
    calls: list = []

    def refuses(prompts, outputs):
        calls.append(1)
        return [missing(Status.REFUSED, "too large")] * len(outputs)

    for _ in range(2):
        cached(refuses, store)(make_request(prompts("a"), ["x"]))
    assert len(calls) == 2


def test_scores_that_depend_on_company_cannot_be_kept(tmp_path, monkeypatch) -> None:
    module = type(sys)("ranking")

    @card(batch_invariant=False)
    def ranks(prompts, outputs):
        """Ranks."""

    module.ranks = ranks
    monkeypatch.setitem(sys.modules, "ranking", module)
    with pytest.raises(RecipeError, match=r"rewards.r.cache: .*depend on the rest of the batch"):
        load_reward("r", RewardConfig(type="ranking:ranks", cache=True), ScoreCache(tmp_path))


def test_the_file_stays_bounded_and_forgets_what_was_not_used(tmp_path) -> None:
    store = ScoreCache(tmp_path, max_mb=0.25)
    keys = [i.to_bytes(32, "big") for i in range(4000)]
    for at in range(0, len(keys), 100):
        store._write("INSERT OR REPLACE INTO scores VALUES (?, ?, ?)", [])
        store.keep({key: Score(value=1.0, note="n" * 100) for key in keys[at : at + 100]})
    assert store.size() <= 0.25 * 2**20
    kept = store.find(keys)
    assert 0 < len(kept) < len(keys) and keys[-1] in kept and keys[0] not in kept


def test_many_processes_may_write_at_once(tmp_path) -> None:
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from plaudit.rewards.base import Score
        from plaudit.rewards.calling.cache import ScoreCache
        store = ScoreCache(Path(sys.argv[1]))
        me = int(sys.argv[2])
        for i in range(40):
            store.keep({(j * 1000 + i).to_bytes(32, "big"): Score(value=float(i)) for j in (me, 7)})
            assert (me * 1000 + i).to_bytes(32, "big") in store.find([(me * 1000 + i).to_bytes(32, "big")])
        """
    )
    running = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(me)]) for me in range(3)]
    assert [process.wait(120) for process in running] == [0, 0, 0]
    store = ScoreCache(tmp_path)
    keys = [(j * 1000 + i).to_bytes(32, "big") for j in (0, 1, 2, 7) for i in range(40)]
    assert len(store.find(keys)) == len(keys)


def test_pictures_that_are_shown_otherwise_are_others() -> None:
    """Colours of a palette, transparency and orientation are part of what is seen."""
    plain = Image.new("P", (2, 2), 0)
    plain.putpalette([255, 0, 0] + [0, 0, 0] * 255)
    blue, clear, turned = plain.copy(), plain.copy(), plain.copy()
    blue.putpalette([0, 0, 255] + [0, 0, 0] * 255)
    clear.info["transparency"] = 0
    turned.getexif()[0x0112] = 6
    assert len({media_hash(picture) for picture in (plain, blue, clear, turned)}) == 4
    assert media_hash(plain) == media_hash(plain.copy())


def test_a_failed_write_does_not_stand_in_the_way_of_the_next(store: ScoreCache) -> None:
    with pytest.raises(sqlite3.Error, match="no such table"):
        store._write("INSERT INTO absent VALUES (?)", [(1,)])
    store.keep({b"k": Score(value=0.5)})
    assert not store.failures and store.find([b"k"])[b"k"].value == 0.5


@pytest.mark.parametrize(
    ("harm", "rescored"),
    (
        ("score = replace(score, '19.0', '19.8')", True),  # one bit
        ("score = substr(score, 17)", True),  # of before there were digests
        ("score = (SELECT score FROM scores ORDER BY length(score) DESC LIMIT 1)", True),
        ("score = CAST(score AS BLOB)", True),
        ("score = 19.0", True),
        ("used = 'yesterday'", False),
        ("used = 9e999", False),
        ("used = x'00'", False),
    ),
)
def test_a_row_that_is_not_what_was_kept_is_no_score(harm: str, rescored: bool, store: ScoreCache, recwarn) -> None:
    asked = make_request(prompts("a", "b"), ["x" * 19, "y" * 200])
    counting = Counting()
    cached(counting, store)(asked)
    store._database().execute(f"UPDATE scores SET {harm} WHERE score LIKE '%19.0%'")
    for times in (2, 2) if not rescored else (3, 3):
        assert [score.value for score in cached(counting, store)(asked)] == [19, 200]
        assert len(counting.asked) == times, "a damaged row is written anew"
    kinds = store._database().execute("SELECT DISTINCT typeof(score), typeof(used), used < 1e12 FROM scores").fetchall()
    assert kinds == [("text", "real", 1)] and not store.failures


def lock(folder: Path) -> sqlite3.Connection:
    ScoreCache(folder).find([b"k"])
    other = sqlite3.connect(folder / "scores.sqlite", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    return other


def fill(folder: Path) -> None:
    """A disk that is full, from SQLite's side of it."""
    store = ScoreCache(folder)
    pages = store._database().execute("PRAGMA page_count").fetchone()[0]
    real = ScoreCache._database

    def limited(self):
        database = real(self)
        database.execute(f"PRAGMA max_page_count = {pages}")
        return database

    return limited


@pytest.mark.parametrize(
    "harm", ("full", "locked", "damaged", "a folder", "no folder", "damaged rows", "rows of bytes")
)
def test_a_cache_that_cannot_be_used_never_costs_a_score(harm: str, tmp_path: Path, monkeypatch, recwarn) -> None:
    """It is counted and said once."""
    monkeypatch.setattr(cache_module, "LOCKED_S", 0.01)
    file, held = tmp_path / "scores.sqlite", None
    match harm:
        case "full":
            monkeypatch.setattr(ScoreCache, "_database", fill(tmp_path))
        case "locked":
            held = lock(tmp_path)
        case "damaged":
            file.write_bytes(b"no database" * 1000)
        case "a folder":
            file.mkdir()
        case "no folder":
            file = tmp_path / "file" / "scores.sqlite"
            file.parent.write_text("")
        case _:
            store = ScoreCache(tmp_path)
            asked = make_request(prompts(*map(str, range(9))), ["x" * (i + 1) for i in range(9)])
            cached(Counting(), store)(asked)
            wrong = "'{}'" if harm == "damaged rows" else "CAST(x'ff' AS TEXT)"
            store._database().execute(f"UPDATE scores SET score = {wrong}")
    counting, store = Counting(), ScoreCache(file.parent)
    long = [Prompt(id=str(i), text=str(i)) for i in range(9)]
    notes = lambda prompts, outputs: [Score(value=float(len(o)), note="n" * 9000) for o in outputs]  # noqa: E731
    for _ in range(3):
        scored = cached(counting, store)(make_request(prompts(*map(str, range(9))), ["x" * (i + 1) for i in range(9)]))
        assert [score.value for score in scored] == list(range(1, 10))
        assert len(cached(notes, store, "notes")(make_request(long, ["y"] * 9))) == 9
    said = [str(warning.message) for warning in recwarn if "cache of scores" in str(warning.message)]
    if harm == "damaged rows":
        assert not said and len(counting.asked) == 9, "they were written anew"
    elif harm == "rows of bytes":
        assert len(said) == 1 and len(counting.asked) == 9
    else:
        assert len(said) == 1 and str(file) in said[0] and store.failures >= 3
    if held is not None:
        held.execute("COMMIT")
        held.close()
        cached(counting, store)(make_request(prompts("a"), ["x"]))
        before = len(counting.asked)
        cached(counting, store)(make_request(prompts("a"), ["x"]))
        assert len(counting.asked) == before, "it is used again once it can be"
