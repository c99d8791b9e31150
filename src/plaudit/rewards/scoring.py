"""Scoring outputs that exist already."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from plaudit import storage
from plaudit.data.outputs import Gathered
from plaudit.data.prompt import Prompt
from plaudit.data.sources import identify
from plaudit.recipe.schema import RewardConfig
from plaudit.rewards.base import Score, Status
from plaudit.rewards.call import Outputs, make_request
from plaudit.rewards.suite import ScoredBatch, Suite, load_side_by_side, load_suite

CHUNK = 64


def score(
    prompts: Sequence[str | Prompt],
    outputs: Outputs,
    rewards: str | Mapping[str, str | Mapping[str, Any] | RewardConfig],
    *,
    combine: str | None = None,
    group: Sequence[int] | Tensor | None = None,
) -> ScoredBatch:
    """Score outputs with one reward by name, or with several: `{"match": "scene_match", "sharp": {"type": "sharpness"}}`.

    Without `combine`, several rewards stand side by side and there is no total. A scale that `calibrate` leaves open is
    measured on these outputs.
    """
    asked = [p if isinstance(p, Prompt) else Prompt(id=identify(p), text=p) for p in prompts]
    configs = configs_of({rewards: rewards} if isinstance(rewards, str) else rewards)
    suite = load_side_by_side(configs) if combine is None else load_suite(configs, combine)
    request = make_request(asked, outputs, group)
    return score_request(suite, request.prompts, lambda rows: request.rows(rows).outputs, request.group).batch


def configs_of(rewards: Mapping[str, str | Mapping[str, Any] | RewardConfig]) -> dict[str, RewardConfig]:
    return {
        name: value
        if isinstance(value, RewardConfig)
        else RewardConfig.model_validate({"type": value} if isinstance(value, str) else value)
        for name, value in rewards.items()
    }


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """Scores of the first `count` outputs: all of them unless the user stopped."""

    batch: ScoredBatch
    count: int
    interrupted: bool


def score_request(
    suite: Suite,
    prompts: Sequence[Prompt],
    outputs: Callable[[Sequence[int]], Outputs],
    group: Sequence[int] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Scoring:
    """Scores piece by piece; rewards that compare outputs with each other see all of them at the end. Ctrl-C keeps what
    is there."""
    whole_request = make_request(prompts, prompts, group)
    members, columns = whole_request.group, whole_request.columns
    piecewise = [r for r in suite.rewards if not r.caller.whole_batch]
    whole = [r for r in suite.rewards if r.caller.whole_batch]
    scores: dict[str, list[Score]] = {reward.name: [] for reward in suite.rewards}
    done, interrupted = 0, False
    try:
        while done < len(prompts):
            rows = range(done, min(done + CHUNK, len(prompts)))
            piece = make_request([prompts[i] for i in rows], outputs(rows), [members[i] for i in rows], columns=columns)
            fresh = {reward.name: reward.score(piece) for reward in piecewise}
            for name, found in fresh.items():
                scores[name] += found
            done = rows.stop
            progress(done)
    except KeyboardInterrupt:
        interrupted = True
    request = make_request(prompts[:done], outputs(range(done)) if whole else prompts[:done], members[:done])
    if done:
        for reward in whole:
            scores[reward.name] = reward.score(request)
    for reward in suite.uncalibrated:
        suite.fit_scale(reward, scores[reward.name])
    return Scoring(batch=suite.combine(request, scores, learn=False), count=done, interrupted=interrupted)


def write_scores(path: Path, gathered: Gathered, batch: ScoredBatch) -> Path:
    """One JSON object per output; a missing number is null and its status says why."""
    lines = []
    for i, total in enumerate(batch.total.tolist()):
        scores = {name: score_json(values[i]) for name, values in batch.scores.items()}
        row = {"name": gathered.names[i], "prompt": gathered.prompts[i].text, "scores": scores, "total": number(total)}
        lines.append(json.dumps(row, ensure_ascii=False))
    with storage.explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    storage.write_text(path, "".join(line + "\n" for line in lines))
    return path


def score_json(score: Score) -> dict[str, Any]:
    content: dict[str, Any] = {"value": number(score.value), "status": score.status.value}
    if score.components:
        content["components"] = {key: number(value) for key, value in score.components.items()}
    if score.sigma is not None:
        content["sigma"] = number(score.sigma)
    if score.note:
        content["note"] = score.note
    return content


def number(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One reward over all outputs. Statistics are over the scores that are there, None without any."""

    name: str
    mean: float | None
    std: float | None
    low: float | None
    high: float | None
    missing: Mapping[str, int]
    ms_per_output: float | None


def summarise(suite: Suite, batch: ScoredBatch) -> list[Summary]:
    rows = []
    for reward in suite.rewards:
        meter = reward.caller.meter
        spent = 1000 * sum(meter.latencies_s) / meter.outputs if meter.outputs else None
        found = batch.scores[reward.name]
        missing = [score.status.value for score in found if score.status is not Status.OK]
        counts = {status: missing.count(status) for status in dict.fromkeys(missing)}
        rows.append(_summary(reward.name, batch.parts[reward.name], counts, spent))
    if suite.formula is not None and (len(rows) > 1 or set(batch.terms) - set(batch.parts)):
        rows.append(_summary("total", batch.total, {}, None))
    return rows


def _summary(name: str, values: Tensor, missing: Mapping[str, int], ms: float | None) -> Summary:
    there = values[values.isfinite()]
    if not len(there):
        return Summary(name=name, mean=None, std=None, low=None, high=None, missing=missing, ms_per_output=ms)
    return Summary(
        name=name,
        mean=there.mean().item(),
        std=there.std().item() if len(there) > 1 else None,
        low=there.min().item(),
        high=there.max().item(),
        missing=missing,
        ms_per_output=ms,
    )
