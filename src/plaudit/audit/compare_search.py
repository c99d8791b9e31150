"""Search methods against each other at equal budgets: what was searched for and the truth, against every cost.

Best-of-N is always among them. Each combination of verifier, method, budget and seed is a file, so an interrupted
comparison goes on with the same command.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plaudit import storage
from plaudit.audit import plots
from plaudit.errors import Interrupted, RecipeError, RewardError
from plaudit.models.origin import Origin, build_origin, find_origin
from plaudit.pages import look
from plaudit.pages.html import Content, document, element, paragraphs, section, table, themed_chart
from plaudit.pages.numbers import Style
from plaudit.rewards.scoring import reward_of
from plaudit.search.api import search_origin
from plaudit.search.budget import Budget
from plaudit.search.options import find_method
from plaudit.search.setup import check_kinds, find_prompts, find_suite
from plaudit.search.table import METHODS
from plaudit.statistics import Gain, Items, paired_gain, spread
from plaudit.worlds import WORLDS

BASELINE = "best_of_n"
COSTS = {
    "network calls per prompt": "network_calls",
    "reward calls per prompt": "reward_calls",
    "seconds per prompt": "s",
}
HEAD = ("method", "budget", "network calls", "reward calls", "seconds", "searched for", "truth", "truth, gain", "")


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A method with some of its options, and what it is called in the comparison."""

    label: str
    method: str
    options: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Found:
    """One search: scores per prompt of the plain samples and of the best, by the verifier and by the truth. `method` is the
    contestant's label."""

    verifier: str
    method: str
    budget: str
    seed: int
    proxy_plain: list[float]
    proxy_best: list[float]
    truth_plain: list[float]
    truth_best: list[float]
    network_calls: float
    reward_calls: float
    gradient_calls: float
    s: float


def compare_search(
    *,
    model: str,
    verifiers: Sequence[str],
    truth: str,
    contestants: Sequence[Contestant],
    budgets: Sequence[str],
    seeds: Sequence[int],
    count: int,
    out: Path,
    say: Callable[[str], None] = lambda text: None,
    sampler: Mapping[str, Any] | None = None,
) -> Path:
    """Search `count` held-out prompts with best-of-N and every contestant under every budget; returns `comparison.html`. A
    method that cannot use a verifier, such as one that needs its gradient, is left out and named."""
    origin = find_origin(model)
    family = origin.recipe.model.family
    for one in contestants:
        find_method(one.method, one.options, family)  # refuses before anything is run
    judges = {name: find_suite(origin, {name: name}, None).rewards[0] for name in verifiers}
    check_kinds({name: judge.card for name, judge in (judges | {truth: reward_of(truth, truth)}).items()}, family)
    baseline = Contestant(label=BASELINE, method=BASELINE, options={})
    chosen = {one.label: one for one in (baseline, *contestants)}
    _take(
        out,
        {
            "model": [model],
            "truth": [truth],
            "contestants": [*chosen],
            "verifiers": [*verifiers],
            "budgets": [*budgets],
        },
    )
    planned = [(v, m, b, s) for s in seeds for v in verifiers for m in chosen for b in budgets]
    built, found, left_out = build_origin(origin), list[Found](), dict[tuple[str, str, str, int | None], str]()
    for position, (verifier, method, budget, seed) in enumerate(planned, start=1):
        if (verifier, method, budget, None) in left_out:
            continue
        path = out / "searches" / verifier.replace("/", "_") / f"{_file_name(method)}-{budget}-seed{seed}.json"
        asked = {
            "model": model,
            "truth": truth,
            "options": dict(chosen[method].options),
            "count": count,
            "sampler": dict(sampler or {}),
        }
        kept = _kept(path, asked)
        done = " (done before)" if kept else ""
        say(f"search {position} of {len(planned)}: {method} by {verifier}, {budget} per prompt, seed {seed}{done}")
        if kept is None:
            try:
                kept = _search(origin, built, verifier, chosen[method], budget, seed, truth, count, sampler or {})
            except (
                RecipeError,
                RewardError,
            ) as error:  # what this method cannot do, or this seed; a bug is not left out
                own = None if isinstance(error, RecipeError) else seed
                left_out[verifier, method, budget, own] = str(error).splitlines()[0]
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            storage.write_text(path, json.dumps({"asked": asked, "found": asdict(kept)}))
        found.append(kept)
    if not found:
        raise RecipeError(
            "compare: no method could search:\n" + "\n".join(f"- {why}" for why in sorted(set(left_out.values())))
        )
    return _write(found, left_out, len(seeds), truth, model, out)


def _search(
    origin: Origin,
    built: Any,
    verifier: str,
    contestant: Contestant,
    budget: str,
    seed: int,
    truth: str,
    count: int,
    sampler: Mapping[str, Any],
) -> Found:
    result = search_origin(
        origin,
        find_suite(origin, {verifier: verifier}, None),
        model=built,
        budget=Budget.parse(budget),
        method=contestant.method,
        options=contestant.options,
        prompts=find_prompts(origin.recipe, None, count),
        truth=[truth],
        seed=seed,
        out=None,
        overwrite=False,
        keep_all=False,
        watch=lambda share, tracker: None,
        sampler=sampler,
    )
    if result.stopped == "interrupted":  # half a search is no result
        raise Interrupted("stopped; the searches that are done are kept, and the same command goes on after them")
    spent, judged = result.ledger.total, result.truth[truth]
    return Found(
        verifier=verifier,
        method=contestant.label,
        budget=budget,
        seed=seed,
        proxy_plain=result.plain_scores.tolist(),
        proxy_best=result.scores.tolist(),
        truth_plain=judged.plain.tolist(),
        truth_best=judged.best.tolist(),
        network_calls=spent.network_calls / count,
        reward_calls=spent.reward_calls / count,
        gradient_calls=spent.gradient_calls / count,
        s=result.seconds / count,
    )


def _take(out: Path, asked: Mapping[str, Sequence[str]]) -> None:
    """A comparison of other things is not written over; one of some of these is gone on with."""
    mark = out / "comparison.json"
    earlier = json.loads(mark.read_text(encoding="utf-8")) if mark.is_file() else None
    if earlier is None and (out / "comparison.html").exists():
        raise RecipeError(f"{out} holds another comparison; give another --out")
    for what, names in (earlier or {}).items():
        if lost := [name for name in names if name not in asked[what]]:
            raise RecipeError(
                f"{out} holds a comparison with the {what} {', '.join(lost)}; name them too to go on, or give another --out"
            )
    with storage.explain_write_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    storage.write_text(mark, json.dumps(asked))


def _file_name(label: str) -> str:
    return re.sub(r"[^\w.=-]+", "_", label).strip("_")


def _kept(path: Path, asked: Mapping[str, Any]) -> Found | None:
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["asked"] != json.loads(json.dumps(asked)):
        raise RecipeError(f"{path} is of another comparison ({content['asked']}); delete it or give another --out")
    return Found(**content["found"])


# --- summing up ----------------------------------------------------------------------------------------------------


def _of(found: Sequence[Found], verifier: str, method: str, budget: str | None = None) -> list[Found]:
    return [f for f in found if f.verifier == verifier and f.method == method and budget in (None, f.budget)]


def _gain(found: Sequence[Found], before: str, after: str) -> Gain:
    """Over prompts and seeds together."""
    first, second = ([x for f in found for x in getattr(f, name)] for name in (before, after))
    ids = tuple(f"{f.seed}/{i}" for f in found for i in range(len(getattr(f, before))))
    return paired_gain(Items(ids=ids, scores=tuple(first)), Items(ids=ids, scores=tuple(second)))


def _mean(values: Sequence[float]) -> float:
    present = [value for value in values if not math.isnan(value)]
    return sum(present) / len(present) if present else math.nan


def verdict(proxy: Gain, truth: Gain) -> str:
    """What the two gains say together."""
    if proxy.low > 0 and truth.high < 0:
        return "hacked: the verifier is more satisfied, and the truth fell"
    if proxy.low > 0 and truth.low <= 0:
        return "the verifier is more satisfied; the truth is not told apart"
    return "better by both" if proxy.low > 0 else "nothing gained"


def _rows(found: Sequence[Found], verifier: str, style: Style, seeds: int) -> list[tuple[str, ...]]:
    rows = []
    pairs = dict.fromkeys((f.method, f.budget) for f in found if f.verifier == verifier)
    for method, budget in sorted(pairs, key=lambda pair: pair[0] != BASELINE):
        some = _of(found, verifier, method, budget)
        truths = spread([_mean(f.truth_best) for f in some])
        proxy, truth = _gain(some, "proxy_plain", "proxy_best"), _gain(some, "truth_plain", "truth_best")
        deviation = f" ± {style.score(truths.std).split(' ')[0]}" if truths.count > 1 else ""
        rows.append(
            (
                method if len(some) == seeds else f"{method} ({len(some)} of {seeds} seeds)",
                budget,
                *(f"{_mean([getattr(f, key) for f in some]):.3g}" for key in COSTS.values()),
                f"{_mean([x for f in some for x in f.proxy_best]):.3g} ({proxy.mean:+.3g})",
                f"{style.score(truths.mean)}{deviation}",
                f"{style.gain(truth.mean)} [{style.gain_bounds(truth)}]",
                verdict(proxy, truth),
            )
        )
    return rows


def _curves(found: Sequence[Found], verifier: str, scores: str) -> dict[str, dict[str, list[plots.Curve]]]:
    methods = dict.fromkeys(f.method for f in found if f.verifier == verifier)
    return {
        label: {method: _seed_curves(_of(found, verifier, method), key, scores) for method in methods}
        for label, key in COSTS.items()
    }


def _seed_curves(found: Sequence[Found], key: str, scores: str) -> list[plots.Curve]:
    curves = []
    for seed in sorted({f.seed for f in found}):
        points = sorted((getattr(f, key), _mean(getattr(f, scores))) for f in found if f.seed == seed)
        cost, score = zip(*points, strict=True)
        curves.append(plots.Curve(cost=np.array(cost), score=np.array(score)))
    return curves


# --- writing -------------------------------------------------------------------------------------------------------


def _write(
    found: Sequence[Found],
    left_out: Mapping[tuple[str, str, str, int | None], str],
    seeds: int,
    truth: str,
    model: str,
    out: Path,
) -> Path:
    true_style = Style(accuracy=reward_of(truth, truth).verdict, noun=truth, where="mean")
    sections, markdown = [], [f"# Search methods on {model}, truth `{truth}`", ""]
    for verifier in dict.fromkeys(f.verifier for f in found):
        rows = _rows(found, verifier, true_style, seeds)
        charts = []
        for scores, style in (
            ("truth_best", true_style),
            ("proxy_best", Style(accuracy=False, noun=verifier, where="mean")),
        ):
            curves = _curves(found, verifier, scores)
            light, dark = (plots.comparison_png(curves, style, theme) for theme in (look.LIGHT, look.DARK))
            with storage.explain_write_errors(out):
                (out / f"{verifier.replace('/', '_')}-{scores.removesuffix('_best')}.png").write_bytes(light)
            charts.append(element("figure", themed_chart(light, dark, f"{style.truth} against three costs")))
        cells: list[tuple[Content, ...]] = list(rows)
        lead = (
            "Costs are per prompt, as the ledger counted them; gains are over the plain samples, with 95 % intervals."
        )
        sections.append(section(f"Verifier: {verifier}", *charts, table(HEAD, cells, numeric=range(2, 5)), lead=lead))
        markdown += [f"## Verifier `{verifier}`", "", _line(HEAD), _line(["---"] * len(HEAD)), *map(_line, rows), ""]
    lines = [
        f"{method} by {verifier} at {budget}{'' if seed is None else f', seed {seed}'}: {why}"
        for (verifier, method, budget, seed), why in left_out.items()
    ]
    if lines:
        sections.append(section("Left out", paragraphs(lines)))
        markdown += ["Left out:", "", *(f"- {line}" for line in lines), ""]
    top = element("div", element("h1", "Search methods"), element("span", f"{model}, truth {truth}"), cls="top")
    storage.write_text(out / "comparison.md", "\n".join(markdown))
    storage.write_text(out / "comparison.html", document("Plaudit: search methods", top, *sections))
    return out / "comparison.html"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What is compared where the user does not say: every method of the family, and rewards of the lab's worlds, a cheap one
    with a planted flaw and a better one."""

    methods: Sequence[str]
    verifiers: Sequence[str]
    truth: str
    budgets: Sequence[str]


def defaults_of(model: str, *, needed: bool) -> Defaults:
    """`needed`: whether the rewards of the model's world are asked for, which only the lab's worlds have."""
    recipe = find_origin(model).recipe
    family, world = recipe.model.family, WORLDS.get(recipe.prompts.type)
    if world is None and needed:
        raise RecipeError(
            f"compare: {model} has prompts of its own; give --reward (what is searched for), --truth (what is true) and --budgets"
        )
    verifiers, truth, budgets = (world.judges, world.truth, world.budgets) if world else ((), "", ())
    methods = [name for name, entry in METHODS.items() if family in entry.families and name != "none"]
    return Defaults(methods=methods, verifiers=verifiers, truth=truth, budgets=budgets)
