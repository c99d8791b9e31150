"""Self-contained HTML pages: text is escaped by construction, nothing is loaded, no script runs."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

VOID_TAGS = frozenset({"img", "meta", "source"})

STYLESHEET = """
:root {
  color-scheme: light dark;
  --ground: #f5f7fa; --card: #ffffff; --text: #1b2430; --muted: #5b6675; --line: #dfe4ea;
  --before: #9aa5b4; --accent: #1f6feb; --good: #11734b; --warning: #8a5a00; --bad: #b3261e;
  --good-ground: #e3f5ec; --warning-ground: #fdf2d9; --bad-ground: #fdeae8; --unknown-ground: #eceff3;
  --third: #0f8a6d; --second: #d9730d;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #0d1117; --card: #161b22; --text: #e6edf3; --muted: #9aa6b4; --line: #2b333d;
    --before: #6b7685; --accent: #58a6ff; --good: #56d39b; --warning: #e9b949; --bad: #ff8a80;
    --good-ground: #12291f; --warning-ground: #2c2410; --bad-ground: #331a19; --unknown-ground: #1f2630;
    --third: #3fc9a4; --second: #f0994a;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--text);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1080px; margin: 0 auto; padding: 28px 20px 56px; }
h1 { font-size: 1rem; font-weight: 600; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 4px; }
h3 { font-size: .95rem; margin: 20px 0 8px; }
p { margin: 0 0 10px; }
.muted, figcaption, .lead { color: var(--muted); }
.lead { font-size: .9rem; margin-bottom: 14px; }
.top { display: flex; flex-wrap: wrap; gap: 6px 14px; align-items: baseline; margin-bottom: 14px; color: var(--muted); }
.top h1 { color: var(--text); }
.card {
  background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 20px 22px; margin-bottom: 18px;
}
.headline { font-size: clamp(1.5rem, 5.2vw, 2.3rem); line-height: 1.2; font-weight: 700; letter-spacing: -.02em; margin: 0 0 6px; }
.headline .was { color: var(--muted); } .headline .now { color: var(--accent); }
.nowrap { white-space: nowrap; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(128px, 1fr)); gap: 14px 18px; margin: 18px 0 0; padding: 16px 0 0; border-top: 1px solid var(--line); }
.tiles dt { color: var(--muted); font-size: .8rem; } .tiles dd { margin: 0; font-size: 1.12rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.verdict { border-left: 5px solid var(--muted); background: var(--unknown-ground); }
.verdict.good { border-left-color: var(--good); background: var(--good-ground); }
.verdict.warning { border-left-color: var(--warning); background: var(--warning-ground); }
.verdict.bad { border-left-color: var(--bad); background: var(--bad-ground); }
.verdict ul { margin: 8px 0 0; padding-left: 18px; font-size: .92rem; } .verdict li + li { margin-top: 4px; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(196px, 1fr)); gap: 18px 16px; }
.pair { margin: 0; } .pair > figcaption { font-size: .86rem; line-height: 1.35; margin-top: 6px; color: var(--text); overflow-wrap: anywhere; }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 8px; }
.side { font-size: .76rem; color: var(--muted); }
.side img { width: 100%; aspect-ratio: 1; object-fit: contain; display: block; border-radius: 6px; border: 2px solid var(--line); }
.side.yes img { border-color: var(--good); } .side.no img { border-color: var(--bad); }
.pixelated { image-rendering: pixelated; }
.side div { display: flex; justify-content: space-between; margin-top: 3px; }
.mark { font-weight: 600; } .yes .mark, .mark.yes { color: var(--good); } .no .mark, .mark.no { color: var(--bad); }
.grids { display: grid; grid-template-columns: repeat(auto-fit, minmax(250px, 1fr)); gap: 16px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 18px; }
figure { margin: 0; } figcaption { font-size: .82rem; margin-top: 4px; }
img { max-width: 100%; height: auto; } .chart { width: 100%; display: block; } .wide { max-width: 860px; margin: 0 auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .89rem; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--muted); font-size: .8rem; vertical-align: bottom; }
th, td { padding: 7px 14px 7px 0; border-bottom: 1px solid var(--line); } td { vertical-align: top; }
tbody tr:last-child td { border-bottom: 0; } td.number, th.number { text-align: right; white-space: nowrap; } td .muted { font-size: .82rem; }
th:last-child, td:last-child { padding-right: 0; }
tr.total td { font-weight: 600; border-bottom: 2px solid var(--line); }
.bar { display: flex; height: 14px; border-radius: 7px; overflow: hidden; margin: 6px 0 12px; background: var(--line); }
.key { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 7px; }
.c0 { background: var(--accent); } .c1 { background: var(--second); } .c2 { background: var(--third); } .c3 { background: var(--before); }
details summary { cursor: pointer; color: var(--muted); font-size: .9rem; } details[open] summary { margin-bottom: 12px; }
h2 + details, .pairs + details, .scroll + details, .charts + p, .scroll + p { margin-top: 14px; }
pre { overflow-x: auto; font: 12.5px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; margin: 0; }
code { font: .92em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
ul.plain { margin: 0; padding-left: 18px; } a { color: var(--accent); }
@media (max-width: 520px) {
  main { padding: 16px 10px 40px; } .card { padding: 15px 14px; border-radius: 10px; }
  .pairs { grid-template-columns: 1fr 1fr; gap: 16px 12px; } .sides { gap: 5px; } .side div { display: block; }
  table { font-size: .83rem; } th, td { padding-right: 10px; }
}
@media print { .card { break-inside: avoid; } body { background: none; } }
"""


@dataclass(frozen=True)
class Html:
    """Markup. Whatever else reaches a page is a `str` and is escaped."""

    text: str


Content = Html | str | None


def element(tag: str, *children: Content, cls: str | None = None, **attributes: str) -> Html:
    """One element; children that are text and all attribute values are escaped, None is left out."""
    named = ({"class": cls} if cls else {}) | {key.replace("_", "-"): value for key, value in attributes.items()}
    opening = "".join(f' {key}="{html.escape(value)}"' for key, value in named.items())
    if tag in VOID_TAGS:
        return Html(f"<{tag}{opening}>")
    return Html(f"<{tag}{opening}>{join(*children).text}</{tag}>")


def join(*children: Content) -> Html:
    parts = (child.text if isinstance(child, Html) else html.escape(child) for child in children if child is not None)
    return Html("".join(parts))


def section(title: str, *children: Content, lead: str | None = None) -> Html:
    return element(
        "section", element("h2", title), element("p", lead, cls="lead") if lead else None, *children, cls="card"
    )


def paragraphs(lines: Iterable[str]) -> Html:
    return element("ul", *(element("li", line) for line in lines), cls="plain")


def folded(summary: str, *children: Content) -> Html:
    return element("details", element("summary", summary), *children)


def table(
    columns: Sequence[str], rows: Sequence[Sequence[Content]], *, numeric_from: int = 1, total: bool = False
) -> Html:
    """A table that scrolls sideways on a phone; columns from `numeric_from` on are numbers, `total` stresses the first row."""

    def cell(tag: str, column: int, content: Content) -> Html:
        return element(tag, content, cls="number" if column >= numeric_from else None)

    head = element("tr", *(cell("th", column, name) for column, name in enumerate(columns)))
    body = (
        element(
            "tr",
            *(cell("td", column, content) for column, content in enumerate(row)),
            cls="total" if total and index == 0 else None,
        )
        for index, row in enumerate(rows)
    )
    return element("div", element("table", element("thead", head), element("tbody", *body)), cls="scroll")


def data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def image(png: bytes, alternative: str, cls: str | None = None) -> Html:
    return element("img", cls=cls, src=data_uri(png), alt=alternative)


def themed_chart(light: bytes, dark: bytes, alternative: str) -> Html:
    """A chart that follows the reader's light or dark appearance."""
    source = element("source", srcset=data_uri(dark), media="(prefers-color-scheme: dark)")
    return element("picture", source, image(light, alternative, cls="chart"))


def document(title: str, *children: Content) -> str:
    """A whole page. Its policy lets a browser load nothing, so that a report shows the same wherever it is opened."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("title", title),
        element("style", Html(STYLESHEET)),
    )
    return (
        "<!doctype html>\n" + element("html", head, element("body", element("main", *children)), lang="en").text + "\n"
    )
