"""TeX documents: finding them, the ban, the plumbing with programs that stand in for TeX, and TeX where it is installed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from plaudit.rewards.base import Status
from plaudit.rewards.rules import tex
from plaudit.rewards.rules.tex import TexRenders, TexSimilarity, extract_tex, read_page, refusals
from plaudit.rewards.table import BUILT_IN

real = pytest.mark.skipif(
    any(shutil.which(name) is None for name in tex.PROGRAMS), reason="pdflatex or pdftoppm is not installed"
)
# Writes the word after SHADE as the "PDF"; stops where a document says \undefined.
PDFLATEX = """#!/bin/sh
[ "$1 $2 $3 $4" = "-no-shell-escape -interaction=batchmode -halt-on-error main.tex" ] || exit 9
if grep -q 'undefined' main.tex; then echo '! Undefined control sequence.' >main.log; exit 1; fi
if grep -q 'loops' main.tex; then sleep 30; fi
sed -n 's/.*SHADE \\([0-9]*\\).*/\\1/p' main.tex >main.pdf
"""
PDFTOPPM = """#!/bin/sh
[ "$1 $2 $3 $4 $5 $6 $8 $9" = "-f 1 -l 1 -singlefile -scale-to main.pdf page" ] || exit 9
{ printf 'P6\\n%s %s\\n255\\n' "$7" "$7"; head -c $((3 * $7 * $7)) /dev/zero | tr '\\0' "\\\\$(cat main.pdf)"; } >page.ppm
"""


def document(shade: str = "000", body: str = "") -> str:
    return f"\\documentclass{{standalone}}\\begin{{document}}SHADE {shade}\n{body}\\end{{document}}"


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sandbox can read no program of ours, so these run without it."""
    for name, script in (("pdflatex", PDFLATEX), ("pdftoppm", PDFTOPPM)):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("PLAUDIT_SANDBOX", "none")
    monkeypatch.setenv("PLAUDIT_ALLOW_UNISOLATED", "1")


@pytest.mark.parametrize(
    "text,expected",
    [
        (f"See:\n{document()} and so on", document()),
        (f"```latex\n{document()}\n```\n```latex\n{document('377')}\n```\n```\nx\n```", document("377")),
        (f"{document('1')} {document('2')}", document("1")),
        ("\\begin{tikzpicture}\\end{tikzpicture}", None),
        ("\\documentclass{standalone}\\begin{document}", None),
        ("", None),
    ],
)
def test_the_document_in_the_text(text: str, expected: str | None) -> None:
    assert extract_tex(text) == expected


@pytest.mark.parametrize(
    "body,kind",
    [
        ("\\immediate\\write18{ls}", "shell escape"),
        ("\\write 18{ls}", "shell escape"),
        ("\\directlua{os.exit()}", "shell escape"),
        ("\\newwrite\\f", "output file"),
        ("\\immediate\\openout\\f=a", "output file"),
        ("\\begin{filecontents*}{a}", "output file"),
        ("\\openin\\f=a", "input file"),
        ("\\includegraphics[width=1cm]{a.png}", "input file"),
        ("\\input{/etc/passwd}", "path"),
        ("\\input /etc/passwd", "path"),
        ("\\input{../a}", "path"),
        ("\\input|ls", "path"),
        ("\\include{~/a}", "path"),
        ("50\\% \\input{/etc/passwd}", "path"),
    ],
)
def test_what_is_banned(body: str, kind: str) -> None:
    assert refusals(document(body=body)) == [kind]


@pytest.mark.parametrize(
    "body", ["\\draw (0,0) -- (1/2,1);", "% \\write18{ls}", "\\newcommand\\written{}", "\\usetikzlibrary{calc}"]
)
def test_what_is_not(body: str) -> None:
    assert refusals(document(body=body)) == []


def test_pages_are_read_strictly() -> None:
    page = read_page(b"P6\n2 1\n255\n" + bytes([255, 0, 0, 0, 0, 255]), 3)
    assert page is not None and page.shape == (3, 3, 3)
    assert page[:, 1, 0].tolist() == [1, 0, 0] and page[:, 1, 1].tolist() == [0, 0, 1]
    assert float(page.sum()) == 7 * 3 + 2  # the rest is white
    for bad in (b"", b"P5\n1 1\n255\n.", b"P6\n2 1\n255\n.", b"P6\n4 1\n255\n" + bytes(12), b"P6\n99999 99999\n255\n"):
        assert read_page(bad, 3) is None


def test_without_tex_nothing_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    scores = TexRenders()(["", ""], [document(), ""])
    scores += TexSimilarity()([""], [document()], reference_tex=[document()])
    assert [score.status for score in scores] == [Status.NOT_APPLICABLE] * 3
    assert "pdflatex, pdftoppm not available" in scores[0].note and "apt install" in scores[0].note
    assert BUILT_IN["tex_renders"].endswith(":TexRenders")


@pytest.mark.usefixtures("stand_ins")
def test_documents_that_compile_pass() -> None:
    outputs = [
        document(),
        document(body="\\undefined"),
        document(body="\\write18{ls}"),
        "no document",
        document(body="\ud800"),
    ]
    scores = TexRenders()([""] * 5, outputs)
    assert [score.value for score in scores] == [1, 0, 0, 0, 1]
    assert [score.note[:12] for score in scores] == ["", "Undefined co", "banned: shel", "no complete ", ""]


@pytest.mark.usefixtures("stand_ins")
def test_documents_that_do_not_end_are_stopped() -> None:
    [score] = TexRenders(item_s=0.1)([""], [document(body="loops")])
    assert score.value == 0 and score.note == "it does not compile: timed_out"


@pytest.mark.usefixtures("stand_ins")
def test_similarity_and_format_are_added() -> None:
    """Octal 377 is white, 0 black: in pixels they are 1 apart, as patches opposite."""
    outputs = [document("377"), document("0"), document("0"), document(body="\\undefined"), document(), document()]
    reference = [torch.ones(3, 16, 16), None, torch.ones(3, 16, 16), torch.ones(3, 16, 16), None, None]
    reference_tex = [None, document("0"), None, None, None, "\\documentclass{a}"]
    for similarity in ("pixels", "patch_transport"):
        reward = TexSimilarity(similarity=similarity, size=32)
        scores = reward([""] * 6, outputs, reference=reference, reference_tex=reference_tex)
        assert [score.value for score in scores[:4]] == pytest.approx([1.1, 1.1, 0.1, 0.0], abs=1e-6)
        assert [score.status for score in scores[4:]] == [Status.NOT_APPLICABLE, Status.ERRORED]
    assert scores[2].components == pytest.approx({"similarity": 0, "format": 1}, abs=1e-6)


def test_the_weight_of_the_format_is_in_the_range() -> None:
    assert TexSimilarity(format_weight=0.5).card.high == 1.5


@real
def test_tex_itself(tmp_path: Path) -> None:
    (tmp_path / "canary.tex").write_text("c4n4ry")
    circle = "\\documentclass[tikz]{standalone}\\begin{document}\\tikz\\fill (0,0) circle (1);\\end{document}"
    thief = f"\\documentclass{{article}}\\begin{{document}}\\csname @@input\\endcsname {tmp_path}/canary.tex \\end{{document}}"
    scores = TexRenders(item_s=20)([""] * 3, [circle, circle.replace("\\fill", "\\fil"), thief])
    assert [score.value for score in scores] == [1, 0, 0]
    reward = TexSimilarity(item_s=20)
    same, other = reward(
        [""] * 2, [circle, circle.replace("circle (1)", "rectangle (1,.1)")], reference_tex=[circle] * 2
    )
    assert same.value == pytest.approx(1.1) and other.value < 1.0
