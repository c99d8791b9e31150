"""Self-contained HTML pages: text is escaped by construction, nothing is loaded, no script runs."""

from __future__ import annotations

import base64
import html
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

VOID_TAGS = frozenset({"img", "meta", "source"})

STYLESHEET = """
:root {
  color-scheme: light dark;
  --ground: #f5f7fa; --card: #ffffff; --text: #1b2430; --muted: #5b6675; --line: #dfe4ea; --shadow: #1b24303d;
  --first: #1f6feb; --second: #d9730d; --third: #0f8a6d; --fourth: #9aa5b4;
  --good: #11734b; --warning: #8a5a00; --bad: #b3261e;
  --good-ground: #e3f5ec; --warning-ground: #fdf2d9; --bad-ground: #fdeae8; --unknown-ground: #eceff3;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #0d1117; --card: #161b22; --text: #e6edf3; --muted: #9aa6b4; --line: #2b333d; --shadow: #000000cc;
    --first: #58a6ff; --second: #f0994a; --third: #3fc9a4; --fourth: #6b7685;
    --good: #56d39b; --warning: #e9b949; --bad: #ff8a80;
    --good-ground: #12291f; --warning-ground: #2c2410; --bad-ground: #331a19; --unknown-ground: #1f2630;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--text); overflow-wrap: anywhere;
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1080px; margin: 0 auto; padding: 28px 20px 56px; }
h1 { font-size: 1rem; font-weight: 600; margin: 0; color: var(--text); }
h2 { font-size: 1.15rem; line-height: 1.35; margin: 0 0 4px; }
h3 { font-size: .95rem; margin: 22px 0 4px; }
p { margin: 0 0 10px; }
.card > :last-child { margin-bottom: 0; }
a { color: var(--first); }
img { max-width: 100%; height: auto; }
figure { margin: 0; }
figcaption { font-size: .82rem; margin-top: 4px; color: var(--muted); }
pre { overflow-x: auto; margin: 0; font: 12.5px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
details { margin-top: 14px; }
details summary { cursor: pointer; color: var(--muted); font-size: .9rem; }
details[open] summary { margin-bottom: 12px; }
ul.plain { margin: 0; padding-left: 18px; }
.muted, .lead { color: var(--muted); }
.lead { font-size: .9rem; margin-bottom: 14px; }
.nowrap { white-space: nowrap; }
.top {
  display: flex; flex-wrap: wrap; gap: 4px 14px; align-items: baseline; margin: 0 4px 14px; color: var(--muted);
}
.card {
  background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 20px 22px; margin-bottom: 18px;
}
.headline {
  font-size: clamp(1.5rem, 5.2vw, 2.3rem); line-height: 1.2; font-weight: 700; letter-spacing: -.02em; margin: 0 0 6px;
}
.headline .was { color: var(--muted); }
.headline .now { color: var(--first); }
.tiles {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(128px, 1fr)); gap: 14px 18px;
  margin: 16px 0 0; padding: 16px 0 0; border-top: 1px solid var(--line);
}
.tiles dt { color: var(--muted); font-size: .8rem; }
.tiles dd { margin: 0; font-size: 1.12rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.verdict { border-left: 5px solid var(--muted); background: var(--unknown-ground); }
.verdict ul { margin: 8px 0 0; padding-left: 18px; font-size: .92rem; }
.verdict li + li { margin-top: 4px; }
.verdict.good { border-left-color: var(--good); background: var(--good-ground); }
.verdict.warning { border-left-color: var(--warning); background: var(--warning-ground); }
.verdict.bad { border-left-color: var(--bad); background: var(--bad-ground); }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(280px, 1fr)); gap: 18px 20px; }
.pair > figcaption { font-size: .86rem; line-height: 1.35; margin-top: 5px; color: var(--text); }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 8px; }
.side { font-size: .75rem; color: var(--muted); }
.side img {
  width: 100%; aspect-ratio: 1; object-fit: contain; display: block; border-radius: 6px; border: 2px solid var(--line);
}
.side.yes img { border-color: var(--good); }
.side.no img { border-color: var(--bad); }
.side div { display: flex; justify-content: space-between; flex-wrap: wrap; margin-top: 3px; }
.moved { flex-basis: 100%; text-align: right; }
.pixelated { image-rendering: pixelated; }
.mark { font-weight: 600; }
.yes .mark, .mark.yes { color: var(--good); }
.no .mark, .mark.no { color: var(--bad); }
.grids { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 16px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 18px; }
.charts + p { margin: 14px 0 0; }
.chart { width: 100%; display: block; }
.wide { max-width: 860px; margin: 0 auto 16px; }
.wide .chart { min-width: 580px; }
.scroll {
  overflow-x: auto; overflow-wrap: normal;
  /* A shadow at the side where more is to be scrolled to: covers move with the table, shadows stay. */
  background:
    linear-gradient(to right, var(--card) 40%, transparent) left / 44px 100% local,
    linear-gradient(to left, var(--card) 40%, transparent) right / 44px 100% local,
    linear-gradient(to right, var(--shadow), transparent) left / 14px 100% scroll,
    linear-gradient(to left, var(--shadow), transparent) right / 14px 100% scroll;
  background-repeat: no-repeat;
}
.text { max-width: 46ch; white-space: pre-wrap; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; font-size: .89rem; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 16px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top; text-align: left; }
th { font-weight: 600; color: var(--muted); font-size: .8rem; vertical-align: bottom; }
th:last-child, td:last-child { padding-right: 0; }
td.number, th.number { text-align: right; white-space: nowrap; }
td .muted { font-size: .82rem; font-weight: 400; }
tbody tr:last-child td { border-bottom: 0; }
tr.total td { font-weight: 600; border-bottom: 2px solid var(--line); }
.bar { display: flex; height: 14px; border-radius: 7px; overflow: hidden; margin: 6px 0 12px; background: var(--line); }
.key { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 7px; }
.c0 { background: var(--first); }
.c1 { background: var(--second); }
.c2 { background: var(--third); }
.c3 { background: var(--fourth); }
@media (max-width: 520px) {
  main { padding: 16px 10px 40px; }
  .card { padding: 15px 14px; border-radius: 10px; }
  .wide.scroll::before { content: "scroll sideways →"; color: var(--muted); font-size: .78rem; }
  .tiles { grid-template-columns: 1fr 1fr; }
  .pairs { grid-template-columns: 1fr 1fr; gap: 16px 14px; }
  .sides { gap: 5px; }
  table { font-size: .83rem; }
  th, td { padding-right: 10px; }
  td:not(.number) { min-width: 4.6em; }
  td:nth-child(5):not(.number) { min-width: 11em; }
  td.number .muted { display: block; }
}
@media print {
  body { background: none; }
  .card { break-inside: avoid; }
}
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
    columns: Sequence[str], rows: Iterable[Sequence[Content]], *, numeric: Container[int] = (), total: bool = False
) -> Html:
    """A table that scrolls sideways on a phone, with a hint. `numeric` columns hold numbers; in `total` the first row sums up."""

    def cells(tag: str, row: Sequence[Content]) -> Html:
        return join(*(element(tag, c, cls="number" if i in numeric else None) for i, c in enumerate(row)))

    head = element("thead", element("tr", cells("th", columns))) if any(columns) else None
    body = (
        element("tr", cells("td", row), cls="total" if total and index == 0 else None) for index, row in enumerate(rows)
    )
    return element("div", element("table", head, element("tbody", *body)), cls="scroll")


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
