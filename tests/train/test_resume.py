"""Killed anywhere and resumed, a run writes what an uninterrupted one writes, to the last bit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tests.reference.toys import EMA, GRPO, LORA, toy_recipe
from tests.train.test_turns import LEARNS

import plaudit.train.learn as learning
import plaudit.train.loop as loop
import plaudit.train.run as running
from plaudit import storage
from plaudit.errors import Interrupted, PlauditError, RunError
from plaudit.recipe.load import dump, load
from plaudit.recipe.schema import Recipe
from plaudit.runs.display import Silent
from plaudit.runs.folder import RunFolder


class Killed(BaseException):
    """Not an Exception, so that nothing that mends errors sees it: the next that happens is the end of the process."""


class Killer:
    """Counts the moments of a run and ends it at one of them."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.count = at, 0
        self.names: list[str] = []

    def moment(self, name: str, half_done: Callable[[], object] = lambda: None) -> None:
        self.count += 1
        self.names.append(name)
        if self.count == self.at:
            half_done()
            raise Killed(name)


def _remove_one_file(path: Path) -> None:
    files = sorted(p for p in Path(path).rglob("*") if p.is_file())
    if files:
        files[-1].unlink()


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """A shell starts what runs in its background deaf to SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def arm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int | None], Killer]]:
    """Replaces everything that touches the disk or the weights by a version that can be killed before, amid and after."""
    killer = Killer()
    real_replace, real_rmtree, real_text, real_save = os.replace, shutil.rmtree, Path.write_text, storage.save_file
    real_append, real_step = RunFolder.append, torch.optim.AdamW.step
    real_feed, real_accumulate, real_evaluate = loop.feed, learning.accumulate, loop.evaluate

    def replace(source, target):
        killer.moment("before rename")
        real_replace(source, target)
        killer.moment("after rename")

    def rmtree(path, ignore_errors=False):
        killer.moment("amid removal", lambda: _remove_one_file(path))
        real_rmtree(path, ignore_errors=ignore_errors)

    def write_text(self, text, **options):
        killer.moment("amid a small file", lambda: real_text(self, text[: len(text) // 2], **options))
        return real_text(self, text, **options)

    def save_file(tensors, path):
        killer.moment("amid the tensors", lambda: Path(path).write_bytes(b"\x10\0\0"))
        real_save(tensors, path)

    def append(self, log, entry):
        def half() -> None:
            real_append(self, log, entry)
            path = self.root / log
            path.write_bytes(path.read_bytes()[: -len(str(entry)) // 2])

        killer.moment(f"amid a line of {log}", half)
        real_append(self, log, entry)

    def around(name: str, real: Callable) -> Callable:
        def wrapped(*args, **options):
            killer.moment(f"before {name}")
            result = real(*args, **options)
            killer.moment(f"after {name}")
            return result

        return wrapped

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a killed process, not a lost disk
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    monkeypatch.setattr(Path, "write_text", write_text)
    monkeypatch.setattr(storage, "save_file", save_file)
    monkeypatch.setattr(RunFolder, "append", append)
    monkeypatch.setattr(torch.optim.AdamW, "step", around("the optimiser step", real_step))
    monkeypatch.setattr(loop, "feed", around("the rollout", real_feed))
    monkeypatch.setattr(learning, "accumulate", around("a gradient", real_accumulate))
    monkeypatch.setattr(loop, "evaluate", around("an evaluation", real_evaluate))

    def set_to(at: int | None) -> Killer:
        killer.at, killer.count, killer.names = at, 0, []
        return killer

    yield set_to


def run_folder(recipe: Recipe) -> Path:
    return Path(recipe.run.folder) / (recipe.run.name or recipe.name)


def contents(root: Path) -> dict[str, bytes]:
    """Everything a run leaves that is a function of its recipe. Times are not."""
    volatile = ("timing.jsonl", "summary.json", "recipe.yaml", "checks.json", "report.html")
    files = [p for p in root.rglob("*") if p.is_file() and "checkpoints" not in p.parts and p.name not in volatile]
    found = {str(p.relative_to(root)): p.read_bytes() for p in files if not p.name.endswith(".partial")}
    latest = storage.latest_snapshot(root / "checkpoints")
    assert latest is not None
    return found | {f"checkpoint {latest.name}": (latest / storage.TENSORS).read_bytes()}


def assert_same(found: dict[str, bytes], expected: dict[str, bytes], when: str) -> None:
    assert set(found) == set(expected), when
    different = [name for name in expected if found[name] != expected[name]]
    assert not different, f"{different} differ after {when}"


def finish(recipe: Recipe) -> None:
    """What a user does after a kill: resume. Only where there is not even a folder yet is there nothing to resume."""
    if not run_folder(recipe).exists():
        with pytest.raises(RunError, match="no complete checkpoint"):
            loop.train(recipe, resume=True)
        loop.train(recipe)
        return
    loop.train(recipe, resume=True)


VARIANTS = {
    "nft": [{}],
    "grpo": [GRPO, {"train": {"updates_per_step": 2}, "run": {"save_every": 2}}],
    "lora and ema": [LORA, EMA, {"run": {"keep_checkpoints": 1}}],
    "gradient": [{"objective": {"type": "gradient"}, "rewards": {"red": "tests.reference.toys:soft_redness"}}],
    "a reward that learns": [LEARNS, {"train": {"steps": 3}}],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_at_any_moment_and_resumed_is_uninterrupted(variant: str, tmp_path: Path, arm) -> None:
    """Every place where a run touches disk or weights, one kill each; the stride keeps it short and differs by variant."""
    recipe = toy_recipe(tmp_path, *VARIANTS[variant])
    moments = arm(None)
    loop.train(recipe)
    expected = contents(run_folder(recipe))
    assert {"metrics.jsonl", "evaluations.jsonl", "samples/after.png", "final/toy.safetensors"} <= set(expected)
    assert moments.count > 60
    strides = {"nft": 1, "grpo": 3, "lora and ema": 2, "gradient": 5, "a reward that learns": 9}
    names, stride = list(moments.names), strides[variant]
    for at in range(1, len(names) + 1, stride):
        shutil.rmtree(run_folder(recipe), ignore_errors=True)
        arm(at)
        with pytest.raises(Killed):
            loop.train(recipe)
        arm(None)
        finish(recipe)
        assert_same(contents(run_folder(recipe)), expected, f"a kill at moment {at}, {names[at - 1]}")


def test_once_a_checkpoint_is_complete_there_is_always_one(tmp_path: Path, arm) -> None:
    """Also with a single one kept: the moment between removing the old and renaming the new must not lose both."""
    recipe = toy_recipe(tmp_path, {"run": {"keep_checkpoints": 1}})
    moments = arm(None)
    loop.train(recipe)
    first = moments.names.index("before the rollout") + 1
    for at in range(first, moments.count + 1, 2):
        shutil.rmtree(run_folder(recipe))
        arm(at)
        with pytest.raises(Killed):
            loop.train(recipe)
        arm(None)
        storage.finish_renames(run_folder(recipe) / "checkpoints")
        assert storage.latest_snapshot(run_folder(recipe) / "checkpoints") is not None, (at, moments.names)


def test_killed_again_while_resuming(tmp_path: Path, arm) -> None:
    recipe = toy_recipe(tmp_path, GRPO)
    arm(None)
    loop.train(recipe)
    expected = contents(run_folder(recipe))
    for first, second in ((60, 3), (60, 8), (75, 1), (75, 20), (90, 5), (50, 33)):
        shutil.rmtree(run_folder(recipe))
        for at in (first, second):
            arm(at)
            with pytest.raises(Killed):
                loop.train(recipe, resume=at == second)
        arm(None)
        finish(recipe)
        assert_same(contents(run_folder(recipe)), expected, f"kills at {first} and {second}")


class Told(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_a_run_without_a_checkpoint_starts_over_in_its_folder(tmp_path: Path, monkeypatch) -> None:
    """And says so; afterwards it is the run that was never killed."""
    recipe, display = toy_recipe(tmp_path), Told()
    loop.train(recipe)
    expected = contents(run_folder(recipe))
    shutil.rmtree(run_folder(recipe))
    with monkeypatch.context() as patch:
        patch.setattr(
            running, "save_checkpoint", lambda *args: (_ for _ in ()).throw(Killed("before the first checkpoint"))
        )
        with pytest.raises(Killed):
            loop.train(recipe)
    assert (run_folder(recipe) / "evaluations.jsonl").is_file()
    loop.train(recipe, resume=True, display=display)
    assert any("holds no checkpoint yet: the run starts over from the beginning" in line for line in display.lines)
    assert_same(contents(run_folder(recipe)), expected, "a kill before the first checkpoint")


@pytest.mark.parametrize(
    "lost", ("notes.txt", "metrics.jsonl", "samples/mine.png", "checkpoints/step_4/state.safetensors")
)
def test_a_folder_with_more_in_it_is_not_started_over(lost: str, tmp_path: Path) -> None:
    """Somebody's files, or a run whose checkpoints were lost or harmed."""
    recipe = toy_recipe(tmp_path)
    root = run_folder(recipe)
    (root / lost).parent.mkdir(parents=True)
    (root / lost).write_text("precious")
    (root / "recipe.yaml").write_text(dump(recipe))
    with pytest.raises(RunError, match="no complete checkpoint; start it without --resume"):
        loop.train(recipe, resume=True)
    assert (root / lost).read_text() == "precious"


def test_starting_over_takes_the_recipe_of_the_folder(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path)
    root = run_folder(recipe)
    (root / "samples").mkdir(parents=True)
    (root / "recipe.yaml").write_text(dump(recipe))
    with pytest.raises(RunError, match=r"train\.lr is 0\.5 and was"):
        loop.train(toy_recipe(tmp_path, {"train": {"lr": 0.5}}), resume=True)


def test_a_finished_run_can_be_prolonged(tmp_path: Path, arm) -> None:
    """Three steps and three more are six steps: the end of a run leaves nothing behind that a longer one would not."""
    longer = {"train": {"steps": 6}}
    arm(None)
    loop.train(toy_recipe(tmp_path, longer))
    whole = contents(run_folder(toy_recipe(tmp_path)))
    loop.train(toy_recipe(tmp_path), overwrite=True)
    loop.train(toy_recipe(tmp_path, longer), resume=True)
    pieces = contents(run_folder(toy_recipe(tmp_path)))
    left = {name: data for name, data in pieces.items() if name in whole}
    assert_same(left, whole, "a prolongation")
    assert {name for name in pieces if name not in whole} == {"evaluations/after_000003_heldout.json"}


@pytest.mark.parametrize(
    "harm", ["truncated tensors", "changed byte", "no marker", "binary marker", "marker of another", "no meta"]
)
def test_a_harmed_checkpoint_is_ignored_in_favour_of_the_older_one(harm: str, tmp_path: Path, arm) -> None:
    recipe = toy_recipe(tmp_path)
    arm(None)
    loop.train(recipe)
    root = run_folder(recipe)
    expected = contents(root)
    newest = root / "checkpoints" / "step_3"
    tensors, marker = newest / storage.TENSORS, newest / storage.MARKER
    match harm:
        case "truncated tensors":
            tensors.write_bytes(tensors.read_bytes()[:-100])
        case "changed byte":
            data = bytearray(tensors.read_bytes())
            data[-5] ^= 1
            tensors.write_bytes(data)
        case "no marker":
            marker.unlink()
        case "binary marker":
            marker.write_bytes(b"\xff\xfe\x00")
        case "marker of another":
            shutil.copy(root / "checkpoints" / "step_2" / storage.MARKER, marker)
        case "no meta":
            (newest / storage.META).unlink()
    assert not storage.is_complete(newest)
    assert storage.latest_snapshot(root / "checkpoints") == root / "checkpoints" / "step_2"
    with pytest.raises(RunError, match="not a complete snapshot"):
        storage.read_snapshot(newest)
    loop.train(recipe, resume=True)
    assert_same(contents(root), expected, harm)


# --- on the lab's own model ------------------------------------------------------------------------------------------


def slots_recipe(folder: Path, base: str, *layers: dict) -> Recipe:
    tiny = {
        "base": base,
        "sampler": {"steps": 4},
        "train": {"minutes": None, "steps": 6, "prompts_per_step": 2, "samples_per_prompt": 4, "micro_batch": 5},
        "evaluate": {"every": 3, "prompts": 6, "final_prompts": 6, "sampler": {"steps": 4}},
        "run": {"folder": str(folder / "runs"), "save_every": 2, "threads": 1, "name": "tiny"},
    }
    return load([tiny, *layers])


SLOTS = {
    "nft with ema": ("slots-nft", {"train": {"ema": 0.9, "updates_per_step": 2}}),
    "grpo with window and kl": (
        "slots-grpo",
        {"sampler": {"window": {"size": 2, "start": [0, 1]}}, "objective": {"kl": {"weight": 0.01}}},
    ),
    "nft on lora": ("slots-nft", {"model": {"lora": {"rank": 4}}}),
    "grpo on an editor": (
        "edits-grpo",
        {"sampler": {"steps": 2}, "evaluate": {"sampler": {"steps": 2}}, "train": {"updates_per_step": 1}},
    ),
}


@pytest.mark.parametrize("variant", SLOTS)
def test_slots_killed_and_resumed_is_uninterrupted(variant: str, tmp_path: Path, arm) -> None:
    recipe = slots_recipe(tmp_path, *SLOTS[variant])
    moments = arm(None)
    loop.train(recipe)
    expected, names = contents(run_folder(recipe)), list(moments.names)
    for name, occurrence in (("after the rollout", 3), ("after the optimiser step", 5), ("amid the tensors", 3)):
        at = [i for i, n in enumerate(names, start=1) if n == name][occurrence - 1]
        shutil.rmtree(run_folder(recipe))
        arm(at)
        with pytest.raises(Killed):
            loop.train(recipe)
        arm(None)
        loop.train(recipe, resume=True)
        assert_same(contents(run_folder(recipe)), expected, f"a kill {name}")


# --- real processes --------------------------------------------------------------------------------------------------


def in_child(work: Callable[[], None]) -> int:
    """Run in a forked process, which spares it the imports; returns the wait status."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except PlauditError as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            os._exit(130 if isinstance(error, Interrupted) else 2)
        finally:
            os._exit(3)
    return child


class Signalling(Silent):
    """Sends its own process a signal when a step ends."""

    def __init__(self, number: int, at_step: int, log: Path | None = None) -> None:
        self.number, self.at_step, self.log = number, at_step, log

    def step(self, step, metrics, seconds) -> None:
        if step == self.at_step:
            os.kill(os.getpid(), self.number)

    def say(self, text: str) -> None:
        if self.log:
            with self.log.open("a") as file:
                file.write(text + "\n")


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("step", (2, 5))
def test_sigkill_and_resume(step: int, tmp_path: Path, quiet) -> None:
    """A real kill: no handler, no finally."""
    layers = [{"train": {"steps": 6}, "run": {"save_every": 4}}]
    loop.train(toy_recipe(tmp_path / "whole", *layers))
    expected = contents(run_folder(toy_recipe(tmp_path / "whole", *layers)))
    recipe = toy_recipe(tmp_path / "killed", *layers)
    child = in_child(lambda: loop.train(recipe, display=Signalling(signal.SIGKILL, step)))
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert storage.latest_snapshot(run_folder(recipe) / "checkpoints").name == ("step_0" if step == 2 else "step_4")
    loop.train(recipe, resume=True)
    assert_same(contents(run_folder(recipe)), expected, "SIGKILL")


@pytest.mark.parametrize("number", (signal.SIGINT, signal.SIGTERM))
def test_an_interrupted_run_saves_its_step_says_how_to_go_on_and_resumes(number: int, tmp_path: Path, quiet) -> None:
    layers = [{"train": {"steps": 5}, "run": {"save_every": 100}}]
    loop.train(toy_recipe(tmp_path / "whole", *layers))
    expected = contents(run_folder(toy_recipe(tmp_path / "whole", *layers)))
    recipe, log = toy_recipe(tmp_path / "stopped", *layers), tmp_path / "log.txt"
    with pytest.raises(Interrupted, match=r"stopped after step 2; everything is saved.*--resume"):
        loop.train(recipe, display=Signalling(number, 2, log))
    assert "finishing this step, then saving" in log.read_text()
    assert storage.latest_snapshot(run_folder(recipe) / "checkpoints").name == "step_2"
    assert signal.getsignal(number) is not None and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    loop.train(recipe, resume=True)
    assert_same(contents(run_folder(recipe)), expected, "an interruption")


def test_a_second_interrupt_stops_at_once_and_falls_back(tmp_path: Path, quiet, monkeypatch) -> None:
    recipe = toy_recipe(tmp_path, {"run": {"save_every": 2}, "train": {"steps": 5}})
    loop.train(recipe)
    expected = contents(run_folder(recipe))
    real, calls = learning.accumulate, []

    def impatient(*args):
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT), os.kill(os.getpid(), signal.SIGINT)
        return real(*args)

    monkeypatch.setattr(learning, "accumulate", impatient)
    with pytest.raises(Interrupted, match="stopped at once; the last checkpoint is sound"):
        loop.train(recipe, overwrite=True)
    assert storage.latest_snapshot(run_folder(recipe) / "checkpoints").name == "step_2"
    loop.train(recipe, resume=True)
    assert_same(contents(run_folder(recipe)), expected, "an impatient interruption")


def test_ctrl_c_on_the_command_line(tmp_path: Path) -> None:
    """The real program: exit code 130, the message, and a resumable run."""
    recipe = toy_recipe(tmp_path, {"train": {"steps": 100_000}, "run": {"save_every": 1000}})
    path = tmp_path / "toy.yaml"
    path.write_text(dump(recipe), encoding="utf-8")
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-m", "plaudit", "align", str(path), "--plain"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics, deadline = run_folder(recipe) / "metrics.jsonl", time.monotonic() + 120
    while not metrics.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "finishing this step, then saving" in out and "everything is saved" in err and "--resume" in err
    assert "Traceback" not in err
    latest = storage.latest_snapshot(run_folder(recipe) / "checkpoints")
    assert latest is not None and int(latest.name.removeprefix("step_")) == len(metrics.read_text().splitlines())


# --- folders that were harmed, or that another version wrote ----------------------------------------------------------


def _rewrite(snapshot: Path, change: Callable[[dict, dict], None]) -> None:
    """A snapshot with other contents and checksums that fit them."""
    tensors, meta = storage.read_snapshot(snapshot)
    change(tensors, meta)
    storage.write_snapshot(snapshot, tensors, meta)


HARMS: dict[str, tuple[Callable[[dict, dict], object], str]] = {
    "no optimiser": (
        lambda t, m: [t.pop(name) for name in list(t) if name.startswith("optimizer")],
        "tensors are missing",
    ),
    "a weight is gone": (lambda t, m: (t.pop("current.enter.bias"), m.pop("tensors")), "current.enter.bias"),
    "another shape": (lambda t, m: t.update({"current.enter.bias": torch.zeros(3)}), "remove it to go on"),
    "a later version": (lambda t, m: m.update(format=99), "has format 99"),
    "no progress": (lambda t, m: m.pop("progress"), "progress"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_checkpoint_that_cannot_be_gone_on_from_is_one_clear_line(harm: str, tmp_path: Path, arm) -> None:
    recipe = toy_recipe(tmp_path)
    arm(None)
    loop.train(recipe)
    change, said = HARMS[harm]
    _rewrite(run_folder(recipe) / "checkpoints" / "step_3", change)
    with pytest.raises(RunError, match=said) as caught:
        loop.train(recipe, resume=True)
    assert "\n" not in str(caught.value)


def test_a_folder_of_the_first_format_is_gone_on_with(tmp_path: Path, arm) -> None:
    recipe = toy_recipe(tmp_path)
    arm(None)
    loop.train(recipe)
    expected = contents(run_folder(recipe))
    _rewrite(
        run_folder(recipe) / "checkpoints" / "step_3",
        lambda t, m: [m.pop(key) for key in ("format", "tensors", "logs")],
    )
    (run_folder(recipe) / "checkpoints" / "step_mine").mkdir()
    loop.train(recipe, resume=True)
    assert_same(contents(run_folder(recipe)), expected, "the first format")


@pytest.mark.parametrize("log", ("metrics.jsonl", "timing.jsonl", "evaluations.jsonl"))
def test_no_bit_of_a_log_flips_unnoticed(log: str, tmp_path: Path, arm) -> None:
    recipe = toy_recipe(tmp_path)
    arm(None)
    loop.train(recipe)
    path = run_folder(recipe) / log
    whole = path.read_bytes()
    kept = len(whole) if log != "evaluations.jsonl" else whole.index(b'"after"') - 60
    for place in range(5, kept, max(kept // 12, 1)):
        for bit in (0, 6, 7):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            with pytest.raises(RunError, match=log) as caught:
                RunFolder(path.parent).rewind(3, saved(path.parent))
            assert "\n" not in str(caught.value)
    path.write_bytes(whole)
    RunFolder(path.parent).rewind(3, saved(path.parent))


def saved(root: Path) -> dict[str, str]:
    return storage.read_meta(root / "checkpoints" / "step_3")["logs"]
