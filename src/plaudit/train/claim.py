"""Taking a run's folder: whether it may be taken, by one process at a time, and with what it replaces kept until the new run
has its first checkpoint."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import plaudit
from plaudit import storage
from plaudit.errors import RunError
from plaudit.recipe.explain import shown
from plaudit.recipe.load import dump, is_run
from plaudit.recipe.schema import Recipe
from plaudit.train.folder import FORMAT, RunFolder

try:
    import fcntl
except ImportError:  # Windows has none; there two processes can still write into one folder
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
EARLY = (
    "recipe.yaml",
    "checks.json",
    "calibration.json",
    "evaluations.jsonl",
    LOCK,
)  # written before the first checkpoint
SHOWN = 4  # differences between two recipes that a message names
ABSENT = object()


class Claim:
    """A folder that this process writes. `going_on` when a run in it is taken up from a checkpoint; `replaced` is where the
    run lies that this one takes the place of, until `settle`."""

    def __init__(
        self, folder: RunFolder, lock: IO[str] | None, *, going_on: bool, replaced: Path | None = None
    ) -> None:
        self.folder, self.going_on, self.replaced = folder, going_on, replaced
        self._lock = lock

    def settle(self) -> None:
        """The new run stands: what it replaced is gone."""
        if self.replaced is not None:
            shutil.rmtree(self.replaced)
            self.replaced = None

    def release(self) -> None:
        """Let others write; a run that did not come to stand gives its place back to the one that it was to replace."""
        if self.replaced is not None:
            _give_back(self.replaced, self.folder.root)
            self.replaced = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def root_of(recipe: Recipe) -> Path:
    return Path(recipe.run.folder) / (recipe.run.name or recipe.name)


def find_run(recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    """Why a run cannot have its folder, if it cannot; nothing of what is there is lost. A name is never reused by accident."""
    root = root_of(recipe)
    if root.is_file():
        raise RunError(f"{root} is a file; move it away or choose another --run.name")
    there = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        what = "read-only" if there.is_dir() else "not a folder"
        raise RunError(f"run.folder: cannot write {root}: {there} is {what}; choose another --run.folder")
    begun = RunFolder(root).samples.is_dir() and is_run(root)
    if begun and (resume or overwrite or _never_started(root)) and (lock := _locked(root)) is not None:
        lock.close()  # said before a model is loaded; and nobody is in the middle of writing a checkpoint
    if resume:
        if _has_checkpoint(root):
            if not (root / "recipe.yaml").is_file():
                raise RunError(
                    f"--resume: {root / 'recipe.yaml'} is gone, which says what its checkpoints are of; put it back, or choose "
                    "another --run.name"
                )
        elif not _before_the_first_checkpoint(root):
            raise RunError(
                f"--resume: {root} has no complete checkpoint; start it without --resume (and with --overwrite if it exists)"
            )
        if (root / "recipe.yaml").is_file():
            _same_recipe(recipe, root)
        if _has_checkpoint(root):
            _check_format(root)
    elif root.exists() and any(root.iterdir()) and not _never_started(root):
        if not overwrite:
            raise RunError(
                f"{root} exists; go on with --resume, replace it with --overwrite, or choose another --run.name"
            )
        if not is_run(root):
            raise RunError(
                f"{root} holds no run, so --overwrite leaves it alone; choose another --run.name or --run.folder"
            )


def open_run(recipe: Recipe, *, resume: bool, overwrite: bool) -> Claim:
    """Take the run's folder: make it, take up the run in it, or set the run in it aside."""
    find_run(recipe, resume=resume, overwrite=overwrite)
    root = root_of(recipe)
    folder = RunFolder(root)
    before = _locked(root) if root.is_dir() else None
    if resume and _has_checkpoint(root):
        storage.write_text(root / "recipe.yaml", dump(recipe))
        claim = Claim(folder, before, going_on=True, replaced=_beside(root) if _beside(root).is_dir() else None)
        claim.settle()  # of a run that was killed between its first checkpoint and this
        return claim
    replaced = _set_aside(root)
    try:
        with storage.explain_write_errors(root):
            folder.samples.mkdir(parents=True)
        lock = _locked(root)
        storage.write_text(root / "recipe.yaml", dump(recipe))
    except BaseException:  # a full disk, Ctrl-C: what was to be replaced is put back, and the error goes on
        if replaced is not None:
            _give_back(replaced, root)
        raise
    finally:
        if before is not None:
            before.close()
    return Claim(folder, lock, going_on=False, replaced=replaced)


def _give_back(replaced: Path, root: Path) -> None:
    if root.is_dir():
        shutil.rmtree(root)
    replaced.rename(root)


def _locked(root: Path) -> IO[str] | None:
    """The lock of a folder, which ends with the process that holds it, however that ends."""
    if fcntl is None:
        return None
    if (root / LOCK).is_symlink():  # opening it would write wherever it points
        raise RunError(f"{root / LOCK} is a link and must be a file of the run's own; remove it")
    with storage.explain_write_errors(root / LOCK):
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.fdopen(os.open(root / LOCK, flags, 0o644), "r+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise RunError(
            f"{root} is being written by another process; wait for it, or choose another --run.name"
        ) from None
    return file


def _set_aside(root: Path) -> Path | None:
    """Make room: a run with a checkpoint is kept beside until the new one has its first, what never came to one is removed."""
    beside = _beside(root)
    if not root.is_dir() or not _has_checkpoint(root):
        if root.is_dir():
            shutil.rmtree(root)
        return beside if beside.is_dir() else None  # of a replacing run that was killed before its first checkpoint
    if beside.is_dir():
        shutil.rmtree(beside)
    root.rename(beside)
    return beside


def _beside(root: Path) -> Path:
    return root.with_name(f".{root.name}.replaced")


def _has_checkpoint(root: Path) -> bool:
    checkpoints = RunFolder(root).checkpoints
    storage.finish_renames(checkpoints)
    return storage.latest_snapshot(checkpoints) is not None


def _never_started(root: Path) -> bool:
    """Whether a folder holds no more than a run leaves that learned nothing: it ended before its first step did."""
    return is_run(root) and _before_the_first_checkpoint(root, whole=True)


def _before_the_first_checkpoint(root: Path, whole: bool = False) -> bool:
    """Whether a folder holds only what a run writes up to its first checkpoint, half-written or else `whole`; other files are
    somebody's."""
    if not RunFolder(root).samples.is_dir():
        return False
    files = [path.relative_to(root) for path in root.rglob("*") if not path.is_dir()]
    first = Path("checkpoints", "step_0")
    return all(_is_early(file) or (whole and file.parent == first) for file in files)


def _is_early(file: Path) -> bool:
    name, folder = file.name.removesuffix(".partial"), file.parts[0]
    if len(file.parts) == 1:
        return name in EARLY
    if folder == "checkpoints":
        return file.parts[1] == ".step_0.partial"
    return folder in ("samples", "evaluations") and name.removeprefix(".").startswith(("before", "prompts.json"))


def _check_format(root: Path) -> None:
    """Refuse, before a model is loaded, what a later version wrote; the formats before this one can be read."""
    latest = storage.latest_snapshot(RunFolder(root).checkpoints)
    assert latest is not None
    found = storage.read_meta(latest).get("format", 1)
    if found not in range(1, FORMAT + 1):
        raise RunError(
            f"--resume: {latest} has format {found!r}; version {plaudit.__version__} of Plaudit reads 1 to {FORMAT}. Go on with "
            "the version that wrote it, or choose another --run.name"
        )


def _same_recipe(recipe: Recipe, root: Path) -> None:
    """A run may be prolonged, but nothing that changes its numbers may differ."""
    from plaudit.recipe.load import load

    before = load([root / "recipe.yaml"])
    free = {
        "train": {"steps", "minutes", "network_calls"},
        "run": {"folder", "name", "save_every", "keep_checkpoints", "threads"},
    }
    old, new = (r.model_dump(exclude=free) for r in (before, recipe))
    changed = [f"{key} is {now} and was {was}" for key, was, now in _differences(old, new)]
    if changed:
        listed = "; ".join(changed[:SHOWN]) + (f"; and {len(changed) - SHOWN} more" if len(changed) > SHOWN else "")
        raise RunError(
            f"--resume: {listed} in {root / 'recipe.yaml'}. Only train.steps, train.minutes, train.network_calls and run.* "
            "but run.seed may change; start a new --run.name instead"
        )


def _differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, str, str]]:
    """Dotted keys whose values differ, with what they were and are."""
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        if old != new:
            was, now = ("absent" if value is ABSENT else shown(value) for value in (old, new))
            yield key, was, now
        return
    for name in dict.fromkeys([*old, *new]):
        below = f"{key}.{name}" if key else name
        yield from _differences(old.get(name, ABSENT), new.get(name, ABSENT), below)
