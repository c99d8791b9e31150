"""Scoring outputs that exist already."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from plaudit import storage
from plaudit.data.outputs import Gathered
from plaudit.data.pictures import pixels_of, read_picture
from plaudit.data.prompt import Prompt
from plaudit.data.sources import identify
from plaudit.errors import DataError, RecipeError
from plaudit.recipe.rewards import RewardConfig
from plaudit.rewards.base import RewardFunction, Score, Status, finite, missing, score_json
from plaudit.rewards.calling.request import Outputs, make_request
from plaudit.rewards.load import Reward, load_reward
from plaudit.rewards.suite import ScoredBatch, Suite, make_suite

CHUNK = 64


RewardLike = str | RewardFunction | Mapping[str, Any] | RewardConfig


def score(
    prompts: Sequence[str | Prompt],
    outputs: Outputs,
    rewards: str | RewardFunction | Mapping[str, RewardLike],
    *,
    combine: str | None = None,
    facts: Sequence[Mapping[str, Any]] | None = None,
    group: Sequence[int] | Tensor | None = None,
) -> ScoredBatch:
    """Score outputs with one reward, by name or as a function, or with several: `{"match": "scene_match", "mine": f}`.

    Pictures are tensors `[3, H, W]` in 0..1, Pillow images or paths. `facts` go with prompts that are texts. Without
    `combine`, several rewards stand side by side and there is no total. A scale that `calibrate` leaves open is measured
    on these outputs.
    """
    given = facts if facts is not None else [{}] * len(prompts)
    if len(given) != len(prompts):
        raise DataError(f"{len(given)} facts for {len(prompts)} prompts; give one mapping per prompt")
    asked = [
        p if isinstance(p, Prompt) else Prompt(id=identify(p), text=p, facts=fact)
        for p, fact in zip(prompts, given, strict=True)
    ]
    named = rewards if isinstance(rewards, Mapping) else {name_of(rewards): rewards}
    suite = make_suite([reward_of(name, reward) for name, reward in named.items()], combine, add=False)
    request = make_request(asked, outputs if isinstance(outputs, Tensor) else [as_output(o) for o in outputs], group)
    return score_request(suite, request.prompts, lambda rows: request.rows(rows).outputs, request.group).batch


def name_of(reward: str | RewardFunction) -> str:
    return reward if isinstance(reward, str) else getattr(reward, "__name__", type(reward).__name__)


def reward_of(name: str, reward: RewardLike) -> Reward:
    if isinstance(reward, Mapping):
        reward = RewardConfig.model_validate(reward)
    elif isinstance(reward, str) or callable(reward):
        reward = RewardConfig(type=reward)
    if not isinstance(reward, RewardConfig):
        raise RecipeError(f"rewards.{name} is {reward!r}; give a name, a function or a mapping with `type`")
    return load_reward(name, reward)


def as_output(value: Any) -> Any:
    """Pillow images and paths as pictures; everything else as it is."""
    if isinstance(value, Path):
        return read_picture(value)
    return pixels_of(value) if isinstance(value, Image.Image) else value


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
            rest = (prompts, members, columns)
            fresh = {reward.name: found for reward, found in _score_rows(piecewise, outputs, rows, *rest)}
            for name, found in fresh.items():
                scores[name] += found
            done = rows.stop
            progress(done)
    except KeyboardInterrupt:
        interrupted = True
    request = make_request(prompts[:done], prompts[:done], members[:done])
    for reward, found in _score_rows(whole, outputs, range(done), prompts, members, columns):
        scores[reward.name] = found
    for reward in suite.uncalibrated:
        suite.fit_scale(reward, scores[reward.name])
    return Scoring(batch=suite.combine(request, scores, learn=False), count=done, interrupted=interrupted)


def _score_rows(
    rewards: Sequence[Reward],
    outputs: Callable[[Sequence[int]], Outputs],
    rows: Sequence[int],
    prompts: Sequence[Prompt],
    members: Sequence[int],
    columns: frozenset[str],
) -> Iterator[tuple[Reward, list[Score]]]:
    """Each reward's scores of these rows. An output that cannot be read harms no other."""
    if not rewards or not len(rows):
        return
    kept, values, broken = _read(outputs, rows)
    request = make_request([prompts[i] for i in kept], values, [members[i] for i in kept], columns=columns)
    for reward in rewards:
        found = dict(zip(kept, reward.score(request), strict=True))
        yield reward, [found[i] if i in found else missing(Status.ERRORED, broken[i]) for i in rows]


def _read(
    outputs: Callable[[Sequence[int]], Outputs], rows: Sequence[int]
) -> tuple[Sequence[int], Outputs, dict[int, str]]:
    try:
        return rows, outputs(rows), {}
    except DataError:
        kept, values, broken = [], [], {}
    for i in rows:
        try:
            values += list(outputs([i]))
            kept.append(i)
        except DataError as error:
            broken[i] = str(error)
    return kept, values, broken


def write_scores(path: Path, gathered: Gathered, batch: ScoredBatch) -> Path:
    """One JSON object per output; a missing number is null and its status says why."""
    lines = []
    for i, total in enumerate(batch.total.tolist()):
        scores = {name: score_json(values[i]) for name, values in batch.scores.items()}
        row = {"name": gathered.names[i], "prompt": gathered.prompts[i].text, "scores": scores, "total": finite(total)}
        lines.append(json.dumps(row, ensure_ascii=False))
    with storage.explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    storage.write_text(path, "".join(line + "\n" for line in lines))
    return path


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One reward over all outputs. Statistics are over the scores that are there, None without any."""

    name: str
    mean: float | None
    std: float | None
    low: float | None
    high: float | None
    missing: Mapping[str, int]
    reason: str
    ms_per_output: float | None


def summarise(suite: Suite, batch: ScoredBatch) -> list[Summary]:
    rows = []
    for reward in suite.rewards:
        meter = reward.caller.meter
        spent = 1000 * sum(meter.latencies_s) / meter.outputs if meter.outputs else None
        found = batch.scores[reward.name]
        absent = [score.status.value for score in found if score.status is not Status.OK]
        counts = {status: absent.count(status) for status in dict.fromkeys(absent)}
        reason = next((score.note for score in found if score.note and score.status is not Status.OK), "")
        rows.append(_summary(reward.name, batch.parts[reward.name], counts, reason, spent))
    if suite.formula is not None and (len(rows) > 1 or set(batch.terms) - set(batch.parts)):
        absent = int(batch.total.isnan().sum())
        rows.append(_summary("total", batch.total, {"missing": absent} if absent else {}, "", None))
    return rows


def _summary(name: str, values: Tensor, missing: Mapping[str, int], reason: str, ms: float | None) -> Summary:
    there = values[values.isfinite()]
    rest = {"name": name, "missing": missing, "reason": reason, "ms_per_output": ms}
    if not len(there):
        return Summary(mean=None, std=None, low=None, high=None, **rest)
    return Summary(
        mean=there.mean().item(),
        std=there.std().item() if len(there) > 1 else None,
        low=there.min().item(),
        high=there.max().item(),
        **rest,
    )
