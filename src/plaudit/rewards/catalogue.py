"""All built-in rewards with their cards, as the command line and the documentation show them."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from plaudit.dotted import import_dotted
from plaudit.errors import RecipeError
from plaudit.rewards.base import Card
from plaudit.rewards.calling.handing import OUTPUT_NAMES
from plaudit.rewards.compose.table import OPERATORS
from plaudit.rewards.table import BUILT_IN, SECTIONS

GIVEN = ("self", "prompts", *OUTPUT_NAMES, "ids", "group", "step", "facts", "inputs", "request", "log_metric")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One built-in reward: its card, the columns that it needs of a prompt, and its options."""

    name: str
    path: str
    card: Card
    needs: Sequence[str]
    options: Sequence[str]

    @property
    def range(self) -> str:
        return range_of(self.card)

    @property
    def needs_text(self) -> str:
        return ", ".join(self.needs) or "-"


def range_of(card: Card) -> str:
    return f"{_bound(card.low)} .. {_bound(card.high)}" + ("" if card.higher_is_better else " (less is better)")


def marks(card: Card) -> list[str]:
    """What is special about a reward, in a few words each."""
    return [
        *(["a verdict"] if card.verdict else []),
        *(["differentiable"] if card.differentiable else []),
        *([] if card.batch_invariant else ["by batch or history"]),
        *([] if card.deterministic else ["noisy"]),
        *([f"at most {card.max_prompt_tokens} tokens"] if card.max_prompt_tokens else []),
        *(["sandbox"] if card.untrusted else []),
    ]


def card_row(card: Card | None) -> tuple[str, str, str, str]:
    """Kind, range, reference and the rest of a card, or what to do about a missing one."""
    if card is None:
        return "?", "?", "-", "no card: nothing is known of its scale"
    reference = f"{card.reference.mean:g} ± {card.reference.std:g}" if card.reference else "-"
    special = f" ({', '.join(marks(card))})" if marks(card) else ""
    return card.kind, range_of(card), reference, card.summary.rstrip(".") + special


def _bound(value: float) -> str:
    return {math.inf: "∞", -math.inf: "-∞"}.get(value, f"{value:g}")


def entry(name: str) -> Entry:
    path = BUILT_IN.get(name, name)
    thing = import_dotted(path, f"reward {name!r}", built_in=BUILT_IN)
    card = getattr(thing, "card", None)
    if card is None:
        raise RecipeError(
            f"reward {name!r} ({path}) has no card; write one with @card(...) or a class attribute `card`"
        )
    call = inspect.signature(thing.__call__ if inspect.isclass(thing) else thing, eval_str=True).parameters.values()
    columns = [p for p in call if p.name not in GIVEN and p.kind is not p.VAR_KEYWORD]
    needs = [p.name for p in columns if p.default is p.empty]
    options = list(inspect.signature(thing, eval_str=True).parameters.values()) if inspect.isclass(thing) else []
    keyword = [p for p in columns if p.default is not p.empty]
    return Entry(name=name, path=path, card=card, needs=needs, options=[_option(p) for p in (*options, *keyword)])


def _option(parameter: inspect.Parameter) -> str:
    text = parameter.name if parameter.default is parameter.empty else f"{parameter.name}={parameter.default!r}"
    allowed = re.search(r"Literal\[(.*?)\]", str(parameter.annotation))
    return f"{text} ({allowed.group(1)})" if allowed else text


def entries() -> Iterator[Entry]:
    return (entry(name) for name in BUILT_IN)


def card_lines(name: str) -> list[str]:
    if name in OPERATORS:
        operator = OPERATORS[name]
        return [operator.usage, *(f"  {line}" for line in (inspect.getdoc(operator.function) or "").splitlines())]
    found = entry(name)
    card = found.card
    reference = card.reference
    facts: list[tuple[str, Any]] = [
        ("what", card.summary),
        ("looks at", card.kind),
        ("range", found.range),
        ("needs", found.needs_text),
        ("options", ", ".join(found.options) or "-"),
        ("differentiable", "yes" if card.differentiable else "no"),
        ("depends on the rest of the batch or on the past", "no" if card.batch_invariant else "yes"),
        ("same scores every time", "yes" if card.deterministic else "no"),
        ("longest prompt", f"{card.max_prompt_tokens} tokens" if card.max_prompt_tokens else "-"),
        ("reference", f"{reference.mean:g} ± {reference.std:g} on {reference.on}" if reference else "-"),
        ("cost", f"{card.cost_ms:g} ms an output on one core" if card.cost_ms is not None else "-"),
        ("install", f"pip install 'plaudit[{card.extra}]'" if card.extra else "-"),
        ("runs programs", "in the sandbox" if card.untrusted else "no"),
        ("systems", ", ".join(card.systems) or "-"),
        ("revision", card.revision),
        ("code", found.path),
    ]
    width = max(len(key) for key, _ in facts)
    told = (inspect.getdoc(import_dotted(found.path, name)) or "").splitlines()
    return [name, *(f"  {key:<{width}}  {value}" for key, value in facts), "", *(f"  {line}".rstrip() for line in told)]


def operator_rows() -> list[tuple[str, str]]:
    return [(operator.usage, operator.meaning) for operator in OPERATORS.values()]


def markdown_tables() -> str:
    """Cards by section, then operators, as docs/rewards.md has them."""
    lines: list[str] = []
    for section, names in SECTIONS.items():
        lines += [f"### {section[0].upper()}{section[1:]}", "", "| reward | range | needs | what | cost | systems |"]
        lines += ["| --- | --- | --- | --- | --- | --- |"]
        lines += [_markdown_row(entry(name)) for name in names]
        lines.append("")
    lines += ["### Operators of `combine`", "", "| operator | what |", "| --- | --- |"]
    lines += [f"| `{usage}` | {summary} |" for usage, summary in operator_rows()]
    return "\n".join(lines) + "\n"


def _markdown_row(found: Entry) -> str:
    card = found.card
    notes = marks(card) + ([f"`[{card.extra}]`"] if card.extra else [])
    what = card.summary[:1].upper() + card.summary[1:].rstrip(".") + (f" ({', '.join(notes)})" if notes else "")
    needs = ", ".join(f"`{need}`" for need in found.needs) or "-"
    cost = f"{card.cost_ms:g} ms" if card.cost_ms is not None else "-"
    cells = (f"`{found.name}`", f"{card.kind}, {found.range}", needs, what, cost, ", ".join(card.systems) or "-")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
