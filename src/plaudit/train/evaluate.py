"""Held-out measurement at fixed prompts and fixed noise, so that before and after differ in the weights alone."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.errors import RewardError
from plaudit.pages.grid import COLUMNS, save_grid
from plaudit.rewards.base import TRANSIENT, Score, Status
from plaudit.rewards.load import Reward
from plaudit.rewards.suite import ScoredBatch
from plaudit.runs.folder import RunFolder
from plaudit.runs.record import BEFORE
from plaudit.sampling.base import Outputs, Piece
from plaudit.sampling.drawers import generate
from plaudit.statistics import Interval, mean_interval
from plaudit.train.setup import Setup

EVALUATION_SEED = 20_000_003
CALIBRATION_SEED = 20_000_029
PREVIEWS = 18
FITS = {  # by what an objective learns from
    "pairs": "pair_accuracy judges rows with `chosen` and `rejected`",
    "demonstrations": "completion_likelihood judges rows with a `completion`",
}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One split's result; `scores` belongs to `ids` item by item."""

    split: str
    interval: Interval
    ids: list[str]
    scores: np.ndarray


def evaluate(setup: Setup, folder: RunFolder, *, step: int, label: str, count: int) -> dict[str, Measured]:
    """Measure every held-out split, log the results, and save the preview grid."""
    measured: dict[str, Measured] = {}
    for split, prompts in setup.prompts.evaluation(count).items():
        with setup.policy.using(setup.result):
            piece = generate(setup.drawer, prompts, EVALUATION_SEED)
            first = label == BEFORE and not measured
            truth, training, extra = setup.ranks.from_main(partial(_judged, setup, prompts, piece, first))
        interval = mean_interval(truth)
        items = f"evaluations/{label}_{step:06d}_{split}.json"
        categories = [str(prompt.facts.get("category", "all")) for prompt in prompts]
        ids = [f"{prompt.id}/{i}" for i, prompt in enumerate(prompts)]
        scored = {"id": ids, "category": categories, "score": truth.tolist()}
        scored["rewards"] = {name: values.tolist() for name, values in training.parts.items()}
        if piece.ids is not None:
            scored["length"] = [len(ids) for ids in piece.ids]
        folder.write_json(items, scored)
        entry = {
            "step": step,
            "split": split,
            "label": label,
            "reward": setup.recipe.evaluate.reward.type,
            "mean": interval.mean,
            "low": interval.low,
            "high": interval.high,
            "count": interval.count,
            "missing": interval.missing,
            "by_category": _by_category(categories, truth),
            "rewards": {name: values.nanmean().item() for name, values in training.parts.items()},
            "items": items,
        }
        if setup.truth.verdict:
            entry["verdict"] = True
        if not _looks_at_outputs(setup.truth):
            entry["looks_at_outputs"] = False
        if of_the_data := [reward.name for reward in setup.rewards.rewards if not _looks_at_outputs(reward)]:
            entry["of_the_data"] = of_the_data
        if piece.ids is not None:
            entry["length"] = float(np.mean(scored["length"]))
        folder.append("evaluations.jsonl", entry)
        measured[split] = Measured(split=split, interval=interval, ids=ids, scores=truth)
        if len(measured) == 1 and setup.ranks.is_main:
            _preview(folder, piece.outputs, _rows(prompts, truth, training, extra), truth, step, label)
    return measured


def _judged(
    setup: Setup, prompts: Sequence[Prompt], piece: Piece, first: bool
) -> tuple[np.ndarray, ScoredBatch, Mapping[str, Sequence[Any]]]:
    """What the truth and the training rewards say, and the columns that rewards added."""
    with setup.truth.unchanged():
        judged = setup.truth(prompts, piece.outputs, completion_ids=piece.ids)
    if first:
        _refuse_unjudged(setup, judged)
    training = setup.rewards(prompts, piece.outputs, completion_ids=piece.ids)
    return np.array([score.value for score in judged]), training, setup.rewards.take_extra(len(prompts))


def _looks_at_outputs(reward: Reward) -> bool:
    return reward.card is None or reward.card.looks_at_outputs


def _refuse_unjudged(setup: Setup, judged: Sequence[Score]) -> None:
    """A run whose starting point has no score at all could never state a gain."""
    if any(score.status is Status.OK for score in judged):
        return
    first = judged[0]
    fits = FITS.get(setup.objective.needs.feed, "`plaudit rewards list` names them with what they need")
    remedy = (
        "Mend the reward"
        if first.status in TRANSIENT
        else f"Name a reward that fits these prompts with --evaluate.reward ({fits}), or give prompts with the facts it reads"
    )
    raise RewardError(
        f"evaluate.reward: {setup.recipe.evaluate.reward.type} scored none of {len(judged)} outputs before training: the first "
        f"is {first.status}{f' ({first.note})' if first.note else ''}. {remedy}"
    )


def calibrate(setup: Setup) -> int:
    """Measure the scales that rewards ask for, on held-out outputs of the untrained model; how many outputs it took."""
    if not setup.rewards.uncalibrated:
        return 0
    heldout = next(iter(setup.prompts.evaluation(count := setup.recipe.calibration_outputs).values()))
    prompts = list(itertools.islice(itertools.cycle(heldout), count))  # other noise for a prompt that comes again
    piece = generate(setup.drawer, prompts, CALIBRATION_SEED)
    if setup.ranks.is_main:  # the scales stay where rewards are asked
        setup.rewards.calibrate(prompts, piece.outputs, piece.ids)
    return len(prompts)


def _by_category(categories: list[str], scores: np.ndarray) -> dict[str, dict[str, float]]:
    grouped: dict[str, list[float]] = defaultdict(list)
    for category, score in zip(categories, scores, strict=True):
        if np.isfinite(score):
            grouped[category].append(float(score))
    return {name: {"mean": float(np.mean(values)), "count": len(values)} for name, values in grouped.items()}


def _preview(
    folder: RunFolder, outputs: Outputs, rows: list[dict[str, Any]], truth: np.ndarray, step: int, label: str
) -> None:
    """A grid of pictures, or a table of texts with what every reward said of them."""
    name = f"step_{step:06d}" if label == "step" else label
    if not isinstance(outputs, Tensor):
        table = [row | {"output": text} for row, text in zip(rows, outputs, strict=False)]
        folder.write_json(f"samples/{name}.json", table)
        return
    save_grid(outputs[:PREVIEWS], folder.samples / f"{name}.png", [row["prompt"] for row in rows])
    if label == "step":
        return
    path = folder.samples / "prompts.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known |= {"prompts": [row["prompt"] for row in rows], "columns": COLUMNS}
    known[label] = truth[:PREVIEWS].tolist()
    folder.write_json("samples/prompts.json", known)


def _rows(
    prompts: Sequence[Prompt], truth: np.ndarray, scored: ScoredBatch, extra: Mapping[str, Sequence[Any]]
) -> list[dict[str, Any]]:
    """What was said of the first outputs. `extra` are columns that rewards added."""
    return [
        {
            "prompt": prompt.text,
            "truth": truth[i],
            "rewards": {name: values[i].item() for name, values in scored.parts.items()},
            "notes": {name: scores[i].note for name, scores in scored.scores.items() if scores[i].note},
            "extra": {name: values[i] for name, values in extra.items()},
        }
        for i, prompt in enumerate(prompts[:PREVIEWS])
    ]
