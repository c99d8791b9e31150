"""The folder of a search, and its exports as training data.

`pairs.jsonl` has TRL's columns `prompt`, `chosen`, `rejected` (paths of pictures, relative to the file): the best against
the worst candidate. `best.jsonl` is what `plaudit score` and fine-tuning on the best of N read: `prompt` and `image` or
`completion`.
"""

from __future__ import annotations

import json
import math
import platform
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from plaudit import storage
from plaudit.errors import RunError
from plaudit.search.grid import grid_png
from plaudit.search.results import SearchResult, mean_of
from plaudit.search.text_table import text_table
from plaudit.search.track import Kept

SUMMARY = "search.json"
BEGUN = ".search"  # one that was killed while it was written leaves it behind


def claim(folder: Path, *, overwrite: bool) -> None:
    """Check, before any work, that results can be written here; empty the folder of an earlier search if told to."""
    if folder.is_file():
        raise RunError(f"{folder} is a file; choose another --out")
    if folder.is_dir() and (content := {path.name for path in folder.iterdir()}) - {BEGUN}:
        if not overwrite:
            raise RunError(f"{folder} exists; replace it with --overwrite, or choose another --out")
        if not content & {SUMMARY, BEGUN}:
            raise RunError(
                f"{folder} is not the folder of a search, so --overwrite leaves it alone; choose another --out"
            )
        with storage.explain_write_errors(folder):
            _empty(folder)


def _empty(folder: Path) -> None:
    """The mark comes first and goes last: whenever this is killed, the folder is still known for what it is."""
    (folder / BEGUN).touch()
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != BEGUN:
            path.unlink()
    (folder / BEGUN).unlink()


def write(result: SearchResult, folder: Path) -> Path:
    with storage.explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / BEGUN).touch()
        (folder / "outputs").mkdir(exist_ok=True)
    shown = _Shown(folder)
    best = [shown(p, "best", kept) for p, kept in enumerate(result.best)]
    plain = [shown(p, "plain", kept) for p, kept in enumerate(result.plain)]
    worst = [shown(p, "worst", kept) for p, kept in enumerate(result.worst)]
    every = {(p, kept.candidate): shown(p, f"candidate_{kept.candidate:04d}", kept) for p, kept in result.kept}
    _lines(folder / "candidates.jsonl", _candidates(result, every))
    _lines(folder / "best.jsonl", _best(result, best))
    _lines(folder / "pairs.jsonl", _pairs(result, best, worst))
    if (grid := grid_png(result)) is not None:
        with storage.explain_write_errors(folder / "grid.png"):
            (folder / "grid.png").write_bytes(grid)
    if (texts := text_table(result)) is not None:
        storage.write_text(folder / "texts.md", texts)
    storage.write_text(folder / SUMMARY, json.dumps(_json(summary(result, plain, best)), indent=1, ensure_ascii=False))
    (folder / BEGUN).unlink(missing_ok=True)
    return folder


class _Shown:
    """Writes an output beside the records and says how they name it: pictures by path, texts as they are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, prompt: int, name: str, kept: Kept | None) -> Any:
        if kept is None or not isinstance(kept.output, Tensor):
            return None if kept is None else kept.output
        path = f"outputs/{prompt:04d}_{name}.png"
        pixels = (kept.output.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        with storage.explain_write_errors(self.folder / path):
            Image.fromarray(pixels).save(self.folder / path)
        return path


def _candidates(result: SearchResult, every: Mapping[tuple[int, int], Any]) -> Iterator[dict[str, Any]]:
    for one in sorted(result.candidates, key=lambda one: (one.prompt, one.candidate)):
        row = {
            "prompt": one.prompt,
            "id": result.prompts[one.prompt].id,
            "candidate": one.candidate,
            "score": one.score,
        }
        yield row | ({"output": shown} if (shown := every.get((one.prompt, one.candidate))) is not None else {})


def _best(result: SearchResult, shown: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """A winner without a score is no training example."""
    for prompt, kept, output in zip(result.prompts, result.best, shown, strict=True):
        if kept is not None and not math.isnan(kept.score):
            name = "image" if isinstance(kept.output, Tensor) else "completion"
            facts = {"facts": dict(prompt.facts)} if prompt.facts else {}
            yield {"prompt": prompt.text, name: output, "score": kept.score} | facts


def _pairs(result: SearchResult, best: Sequence[Any], worst: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Only where the two differ in score."""
    for p, (chosen, rejected) in enumerate(zip(result.best, result.worst, strict=True)):
        if chosen is None or rejected is None or not chosen.score > rejected.score:
            continue
        yield {
            "prompt": result.prompts[p].text,
            "chosen": best[p],
            "rejected": worst[p],
            "score_chosen": chosen.score,
            "score_rejected": rejected.score,
            "margin": chosen.score - rejected.score,
        }


def summary(result: SearchResult, plain: Sequence[Any], best: Sequence[Any]) -> dict[str, Any]:
    from plaudit.version import __version__

    truth = {
        name: {"plain": mean_of(scores.plain), "best": mean_of(scores.best)} for name, scores in result.truth.items()
    }
    counts = Counter(one.prompt for one in result.candidates)
    return {
        "method": result.method,
        "options": dict(result.options),
        "budget": str(result.budget),
        "seed": result.seed,
        "stopped": result.stopped,
        **result.about,
        "mean": {"plain": mean_of(result.plain_scores), "best": mean_of(result.scores)},
        "truth": truth,
        "candidates": len(result.candidates),
        "missing_scores": result.missing_scores,
        "first_missing": result.first_missing,
        "seconds": result.seconds,
        "ledger": result.ledger.to_json(),
        "prompts": [
            {
                "id": prompt.id,
                "text": prompt.text,
                "candidates": counts[p],
                "plain": _entry(result.plain[p], plain[p]),
                "best": _entry(result.best[p], best[p]),
                "truth": {
                    name: {"plain": float(scores.plain[p]), "best": float(scores.best[p])}
                    for name, scores in result.truth.items()
                },
            }
            for p, prompt in enumerate(result.prompts)
        ],
        "versions": {"plaudit": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def _entry(kept: Kept | None, shown: Any) -> dict[str, Any] | None:
    return None if kept is None else {"candidate": kept.candidate, "score": kept.score, "output": shown}


def _lines(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    storage.write_text(path, "".join(json.dumps(_json(row), ensure_ascii=False) + "\n" for row in rows))


def _json(value: Any) -> Any:
    """JSON has no NaN: what is missing is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    return value
