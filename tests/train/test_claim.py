"""Taking a run's folder: nobody's files are lost, and two processes do not write into one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tests.reference import toys
from tests.reference.toys import toy_recipe
from typer.testing import CliRunner

from plaudit import storage
from plaudit.cli import app
from plaudit.errors import PlauditError, RewardError, RunError
from plaudit.recipe.load import dump, load
from plaudit.runs import claim as claim_module
from plaudit.runs.claim import find_run, open_run
from plaudit.train import loop, setup
from plaudit.train import run as running
from plaudit.train.doctor.doctor import examine


def folder_of(tmp_path: Path) -> Path:
    recipe = toy_recipe(tmp_path)
    return Path(recipe.run.folder) / (recipe.run.name or recipe.name)


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


# --- whose folder it is ----------------------------------------------------------------------------------------------


def test_a_folder_with_a_recipe_of_somebodys_own_is_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "project"
    project.mkdir()
    written = "# my words\n" + dump(toy_recipe(tmp_path))
    (project / "recipe.yaml").write_text(written)
    monkeypatch.chdir(tmp_path)
    recipe = load([str(project)])
    assert Path(recipe.run.folder) / (recipe.run.name or recipe.name) != project
    own = toy_recipe(tmp_path, {"run": {"folder": str(tmp_path), "name": "project"}})
    for overwrite in (False, True):
        with pytest.raises(RunError, match=r"choose another --run\.name"):
            loop.train(own, overwrite=overwrite)
    with pytest.raises(RunError, match="no complete checkpoint"):
        loop.train(own, resume=True)
    assert files(project) == {"recipe.yaml": written.encode()}


@pytest.mark.parametrize("made", (False, True))
def test_there_is_nothing_to_resume_where_no_run_began(tmp_path: Path, made: bool) -> None:
    if made:
        folder_of(tmp_path).mkdir(parents=True)
    with pytest.raises(RunError, match=r"--resume: .* has no complete checkpoint"):
        loop.train(toy_recipe(tmp_path), resume=True)


def test_checkpoints_without_their_recipe_are_not_resumed(tmp_path: Path) -> None:
    loop.train(toy_recipe(tmp_path))
    (folder_of(tmp_path) / "recipe.yaml").unlink()
    before = files(folder_of(tmp_path))
    with pytest.raises(RunError, match=r"recipe\.yaml is gone"):
        loop.train(toy_recipe(tmp_path, {"train": {"lr": 0.5}}), resume=True)
    assert files(folder_of(tmp_path)) == before


# --- one at a time ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ({"resume": True}, {"overwrite": True}, {}))
def test_a_folder_that_is_being_written_is_left_alone(tmp_path: Path, how: dict) -> None:
    first = open_run(toy_recipe(tmp_path), resume=False, overwrite=False)
    (folder_of(tmp_path) / "evaluations.jsonl").write_text("being written")
    with pytest.raises(RunError, match="being written by another process"):
        loop.train(toy_recipe(tmp_path), **how)
    assert (folder_of(tmp_path) / "evaluations.jsonl").read_text() == "being written"
    first.release()
    if how:
        loop.train(toy_recipe(tmp_path), **how)
        loop.train(toy_recipe(tmp_path), resume=True)  # what is done holds nothing


def test_the_lock_of_a_killed_process_holds_nobody_up(tmp_path: Path) -> None:
    program = f"""
        import os, signal
        from tests.reference.toys import toy_recipe
        from pathlib import Path
        from plaudit.runs.claim import open_run
        claim = open_run(toy_recipe(Path({str(tmp_path)!r})), resume=False, overwrite=False)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=Path(__file__).parents[2], timeout=60)
    assert done.returncode == -9 and (folder_of(tmp_path) / "recipe.yaml").is_file()
    loop.train(toy_recipe(tmp_path), resume=True)


@pytest.mark.parametrize("moment", ("is set aside", "has no folder yet", "is being replaced"))
@pytest.mark.parametrize("how", ({"overwrite": True}, {"resume": True}, {}), ids=str)
def test_a_second_process_at_any_moment_of_the_first_takes_nothing(
    moment: str, how: dict, tmp_path, monkeypatch
) -> None:
    """Locks are of open files, so two claims in one process stand for two processes."""
    loop.train(toy_recipe(tmp_path))
    root, before = folder_of(tmp_path), files(folder_of(tmp_path))
    how, refused = {"resume": False, "overwrite": False} | how, []
    entered: list[bool] = []

    def second() -> None:
        entered.append(True)
        for take in (open_run, find_run):
            try:
                take(toy_recipe(tmp_path), **how)
            except RunError as error:
                refused.append(str(error))

    real_rename, real_mkdir = Path.rename, Path.mkdir

    def rename(path: Path, target: Path) -> Path:
        moved = real_rename(path, target)
        if path == root and not entered and moment == "is set aside":
            second()
        return moved

    def mkdir(path: Path, *args, **rest) -> None:
        if path == root / "samples" and not entered and moment == "has no folder yet":
            second()
        real_mkdir(path, *args, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        patch.setattr(Path, "mkdir", mkdir)
        first = open_run(toy_recipe(tmp_path), resume=False, overwrite=True)
    if moment == "is being replaced":
        second()
    assert refused and "being written by another process" in refused[0]
    assert first.replaced is not None and files(first.replaced) == before and (root / "recipe.yaml").is_file()
    first.release()
    assert files(root) == before and [f.name for f in root.parent.iterdir()] == [root.name]


@pytest.mark.parametrize("lock", ("runs/toy/.lock", "runs/.toy.lock"))
def test_a_lock_that_is_removed_while_it_is_held_lets_nobody_in(lock: str, tmp_path: Path) -> None:
    first = open_run(toy_recipe(tmp_path), resume=False, overwrite=False)
    assert folder_of(tmp_path) == tmp_path / "runs" / "toy"
    (tmp_path / lock).unlink()
    for take in (find_run, open_run):
        with pytest.raises(RunError, match="being written by another process"):
            take(toy_recipe(tmp_path), resume=True, overwrite=False)
    first.release()
    open_run(toy_recipe(tmp_path), resume=True, overwrite=False).release()


def test_a_lock_that_its_holder_removes_as_it_is_opened_is_opened_anew(tmp_path: Path, monkeypatch) -> None:
    """Or two processes would hold a lock each: one that is no longer there, and one that is."""
    first = open_run(toy_recipe(tmp_path), resume=False, overwrite=False)
    real, ended = claim_module.fcntl.flock, []

    def flock(file: int, how: int) -> None:
        if not ended:
            ended.append(True)
            first.release()
        real(file, how)

    monkeypatch.setattr(claim_module.fcntl, "flock", flock)
    second = open_run(toy_recipe(tmp_path), resume=True, overwrite=False)
    assert (tmp_path / "runs" / ".toy.lock").is_file(), "what it holds is there for others to find"
    with pytest.raises(RunError, match="being written by another process"):
        open_run(toy_recipe(tmp_path), resume=True, overwrite=False)
    second.release()


def test_a_run_is_locked_by_whichever_link_it_is_reached(tmp_path: Path) -> None:
    loop.train(toy_recipe(tmp_path))
    linked = toy_recipe(tmp_path, {"run": {"name": "linked"}})
    (tmp_path / "runs" / "linked").symlink_to("toy")
    first = open_run(linked, resume=True, overwrite=False)
    (folder_of(tmp_path) / ".lock").unlink()
    with pytest.raises(RunError, match="being written by another process"):
        open_run(toy_recipe(tmp_path), resume=True, overwrite=False)
    first.release()


# --- what lies in the way --------------------------------------------------------------------------------------------


def deep(path: Path) -> None:
    path.write_text("[" * 100_000)


def ring(path: Path) -> None:
    path.symlink_to(path.name)


def away(path: Path) -> None:
    path.symlink_to(next(folder.parent for folder in path.parents if folder.name == "runs") / "elsewhere")


def a_file(path: Path) -> None:
    path.write_text("mine")


IN_THE_WAY = (
    ("toy/checkpoints/step_3/COMPLETE.json", (deep, ring, Path.mkdir, os.mkfifo), None, None),
    ("toy/checkpoints/step_3/state.json", (ring, Path.mkdir, os.mkfifo), None, None),
    ("toy/checkpoints/step_9", (ring, away, a_file, Path.mkdir, os.mkfifo), None, None),
    ("toy/checkpoints/.step_9.partial", (ring, away, a_file, Path.mkdir, os.mkfifo), None, None),
    ("toy/timing.jsonl", (Path.mkdir, os.mkfifo), "timing.jsonl is no file", None),
    ("toy/metrics.jsonl", (deep, Path.mkdir, os.mkfifo), "metrics.jsonl", None),
    (".toy.replaced", (ring, away), "replaced is a link", "replaced is a link"),
    (".toy.replaced", (a_file, os.mkfifo), "replaced is no folder", "replaced is no folder"),
    (".toy.lock", (ring, away), "lock is a link", "lock is a link"),
    (".toy.lock", (Path.mkdir,), "lock: Is a directory", "lock: Is a directory"),
    ("toy/.lock", (ring, away), "lock is a link", "lock is a link"),
)


KEEPING = {"run": {"save_every": 1, "keep_checkpoints": 3}}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    loop.train(toy_recipe(folder, KEEPING))
    (folder / "runs").rename(folder / "kept")
    return folder


@pytest.fixture
def trained(made: Path) -> Path:
    """A folder with a run of three steps and as many checkpoints, new for every test."""
    for name in ("runs", "elsewhere", "real"):
        shutil.rmtree(made / name, ignore_errors=True)
    shutil.copytree(made / "kept", made / "runs")
    return made


@pytest.mark.parametrize("how", ("resume", "overwrite"))
@pytest.mark.parametrize(
    ("name", "make", "resumed", "overwritten"),
    [(name, make, *said) for name, makes, *said in IN_THE_WAY for make in makes],
)
def test_whatever_lies_in_a_runs_folder_it_goes_on_or_one_line_says_why_not(
    name, make, resumed, overwritten, how, trained: Path
) -> None:
    elsewhere = trained / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("mine")
    path = trained / "runs" / name
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    make(path)
    recipe = toy_recipe(trained, KEEPING, {"train": {"steps": 4}})
    said = resumed if how == "resume" else overwritten
    if said is None:
        loop.train(recipe, resume=how == "resume", overwrite=how == "overwrite")
        assert storage.latest_snapshot(folder_of(trained) / "checkpoints").name == "step_4"
    else:
        with pytest.raises(RunError, match=said) as refused:
            loop.train(recipe, resume=how == "resume", overwrite=how == "overwrite")
        assert "\n" not in str(refused.value)
        assert (folder_of(trained) / "checkpoints" / "step_3").is_dir()
    assert (elsewhere / "precious").read_text() == "mine" and os.listdir(elsewhere) == ["precious"]


@pytest.mark.parametrize("what", ("never started", "empty", "finished", "nothing", "ring"))
def test_a_run_replaces_no_link(what: str, trained: Path) -> None:
    real, link = trained / "real", folder_of(trained)
    if what == "finished":
        link.rename(real)
    else:
        shutil.rmtree(link)
    if what == "never started":
        open_run(toy_recipe(trained), resume=False, overwrite=False).release()
        link.rename(real)
    elif what == "empty":
        real.mkdir()
    link.symlink_to(link if what == "ring" else real)
    before = files(real)
    for how in ({"overwrite": True}, {"overwrite": False}):
        if what == "finished" and not how["overwrite"]:
            continue
        with pytest.raises(RunError, match="is a link"):
            loop.train(toy_recipe(trained), **how)
    assert link.is_symlink() and files(real) == before


# --- what is replaced ------------------------------------------------------------------------------------------------


def refuse(prompts: list[str], outputs: object) -> list[None]:
    raise ValueError("no score for anything")


def test_a_run_comes_back_when_the_one_that_replaces_it_cannot_begin(tmp_path: Path, monkeypatch) -> None:
    loop.train(toy_recipe(tmp_path))
    before = files(folder_of(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(toys, "redness", refuse)
        with pytest.raises(RunError, match="no score for anything"):
            loop.train(toy_recipe(tmp_path), overwrite=True)
    assert files(folder_of(tmp_path)) == before
    with monkeypatch.context() as patch:
        patch.setattr(running, "save_checkpoint", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            loop.train(toy_recipe(tmp_path), overwrite=True)
    assert files(folder_of(tmp_path)) == before
    assert [f.name for f in folder_of(tmp_path).parent.iterdir()] == [folder_of(tmp_path).name]


def test_a_run_comes_back_when_there_is_no_room_for_the_recipe_of_the_new_one(tmp_path: Path, monkeypatch) -> None:
    loop.train(toy_recipe(tmp_path))
    before = files(folder_of(tmp_path))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("plaudit.runs.claim.storage.write_text", full)
        with pytest.raises(RunError, match="No space left"):
            open_run(toy_recipe(tmp_path), resume=False, overwrite=True)
    assert files(folder_of(tmp_path)) == before
    open_run(toy_recipe(tmp_path), resume=True, overwrite=False).release()


def test_the_replaced_run_is_gone_once_the_new_one_has_a_checkpoint(tmp_path: Path, monkeypatch) -> None:
    loop.train(toy_recipe(tmp_path))
    seen = []
    real = running._steps

    def train(*args, **rest):
        seen.extend(f.name for f in folder_of(tmp_path).parent.iterdir())
        return real(*args, **rest)

    monkeypatch.setattr(running, "_steps", train)
    loop.train(toy_recipe(tmp_path, {"train": {"lr": 0.5}}), overwrite=True)
    assert set(seen) == {folder_of(tmp_path).name, f".{folder_of(tmp_path).name}.lock"}
    assert load([folder_of(tmp_path) / "recipe.yaml"]).train.lr == 0.5


@pytest.mark.parametrize("early", (False, True))
def test_a_replacing_run_that_was_killed_can_be_replaced_and_resumed(tmp_path: Path, early: bool) -> None:
    loop.train(toy_recipe(tmp_path))
    before = files(folder_of(tmp_path))
    killed = open_run(toy_recipe(tmp_path), resume=False, overwrite=True)
    beside = killed.replaced
    assert beside is not None and files(beside) == before
    killed.replaced = None  # killed: it gives nothing back
    killed.release()
    if early:  # before it had made its folder
        shutil.rmtree(folder_of(tmp_path))
    again = open_run(toy_recipe(tmp_path), resume=not early, overwrite=False)
    again.release()
    assert files(folder_of(tmp_path)) == before and not beside.exists()


@pytest.mark.parametrize("kind", ("link", "file"))
def test_a_lock_is_not_opened_through_a_link_and_loses_nothing(kind: str, tmp_path: Path) -> None:
    open_run(toy_recipe(tmp_path), resume=False, overwrite=False).release()
    lock, other = folder_of(tmp_path) / ".lock", tmp_path / "precious"
    other.write_text("mine")
    lock.unlink()
    lock.symlink_to(other) if kind == "link" else lock.hardlink_to(other)
    if kind == "link":
        with pytest.raises(RunError, match="is a link"):
            loop.train(toy_recipe(tmp_path), overwrite=True)
    else:
        open_run(toy_recipe(tmp_path), resume=False, overwrite=True).release()
    assert other.read_text() == "mine"


def test_a_run_that_learned_nothing_makes_room_for_the_corrected_command(tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(loop, "feed", lambda *_, **__: (_ for _ in ()).throw(RewardError("rewards.red failed")))
        with pytest.raises(RewardError):
            loop.train(toy_recipe(tmp_path))
    assert (folder_of(tmp_path) / "checkpoints" / "step_0").is_dir()
    loop.train(toy_recipe(tmp_path, {"train": {"lr": 1e-3}}))
    with pytest.raises(RunError, match="exists; go on"):
        loop.train(toy_recipe(tmp_path))


@pytest.mark.parametrize(
    "change",
    (
        {"rewards": {"mine": {"type": "no_such_module:reward"}}},
        {"evaluate": {"reward": "no_such_module:reward"}},
        {"prompts": {"type": "file", "train": "/no/such/file.txt", "heldout": "/no/such/file.txt"}},
        {"combine": "2 * nobody"},
        {"run": {"folder": "/dev/null/runs"}},
    ),
)
@pytest.mark.parametrize("verb", (loop.train, examine))
def test_what_is_cheap_is_checked_before_a_model_is_made(verb, change: dict, tmp_path: Path, monkeypatch) -> None:
    if verb is examine and "run" in change:
        return  # it writes nothing
    made = []
    monkeypatch.setattr(setup, "build_model", lambda config: made.append(config))
    with pytest.raises(PlauditError):
        verb(toy_recipe(tmp_path, change))
    assert not made


def test_of_several_processes_one_says_that_a_command_is_for_one(monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        result = CliRunner().invoke(app, ["doctor", "slots-nft"])
        said.append((result.exit_code, result.output.count("\n")))
    assert said == [(2, 1), (0, 0)]
