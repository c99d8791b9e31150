"""Taking a run's folder: whether it may be taken, by one process at a time, and with what it replaces kept until the new run
has its first checkpoint."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from plaudit import storage
from plaudit.errors import RunError
from plaudit.ranks import Ranks
from plaudit.recipe.explain import shown
from plaudit.recipe.load import dump, is_run
from plaudit.recipe.schema import Recipe
from plaudit.runs.folder import FORMAT, OthersFolder, RunFolder
from plaudit.version import __version__

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows has none; there two processes can still write into one folder
    fcntl = None

LOCK = ".lock"
EARLY = (
    "recipe.yaml",
    "checks.json",
    "calibration.json",
    "noise.json",
    "evaluations.jsonl",
    LOCK,
)  # written before the first checkpoint
ATTEMPTS = 10  # at a lock that others remove while it is opened
SHOWN = 4  # differences between two recipes that a message names
ABSENT = object()


class Claim:
    """A folder that this process writes, as long as it holds `locks`. `going_on` when a run in it is taken up from a checkpoint;
    `replaced` is where the run lies that this one takes the place of, until `settle`."""

    def __init__(self, folder: RunFolder, locks: ExitStack, *, going_on: bool, replaced: Path | None = None) -> None:
        self.folder, self.going_on, self.replaced = folder, going_on, replaced
        self._locks = locks

    def settle(self) -> None:
        """The new run stands: what it replaced is gone."""
        if self.replaced is not None:
            with storage.explain_write_errors(self.replaced):
                shutil.rmtree(self.replaced)
            self.replaced = None

    def release(self) -> None:
        """Let others write; a run that did not come to stand gives its place back to the one that it was to replace."""
        if self.replaced is not None:
            _give_back(self.replaced, self.folder.root)
            self.replaced = None
        self._locks.close()


def root_of(recipe: Recipe) -> Path:
    return Path(recipe.run.folder) / (recipe.run.name or recipe.name)


def find_run(recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    """Why a run cannot have its folder, if it cannot, said before a model is loaded; nothing of what is there is lost."""
    root = root_of(recipe)
    with storage.explain_write_errors(root), ExitStack() as locks:
        _check_place(root)
        if _is_taken_up(root, resume or overwrite):
            locks.enter_context(_held(_gate(root), root, remove=True))
            locks.enter_context(_held(root / LOCK, root))
        _check_run(recipe, root, resume=resume, overwrite=overwrite)


def open_run(recipe: Recipe, *, resume: bool, overwrite: bool) -> Claim:
    """Take the run's folder: make it, take up the run in it, or set the run in it aside. The lock beside the folder is held from
    before anything is looked at until the run is over: what lies there or is set aside is nobody else's."""
    root = root_of(recipe)
    folder = RunFolder(root)
    with storage.explain_write_errors(root), ExitStack() as locks:
        _check_place(root)
        root.parent.mkdir(parents=True, exist_ok=True)
        locks.enter_context(_held(_gate(root), root, remove=True))
        if _is_taken_up(root, resume or overwrite):
            locks.enter_context(_held(root / LOCK, root))
        _check_run(recipe, root, resume=resume, overwrite=overwrite)
        if resume and _has_checkpoint(root):
            storage.write_text(root / "recipe.yaml", dump(recipe))
            if _beside(root).is_dir():
                shutil.rmtree(_beside(root))  # of a run that was killed between its first checkpoint and this
            return Claim(folder, locks.pop_all(), going_on=True)
        replaced = _set_aside(root)
        try:
            folder.samples.mkdir(parents=True)
            locks.enter_context(_held(root / LOCK, root))
            storage.write_text(root / "recipe.yaml", dump(recipe))
        except BaseException:  # a full disk, Ctrl-C: what was to be replaced is put back, and the error goes on
            if replaced is not None:
                _give_back(replaced, root)
            raise
        return Claim(folder, locks.pop_all(), going_on=False, replaced=replaced)


def claim_for(ranks: Ranks, recipe: Recipe, *, resume: bool, overwrite: bool) -> Claim:
    """The folder for the rank that writes it, and one that is only looked at for the others."""
    own: list[Claim] = []

    def opened() -> bool:
        own.append(open_run(recipe, resume=resume, overwrite=overwrite))
        return own[0].going_on

    going_on = ranks.from_main(opened)
    return own[0] if own else Claim(OthersFolder(root_of(recipe)), ExitStack(), going_on=going_on)


def _check_place(root: Path) -> None:
    """Whether a run's folder can lie here, and what it replaces beside it."""
    if root.is_file():
        raise RunError(f"{root} is a file; move it away or choose another --run.name")
    if root.is_symlink() and not root.is_dir():
        raise RunError(f"{root} is a link to no folder; remove it or choose another --run.name")
    there = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        what = "read-only" if there.is_dir() else "not a folder"
        raise RunError(f"run.folder: cannot write {root}: {there} is {what}; choose another --run.folder")
    beside = _beside(root)
    if beside.is_symlink() or (beside.exists() and not beside.is_dir()):
        what = "a link" if beside.is_symlink() else "no folder"
        raise RunError(
            f"{beside} is {what}, where a replaced run is set aside; move it away or choose another --run.name"
        )


def _is_taken_up(root: Path, asked: bool) -> bool:
    """Whether there is a run that may go on or be replaced, if nobody is writing it."""
    return is_run(root) and (asked or _never_started(root))


def _check_run(recipe: Recipe, root: Path, *, resume: bool, overwrite: bool) -> None:
    """Whether what lies here may be taken up or replaced. A name is never reused by accident."""
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
    if root.is_symlink() and not (resume and _has_checkpoint(root)):
        raise RunError(
            f"{root} is a link, and a run replaces only a folder of its own; give the folder that it points to, or remove it"
        )


def _give_back(replaced: Path, root: Path) -> None:
    if root.is_dir():
        shutil.rmtree(root)
    replaced.rename(root)


@contextmanager
def _held(lock: Path, root: Path, *, remove: bool = False) -> Iterator[None]:
    """Hold the lock of a run, which ends with the process that holds it, however that ends."""
    if fcntl is None:
        yield
        return
    file = _locked(lock, root)
    try:
        yield
    finally:
        if remove and _is_still(file, lock):
            with suppress(OSError):  # one that is left behind is in nobody's way
                lock.unlink()
        os.close(file)


def _locked(lock: Path, root: Path) -> int:
    """A lock file, opened and locked. One that its holder removed as it was opened here locks nothing, and is opened anew."""
    for _ in range(ATTEMPTS):
        if lock.is_symlink():  # opening it would write wherever it points
            raise RunError(f"{lock} is a link and must be a file of the run's own; remove it")
        with storage.explain_write_errors(lock):
            file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(file, lock):
                return file
        except BlockingIOError:
            os.close(file)
            break
        except BaseException:
            os.close(file)
            raise
        os.close(file)
    raise RunError(f"{root} is being written by another process; wait for it, or choose another --run.name")


def _is_still(file: int, path: Path) -> bool:
    """Whether an open file is the one that lies at a path."""
    try:
        return os.path.samestat(os.fstat(file), path.lstat())
    except FileNotFoundError:
        return False


def _gate(root: Path) -> Path:
    """The lock beside the folder, whichever link it was reached by; the one inside moves and goes with it."""
    real = root.resolve()
    return real.with_name(f".{real.name}.lock")


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
            f"--resume: {latest} has format {found!r}; version {__version__} of Plaudit reads 1 to {FORMAT}. Go on with "
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
