"""TikZ and other TeX documents, compiled and compared with what they should show (TikZilla, S063).

TeX is a system program, not a Python package: where `pdflatex` or poppler's `pdftoppm` is missing, nothing is judged and
the note says what to install. It runs in the sandbox without shell escape. Documents that ask for more than drawing
(\\write18, files opened for writing or reading, absolute or parent paths) are worth as much as those that do not compile;
the sandbox contains what this list does not foresee.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from plaudit.errors import SandboxError
from plaudit.recipe.base import NotNegative, Positive
from plaudit.rewards.base import Card, Score, Status, missing
from plaudit.rewards.rules.code import FENCED
from plaudit.rewards.rules.rendering import LONGEST_PROGRAM, Drawn, Megabytes, Seconds, Side, alike, load_similarity
from plaudit.sandbox import Limits, RunStatus, run, safe_level

PROGRAMS = ("pdflatex", "pdftoppm")
INSTALL = "install TeX Live and poppler (Debian: apt install texlive-latex-extra texlive-pictures poppler-utils)"
DOCUMENT = re.compile(r"\\documentclass.*?\\end\s*\{document\}", re.DOTALL)
BANNED = {
    "shell escape": r"\\write\s*18|\\ShellEscape|\\directlua|\\pdfshellescape",
    "output file": r"\\(?:immediate\s*\\)?(?:openout|newwrite)\b|\\begin\s*\{filecontents\*?\}",
    "input file": r"\\(?:openin|newread|pdffiledump|pdffilesize|lstinputlisting|verbatiminput|includegraphics|includepdf)\b",
    "path": r"\\(?:input|include|@@input|InputIfFileExists|import|subimport)\b\s*\{?\s*[\"'|]?\s*(?:/|~|\.\.|\|)",
}
WHAT = {kind: re.compile(pattern) for kind, pattern in BANNED.items()}
SCRIPT = """
"$1" -no-shell-escape -interaction=batchmode -halt-on-error main.tex >/dev/null 2>&1 </dev/null ||
    { tail -c 2000 main.log; exit 3; }
"$2" -f 1 -l 1 -singlefile -scale-to "$3" main.pdf page >/dev/null 2>&1 || exit 4
"""


def extract_tex(text: str) -> str | None:
    """The complete document in the last fenced block that has one; else the first in the text."""
    for block in reversed(FENCED.findall(text)):
        if found := DOCUMENT.search(block):
            return found[0]
    found = DOCUMENT.search(text)
    return found[0] if found else None


def refusals(document: str) -> list[str]:
    return [kind for kind, pattern in WHAT.items() if pattern.search(without_comments(document))]


def without_comments(document: str) -> str:
    return re.sub(r"(?<!\\)((?:\\\\)*)%.*", r"\1", document)


def read_page(content: bytes, size: int) -> Tensor | None:
    """`[3, size, size]` in 0..1: a PPM (P6, 8 bits) of at most that size, in the middle of white; None if it is none."""
    head = re.match(rb"P6\s+(\d{1,5})\s+(\d{1,5})\s+255\s", content)
    if head is None:
        return None
    width, height = int(head[1]), int(head[2])
    if not (0 < width <= size and 0 < height <= size) or len(content) - head.end() != 3 * width * height:
        return None
    flat = torch.frombuffer(bytearray(content[head.end() :]), dtype=torch.uint8)
    page = torch.ones(3, size, size)
    top, left = (size - height) // 2, (size - width) // 2
    page[:, top : top + height, left : left + width] = flat.view(height, width, 3).permute(2, 0, 1) / 255
    return page


class TexPress:
    """Compiles documents, each in a sandbox of its own: TeX starts more slowly than the sandbox."""

    def __init__(
        self,
        *,
        size: Side = 224,
        item_s: Seconds = 5.0,
        memory_mb: Megabytes = 512,
        together: Positive = 1,
        at_most: int = 64,
    ) -> None:
        self.size, self.item_s, self.memory_mb, self.together = size, item_s, memory_mb, together
        self.kept = lru_cache(maxsize=at_most)(self.compile)

    def lacking(self) -> Score | None:
        absent = [name for name in PROGRAMS if shutil.which(name) is None]
        return missing(Status.NOT_APPLICABLE, f"{', '.join(absent)} not available: {INSTALL}") if absent else None

    def __call__(self, texts: Sequence[str]) -> list[Drawn | Tensor | Score]:
        safe_level()
        with ThreadPoolExecutor(self.together) as pool:
            return list(pool.map(self.press, texts))

    def press(self, text: str) -> Drawn | Tensor | Score:
        """A picture, or a Drawn with its problem, or a missing score where the sandbox failed."""
        document = extract_tex(text)
        if document is None:
            return Drawn(problem="no complete document (\\documentclass ... \\end{document})")
        if len(document) > LONGEST_PROGRAM:
            return Drawn(problem=f"a document of {len(document)} characters")
        if banned := refusals(document):
            return Drawn(problem=f"banned: {', '.join(banned)}")
        try:
            return self.kept(document)
        except SandboxError as error:
            return missing(Status.ERRORED, str(error))

    def compile(self, document: str) -> Drawn | Tensor:
        pdflatex, pdftoppm = (shutil.which(name) or name for name in PROGRAMS)
        outcome = run(
            ["/bin/sh", "-c", SCRIPT, "press", pdflatex, pdftoppm, str(self.size)],
            files={"main.tex": document.encode(errors="replace")},
            limits=Limits(wall_s=2 * self.item_s, cpu_s=self.item_s, memory_mb=self.memory_mb),
            env={"openout_any": "p", "shell_escape": "f", "TEXMFVAR": "/tmp", "max_print_line": "300"},
            collect=["page.ppm"],
        )
        if outcome.status is not RunStatus.OK:
            note = re.findall(r"^! .*", outcome.stdout.decode(errors="replace"), re.MULTILINE)
            return Drawn(problem=note[0][2:] if note else f"it does not compile: {outcome.status}")
        page = read_page(outcome.files.get("page.ppm", b""), self.size)
        return Drawn(problem="no page") if page is None else page


class TexRenders:
    """1 where the text has a complete TeX document that compiles to a page, else 0 (S063's format reward)."""

    card = Card(
        summary="1 where the text has a complete TeX document that compiles, else 0",
        kind="text",
        low=0,
        high=1,
        verdict=True,
        untrusted=True,
        systems=("S063",),
    )

    def __init__(self, *, item_s: Seconds = 5.0, memory_mb: Megabytes = 512, together: Positive = 1) -> None:
        self.press = TexPress(item_s=item_s, memory_mb=memory_mb, together=together)

    def __call__(self, prompts: Sequence[str], outputs: Sequence[str]) -> list[Score]:
        if lacking := self.press.lacking():
            return [lacking] * len(outputs)
        return [self.score(page) for page in self.press(outputs)]

    def score(self, page: Drawn | Tensor | Score) -> Score:
        if isinstance(page, Score):
            return page
        problem = page.problem if isinstance(page, Drawn) else ""
        return Score(value=float(not problem), note=problem)


class TexSimilarity:
    """similarity + format_weight of the compiled document with `reference` (a picture) or `reference_tex` (S063).

    A document that is not complete or does not compile is worth 0. `similarity` is one of rendering.py's; the paper's is the
    patch transport of an inverse-graphics encoder's features, here of pixels, on a scale from 0 so that a drawing is never
    worth less than none. The weight of the format and the time limit are not published; these are ours.
    """

    card = Card(
        summary="whether a TeX document compiles, and how like the reference it looks",
        kind="text",
        low=0,
        high=1.1,
        untrusted=True,
        systems=("S063",),
    )

    def __init__(
        self,
        *,
        similarity: str = "patch_transport",
        format_weight: NotNegative = 0.1,
        size: Side = 224,
        item_s: Seconds = 5.0,
        memory_mb: Megabytes = 512,
        together: Positive = 1,
    ) -> None:
        self.similarity, self.format_weight = load_similarity(similarity, "tex_similarity"), format_weight
        self.press = TexPress(size=size, item_s=item_s, memory_mb=memory_mb, together=together)
        self.card = replace(type(self).card, high=1 + format_weight)

    def __call__(
        self,
        prompts: Sequence[str],
        outputs: Sequence[str],
        reference: Sequence[Tensor | None] | None = None,
        reference_tex: Sequence[str | None] | None = None,
    ) -> list[Score]:
        if lacking := self.press.lacking():
            return [lacking] * len(outputs)
        nothing = [None] * len(outputs)
        given = zip(reference or nothing, reference_tex or nothing, strict=True)
        wanted = [self.wanted(picture, document) for picture, document in given]
        rows = [i for i, one in enumerate(wanted) if isinstance(one, Tensor)]
        pages = dict(zip(rows, self.press([outputs[i] for i in rows]), strict=True))
        good = [i for i in rows if isinstance(pages[i], Tensor)]
        seen = dict(zip(good, alike(self.similarity, [(pages[i], wanted[i]) for i in good]), strict=True))  # type: ignore[misc]
        return [self.score(wanted[i], pages.get(i), seen.get(i)) for i in range(len(outputs))]

    def wanted(self, picture: Tensor | None, document: str | None) -> Tensor | Score:
        if picture is not None:
            return picture
        if document is None:
            return missing(Status.NOT_APPLICABLE, "the prompt has neither `reference` nor `reference_tex`")
        page = self.press.press(document)
        if isinstance(page, Drawn):
            return missing(Status.ERRORED, f"the reference does not compile: {page.problem}")
        return page

    def score(self, wanted: Tensor | Score, page: Drawn | Tensor | Score | None, seen: float | None) -> Score:
        if isinstance(wanted, Score):
            return wanted
        if isinstance(page, Score):
            return page
        if seen is None:
            problem = page.problem if isinstance(page, Drawn) else ""
            return Score(value=0.0, components={"similarity": 0.0, "format": 0.0}, note=problem)
        return Score(value=seen + self.format_weight, components={"similarity": seen, "format": 1.0})
