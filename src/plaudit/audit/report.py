"""The report of one run: a single HTML file that shows whether the model really got better, and what is not known."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from plaudit.audit import panels, plots
from plaudit.audit.gallery import gallery
from plaudit.audit.measures import Change, Findings, findings
from plaudit.audit.texts import texts
from plaudit.audit.verdict import judge
from plaudit.pages import look
from plaudit.pages.html import Content, Html, document, element, folded, join, paragraphs, section, table, themed_chart
from plaudit.pages.numbers import ABSENT, Style, capital, number
from plaudit.runs.record import Check, RunRecord, read_run
from plaudit.storage import write_text

PARTS = ("rollout", "reward", "learn")


def write_report(run: Path) -> Path:
    """Write `report.html`, `curves.png` and `categories.png` into a run folder, whatever state the run is in."""
    found = findings(read_run(run))
    plots.write_charts(found)
    path = run / "report.html"
    write_text(path, render(found))
    return path


def render(found: Findings) -> str:
    run = found.run
    drawn = () if run.fits else (_verdict(found), texts(run) if run.texts else gallery(run))
    parts = (
        _top(run),
        _headline(found),
        *drawn,
        _curves(found),
        _categories(found),
        *(_other_split(found, split) for split in run.splits() if split != run.main_split),
        *(() if run.fits else (_checks(run.checks),)),
        _costs(run),
        *(() if run.fits else (_missing(run),)),
        _recipe(run),
    )
    return document(f"{_name(run)}: Plaudit report", *parts)


# --- what happened -------------------------------------------------------------------------------------------------


def _name(run: RunRecord) -> str:
    return run.folder.resolve().name


def _top(run: RunRecord) -> Html:
    system = f"system {run.recipe.system}" if run.recipe and run.recipe.system else None
    facts = (f"recipe {run.recipe.name}" if run.recipe else None, system, _status(run))
    return element("div", element("h1", _name(run)), *(element("span", fact) for fact in facts if fact), cls="top")


def _status(run: RunRecord) -> str:
    if run.summary is None:
        return f"in progress or killed after step {_last_step(run)}: there is no summary yet"
    return f"ended: {run.summary.stopped}" if run.summary.stopped else "ended"


def _last_step(run: RunRecord) -> int:
    return max((row["step"] for row in run.metrics if "step" in row), default=0)


def _headline(findings: Findings) -> Html:
    run, found, style = findings.run, findings.change, findings.style
    if found is None:
        return element("section", *_headline_without_gain(run, style), _tiles(run, None, style), cls="card")
    heading = element(
        "p",
        f"{capital(style.truth)} ",
        element("span", style.score(found.before.mean), cls="was nowrap"),
        " ",
        element("span", "→ ", element("span", style.score(found.after.mean), cls="now"), cls="nowrap"),
        cls="headline",
    )
    so_far = "" if found.finished else f" so far, at step {found.step}"
    sentence = (
        f"Gain {style.gain(found.gain.mean)}{so_far} (95 % interval of the gain {style.gain_bounds(found.gain)}, "
        f"{_pairs(found)}) in {_duration(run)}."
    )
    return element("section", heading, element("p", sentence), _tiles(run, found, style), cls="card")


def _headline_without_gain(run: RunRecord, style: Style) -> Iterator[Html]:
    before = run.before()
    if before is None:
        yield element("p", "No measurement yet", cls="headline")
        yield element("p", "Missing: evaluations.jsonl holds no measurement before training, so no gain can be stated.")
    else:
        yield element("p", f"{capital(style.truth)} {style.score(before.mean)} before training", cls="headline")
        yield element("p", "Missing: nothing was measured after training began, so no gain can be stated.")


def _pairs(found: Change) -> str:
    if not found.paired:
        return "not paired by item"
    lost = f", {found.gain.missing} more lack a score" if found.gain.missing else ""
    return f"{number(found.gain.count)} paired items{lost}"


def _duration(run: RunRecord) -> str:
    summary = run.summary
    if summary is not None and summary.minutes is not None:
        training = summary.training_minutes
        return _time(summary.minutes) + ("" if training is None else f" ({_time(training)} of training)")
    seconds = _training_seconds(run)
    return "an unknown time (no timing was recorded)" if seconds is None else f"{_time(seconds / 60)} of training"


def _time(minutes: float) -> str:
    return f"{minutes:.1f} minutes" if minutes >= 1 else f"{number(60 * minutes, 2)} seconds"


def _training_seconds(run: RunRecord) -> float | None:
    return next((row["seconds"] for row in reversed(run.timing) if row.get("seconds") is not None), None)


def _tiles(run: RunRecord, found: Change | None, style: Style) -> Html:
    tiles = {"steps": number(run.summary.steps if run.summary else _last_step(run))}
    if found is not None:
        tiles = {
            "before (95 %)": style.bounds(found.before.low, found.before.high),
            "after (95 %)" if found.finished else "so far (95 %)": style.bounds(found.after.low, found.after.high),
        } | tiles
    if not _learns_from_data(run):
        tiles |= {
            "network calls": number(_calls(run, "network_calls")),
            "reward calls": number(_calls(run, "reward_calls")),
        }
    tiles |= {"seed": number(run.summary.seed)} if run.summary else {}
    return element("dl", *(_tile(label, value) for label, value in tiles.items()), cls="tiles")


def _learns_from_data(run: RunRecord) -> bool:
    """Whether training draws nothing, so that there are no calls to count."""
    return _calls(run, "network_calls") == 0


def _tile(label: str, value: str) -> Html:
    return element("div", element("dt", label), element("dd", value))


def _calls(run: RunRecord, key: str) -> int | None:
    """A cumulative count: the summary's or, in a run that has not ended, that of the last step."""
    stated = getattr(run.summary, key) if run.summary else None
    counted = (row[key] for row in reversed(run.metrics) if row.get(key) is not None)
    return stated if stated is not None else next(counted, None)


def _verdict(found: Findings) -> Html:
    verdict = judge(found)
    details = element("ul", *(element("li", line) for line in verdict.details))
    return element("section", element("h2", verdict.headline), details, cls=f"card verdict {verdict.level}")


# --- measurements --------------------------------------------------------------------------------------------------


def _curves(found: Findings) -> Html:
    drawn = panels.panels(found)
    if not drawn:
        return section("Curves", element("p", "Missing: no step was recorded in metrics.jsonl.", cls="muted"))
    charts = (element("figure", _chart(panel)) for panel in drawn)
    absent = [] if found.run.fits else panels.absent_panels(drawn)
    note = element("p", f"Nothing was recorded to draw: {', '.join(absent)}.", cls="muted") if absent else None
    lead = "Long curves are moving means over the faint values of single steps; bands are 95 % intervals."
    return section("Curves", element("div", *charts, cls="charts"), note, lead=lead)


def _chart(panel: panels.Panel) -> Html:
    return themed_chart(plots.panel_png(panel, look.LIGHT), plots.panel_png(panel, look.DARK), panel.title)


def _categories(found: Findings) -> Html:
    title = "By category"
    light, dark = (plots.categories_png(found, theme) for theme in (look.LIGHT, look.DARK))
    if light is None or dark is None:
        return section(title, element("p", "Missing: no category was measured before and after.", cls="muted"))
    chart = element("figure", themed_chart(light, dark, "score by category, before and after"), cls="wide scroll")
    return section(
        title, chart, _split_table(found, found.run.main_split), lead="Whiskers and brackets are 95 % intervals."
    )


def _other_split(found: Findings, split: str) -> Html:
    explanation = {"compositional": "Attribute pairs that no training prompt names: what was learned, or memorised?"}
    title = f"Split: {split}"
    if found.changes[split] is None:
        return section(title, _single_measurements(found, split), lead=explanation.get(split))
    return section(title, _split_table(found, split), lead=explanation.get(split))


def _single_measurements(found: Findings, split: str) -> Html:
    """What there is of a split that was not measured both before and after."""
    style = found.style
    rows = [row for row in found.run.evaluations if row.split == split]
    lines = (f"Step {row.step} ({row.label}): {style.score(row.mean)}, {number(row.count)} items." for row in rows)
    return paragraphs([*lines, "Missing: the counterpart, so no gain can be stated."])


def _split_table(found: Findings, split: str) -> Html:
    style, whole = found.style, found.changes[split]
    assert whole is not None
    rows = [_change_row("all", whole, style), *(_change_row(c.name, c, style) for c in found.categories[split])]
    after = "after" if whole.finished else f"step {whole.step}"
    gain = "gain (points)" if style.accuracy else "gain"
    return table(("category", gain, "before", after, "items"), rows, numeric=range(1, 5), total=True)


def _change_row(name: str, found: Change, style: Style) -> tuple[Content, ...]:
    counts = found.after if found.before.count == found.after.count else None
    items = number(found.after.count) if counts else f"{number(found.before.count)} / {number(found.after.count)}"
    missing = found.before.missing + found.after.missing
    direction = "yes" if found.gain.low > 0 else "no" if found.gain.high < 0 else "even"
    return (
        name,
        _bracketed(
            element("span", style.signed(found.gain.mean), cls=f"mark {direction}"), style.gain_bounds(found.gain)
        ),
        _bracketed(style.score(found.before.mean), style.bounds(found.before.low, found.before.high)),
        _bracketed(style.score(found.after.mean), style.bounds(found.after.low, found.after.high)),
        f"{items} ({missing} missing)" if missing else items,
    )


def _bracketed(value: Content, bounds: str) -> Html:
    brackets = None if bounds == ABSENT else element("span", f" [{bounds}]", cls="muted")
    return join(value, brackets)


# --- trust and cost ------------------------------------------------------------------------------------------------


def _checks(checks: Sequence[Check] | None) -> Html:
    title = "What was checked"
    if not checks:
        return section(title, element("p", "Missing: checks.json holds no checks of this run.", cls="muted"))
    passed, failed = (sum(check.passed is state for check in checks) for state in (True, False))
    lead = f"{passed} passed, {failed} failed, {len(checks) - passed - failed} not applicable."
    ordered = sorted(checks, key=lambda check: check.passed is not False)
    rows = [_check_row(check) for check in ordered]
    return section(title, table(("check", "result", "value", "limit", "what to do"), rows), lead=lead)


def _check_row(check: Check) -> tuple[Content, ...]:
    word, text = {True: ("yes", "✓ pass"), False: ("no", "✗ fail"), None: ("", "not applicable")}[check.passed]
    remedy = check.remedy if check.passed is False else None
    result = element("span", text, cls=f"mark nowrap {word}".strip())
    return (check.name, result, _check_value(check.value), _check_value(check.limit), remedy or "")


def _check_value(value: float | str | None) -> str:
    return "" if value is None else value if isinstance(value, str) else number(value)


def _costs(run: RunRecord) -> Html:
    lead = "Network calls are samples times network evaluations; both counts include every step of training."
    if _learns_from_data(run):
        lead = "Training learned from data: it drew no samples and asked no reward; measurements did."
    parts = (_time_shares(run), _call_table(run), _reward_costs(run), _missing_scores(run))
    return section("Where time went", *parts, lead=lead)


def _time_shares(run: RunRecord) -> Html:
    seconds = {part: sum(row.get(f"timing_s/{part}") or 0.0 for row in run.timing) for part in PARTS}
    total = sum(row.get("timing_s/step") or 0.0 for row in run.timing)
    if total <= 0:
        return element("p", "Missing: timing.jsonl holds no step times.", cls="muted")
    seconds["other"] = max(total - sum(seconds.values()), 0.0)
    bar = element(
        "div",
        *(element("span", cls=f"c{i}", style=f"width: {100 * s / total:.2f}%") for i, s in enumerate(seconds.values())),
        cls="bar",
    )
    rows: list[tuple[Content, ...]] = [
        (
            join(element("span", cls=f"key c{i}"), part),
            f"{s:.1f} s",
            f"{100 * s / total:.0f} %",
            f"{s / len(run.timing):.2f} s",
        )
        for i, (part, s) in enumerate(seconds.items())
    ]
    rows.append(("all training steps", f"{total:.1f} s", "100 %", f"{total / len(run.timing):.2f} s"))
    return join(bar, table(("part of a step", "time", "share", "per step"), rows, numeric=range(1, 4)))


def _call_table(run: RunRecord) -> Html | None:
    rows: list[tuple[Content, ...]] = []
    if not _learns_from_data(run):
        rows += [(name, number(_calls(run, name.replace(" ", "_")))) for name in ("network calls", "reward calls")]
    summary = run.summary
    if summary and summary.minutes is not None and summary.training_minutes is not None:
        outside = 60 * (summary.minutes - summary.training_minutes)
        rows.append(("evaluation, checks and saving, outside of training", f"{outside:.1f} s"))
    return join(element("h3", "Calls"), table((), rows, numeric=(1,))) if rows else None


def _reward_costs(run: RunRecord) -> Html | None:
    """Latency of a call: the median step's median and the worst step's 95th percentile. Counts are since the start."""
    rows: list[tuple[Content, ...]] = []
    for name in run.rewards():
        p50, p95 = (_logged(run, f"rewards/{name}/latency_{p}_s") for p in ("p50", "p95"))
        counts = [_logged(run, f"rewards/{name}/{count}") for count in ("calls", "repeats", "cache_hits")]
        times = (
            (f"{1000 * statistics.median(p50):.1f} ms", f"{1000 * max(p95):.1f} ms")
            if p50 and p95
            else (ABSENT, ABSENT)
        )
        if p50 or any(counts):
            rows.append((name, *times, *(number(values[-1]) if values else ABSENT for values in counts)))
    head = ("reward", "median latency", "worst 95th percentile", "calls", "repeats", "cache hits")
    return join(element("h3", "Rewards"), table(head, rows, numeric=range(1, 6))) if rows else None


def _logged(run: RunRecord, key: str) -> list[float]:
    return [row[key] for row in run.timing if row.get(key) is not None]


def _missing_scores(run: RunRecord) -> Html | None:
    """Rewards that failed to answer at some step, at their worst step."""
    worst = {name: run.series(f"rewards/{name}/missing_frac").values for name in run.rewards()}
    lines = [
        f"{name}: up to {100 * v.max():.1f} % of a step's scores were missing" for name, v in worst.items() if v.any()
    ]
    return join(element("h3", "Missing scores"), paragraphs(lines)) if lines else None


def _missing(run: RunRecord) -> Html:
    if run.notes:
        return section("What is missing", paragraphs(run.notes), lead="Nothing above was guessed to fill these gaps.")
    return section("What is missing", element("p", "Nothing: every file of a finished run is here and complete."))


def _recipe(run: RunRecord) -> Html:
    summary = run.summary
    versions = {
        "plaudit": summary.plaudit if summary else None,
        "torch": summary.torch if summary else None,
        "CPU threads": number(summary.threads) if summary else None,
        "seed": number(summary.seed) if summary else None,
    }
    rows = [(name, value or ABSENT) for name, value in versions.items()]
    text = folded("The resolved recipe", element("pre", run.recipe_text)) if run.recipe_text else None
    absent = element("p", "Missing: recipe.yaml.", cls="muted") if text is None else None
    command = _command(run)
    how = join(element("p", "In the folder where it was started:"), element("pre", command)) if command else None
    return section("How to reproduce it", how, table((), rows, numeric=(1,)), text, absent)


def _command(run: RunRecord) -> str | None:
    """The same run again beside this one. A limit of time ends another machine's run elsewhere, so the steps are stated."""
    if run.recipe is None:
        return None
    path, limits, summary = Path(run.recipe.run.folder) / _name(run) / "recipe.yaml", "", run.summary
    if summary is not None and summary.steps:
        limits += f" --train.steps {summary.steps}" if run.recipe.train.steps != summary.steps else ""
        limits += " --train.minutes null" if run.recipe.train.minutes is not None else ""
    if summary is not None and summary.threads and run.recipe.run.threads is None:
        limits += f" --run.threads {summary.threads}"
    verb = "fit" if run.fits else "align"
    return f"plaudit {verb} {shlex.quote(str(path))} --run.name {shlex.quote(_name(run) + '-again')}{limits}"
