"""Texts before and after at equal prompts and equal random numbers, with what every reward said of them."""

from __future__ import annotations

from collections.abc import Sequence

from plaudit.pages.html import Content, Html, element, folded, join, section, table
from plaudit.pages.numbers import ABSENT, number
from plaudit.runs.record import AFTER, BEFORE, RunRecord, TextRow

SHOWN = 600  # characters of a text


def texts(run: RunRecord) -> Html:
    steps = [name for name in run.texts if name not in (BEFORE, AFTER)]
    last = AFTER if AFTER in run.texts else next(reversed(steps), None)
    names = [name for name in (BEFORE, last) if name in run.texts]
    shown = [(_label(name), run.texts[name]) for name in names if name is not None]
    during = [
        folded(f"The same prompts at {_label(name)}", _table([(_label(name), run.texts[name])])) for name in steps
    ]
    lead = "Each prompt was answered with the same random numbers; only the weights differ."
    if of_the_data := _of_the_data(run):
        verb, whose = ("judges", "its") if len(of_the_data) == 1 else ("judge", "their")
        lead += (
            f" {' and '.join(of_the_data)} {verb} the answers that stand in the data of a prompt, not the outputs shown here: "
            f"read {whose} number as one of the prompt."
        )
    return section("Before and after", _table(shown), *during, lead=lead)


def _of_the_data(run: RunRecord) -> list[str]:
    """What did not look at outputs: the truth, and rewards by their names."""
    measured = run.before() or run.latest()
    if measured is None:
        return []
    return [*([] if measured.looks_at_outputs else [f"The truth ({measured.reward})"]), *measured.of_the_data]


def _label(name: str) -> str:
    return f"step {int(name.removeprefix('step_'))}" if name.startswith("step_") else name


def _table(sides: Sequence[tuple[str, Sequence[TextRow]]]) -> Html:
    """One line per prompt and side; a column for the truth, for every reward, and for what rewards added."""
    every = [row for _, rows in sides for row in rows]
    rewards = list(dict.fromkeys(name for row in every for name in row.rewards))
    extra = list(dict.fromkeys(name for row in every for name in row.extra))
    notes = any(row.notes for row in every)
    lines: list[tuple[Content, ...]] = []
    for i in range(max((len(rows) for _, rows in sides), default=0)):
        for label, rows in sides:
            if i < len(rows):
                lines.append(_line(rows[i], label, rewards, extra, notes))
    head = ("prompt", "", "output", "truth", *rewards, *extra, *(["notes"] if notes else []))
    return table(head, lines, numeric=range(3, 4 + len(rewards)))


def _line(row: TextRow, label: str, rewards: Sequence[str], extra: Sequence[str], notes: bool) -> tuple[Content, ...]:
    told = join(*(element("div", f"{name}: {note}") for name, note in row.notes.items()))
    return (
        _cut(row.prompt),
        label,
        _cut(row.output),
        number(row.truth),
        *(number(row.rewards.get(name)) for name in rewards),
        *(str(row.extra.get(name, ABSENT)) for name in extra),
        *([told] if notes else []),
    )


def _cut(text: str) -> Html:
    short = text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
    return element("div", short, cls="text")
