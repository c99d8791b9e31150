"""Taking a run's folder: nobody's files are lost, and two processes do not write into one."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tests.reference import toys
from tests.reference.toys import toy_recipe
from typer.testing import CliRunner

from plaudit.audit.doctor import examine
from plaudit.cli import app
from plaudit.errors import PlauditError, RewardError, RunError
from plaudit.recipe.load import dump, load
from plaudit.train import loop, setup
from plaudit.train.claim import open_run


@pytest.fixture(autouse=True)
def _without_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "write_report", lambda root: root / "report.html")


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
            loop.align(own, overwrite=overwrite)
    with pytest.raises(RunError, match="no complete checkpoint"):
        loop.align(own, resume=True)
    assert files(project) == {"recipe.yaml": written.encode()}


@pytest.mark.parametrize("made", (False, True))
def test_there_is_nothing_to_resume_where_no_run_began(tmp_path: Path, made: bool) -> None:
    if made:
        folder_of(tmp_path).mkdir(parents=True)
    with pytest.raises(RunError, match=r"--resume: .* has no complete checkpoint"):
        loop.align(toy_recipe(tmp_path), resume=True)


def test_checkpoints_without_their_recipe_are_not_resumed(tmp_path: Path) -> None:
    loop.align(toy_recipe(tmp_path))
    (folder_of(tmp_path) / "recipe.yaml").unlink()
    before = files(folder_of(tmp_path))
    with pytest.raises(RunError, match=r"recipe\.yaml is gone"):
        loop.align(toy_recipe(tmp_path, {"train": {"lr": 0.5}}), resume=True)
    assert files(folder_of(tmp_path)) == before


# --- one at a time ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ({"resume": True}, {"overwrite": True}, {}))
def test_a_folder_that_is_being_written_is_left_alone(tmp_path: Path, how: dict) -> None:
    first = open_run(toy_recipe(tmp_path), resume=False, overwrite=False)
    (folder_of(tmp_path) / "evaluations.jsonl").write_text("being written")
    with pytest.raises(RunError, match="being written by another process"):
        loop.align(toy_recipe(tmp_path), **how)
    assert (folder_of(tmp_path) / "evaluations.jsonl").read_text() == "being written"
    first.release()
    if how:
        loop.align(toy_recipe(tmp_path), **how)
        loop.align(toy_recipe(tmp_path), resume=True)  # what is done holds nothing


def test_the_lock_of_a_killed_process_holds_nobody_up(tmp_path: Path) -> None:
    program = f"""
        import os, signal
        from tests.reference.toys import toy_recipe
        from pathlib import Path
        from plaudit.train.claim import open_run
        claim = open_run(toy_recipe(Path({str(tmp_path)!r})), resume=False, overwrite=False)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=Path(__file__).parents[2], timeout=60)
    assert done.returncode == -9 and (folder_of(tmp_path) / "recipe.yaml").is_file()
    loop.align(toy_recipe(tmp_path), resume=True)


# --- what is replaced ------------------------------------------------------------------------------------------------


def refuse(prompts: list[str], outputs: object) -> list[None]:
    raise ValueError("no score for anything")


def test_a_run_comes_back_when_the_one_that_replaces_it_cannot_begin(tmp_path: Path, monkeypatch) -> None:
    loop.align(toy_recipe(tmp_path))
    before = files(folder_of(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(toys, "redness", refuse)
        with pytest.raises(RewardError):
            loop.align(toy_recipe(tmp_path), overwrite=True)
    assert files(folder_of(tmp_path)) == before
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            loop.align(toy_recipe(tmp_path), overwrite=True)
    assert files(folder_of(tmp_path)) == before
    assert [f.name for f in folder_of(tmp_path).parent.iterdir()] == [folder_of(tmp_path).name]


def test_a_run_comes_back_when_there_is_no_room_for_the_recipe_of_the_new_one(tmp_path: Path, monkeypatch) -> None:
    loop.align(toy_recipe(tmp_path))
    before = files(folder_of(tmp_path))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("plaudit.train.claim.storage.write_text", full)
        with pytest.raises(OSError, match="No space left"):
            open_run(toy_recipe(tmp_path), resume=False, overwrite=True)
    assert files(folder_of(tmp_path)) == before
    open_run(toy_recipe(tmp_path), resume=True, overwrite=False).release()


def test_the_replaced_run_is_gone_once_the_new_one_has_a_checkpoint(tmp_path: Path, monkeypatch) -> None:
    loop.align(toy_recipe(tmp_path))
    seen = []
    real = loop._train

    def train(*args, **rest):
        seen.extend(f.name for f in folder_of(tmp_path).parent.iterdir())
        return real(*args, **rest)

    monkeypatch.setattr(loop, "_train", train)
    loop.align(toy_recipe(tmp_path, {"train": {"lr": 0.5}}), overwrite=True)
    assert seen == [folder_of(tmp_path).name] and load([folder_of(tmp_path) / "recipe.yaml"]).train.lr == 0.5


@pytest.mark.parametrize("early", (False, True))
def test_a_replacing_run_that_was_killed_can_be_replaced_and_resumed(tmp_path: Path, early: bool) -> None:
    loop.align(toy_recipe(tmp_path))
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
            loop.align(toy_recipe(tmp_path), overwrite=True)
    else:
        open_run(toy_recipe(tmp_path), resume=False, overwrite=True).release()
    assert other.read_text() == "mine"


def test_a_run_that_learned_nothing_makes_room_for_the_corrected_command(tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(loop, "collect", lambda *_, **__: (_ for _ in ()).throw(RewardError("rewards.red failed")))
        with pytest.raises(RewardError):
            loop.align(toy_recipe(tmp_path))
    assert (folder_of(tmp_path) / "checkpoints" / "step_0").is_dir()
    loop.align(toy_recipe(tmp_path, {"train": {"lr": 1e-3}}))
    with pytest.raises(RunError, match="exists; go on"):
        loop.align(toy_recipe(tmp_path))


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
@pytest.mark.parametrize("verb", (loop.align, examine))
def test_what_is_cheap_is_checked_before_a_model_is_made(verb, change: dict, tmp_path: Path, monkeypatch) -> None:
    if verb is examine and "run" in change:
        return  # it writes nothing
    made = []
    monkeypatch.setattr(setup, "build_model", lambda config: made.append(config))
    with pytest.raises(PlauditError):
        verb(toy_recipe(tmp_path, change))
    assert not made


def test_of_several_processes_one_says_that_there_must_be_one(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(RunError, match="WORLD_SIZE is 2"):
            loop.align(toy_recipe(tmp_path))
        result = CliRunner().invoke(app, ["align", "slots-nft"])
        said.append((result.exit_code, result.output.count("\n")))
    assert said == [(2, 1), (0, 0)]
    assert not folder_of(tmp_path).exists()
