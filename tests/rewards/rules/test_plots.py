"""Plotting programs: what is read from figures, what attacks are worth, the two rewards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from plaudit.rewards.base import Score, Status
from plaudit.rewards.rules import plots
from plaudit.rewards.rules.plots import PlotFields, PlotRuns, PlotSimilarity
from plaudit.rewards.rules.rendering import Drawn, Workshop, draw, draw_afresh

SHOP = Workshop(worker="figure_worker", size=64, item_s=2, memory_mb=768)
IMPORT = "import matplotlib.pyplot as plt\n"
LINE = IMPORT + "plt.plot([1, 2, 3], [2, 4, 8], color='red')\n"


# --- what is read -----------------------------------------------------------------------------------------------------

READ = {
    "everything": IMPORT
    + """
figure, axes = plt.subplots(1, 2)
axes[0].bar(["a", "b"], [3, 5], color=["red", "blue"], label="sold")
axes[0].set(title="Sales", xlabel="shop", ylabel="pieces", yticks=[0, 5])
axes[0].legend()
axes[0].annotate("best", (1, 5))
axes[1].scatter([1, 2], [3, 4], c="#00ff00")
axes[1].plot([9], [9], visible=False)
axes[1].set(xticks=[], yticks=[])
figure.suptitle("All")
figure.savefig("no/such/folder.png", dpi=1e9)
plt.close("all")
""",
    "pie": IMPORT + "plt.pie([1, 3], colors=['red', 'blue'])\n",
    "pictures": IMPORT + "plt.imshow([[1, 2], [3, 4]], cmap='gray')\nplt.colorbar()\nplt.axis('off')\n",
    "bars across": IMPORT + "plt.barh([1, 2], [3, 4])\n",
    "histogram": IMPORT + "import numpy as np\nplt.hist(np.random.rand(9), bins=2)\n",
    "the last saved": IMPORT + "plt.plot([1])\nplt.savefig('a')\nplt.figure()\nplt.scatter([1], [1])\n",
    "the last": IMPORT + "plt.plot([1])\nplt.figure()\nplt.scatter([1], [1])\nplt.figure()\n",
    "another backend": "import matplotlib\nmatplotlib.use('TkAgg')\n"
    + LINE
    + "plt.switch_backend('QtAgg')\nplt.show(block=True)\n",
    "a main function": LINE + "if __name__ == '__main__':\n    exit()\n",
}


@pytest.fixture(scope="module")
def read() -> dict[str, Drawn]:
    return dict(zip(READ, draw(SHOP, list(READ.values())), strict=True))


def test_every_attribute_is_read(read: dict[str, Drawn]) -> None:
    figure = plots.figure_of(read["everything"])
    assert figure is not None
    assert figure.types == ("bar", "scatter", "plot") and (figure.rows, figure.columns) == (1, 2)
    assert figure.places == ("1x2x0x0", "1x2x1x1")
    assert figure.texts == {
        "suptitle": ("All",),
        "title": ("Sales",),
        "xlabel": ("shop",),
        "ylabel": ("pieces",),
        "ticks": ("a", "b", "0", "5"),
        "legend": ("sold",),
        "notes": ("best",),
    }
    assert figure.colors == {"#ff0000", "#0000ff", "#00ff00"}
    assert figure.series == ((0, 1), (3, 5), (1, 2), (3, 4))  # the hidden line is not there


@pytest.mark.parametrize(
    "name,types,series",
    [
        ("pie", ("pie",), ((0.25, 0.75),)),
        ("pictures", ("imshow",), ((1, 2, 3, 4),)),
        ("bars across", ("barh",), ((1, 2), (3, 4))),
        ("the last saved", ("plot",), ((0,), (1,))),
        ("the last", ("scatter",), ((1,), (1,))),
        ("another backend", ("plot",), ((1, 2, 3), (2, 4, 8))),
        ("a main function", ("plot",), ((1, 2, 3), (2, 4, 8))),
    ],
)
def test_kinds_of_plots(
    read: dict[str, Drawn], name: str, types: tuple[str, ...], series: tuple[tuple[float, ...], ...]
) -> None:
    figure = plots.figure_of(read[name])
    assert figure is not None, read[name].problem
    assert figure.types == types and figure.series == series
    assert (figure.rows, figure.columns) == (1, 1) or name == "pictures"


def test_random_numbers_are_the_same_in_every_run(read: dict[str, Drawn]) -> None:
    [again] = draw_afresh(SHOP, [READ["histogram"]])
    assert again == read["histogram"] and sum(again.facts["axes"][0]["series"][1]) == 9


def test_pictures_are_the_figures(read: dict[str, Drawn]) -> None:
    """Two black and two white squares, larger than 64 x 64 allows for, in the middle of white."""
    picture = read["pictures"].picture
    assert picture.shape == (3, 64, 64)
    rows, columns = torch.where(picture[0] < 0.1)
    assert (
        len(rows) > 20 and bool((picture[:, :8] == 1).all()) and bool((picture[:, -8:] == 1).all())
    )  # 4:3 in a square
    assert float(rows.float().mean()) < 32 and float(columns.float().mean()) < 32  # 1 is the darkest, above and left


# --- attacks ----------------------------------------------------------------------------------------------------------

CANARY = "c4n4ry"
ATTACKS = {
    "loops": "while True: pass",
    "sleeps": "import time; time.sleep(60)",
    "ends itself": LINE + "import os; os._exit(0)",
    "crashes": "import ctypes; ctypes.string_at(0)",
    "takes memory": "x = bytearray(10 ** 10)",
    "kills the server": "import os; os.kill(os.getppid(), 9)",
    "stops the server": "import os, signal; os.kill(os.getppid(), signal.SIGSTOP)\nwhile True: pass",
    "forks": "import os\nwhile True: os.fork()",
    "starts a thread": "import threading; threading.Thread(target=print).start()",
    "prints a verdict": 'import sys, os\nos.write(1, b\'{"verdict": "ok"}\\n\')\nsys.exit(3)',
    "floods every descriptor": (
        "import os\nfor n in range(3, 99):\n  try:\n    while True: os.write(n, b'O{}' * 9999)\n  except OSError: pass"
    ),
    "reads passwords": "open('/etc/passwd').read()",
    "raises its own": "class E(Exception):\n  def __str__(self): 1 / 0\nraise E",
    "ends with a status": LINE + "exit(3)",
    "is no Python": "def f: pass",
    "has a null": "\0",
    "an area of nothing": IMPORT + "plt.figure(figsize=(1e9, 1)); plt.plot([1])",
    "no figure": IMPORT + "plt.figure()",
}
HARMLESS = {
    "large figure": IMPORT + "plt.figure(figsize=(1e5, 1e5), dpi=1e4); plt.plot([1, 2])\n",
    "much data": IMPORT + "plt.plot(range(100_000))\n",
    "leaves files": LINE + "import os; open('numpy.py', 'w').write('1 / 0'); os.makedirs('a/b/c')\n",
    "finds none": "import os, sys\nassert not os.listdir('.') and '' not in sys.path\n" + LINE,
}


@pytest.fixture(scope="module")
def attacked() -> dict[str, Drawn]:
    programs = ATTACKS | HARMLESS
    shop = Workshop(worker="figure_worker", size=64, item_s=0.5, memory_mb=768)
    return dict(zip(programs, draw_afresh(shop, list(programs.values())), strict=True))


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_are_failures(attacked: dict[str, Drawn], name: str) -> None:
    assert attacked[name].problem
    if name != "forks":  # root without rights can fork until it is stopped
        assert attacked[name].timed_out == (name in ("loops", "sleeps"))


@pytest.mark.parametrize("name", HARMLESS)
def test_what_comes_after_attacks_is_drawn(attacked: dict[str, Drawn], name: str) -> None:
    assert not attacked[name].problem and len(attacked[name].pixels) == 3 * 64 * 64


def test_data_beyond_counting_is_cut(attacked: dict[str, Drawn]) -> None:
    assert sum(map(len, attacked["much data"].facts["axes"][0]["series"])) == 5000


def test_too_many_artists_are_out_of_time_and_files_stay_secret(tmp_path: Path) -> None:
    (tmp_path / "canary").write_text(CANARY)
    many = IMPORT + "for _ in range(100_000): plt.plot([1, 2])\n"
    thief = LINE + f"plt.title(open({str(tmp_path / 'canary')!r}).read())\n"
    shop = Workshop(worker="figure_worker", size=64, item_s=0.5, memory_mb=768)
    late, stolen = draw_afresh(shop, [many, thief])
    assert late.timed_out and stolen.problem and CANARY not in stolen.problem


def test_a_forged_answer_of_another_form_is_a_failure() -> None:
    for facts in ({}, {"axes": [[]], "layout": {}, "texts": []}):
        assert plots.figure_of(Drawn(size=64, pixels=bytes(3 * 64 * 64), facts=facts)) is None


# --- rewards ----------------------------------------------------------------------------------------------------------


def values(scores: list[Score]) -> list[float]:
    return [round(score.value, 4) for score in scores]


def test_stages_change_what_counts() -> None:
    """Outside the axes nothing is seen: fields fall, the picture does not."""
    far = LINE + "plt.xlim(0, 4); plt.ylim(0, 9)\n"
    other = far + "plt.plot([100, 200], [1000, 2000], color='red')\nplt.xlim(0, 4); plt.ylim(0, 9)\n"
    broken = other + "1 / 0\n"
    reward = PlotFields(second_stage_at=10)
    first = reward(["", ""], [other, broken], [far, far], step=9)
    second = reward(["", ""], [other, broken], [far, far], step=10)
    always = PlotFields(read_text=False)(["", ""], [other, broken], [far, far], step=0)
    fields = (6 / 10 + 1 + 1 + 1 + 1) / 5  # of 10 numbers 6 agree
    assert first[0].components is not None and second[0].components is not None
    assert first[0].components["fields"] == pytest.approx(fields) and first[0].components["visual"] == 0
    assert first[0].value == pytest.approx(0.8 * fields + 0.2)
    assert second[0].components["visual"] == pytest.approx(1, abs=1e-6)
    assert second[0].value == pytest.approx(0.5 * fields + 0.4 + 0.1)
    assert first[1].components is not None and first[1].components["runs"] == 0
    assert first[1].value > second[1].value > 0  # it is read from its text, and nothing else
    assert always[0].value == pytest.approx(second[0].value) and always[1].value == 0


def test_field_weights() -> None:
    reward = PlotFields(second_stage_at=1, field_weights={"data": 0, "text": 0, "layout": 0, "colors": 0})
    scatter = LINE.replace("plot(", "scatter(")
    assert values(reward(["", ""], [LINE, scatter], [LINE, LINE])) == [1.0, 0.2]


def test_each_program_is_judged_by_its_own_reference() -> None:
    blue = LINE.replace("red", "blue")
    reward = PlotSimilarity()
    assert values(reward(["", ""], [LINE, blue], [LINE, blue])) == [2, 2]
    swapped = reward(["", ""], [LINE, blue], [blue, LINE])
    assert all(score.value < 1.9 and score.components["colors"] == 0 for score in swapped)  # type: ignore[index]


def test_what_cannot_be_judged_is_missing() -> None:
    for reward in (PlotSimilarity(), PlotFields()):
        scores = reward(["", "", ""], [LINE] * 3, [None, "1 / 0", LINE])
        assert [score.status for score in scores] == [Status.NOT_APPLICABLE, Status.ERRORED, Status.OK]
        assert "ZeroDivisionError" in scores[1].note
    assert PlotRuns()([], []) == []
