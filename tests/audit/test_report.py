from __future__ import annotations

import base64
import html
import io
import json
import math
import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from tests.audit.fabricated import COLUMNS, Fabricate, fabricate_run, write_lines

from plaudit.audit import panels, plots
from plaudit.audit.gallery import cut
from plaudit.audit.measures import category_changes, change, findings, style_of
from plaudit.audit.report import render, write_report
from plaudit.audit.verdict import judge
from plaudit.errors import DataError, RunError
from plaudit.pages import look
from plaudit.pages.grid import grid_image, write_grid
from plaudit.pages.html import VOID_TAGS
from plaudit.recipe.load import load
from plaudit.recipe.schema import Recipe
from plaudit.runs.record import RunRecord, read_jsonl, read_run, series
from plaudit.statistics import mean_interval


@dataclass
class Page(HTMLParser):
    """A page as a reader gets it: its text, its tags, and whether every tag is closed in order."""

    text: str = ""
    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data + "\n" * (self.open[-1] in {"p", "li", "td", "h2", "figcaption"})

    def images(self, part: str = "") -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.tags if tag == "img" and part in attributes["alt"]]


def read(html: str) -> Page:
    page = Page()
    page.feed(html)
    assert not page.open
    return page


@pytest.fixture
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes seconds; tests of words and numbers do without."""
    monkeypatch.setattr(plots, "panel_png", lambda panel, theme: b"a chart")
    monkeypatch.setattr(plots, "png_of", lambda figure: b"a chart")


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its report, charts and all."""
    folder = fabricate_run(tmp_path_factory.mktemp("runs") / "run", before=0.40, after=0.65, minutes=5.0)
    write_report(folder)
    return folder


# --- the whole report ----------------------------------------------------------------------------------------------


def test_report_of_a_finished_run_says_what_happened(finished: Path) -> None:
    page = read((finished / "report.html").read_text(encoding="utf-8"))
    summary = json.loads((finished / "summary.json").read_text())
    gain = f"+{100 * summary['gain_low']:.1f} to +{100 * summary['gain_high']:.1f}"
    assert "Held-out accuracy 40.0 % → 65.0 %" in page.text.replace("\n", "")
    assert f"Gain +25.0 points (95 % interval of the gain {gain}, 300 paired items)" in page.text
    assert "in 5.4 minutes (5.0 minutes of training)" in page.text
    assert "No sign of reward hacking: the trained reward and the held-out accuracy both rose" in page.text
    assert "ended: train.minutes 5" in page.text
    for stated in ("115\u202f200", "11\u202f520", "2.13.0", "0.1.0", "prompts_per_step: 12"):
        assert stated in page.text
    assert "Nothing: every file of a finished run is here and complete." in page.text


def test_report_loads_nothing_and_runs_no_script(finished: Path) -> None:
    page = read((finished / "report.html").read_text(encoding="utf-8"))
    assert "script" not in {tag for tag, _ in page.tags}
    assert "link" not in {tag for tag, _ in page.tags}
    addresses = [value for _, a in page.tags for key, value in a.items() if key in {"src", "srcset", "href"}]
    assert len(addresses) > 30
    for address in addresses:
        png = base64.b64decode(address.removeprefix("data:image/png;base64,"), validate=True)
        Image.open(io.BytesIO(png), formats=["PNG"]).load()
    (policy,) = [a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a]
    assert policy.startswith("default-src 'none'")


@pytest.mark.usefixtures("no_charts")
def test_text_of_the_user_is_escaped(fabricate: Fabricate) -> None:
    attack = "<script>alert('x')</script> & \"quotes\""
    recipe = Recipe(name="<b>bold</b>", summary=attack, rewards={attack: {"type": "scene_match"}})
    folder = fabricate(recipe=recipe, prompts=[attack] * 12)
    edit_json(folder / "summary.json", lambda summary: summary.update(stopped=attack))
    html = render(findings(read_run(folder)))
    page = read(html)
    assert "<script" not in html
    assert "<b>" not in html
    assert page.text.count(attack) >= 12
    assert all(attack in image["alt"] for image in page.images("before:"))


@pytest.mark.usefixtures("no_charts")
def test_pictures_stand_side_by_side_with_their_marks(fabricate: Fabricate) -> None:
    folder = fabricate()
    page = read(render(findings(read_run(folder))))
    samples = json.loads((folder / "samples/prompts.json").read_text())
    words = {1.0: "✓ correct", 0.0: "✗ wrong", None: "unjudged"}
    expected = [
        f"{side}: {prompt} ({words[samples[side][index]]})"
        for index, prompt in enumerate(samples["prompts"])
        for side in ("before", "after")
    ]
    shown = [image["alt"] for image in page.images() if image["alt"].startswith(("before:", "after:"))]
    assert shown == expected
    assert "4 of 12 correct before, 8 of 11 correct after." in page.text
    assert len(page.images("grid of samples, step")) == 2


@pytest.mark.usefixtures("no_charts")
def test_checks_are_told_apart_and_failures_come_first(fabricate: Fabricate) -> None:
    text = read(render(findings(read_run(fabricate())))).text
    rows = text[text.index("What was checked") :]
    assert "1 passed, 1 failed, 1 not applicable." in rows
    assert rows.index("✗ fail") < rows.index("✓ pass") < rows.index("not applicable", 80)
    assert "check that the reward reads its prompt" in rows
    assert "3e-07" in rows


@pytest.mark.usefixtures("no_charts")
def test_time_shares_add_up(fabricate: Fabricate) -> None:
    html = render(findings(read_run(fabricate(minutes=10.0))))
    text = read(html).text
    for part in ("300.0 s\n50 %", "60.0 s\n10 %", "180.0 s\n30 %", "600.0 s\n100 %"):
        assert part in text
    widths = [float(width) for width in re.findall(r"style=.width: ([\d.]+)%", html)]
    assert widths == [50.0, 10.0, 30.0, 10.0]
    assert "outside of training\n24.0 s" in text


@pytest.mark.usefixtures("no_charts")
def test_what_rewards_cost_is_told_by_reward(fabricate: Fabricate) -> None:
    folder = fabricate()
    rows = [json.loads(line) for line in (folder / "timing.jsonl").read_text().splitlines()]
    for i, row in enumerate(rows):
        row |= {"rewards/match/latency_p50_s": 0.001 * (i + 1), "rewards/match/latency_p95_s": 0.5 if i == 3 else 0.1}
        row |= {"rewards/match/calls": 2 * (i + 1), "rewards/match/repeats": 1, "rewards/match/cache_hits": 17}
    write_lines(folder / "timing.jsonl", rows)
    middle = (len(rows) + 1) / 2  # milliseconds rise by one a step
    assert f"match\n{middle:.1f} ms\n500.0 ms\n{2 * len(rows)}\n1\n17" in read(render(findings(read_run(folder)))).text


@pytest.mark.usefixtures("no_charts")
def test_missing_scores_are_reported_at_their_worst(fabricate: Fabricate) -> None:
    folder = fabricate()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows[7]["rewards/match/missing_frac"] = 0.04
    rows[9]["reward"] = None
    write_lines(folder / "metrics.jsonl", rows)
    assert "match: up to 4.0 % of a step's scores were missing" in read(render(findings(read_run(folder)))).text
    assert len(read_run(folder).series("reward")) == len(rows) - 1


# --- categories and splits -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_charts")
def test_category_table_holds_the_counts_and_intervals_of_the_items(fabricate: Fabricate) -> None:
    folder = fabricate()
    run = read_run(folder)
    text = read(render(findings(run))).text
    items = json.loads((folder / "evaluations/after_000060_heldout.json").read_text())
    scores = [s for s, c in zip(items["score"], items["category"], strict=True) if c == "relation"]
    interval = mean_interval(scores)
    table = text[text.index("By category") : text.index("Split: compositional")]
    cells = table[table.index("relation") :]
    assert f"{100 * interval.mean:.1f} %" in cells
    assert f"[{100 * interval.low:.1f} to {100 * interval.high:.1f}]" in cells
    assert f"{len(scores)}\n" in cells
    assert [found.name for found in category_changes(run)] == [
        "single",
        "count",
        "two",
        "relation",
        "counttwo",
        "three",
    ]


@pytest.mark.usefixtures("no_charts")
def test_compositional_split_has_its_own_numbers(fabricate: Fabricate) -> None:
    run = read_run(fabricate(before=0.40, after=0.65))
    text = read(render(findings(run))).text
    assert "Split: compositional" in text
    found = change(run, "compositional")
    assert found is not None
    assert (found.before.mean, found.after.mean) == pytest.approx((0.25, 0.50))


@pytest.mark.usefixtures("no_charts")
def test_a_run_without_held_out_prompts_does_not_claim_any(fabricate: Fabricate) -> None:
    folder = fabricate()
    lines = (folder / "evaluations.jsonl").read_text().splitlines()
    kept = [line.replace('"split": "heldout"', '"split": "train"') for line in lines if "compositional" not in line]
    (folder / "evaluations.jsonl").write_text("\n".join(kept))
    text = read(render(findings(read_run(folder)))).text
    assert "Train-split accuracy 40.0 %" in text.replace("\n", "")
    assert "eld-out" not in text


def _by_number(folder: Path) -> Path:
    """The run as a reward leaves it whose card says nothing of right and wrong."""
    lines = (folder / "evaluations.jsonl").read_text(encoding="utf-8")
    (folder / "evaluations.jsonl").write_text(lines.replace('"verdict": true', '"verdict": false'), encoding="utf-8")
    return folder


@pytest.mark.usefixtures("no_charts")
def test_a_truth_that_is_a_number_is_shown_with_its_change(fabricate: Fabricate) -> None:
    folder = _by_number(fabricate())
    marks = {"before": [0.25, 1.0, *[None] * 10], "after": [0.5, 0.0, *[None] * 10]}
    edit_json(folder / "samples/prompts.json", lambda samples: samples.update(marks))
    html = render(findings(read_run(folder)))
    page = read(html)
    shown = [re.sub(r".*\((.*)\)", r"\1", image["alt"]) for image in page.images() if image["alt"].startswith("after:")]
    assert shown[:3] == ["0.500, +0.250", "0.000, \u22121.000", "unjudged"]
    assert "Mean scene_exact of these pictures: 0.625 before, 0.250 after." in page.text
    assert "Held-out scene_exact 0.400 → 0.650" in page.text.replace("\n", "")
    assert not re.search(r"correct|wrong|accuracy|side (yes|no)", html.replace("correct_color", ""))


def test_scores_that_are_no_accuracy_are_not_written_as_one(fabricate: Fabricate) -> None:
    folder = _by_number(fabricate())
    for path in (folder / "evaluations").glob("*.json"):
        edit_json(path, lambda items: items.update(score=[0.5 * s + 3 for s in items["score"]]))
    run = read_run(folder)
    style, found = style_of(run), change(run)
    assert not style.accuracy
    assert found is not None
    assert style.score(found.after.mean) == "3.325"
    assert style.truth == "held-out scene_exact"
    assert style.gain(-0.25) == "\u22120.250"
    assert (style.score(0.0021), style.signed(-0.00043), style.score(0.0)) == ("0.0021", "\u22120.00043", "0.000")


# --- did it hack? --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "reward", "level", "headline"),
    [
        (0.65, (0.55, 0.80), "good", "No sign of reward hacking"),
        (0.20, (0.55, 0.80), "bad", "Reward hacking: the trained reward rose while the held-out accuracy fell"),
        (0.41, (0.55, 0.80), "warning", "Possible reward hacking: the trained reward rose"),
        (0.65, (0.55, 0.55), "warning", "The held-out accuracy rose although the trained reward did not"),
        (0.20, (0.55, 0.50), "bad", "It got worse"),
        (0.40, (0.55, 0.56), "warning", "Nothing was learned that can be measured"),
    ],
)
def test_verdict(fabricate: Fabricate, after: float, reward: tuple[float, float], level: str, headline: str) -> None:
    run = read_run(fabricate(before=0.40, after=after, reward=reward, pictures=False))
    without_the_rest = [row for row in run.evaluations if row.split == "heldout" and row.label != "step"]
    verdict = judge(findings(_with_evaluations(run, without_the_rest)))
    assert verdict.level == level
    assert verdict.headline.startswith(headline)
    assert f"{reward[0]:.3f} to {reward[1]:.3f}" in verdict.details[0]
    assert f"40.0 % to {100 * after:.1f} %" in verdict.details[1]


def _with_evaluations(run: RunRecord, evaluations: Sequence) -> RunRecord:
    return RunRecord(**{**vars(run), "evaluations": tuple(evaluations)})


def test_a_reward_of_negative_weight_improves_by_falling(fabricate: Fabricate) -> None:
    recipe = Recipe(rewards={"match": {"type": "scene_match", "weight": -1.0}})
    falling = judge(findings(read_run(fabricate("falling", recipe=recipe, reward=(0.8, 0.5), pictures=False))))
    rising = judge(findings(read_run(fabricate("rising", recipe=recipe, reward=(0.5, 0.8), pictures=False))))
    assert falling.headline.startswith("No sign of reward hacking")
    assert "lower is better" in falling.details[0]
    assert rising.headline.startswith("The held-out accuracy rose although")


def test_verdict_knows_when_the_truth_itself_was_trained_on(fabricate: Fabricate) -> None:
    recipe = Recipe(rewards={"match": {"type": "scene_exact"}})
    assert any("itself trained on" in line for line in judge(findings(read_run(fabricate(recipe=recipe)))).details)


def test_verdict_has_a_reservation_when_the_truth_fell_from_its_peak(fabricate: Fabricate) -> None:
    folder = fabricate(before=0.3, after=0.6)
    rows = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    for row in rows:
        if row["split"] == "heldout" and row["label"] == "step" and row["step"] == 20:
            row |= {"mean": 0.95, "low": 0.90, "high": 0.98}
    write_lines(folder / "evaluations.jsonl", rows)
    verdict = judge(findings(read_run(folder)))
    assert verdict.level == "warning"
    assert any("peaked at step 20 with 95.0 %" in line for line in verdict.details)


def test_a_fall_within_noise_is_no_reservation(fabricate: Fabricate) -> None:
    run = read_run(fabricate(before=0.3, after=0.6))
    bump = {"mean": 0.61, "low": 0.51, "high": 0.70}
    rows = [r.model_copy(update=bump) if (r.step, r.label) == (40, "step") else r for r in run.evaluations]
    assert judge(findings(_with_evaluations(run, rows))).level == "good"


def test_the_measurement_after_training_counts_wherever_it_stands(fabricate: Fabricate) -> None:
    run = read_run(fabricate(pictures=False))
    found = _with_evaluations(run, reversed(run.evaluations)).latest()
    assert found is not None
    assert (found.label, found.step) == ("after", 60)


def test_without_rewards_on_the_held_out_outputs_the_training_curve_is_read(fabricate: Fabricate) -> None:
    run = read_run(fabricate(reward=(0.5, 0.9), pictures=False))
    bare = _with_evaluations(run, [row.model_copy(update={"rewards": {}}) for row in run.evaluations])
    verdict = judge(findings(bare))
    assert "on the training prompts" in verdict.details[0]
    assert verdict.headline.startswith("No sign of reward hacking")


# --- what is not there ---------------------------------------------------------------------------------------------

FILES = (
    "recipe.yaml",
    "metrics.jsonl",
    "timing.jsonl",
    "evaluations.jsonl",
    "checks.json",
    "summary.json",
    "samples/before.png",
    "samples/after.png",
    "samples/prompts.json",
    "evaluations/before_000000_heldout.json",
)


@pytest.mark.usefixtures("no_charts")
@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_and_the_rest_is_reported(fabricate: Fabricate, name: str) -> None:
    folder = fabricate()
    (folder / name).unlink()
    page = read(render(findings(read_run(folder))))
    assert f"{name} is absent" in page.text
    assert "How to reproduce it" in page.text
    if name != "evaluations.jsonl":
        assert "Gain +25.0" in page.text
        assert "nan" not in page.text.lower()


def test_an_empty_folder_has_a_report_that_names_every_piece(tmp_path: Path) -> None:
    page = read(write_report(tmp_path).read_text(encoding="utf-8"))
    for name in FILES[:-1]:
        assert f"{name} is absent" in page.text
    assert "No measurement yet" in page.text
    assert "Cannot be judged yet" in page.text
    assert page.text.count("Missing:") >= 6
    assert not (tmp_path / "curves.png").exists()


@pytest.mark.usefixtures("no_charts")
def test_a_run_in_progress_compares_the_items_measured_so_far(fabricate: Fabricate) -> None:
    folder = fabricate(before=0.40, after=0.65)
    (folder / "summary.json").unlink()
    (folder / "samples/after.png").unlink()
    lines = (folder / "evaluations.jsonl").read_text().splitlines()
    (folder / "evaluations.jsonl").write_text("\n".join(line for line in lines if '"label": "after"' not in line))
    run = read_run(folder)
    text = read(render(findings(run))).text
    before = json.loads((folder / "evaluations/before_000000_heldout.json").read_text())["score"][:96]
    assert "in progress or killed after step 60" in text
    assert f"Held-out accuracy {100 * np.mean(before):.1f} %" in text.replace("\n", "")
    assert "so far, at step 60" in text
    assert "96 paired items" in text
    assert "step 40 " in text.replace("\n", " ")
    assert "in 5.0 minutes of training" in text


@pytest.mark.usefixtures("no_charts")
def test_half_written_files_are_skipped_and_mentioned(fabricate: Fabricate) -> None:
    folder = fabricate()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 61, "rew')
    png = (folder / "samples/after.png").read_bytes()
    (folder / "samples/after.png").write_bytes(png[: len(png) // 2])
    (folder / "checks.json").write_text('[{"name": "x"')
    (folder / "recipe.yaml").write_text("train: {stepz: 3}\n")
    text = read(render(findings(read_run(folder)))).text
    assert "metrics.jsonl: line 61, the last one, is cut off and was skipped" in text
    assert "samples/after.png cannot be decoded" in text
    assert "checks.json is not complete JSON" in text
    assert "recipe.yaml cannot be read by this version" in text
    assert "train: {stepz: 3}" in text


@pytest.mark.parametrize(
    ("name", "content", "said"),
    (
        ("checks.json", b"[" * 100_000, "checks.json is not complete JSON"),
        ("summary.json", b'{"steps": ' + b"9" * 5000 + b"}", "summary.json is not complete JSON"),
        ("timing.jsonl", None, "timing.jsonl is absent"),
        ("evaluations.jsonl", None, "evaluations.jsonl is absent"),
        (f"samples/{'n' * 300}.json", b"", "cannot be read (File name too long)"),
    ),
    ids=lambda value: str(value)[:20],
)
def test_what_cannot_be_read_in_a_run_is_a_note(
    name: str, content: bytes | None, said: str, fabricate: Fabricate
) -> None:
    folder = fabricate()
    if len(name) > 255:
        rows = [json.loads(line) | {"items": name} for line in (folder / "evaluations.jsonl").read_text().splitlines()]
        name, content = "evaluations.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode()
    (folder / name).unlink()
    os.mkfifo(folder / name) if content is None else (folder / name).write_bytes(content)
    assert any(said in note for note in read_run(folder).notes)


def test_numbers_that_no_curve_can_hold_are_left_out() -> None:
    rows = [{"step": 1, "x": 1.0}, {"step": [2], "x": 2.0}, {"step": 3, "x": 10**400}, {"step": "4", "x": 4.0}]
    assert list(series(rows, "x").values) == [1.0]


def test_a_corrupt_line_in_the_middle_is_an_error_with_its_place(fabricate: Fabricate) -> None:
    folder = fabricate()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines[4] = lines[4][:30]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 5: not a JSON object"):
        write_report(folder)


@pytest.mark.parametrize(
    ("content", "rows", "truncated"),
    [
        (b"", 0, None),
        (b'{"a": 1}\n\n{"a": 2}\n', 2, None),
        (b'{"a": 1}\n{"a": 2}', 2, None),
        (b'{"a": 1}\n{"a": ', 1, 2),
        ('{"a": 1}\n{"a": "é'.encode()[:-1], 1, 2),
        (b'{"a": 1}\n\x00\x00\x00', 1, 2),
        (b'{"a": 1}\n' + b"[" * 100_000, 1, 2),
    ],
)
def test_read_jsonl(tmp_path: Path, content: bytes, rows: int, truncated: int | None) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    lines = read_jsonl(path)
    assert [row["a"] for row in lines.rows] == list(range(1, rows + 1))
    assert lines.truncated == truncated


def test_what_is_json_but_not_what_was_promised_is_an_error_that_names_the_key(fabricate: Fabricate) -> None:
    folder = fabricate()
    edit_json(folder / "summary.json", lambda summary: summary.update(steps="many"))
    with pytest.raises(DataError, match=r"summary\.json: steps: .*'many'"):
        read_run(folder)
    (folder / "metrics.jsonl").write_text("[1]\n{}\n")
    with pytest.raises(DataError, match=r"line 1: .* is not a JSON object"):
        read_run(folder)
    with pytest.raises(RunError, match="no run folder at"):
        read_run(folder / "elsewhere")


# --- pictures ------------------------------------------------------------------------------------------------------


def _encoded(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(("count", "columns", "size"), [(12, 6, 8), (7, 3, 8), (1, 1, 16), (4, 2, 9), (5, 5, 200)])
@pytest.mark.parametrize("captioned", [False, True])
def test_cells_of_a_saved_grid_are_cut_exactly(count: int, columns: int, size: int, captioned: bool) -> None:
    captions = [f"a caption of {'many ' * i}words" for i in range(count)] if captioned else []
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, size, size), dtype=np.uint8))
    buffer = io.BytesIO()
    write_grid(grid_image(pixels / 255, columns, captions, scale=1), buffer)
    cells = cut(buffer.getvalue(), count, columns)
    assert cells is not None
    assert np.array_equal(np.stack(cells), pixels.permute(0, 2, 3, 1).numpy())


def test_cells_that_touch_are_cut_and_a_grid_that_does_not_divide_is_not() -> None:
    grid = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    cells = cut(_encoded(grid), 6, 3)
    assert cells is not None
    assert np.array_equal(cells[4], grid[8:16, 8:16])
    assert cut(_encoded(grid), 6, 5) is None
    assert cut(_encoded(grid), 6, 0) is None


@pytest.mark.usefixtures("no_charts")
def test_grids_that_cannot_be_cut_are_shown_whole_with_the_prompts(fabricate: Fabricate) -> None:
    folder = fabricate()
    edit_json(folder / "samples/prompts.json", lambda samples: samples.update(columns=COLUMNS + 1))
    page = read(render(findings(read_run(folder))))
    assert [image["alt"] for image in page.images("grid of samples")][:2] == [
        "grid of samples, before",
        "grid of samples, after",
    ]
    assert "Prompts, row by row" in page.text


# --- charts --------------------------------------------------------------------------------------------------------


def _axes(panel: panels.Panel) -> Axes:
    axes = Figure().subplots()
    panel.draw(axes, look.LIGHT)
    return axes


def test_panels_draw_the_recorded_numbers_and_say_them_in_their_titles(fabricate: Fabricate) -> None:
    run = read_run(fabricate(before=0.40, after=0.65, pictures=False))
    drawn = {panel.name: panel for panel in panels.panels(findings(run))}
    assert panels.absent_panels(panels.panels(findings(run))) == ["ratio deviation"]
    assert drawn["held-out score"].title == "Held-out accuracy: 40.0 % to 65.0 %"
    heldout = _axes(drawn["held-out score"]).lines[0]
    rows = [row for row in run.evaluations if row.split == "heldout"]
    assert list(heldout.get_xdata()) == [0, 20, 40, 60, 60]
    assert list(heldout.get_ydata()) == pytest.approx([row.mean for row in rows])
    raw, smooth = _axes(drawn["reward"]).lines
    assert np.array_equal(raw.get_ydata(), run.series("reward").values)
    assert np.array_equal(smooth.get_ydata(), panels.moving_mean(run.series("reward").values))
    assert drawn["reward"].title.startswith("Training reward rises from ")
    norms = run.series("grad_norm").values
    assert drawn["gradient norm"].title == f"Gradient norm: median {np.median(norms):.3g}, largest {norms.max():.3g}"
    assert _axes(drawn["gradient norm"]).lines[-1].get_ydata()[0] == Recipe().train.grad_clip


def test_ratio_deviation_is_drawn_where_the_objective_has_one(fabricate: Fabricate) -> None:
    recipe = Recipe.model_validate({"objective": {"type": "grpo"}, "sampler": {"type": "flow", "kernel": "flow_sde"}})
    run = read_run(fabricate(recipe=recipe, pictures=False))
    assert panels.absent_panels(panels.panels(findings(run))) == []
    (panel,) = [panel for panel in panels.panels(findings(run)) if panel.name == "ratio deviation"]
    assert _axes(panel).lines[-1].get_ydata()[0] == recipe.train.ratio_tolerance


@pytest.mark.parametrize("length", [1, 5, 24, 60, 200])
def test_moving_mean_agrees_with_the_slow_one(length: int) -> None:
    values = np.random.default_rng(0).normal(size=length)
    reach = length // 24
    slow = [values[max(i - reach, 0) : i + reach + 1].mean() for i in range(length)]
    assert panels.moving_mean(values) == pytest.approx(slow)


def test_charts_are_written_and_survive_a_dollar_sign(fabricate: Fabricate) -> None:
    recipe = Recipe(rewards={"match": {"type": "scene_match"}, "$a^_{$": {"type": "scene_match"}})
    folder = fabricate(recipe=recipe, pictures=False)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    write_lines(folder / "metrics.jsonl", [row | {"rewards/$a^_{$/mean": math.sin(row["step"])} for row in rows])
    written = plots.write_charts(findings(read_run(folder)))
    assert [path.name for path in written] == ["curves.png", "categories.png"]
    widths = {path.name: Image.open(path).size for path in written}
    assert widths["curves.png"][0] == 2 * plots.PANEL_SIZE[0] * look.DPI
    dark = Image.open(io.BytesIO(plots.categories_png(findings(read_run(folder)), look.DARK) or b"")).convert("RGB")
    light = Image.open(folder / "categories.png").convert("RGB")
    assert (light.getpixel((0, 0)), dark.getpixel((0, 0))) == ((255, 255, 255), (22, 27, 34))


def test_categories_chart_has_a_bar_for_each_side(fabricate: Fabricate, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "png_of", lambda figure: figures.append(figure) or b"")
    run = read_run(fabricate(pictures=False))
    plots.categories_png(findings(run))
    before, after = figures[0].axes[0].containers[0], figures[0].axes[0].containers[2]
    changes = category_changes(run)
    assert [bar.get_height() for bar in before] == pytest.approx([found.before.mean for found in changes])
    assert [bar.get_height() for bar in after] == pytest.approx([found.after.mean for found in changes])


# --- honest charts ---------------------------------------------------------------------------------------------------


def _rewritten(folder: Path, **columns: Callable[[int], float | None]) -> RunRecord:
    """The run with other metrics: a function of the step for each, None takes the column out."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    changed = [row | {key: made(row["step"]) for key, made in columns.items()} for row in rows]
    write_lines(folder / "metrics.jsonl", changed)
    return read_run(folder)


def _panel(run: RunRecord, name: str) -> panels.Panel:
    return {panel.name: panel for panel in panels.panels(findings(run))}[name]


def test_a_loss_of_one_part_is_one_curve(fabricate: Fabricate) -> None:
    """The part is the loss, and would hide it."""
    run = _rewritten(fabricate(pictures=False), **{"loss/kl": lambda step: None, "loss": lambda step: 0.1 * step})
    assert _axes(_panel(run, "loss")).get_legend_handles_labels()[1] == ["loss"]
    parts = {"loss/kl": lambda step: 0.1, "loss/policy": lambda step: 0.2, "loss/sft": lambda step: 0.3}
    three = _rewritten(fabricate("other", pictures=False), **parts)
    assert _axes(_panel(three, "loss")).get_legend_handles_labels()[1] == ["loss", "loss/policy", "loss/kl", "loss/sft"]


@pytest.mark.parametrize(("norm", "clip_shown"), ((0.5, True), (1.0, True), (7.0, True), (0.01, False)))
def test_the_lines_of_the_gradient_norm_lie_inside_their_panel(
    norm: float, clip_shown: bool, fabricate: Fabricate
) -> None:
    run = _rewritten(fabricate(pictures=False), grad_norm=lambda step: norm * (0.8 + 0.2 * (step % 2)))
    axes = _axes(_panel(run, "gradient norm"))
    low, high = axes.get_ylim()
    highest = max(max(line.get_ydata()) for line in axes.lines)
    assert low == 0 and 1.03 * highest < high < 1.5 * highest
    assert any("clipped at" in label for label in axes.get_legend_handles_labels()[1]) is clip_shown


def test_a_curve_without_numbers_has_no_panel(fabricate: Fabricate) -> None:
    folder = fabricate(pictures=False)
    lines = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    write_lines(folder / "evaluations.jsonl", [line | {"mean": None, "low": None, "high": None} for line in lines])
    run = _rewritten(folder, reward=lambda step: math.nan, kl=lambda step: None)
    assert {"held-out score", "reward", "KL"} <= set(panels.absent_panels(panels.panels(findings(run))))
    assert not {"held-out score", "reward", "KL"} & {panel.name for panel in panels.panels(findings(run))}


# --- the command that repeats a run ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_charts")
@pytest.mark.parametrize(
    ("train", "extra"),
    [
        ({"minutes": 5.0}, ["--train.steps", "60", "--train.minutes", "null"]),
        ({"steps": 60}, []),
        ({"steps": 100, "minutes": 5.0}, ["--train.steps", "60", "--train.minutes", "null"]),
    ],
)
def test_the_report_shows_a_command_that_repeats_the_run(train: dict, extra: list[str], fabricate: Fabricate) -> None:
    recipe = Recipe.model_validate({"train": train, "run": {"seed": 3, "folder": "my runs"}})
    folder = fabricate("my run", recipe=recipe, pictures=False)
    (command,) = re.findall(r"<pre>(plaudit align .*?)</pre>", write_report(folder).read_text(encoding="utf-8"))
    words = shlex.split(html.unescape(command))
    assert words[:3] == ["plaudit", "align", "my runs/my run/recipe.yaml"], "where it was written, not where it is read"
    assert words[3:] == ["--run.name", "my run-again", *extra, "--run.threads", "1"]
    again = load(folder / "recipe.yaml", words[3:])
    assert (again.run.name, again.run.seed, again.run.threads) == ("my run-again", 3, 1)
    assert (again.train.steps, again.train.minutes) == (60, None)
    alike = {"run": {"name", "threads"}, "train": {"steps", "minutes"}}
    assert again.model_dump(exclude=alike) == recipe.model_dump(exclude=alike)
