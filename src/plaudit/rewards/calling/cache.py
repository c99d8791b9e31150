"""Scores kept on disk, found again by content: what scored, under which revision, which prompt, which output.

One SQLite file, safe under several processes. Only what would come out the same again is kept: scores and verdicts such as
"not applicable", never a timeout or an error. A file that is full, locked or damaged costs time, never a score.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import math
import os
import sqlite3
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from plaudit.data.content import media_hash
from plaudit.data.prompt import Prompt
from plaudit.errors import RecipeError, RewardError
from plaudit.recipe.rewards import key_of
from plaudit.rewards.base import RewardFunction, Score, Status

KEPT = (Status.OK, Status.NOT_APPLICABLE, Status.PARSE_FAILED)
MAX_MB = 512
QUERY = 500  # keys in one statement
LOCKED_S = 10.0  # how long others are waited for
UNUSABLE = (sqlite3.Error, OSError)
DIGEST = 16  # characters before a score
FRESH_S = 3600.0  # how stale the time of last use may be: hits seldom write


def default_folder() -> Path:
    """`PLAUDIT_CACHE`, or the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("PLAUDIT_CACHE") or Path(base) / "plaudit")


def identity(name: str, type_: str, arguments: Mapping[str, Any], function: RewardFunction) -> str:
    """What a reward is for the cache: its type, arguments, and the revision on its card or else its source code. Who scores
    with something else says with what, in `cache_identity()`."""
    card = getattr(function, "card", None)
    if hasattr(function, "cache_identity"):
        revision = function.cache_identity()
    elif card is not None:
        revision = card.revision
    else:
        revision = source_of(function, f"{key_of(name)}.cache: {type_!r}")
    return json.dumps([type_, arguments, revision], sort_keys=True, default=repr)


def source_of(function: RewardFunction, who: str) -> str:
    """A digest of the code of a function or class; what it calls in turn is not seen."""
    while isinstance(function, functools.partial):
        function = function.func
    try:
        source = inspect.getsource(inspect.unwrap(function) if inspect.isroutine(function) else type(function))
    except (OSError, TypeError) as error:
        raise RecipeError(
            f"{who} has neither a card with a revision nor source code to be told apart by; give it a card, or leave "
            "`cache` out"
        ) from error
    return hashlib.sha256(source.encode()).hexdigest()


class ScoreCache:
    """Scores by key, in `folder/scores.sqlite`, of at most `max_mb` on disk."""

    file = "scores.sqlite"
    kept: tuple[Status, ...] = KEPT

    def __init__(self, folder: Path | None = None, max_mb: float = MAX_MB) -> None:
        self.path = (folder or default_folder()) / self.file
        self.max_bytes = int(max_mb * 2**20)
        self.local, self.lock = threading.local(), threading.Lock()
        self.failures = 0  # how often it could not be used

    def _database(self) -> sqlite3.Connection:
        """A connection of this thread and process."""
        if getattr(self.local, "process", None) != os.getpid():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            database = sqlite3.connect(self.path, timeout=LOCKED_S, isolation_level=None)
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=NORMAL")
            database.execute(
                "CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, score TEXT NOT NULL, used REAL NOT NULL) WITHOUT ROWID"
            )
            self.local.database, self.local.process = database, os.getpid()
        return self.local.database

    @contextmanager
    def _spared(self) -> Iterator[None]:
        """Scores are there without the file, so what is wrong with it is counted and said once, and ends nothing."""
        try:
            yield
        except UNUSABLE as error:
            with self.lock:
                self.failures += 1
                first = self.failures == 1
            if first:
                warnings.warn(
                    f"the cache of scores {self.path} cannot be used: {error}; scores are made without it; free the disk, end "
                    "who holds the file, or move it away",
                    stacklevel=3,
                )

    def keys(
        self, identity: str, prompts: Sequence[Prompt], outputs: Any, *, ids: bool = False, step: int | None = None
    ) -> list[bytes]:
        """One key per output. Prompt ids and the step count where the reward asks for them."""
        start = hashlib.sha256(f"{identity} {step}".encode())
        known: dict[int, bytes] = {}
        keys = []
        try:
            for prompt, output in zip(prompts, outputs, strict=True):
                if id(prompt) not in known:
                    known[id(prompt)] = media_hash([prompt.id if ids else "", prompt.text, prompt.facts, prompt.inputs])
                digest = start.copy()
                digest.update(known[id(prompt)])
                digest.update(media_hash(output))
                keys.append(digest.digest())
        except TypeError as error:
            raise RewardError(
                f"{error}, by which scores could be kept; leave `cache` out, or use tensors, arrays, pictures, texts and "
                "numbers"
            ) from error
        return keys

    def find(self, keys: Sequence[bytes]) -> dict[bytes, Score]:
        found: dict[bytes, Score] = {}
        stale, now = [], time.time()
        with self._spared():
            for at in range(0, len(keys), QUERY):
                some = list(keys[at : at + QUERY])
                marks = ",".join("?" * len(some))
                rows = self._database().execute(f"SELECT key, score, used FROM scores WHERE key IN ({marks})", some)
                for key, text, used in rows:
                    with suppress(
                        AttributeError, KeyError, TypeError, ValueError
                    ):  # a damaged row is no score, and written anew
                        found[key] = self.from_text(_from_row(key, text))
                        if not isinstance(used, float) or not 0 <= now - used <= FRESH_S:
                            stale.append((now, key))
        if stale:
            with self._spared():
                self._write("UPDATE scores SET used = ? WHERE key = ?", stale)
        return found

    def keep(self, scores: Mapping[bytes, Score]) -> None:
        now = time.time()
        rows = [
            (key, _row(key, self.to_text(score)), now) for key, score in scores.items() if score.status in self.kept
        ]
        if rows:
            with self._spared():
                self._write("INSERT OR REPLACE INTO scores VALUES (?, ?, ?)", rows)
                self._bound()

    def to_text(self, score: Score) -> str:
        return _to_text(score)

    def from_text(self, text: str) -> Score:
        return _from_text(text)

    def _write(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        database = self._database()
        database.execute("BEGIN IMMEDIATE")
        try:
            database.executemany(statement, rows)
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise

    def size(self) -> int:
        """Bytes in use inside the file."""
        pages, free, page = (
            self._database().execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * page

    def _bound(self) -> None:
        """Forget the least recently used fifth as long as the file is too large."""
        while self.size() > self.max_bytes:
            count = self._database().execute("SELECT COUNT(*) FROM scores").fetchone()[0]
            if not count:
                return
            oldest = "SELECT key FROM scores ORDER BY used LIMIT ?"
            self._write(f"DELETE FROM scores WHERE key IN ({oldest})", [(max(count // 5, 1),)])


def _digest(key: bytes, text: str) -> str:
    return hashlib.blake2b(key + text.encode("utf-8", "surrogatepass"), digest_size=DIGEST // 2).hexdigest()


def _row(key: bytes, text: str) -> str:
    """A score as text behind a digest of it and its key: disks flip bits."""
    return _digest(key, text) + text


def _from_row(key: bytes, row: str) -> str:
    text = row[DIGEST:]
    if row[:DIGEST] != _digest(key, text):
        raise ValueError("not what was kept under this key")
    return text


def _to_text(score: Score) -> str:
    dense = score.dense.double().tolist() if score.dense is not None else None
    value = score.value if math.isfinite(score.value) else None
    components = {k: float(v) for k, v in score.components.items()} if score.components is not None else None
    sigma = None if score.sigma is None else float(score.sigma)
    content = {"value": value, "status": score.status.value, "note": score.note, "sigma": sigma}
    return json.dumps({**content, "components": components, "dense": dense})


def _from_text(text: str) -> Score:
    content = json.loads(text)
    value, dense = content["value"], content["dense"]
    return Score(
        value=math.nan if value is None else value,
        status=Status(content["status"]),
        components=content["components"],
        sigma=content["sigma"],
        dense=None if dense is None else torch.tensor(dense, dtype=torch.float64),
        note=content["note"],
    )
