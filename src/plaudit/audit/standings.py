"""What a comparison found: contestants over their seeds, as JSON, Markdown, a chart and a page."""

from __future__ import annotations

import dataclasses
import html
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plaudit.audit import plots
from plaudit.audit.measures import style_of
from plaudit.pages import look
from plaudit.pages.html import Content, Html, document, element, join, paragraphs, section, table, themed_chart
from plaudit.pages.numbers import Style, capital, number
from plaudit.runs.record import RunRecord, Summary, series
from plaudit.statistics import Spread, spread
from plaudit.storage import explain_write_errors, write_text

COLUMNS = (
    "contestant",
    "seeds",
    "before",
    "after",
    "gain",
    "training minutes",
    "steps",
    "network calls",
    "reward calls",
    "stopped",
)
READING = "Means over seeds, ± the standard deviation between seeds, [worst to best seed]."


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One contestant with one seed: what its run folder says, or why there is no result."""

    contestant: str
    seed: int
    folder: Path
    run: RunRecord | None = None
    error: str | None = None

    @property
    def summary(self) -> Summary:
        return self.run.summary if self.run and self.run.summary else Summary()


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One contestant over its seeds."""

    contestant: str
    before: Spread
    after: Spread
    gain: Spread
    minutes: Spread
    steps: Spread
    network_calls: Spread
    reward_calls: Spread
    stopped: tuple[str, ...]
    outcomes: tuple[Outcome, ...]

    @property
    def finished(self) -> int:
        return sum(outcome.error is None for outcome in self.outcomes)


# --- summing up ----------------------------------------------------------------------------------------------------


def standing_of(name: str, outcomes: Sequence[Outcome]) -> Standing:
    """A contestant's outcomes as means and spreads; what a failed run lacks is missing, not zero."""

    def over_seeds(key: str) -> Spread:
        values = (getattr(outcome.summary, key) for outcome in outcomes)
        return spread([math.nan if value is None else value for value in values])

    stopped = dict.fromkeys(outcome.summary.stopped or "unknown" for outcome in outcomes if outcome.error is None)
    failed = sum(outcome.error is not None for outcome in outcomes)
    return Standing(
        contestant=name,
        before=over_seeds("before"),
        after=over_seeds("after"),
        gain=over_seeds("gain"),
        minutes=over_seeds("training_minutes"),
        steps=over_seeds("steps"),
        network_calls=over_seeds("network_calls"),
        reward_calls=over_seeds("reward_calls"),
        stopped=(*stopped, f"{failed} failed") if failed else tuple(stopped),
        outcomes=tuple(outcomes),
    )


def ranking(standings: Sequence[Standing], style: Style) -> str:
    """Who ended highest, and from whom it is told apart by every seed."""
    placed = sorted((s for s in standings if s.after.count), key=lambda s: s.after.mean, reverse=True)
    if not placed:
        return "No run has a measurement after training, so there is no ranking."
    best, others = placed[0], placed[1:]
    first = f"{best.contestant} ended highest: {style.truth} {style.score(best.after.mean)}"
    if not others:
        return f"{first}. No other contestant has a result to compare it with."
    if best.after.count < 2:
        return f"{first}. With one seed there is no telling whether that is chance; repeat it with at least three."
    beaten = [s.contestant for s in others if s.after.high < best.after.low]
    close = [s.contestant for s in others if s.contestant not in beaten]
    sentences = [f"{first}, the mean of {best.after.count} seeds"]
    sentences += [f"Its worst seed is above every seed of {', '.join(beaten)}"] if beaten else []
    sentences += [f"Its seeds overlap with those of {', '.join(close)}: that may be chance"] if close else []
    return ". ".join(sentences) + "."


def _curves(standings: Sequence[Standing]) -> dict[str, dict[str, list[plots.Curve]]]:
    """Held-out score of every run over both costs."""
    costs = {"training time (s)": "seconds", "network calls (samples × evaluations)": "network_calls"}
    return {
        label: {s.contestant: [c for o in s.outcomes if (c := curve_of(o, key)) is not None] for s in standings}
        for label, key in costs.items()
    }


def curve_of(outcome: Outcome, key: str) -> plots.Curve | None:
    """Score over what had been spent by then: `key` is `seconds` of training or `network_calls`."""
    run = outcome.run
    if run is None:
        return None
    spent = series(run.timing if key == "seconds" else run.metrics, key)
    if not len(spent):
        return None
    # At equal cost the later measurement counts: the one after training is the larger one.
    scores = {
        _spent_by(spent.steps, spent.values, row.step): row.mean
        for row in run.evaluations
        if row.split == run.main_split and row.mean is not None
    }
    costs = sorted(scores)
    return plots.Curve(cost=np.array(costs), score=np.array([scores[cost] for cost in costs])) if costs else None


def _spent_by(steps: np.ndarray, values: np.ndarray, step: int) -> float:
    """Cost of the first `step` training steps."""
    done = int(np.searchsorted(steps, step, side="right"))
    return float(values[done - 1]) if done else 0.0


# --- writing -------------------------------------------------------------------------------------------------------


def write_comparison(standings: Sequence[Standing], budget: str, out: Path) -> Path:
    style = next(style_of(o.run) for s in standings for o in s.outcomes if o.run is not None)
    curves = _curves(standings)
    light, dark = (plots.comparison_png(curves, style, theme) for theme in (look.LIGHT, look.DARK))
    with explain_write_errors(out / "comparison.png"):
        (out / "comparison.png").write_bytes(light)
    write_text(out / "comparison.json", json.dumps(_as_json(standings, budget), indent=1, allow_nan=False))
    write_text(out / "comparison.md", _markdown(standings, budget, style))
    path = out / "comparison.html"
    write_text(path, _page(standings, budget, style, themed_chart(light, dark, "held-out score against both costs")))
    return path


def _as_json(standings: Sequence[Standing], budget: str) -> dict[str, Any]:
    return {"budget": budget, "contestants": [_standing_as_json(standing) for standing in standings]}


def _standing_as_json(standing: Standing) -> dict[str, Any]:
    spreads = {
        field.name: {key: None if value != value else value for key, value in dataclasses.asdict(found).items()}
        for field in dataclasses.fields(standing)
        if isinstance(found := getattr(standing, field.name), Spread)
    }
    runs = [
        {"seed": outcome.seed, "folder": outcome.folder.name, "error": outcome.error} | outcome.summary.model_dump()
        for outcome in standing.outcomes
    ]
    return {"name": standing.contestant, **spreads, "stopped": list(standing.stopped), "runs": runs}


def _row(standing: Standing, style: Style) -> tuple[str, ...]:
    return (
        standing.contestant,
        f"{standing.finished} of {len(standing.outcomes)}",
        _spread_text(standing.before, style.score),
        _spread_text(standing.after, style.score),
        _spread_text(standing.gain, style.gain),
        *(_mean_text(found) for found in (standing.minutes, standing.steps)),
        *(_mean_text(found) for found in (standing.network_calls, standing.reward_calls)),
        "; ".join(standing.stopped),
    )


def _spread_text(found: Spread, write: Callable[[float], str]) -> str:
    return f"{write(found.mean)} {_between_seeds(found, write)}".strip()


def _between_seeds(found: Spread, write: Callable[[float], str]) -> str:
    """Deviation and range, where there is more than one seed; the unit is said once, by the mean before them."""
    if found.count < 2:
        return ""
    deviation, low, high = (write(value).split(" ")[0] for value in (found.std, found.low, found.high))
    return f"± {deviation.removeprefix('+')} [{low} to {high}]"


def _mean_text(found: Spread) -> str:
    return number(round(found.mean) if found.mean >= 100 else found.mean, 3)


def _markdown(standings: Sequence[Standing], budget: str, style: Style) -> str:
    lines = [
        f"# {capital(style.truth)} at equal cost: {budget} for each run",
        "",
        _markdown_text(ranking(standings, style)),
        "",
        READING,
        "",
        _markdown_row(COLUMNS),
        _markdown_row(["---"] + ["---:"] * (len(COLUMNS) - 2) + ["---"]),
        *(_markdown_row(_row(standing, style)) for standing in standings),
    ]
    failures = [f"- {_markdown_text(line)}" for line in _failures(standings)]
    return "\n".join(
        [*lines, *(["", "Failed runs, which the means leave out:", "", *failures] if failures else []), ""]
    )


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_markdown_text(cell).replace("|", "\\|") for cell in cells) + " |"


def _markdown_text(text: str) -> str:
    """One line without HTML."""
    return html.escape(" ".join(text.splitlines()), quote=False)


def _failures(standings: Sequence[Standing]) -> list[str]:
    return [f"{o.folder.name}: {o.error}" for s in standings for o in s.outcomes if o.error is not None]


def _page(standings: Sequence[Standing], budget: str, style: Style, chart: Html) -> str:
    failures = _failures(standings)
    missing = section("Failed runs", paragraphs(failures), lead="The means leave these runs out.") if failures else None
    costs = [(row[0], *row[5:]) for row in (_row(standing, style) for standing in standings)]
    return document(
        "Plaudit comparison",
        element("div", element("h1", "Comparison"), element("span", f"{budget} for each run"), cls="top"),
        section(ranking(standings, style), _scores_table(standings, style), lead=READING),
        section(
            f"{capital(style.truth)} against cost",
            element("figure", chart),
            lead="Thick: mean over seeds as far as all were measured; band: worst to best seed; thin: each seed.",
        ),
        missing,
        section(
            "What it cost", table((COLUMNS[0], *COLUMNS[5:]), costs, numeric=range(1, 5)), lead="Means over seeds."
        ),
        section("Every run", _runs_table(standings, style)),
    )


def _scores_table(standings: Sequence[Standing], style: Style) -> Html:
    def cell(found: Spread, write: Callable[[float], str]) -> Html:
        return join(write(found.mean), element("span", f" {_between_seeds(found, write)}", cls="muted"))

    rows = [
        (
            standing.contestant,
            cell(standing.gain, style.gain),
            cell(standing.before, style.score),
            cell(standing.after, style.score),
            f"{standing.finished} of {len(standing.outcomes)}",
        )
        for standing in standings
    ]
    return table(("contestant", "gain", "before", "after", "seeds"), rows, numeric=range(1, 5))


def _runs_table(standings: Sequence[Standing], style: Style) -> Html:
    rows: list[tuple[Content, ...]] = []
    for outcome in (outcome for standing in standings for outcome in standing.outcomes):
        found, name = outcome.summary, outcome.folder.name
        link: Content = element("a", name, href=f"{name}/report.html") if outcome.run else name
        scores = (style.score(found.before), style.score(found.after), style.gain(found.gain))
        rows.append((link, *scores, number(found.steps), outcome.error or found.stopped or ""))
    return table(("run", "before", "after", "gain", "steps", "stopped"), rows, numeric=range(1, 5))
