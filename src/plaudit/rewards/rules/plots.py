"""Plotting programs, run in the sandbox and judged by the figure that they make (MSRL, S027; ChartMaster, S049).

The program is the last fenced block of the text. It runs with matplotlib on Agg and fixed random seeds, in a process of
its own, and what it saved or, where it saved nothing, its last figure is read from the figure's objects: names of the
plotting methods, texts, numbers, colours, places of the axes; and drawn, at a size of ours.

What cannot be guaranteed. Figure and program share an interpreter, so that a program that looks for its reader can hand
in attributes or a picture that it did not draw. It does not have the reference in its memory or in its sandbox, and
cannot reach other programs' answers, so that it gains only what it could also have drawn, and a picture and attributes
that contradict each other. Artists that are hidden are not read; ones that lie outside the picture or behind others are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

from plaudit.errors import RewardError
from plaudit.recipe.base import NotNegative
from plaudit.rewards.base import Card, Score, Status, missing
from plaudit.rewards.rules.code import extract_code
from plaudit.rewards.rules.figures import (
    Figure,
    attribute_jaccards,
    field_scores,
    read_figure,
    read_source,
)
from plaudit.rewards.rules.rendering import (
    Drawn,
    Megabytes,
    Seconds,
    Side,
    Tolerance,
    Workshop,
    alike,
    drawn_or_missing,
    load_similarity,
)

Field = Literal["data", "type", "layout", "text", "colors"]
FIELDS: tuple[str, ...] = get_args(Field)
Stage = tuple[NotNegative, NotNegative, NotNegative]
STAGES: tuple[Stage, Stage] = (
    (0.8, 0.0, 0.2),
    (0.5, 0.4, 0.1),
)  # weights of text, visual and execution; not published, ours
Pairs = list[tuple[Drawn, Drawn]]


def figure_of(drawn: Drawn) -> Figure | None:
    if drawn.problem:
        return None
    try:
        return read_figure(drawn.facts)
    except (KeyError, TypeError, ValueError, OverflowError):  # the program wrote what is not of this form
        return None


def workshop(size: Side, item_s: Seconds, memory_mb: Megabytes) -> Workshop:
    return Workshop(worker="figure_worker", size=size, item_s=item_s, memory_mb=memory_mb)


class PlotRuns:
    """1 where the program in the text runs and makes a figure, else 0 (the execution reward of S027)."""

    card = Card(
        summary="1 where the plotting program in the text runs and makes a figure, else 0",
        kind="text",
        low=0,
        high=1,
        verdict=True,
        untrusted=True,
        systems=("S027",),
        cost_ms=100,
    )

    def __init__(self, *, size: Side = 224, item_s: Seconds = 5.0, memory_mb: Megabytes = 1024) -> None:
        self.workshop = workshop(size, item_s, memory_mb)

    def __call__(self, prompts: Sequence[str], outputs: Sequence[str]) -> list[Score]:
        drawn = drawn_or_missing(self.workshop, [extract_code(output) for output in outputs])
        if isinstance(drawn, Score):
            return [drawn] * len(outputs)
        return [Score(value=float(not one.problem), note=one.problem) for one in drawn]


def judged(
    shop: Workshop,
    outputs: Sequence[str],
    reference_code: Sequence[str | None],
    judge: Callable[[list[int], list[Drawn], list[Drawn]], Mapping[int, Score]],
) -> list[Score]:
    """Draws outputs and references, in sandboxes of their own, and has those rows judged whose reference could be drawn."""
    rows = [i for i, code in enumerate(reference_code) if code is not None]
    scores = [missing(Status.NOT_APPLICABLE, "the prompt has no `reference_code`")] * len(outputs)
    wanted = drawn_or_missing(shop, [extract_code(reference_code[i] or "") for i in rows])
    drawn = drawn_or_missing(shop, [extract_code(outputs[i]) for i in rows])
    for broken in (wanted, drawn):
        if isinstance(broken, Score):
            return [broken if i in rows else score for i, score in enumerate(scores)]
    assert isinstance(wanted, list) and isinstance(drawn, list)
    good = [k for k in range(len(rows)) if figure_of(wanted[k]) is not None]
    found = judge([rows[k] for k in good], [drawn[k] for k in good], [wanted[k] for k in good])
    for k, i in enumerate(rows):
        scores[i] = found.get(i) or missing(Status.ERRORED, f"the reference makes no figure: {wanted[k].problem}")
    return scores


class PlotSimilarity:
    """Attribute overlap plus visual similarity with the figure of `reference_code` (S049): 0 to 2, 0 if it does not run.

    Overlap: mean over texts, numbers, colours and places of the axes of |A n B| / |A u B|, where numbers match one to one
    within `tolerance` (of the larger; not published, ours) and two empty sets have overlap 1. `similarity` is one of
    rendering.py's: `layers` is nearest to the paper's (ResNet-18's four blocks), `ssim` needs no weights.
    """

    card = Card(
        summary="overlap of attributes plus similarity of pictures with the reference program's figure",
        kind="text",
        low=0,
        high=2,
        untrusted=True,
        systems=("S049",),
        cost_ms=150,
    )

    def __init__(
        self,
        *,
        similarity: str = "ssim",
        tolerance: Tolerance = 0.05,
        size: Side = 224,
        item_s: Seconds = 5.0,
        memory_mb: Megabytes = 1024,
    ) -> None:
        self.similarity = load_similarity(similarity, "plot_similarity")
        self.tolerance = tolerance
        self.workshop = workshop(size, item_s, memory_mb)

    def __call__(
        self, prompts: Sequence[str], outputs: Sequence[str], reference_code: Sequence[str | None]
    ) -> list[Score]:
        return judged(self.workshop, outputs, reference_code, self.judge)

    def judge(self, rows: list[int], drawn: list[Drawn], wanted: list[Drawn]) -> dict[int, Score]:
        visual = visual_rewards(self.similarity, drawn, wanted)
        return {
            row: self.score(one, other, seen) for row, one, other, seen in zip(rows, drawn, wanted, visual, strict=True)
        }

    def score(self, drawn: Drawn, wanted: Drawn, visual: float) -> Score:
        figure, other = figure_of(drawn), figure_of(wanted)
        assert other is not None
        if figure is None:
            return Score(value=0.0, components={"attributes": 0.0, "visual": 0.0}, note=drawn.problem or UNREADABLE)
        kinds = attribute_jaccards(figure, other, self.tolerance)
        attributes = sum(kinds.values()) / len(kinds)
        return Score(value=attributes + visual, components={"attributes": attributes, "visual": visual, **kinds})


UNREADABLE = "its attributes are not of their form"


def visual_rewards(similarity: Any, drawn: list[Drawn], wanted: list[Drawn]) -> list[float]:
    """0 where there is no picture."""
    rows = [k for k, one in enumerate(drawn) if not one.problem]
    values = alike(similarity, [(drawn[k].picture, wanted[k].picture) for k in rows])
    found = dict(zip(rows, values, strict=True))
    return [found.get(k, 0.0) for k in range(len(drawn))]


class PlotFields:
    """w_text fields + w_visual similarity + w_exec execution, against the figure of `reference_code` (S027).

    Fields: mean, weighted by `field_weights` (not published; ours equal), of data (values within `tolerance` of the larger,
    place by place), type (the same plotting methods, each once, in the same order), layout (the same rows and columns),
    text (1 - edit distance / longer text) and colours (Jaccard; the paper's fifth field is not published). Of a program
    that makes no figure they are read from its text (`read_text`), as the paper falls back on; the other parts are then 0.
    The paper's visual reward is a VLM judge's mean over six criteria, here `similarity` of rendering.py or your own.
    Stage 1 uses no visual reward; from training step `second_stage_at` on, stage 2 does. None is stage 2 from the start.
    """

    card = Card(
        summary="fields of the figure, its picture and whether it runs, in two stages",
        kind="text",
        low=0,
        high=1,
        untrusted=True,
        systems=("S027",),
        cost_ms=150,
    )

    def __init__(
        self,
        *,
        second_stage_at: int | None = None,
        stages: tuple[Stage, Stage] = STAGES,
        field_weights: Mapping[Field, NotNegative] | None = None,
        similarity: str = "ssim",
        tolerance: Tolerance = 0.05,
        read_text: bool = True,
        size: Side = 224,
        item_s: Seconds = 5.0,
        memory_mb: Megabytes = 1024,
    ) -> None:
        if any(abs(sum(stage) - 1) >= 1e-6 for stage in stages):
            raise RewardError(f"plot_fields: stages are {stages}; each one's weights sum to 1")
        weights = dict.fromkeys(FIELDS, 1.0) | dict(field_weights or {})
        if not sum(weights.values()):
            raise RewardError("plot_fields: field_weights are all 0; leave one that counts")
        self.second_stage_at, self.stages, self.read_text = second_stage_at, stages, read_text
        self.field_weights = {name: weight / sum(weights.values()) for name, weight in weights.items()}
        self.similarity = load_similarity(similarity, "plot_fields")
        self.tolerance = tolerance
        self.workshop = workshop(size, item_s, memory_mb)

    def __call__(
        self, prompts: Sequence[str], outputs: Sequence[str], reference_code: Sequence[str | None], step: int = 0
    ) -> list[Score]:
        second = self.second_stage_at is None or step >= self.second_stage_at
        weights = self.stages[int(second)]

        def judge(rows: list[int], drawn: list[Drawn], wanted: list[Drawn]) -> dict[int, Score]:
            visual = visual_rewards(self.similarity, drawn, wanted) if weights[1] else [0.0] * len(rows)
            return {
                rows[k]: self.score(drawn[k], wanted[k], visual[k], extract_code(outputs[rows[k]]), weights)
                for k in range(len(rows))
            }

        return judged(self.workshop, outputs, reference_code, judge)

    def score(self, drawn: Drawn, wanted: Drawn, visual: float, program: str, weights: Sequence[float]) -> Score:
        figure, other = figure_of(drawn), figure_of(wanted)
        assert other is not None
        runs = float(figure is not None)
        seen = figure or (read_source(program) if self.read_text else None)
        fields = field_scores(seen, other, self.tolerance) if seen else dict.fromkeys(FIELDS, 0.0)
        agreement = sum(self.field_weights[name] * value for name, value in fields.items())
        parts = {"fields": agreement, "visual": visual * runs, "runs": runs}
        value = sum(weight * part for weight, part in zip(weights, parts.values(), strict=True))
        note = "" if figure else drawn.problem or UNREADABLE
        return Score(value=value, components={**parts, **fields}, note=note)
