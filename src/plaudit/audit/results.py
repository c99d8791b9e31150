"""What the records say, in words: an effect with its interval, and docs/results.md. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from plaudit.audit.record import Found, Record, Standing
from plaudit.pages.numbers import Style
from plaudit.recipe.experiment import Experiment

HEAD = """# Results

<!-- plaudit systems --markdown > docs/results.md -->

Generated from the records in [docs/results/](results/), which hold the figures of every run with the recipe that made it, what it
cost, and the commit. `plaudit reproduce SYSTEM` makes a record, and the [rule](experiments.md#the-verdict) decides its verdict; a
record is `stale` once a recipe, reward or objective in it has changed. What was measured before there were records is in
[results-before.md](results-before.md).

"""
COLUMNS = ("", "level", "expected first", "difference, 95 % interval", "seeds x items", "cost")


def effect_text(record: Record, found: Found) -> str:
    """The difference in the metric's direction, with its interval; of what could not be measured, why."""
    effect, metric = found.effect, record.metrics[found.expected.metric]
    if effect.mean is None:
        return effect.why or "missing"
    style = Style(accuracy=metric.percent, noun="", where="")
    text = f"{style.gain(effect.mean)} [{style.signed(effect.low)} to {style.signed(effect.high)}]"
    lower = "" if metric.better == "higher" else " lower"
    return f"{text}{lower}{f' ({effect.why})' if effect.why else ''}"


def cost_text(record: Record) -> str:
    minutes = record.seconds / 60
    calls = f", {record.network_calls:,} network calls" if record.network_calls else ""
    return f"{minutes:.0f} min{calls}" if minutes >= 1 else f"{record.seconds:.0f} s{calls}"


@dataclass(frozen=True, kw_only=True)
class Title:
    """How a system is called, and the part of the toolkit that it belongs to."""

    name: str
    home: str


def page(titles: Mapping[str, Title], standings: Mapping[str, Standing], experiments: Mapping[str, Experiment]) -> str:
    """docs/results.md: a table per family, and below it what is to be said of each system."""
    homes = dict.fromkeys(title.home for title in titles.values())
    of_home: dict[str, list[str]] = {home: [] for home in [*homes, "other experiments"]}
    for name, experiment in experiments.items():
        if standings[name].record is not None:
            of_home[titles[experiment.system].home if experiment.system else "other experiments"].append(name)
    sections = []
    for home, some in of_home.items():
        if some:
            rows = [_row(COLUMNS), _row(["---"] * len(COLUMNS)), *(_standing_row(n, standings[n]) for n in some)]
            words = [_paragraph(n, titles, standings[n], experiments[n]) for n in some]
            sections.append(f"## {home[:1].upper()}{home[1:]}\n\n" + "\n".join(rows) + "\n\n" + "\n\n".join(words))
    return HEAD + ("\n\n".join(sections) or "No experiment has run yet.") + "\n"


def _standing_row(name: str, standing: Standing) -> str:
    record = standing.record
    assert record is not None
    main = record.main
    arms = f"{main.expected.better} over {main.expected.than}, {main.expected.metric}"
    counted = f"{main.effect.seeds} x {main.effect.items}" if main.effect.items > 1 else f"{main.effect.seeds}"
    return _row([name, standing.level, arms, effect_text(record, main), counted, cost_text(record)])


def _paragraph(name: str, titles: Mapping[str, Title], standing: Standing, experiment: Experiment) -> str:
    record = standing.record
    assert record is not None
    title = f"**{name}{f', {titles[experiment.system].name}' if experiment.system else ''}.** {record.claim}"
    parts = [f"{one.expected}: {effect_text(record, one)}, {one.effect.verdict}" for one in record.found[1:]]
    others = f" Also {'; '.join(parts)}." if parts else ""
    why = f" Stale: {standing.why}." if standing.why else ""
    return f"{title}{others}{why} {experiment.findings.get(record.verdict, '')}".strip()


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
