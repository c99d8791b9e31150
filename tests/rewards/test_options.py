"""Options that mean nothing are refused where a reward is found by name, with the key, the value and what is allowed."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import pytest
from pydantic import Field

from plaudit.dotted import import_dotted
from plaudit.errors import PlauditError, RecipeError
from plaudit.recipe.base import Fraction, Positive
from plaudit.rewards.load import find_reward
from plaudit.rewards.options import checked
from plaudit.rewards.table import BUILT_IN

if TYPE_CHECKING:
    from nowhere import Absent  # type: ignore[import-not-found]

RIGHT = {"type": "exact_answer"}
JUDGED = {"judge": {"type": "states_answer"}, "unit": "words"}
COUNTED = {"type": "uniform", "vocabulary": 9}
SENSELESS = [
    ("ocr_accuracy", {"mode": "word"}, r'mode` is "word"; allowed: line, page'),
    ("ocr_accuracy", {"min_confidence": 2}, "min_confidence` is 2; it must be less than or equal to 1"),
    ("jpeg_size", {"quality": 100}, "quality` is 100; it must be less than or equal to 95"),
    ("jpeg_size", {"prefer": "low"}, r'prefer` is "low"; allowed: large, small'),
    ("edge_density", {"threshold": 1.5}, "threshold` is 1.5"),
    ("grid_energy", {"period": 1}, "period` is 1; it must be greater than or equal to 2"),
    ("grid_energy", {"width": 0.5}, "width` is 0.5; it must be less than 0.5"),
    ("psnr", {"ceiling_db": 90}, "ceiling_db` is 90; it must be less than or equal to 60"),
    ("patch_transport", {"grid": 40}, "grid` is 40"),
    ("patch_transport", {"patch": 0}, "patch` is 0; it must be greater than 0"),
    ("restoration_quality", {"full": ["lpips"]}, r'full\[0\]` is "lpips"; allowed: psnr, ssim'),
    ("restoration_quality", {"none": []}, "none` is "),
    ("si_sdr", {"limit_db": 100}, "limit_db` is 100"),
    ("spectral_correlation", {"window": 30}, "window` is 30; it must be a multiple of 4"),
    ("scene_part", {"part": "size"}, r'part` is "size"; allowed: count, color, shape, relation'),
    ("correct_within", {"correct": {"kind": "x"}}, "give a `type` and optional `arguments`"),
    ("correct_within", {"correct": {**RIGHT, "weight": 2}}, "give a `type` and optional `arguments`"),
    ("correct_within", {"correct": RIGHT, "threshold": 10}, "`threshold` 10 is outside the scale"),
    ("correct_within", {"correct": RIGHT, "threshold": 0}, "`threshold` 0 is outside the scale"),
    ("correct_within", {"limit": 0}, "`limit` 0; it must be more than 0"),
    ("correct_within_tiers", {"short": 0}, "`short` 0; it must be more than 0"),
    ("correct_within_tiers", {"short": 50, "long": 40}, "`short` 50 is longer than `long` 40"),
    ("brevity", {"limit": 0}, "`limit` 0; it must be more than 0"),
    ("brevity", {"limit": 5, "low": 1}, "`low` 1; allowed: 0 up to but not including 1"),
    ("brevity", {"limit": 5, "low": -0.1}, "`low` -0.1"),
    ("brief_thought", {"unit": "tokens"}, "does not say where the thought ends"),
    ("brief_thought", {"limit": 0}, "`limit` 0; it must be more than 0"),
    ("brief_thought", {"fade": -1}, "`fade` -1; it must be at least 0"),
    ("format_length", {"turn": 0}, "`turn` 0 with the curve 'parabola'"),
    ("format_length", {"turn": 1.1}, "`turn` 1.1 with the curve 'parabola'"),
    ("format_length", {"turn": 0.4, "curve": "polyline"}, "the polyline at 0.5 only"),
    ("format_length", {"curve": "cubic"}, r'curve` is "cubic"; allowed: parabola, polyline'),
    ("format_length", {"limit": 0}, "`limit` 0; it must be more than 0"),
    ("short_where_solved", {"share": 0}, "`share` 0; allowed: more than 0, at most 1"),
    ("short_where_solved", {"alpha": 2}, "`alpha` 2; allowed: more than 0, at most 1"),
    ("shorter_than_before", {"weight": 0}, "`weight` 0; it must be more than 0"),
    ("shorter_than_before", {"floor": 0.1}, "`floor` 0.1; allowed: -1 to 0"),
    ("shorter_than_before", {"floor": -2}, "`floor` -2; allowed: -1 to 0"),
    ("shorter_than_before", {"capacity": 0}, "`capacity` 0; it must be more than 0"),
    ("needed_reasoning", {**JUDGED, "unit": "tokens"}, "does not say where in the text a token begins"),
    ("needed_reasoning", {**JUDGED, "beta": 0}, "`beta` 0; it must be more than 0"),
    ("needed_reasoning", {**JUDGED, "limit": 0}, "`limit` 0; it must be more than 0"),
    ("needed_reasoning", {**JUDGED, "judge": {}}, "give a `type` and optional `arguments`"),
    ("box_detection", {"overlap": "dice"}, r'overlap` is "dice"; allowed: giou, iou'),
    ("box_detection", {"first": {"dead": 0}}, "first.match` is missing"),
    ("box_hit", {"coordinates": "guess"}, r'coordinates` is "guess"; allowed: pixel, unit, thousand'),
    ("box_gaussian", {"alpha": 0}, "alpha` is 0; it must be greater than 0"),
    ("unit_tests", {"judge": "alone"}, r'judge` is "alone"; allowed: apart, together'),
    ("json_format", {"required": {"a": "text"}}, r'required\.a` is "text"; allowed: string'),
    ("tex_similarity", {"format_weight": -1}, "format_weight` is -1"),
    ("tex_similarity", {"size": 5}, "size` is 5; it must be greater than or equal to 11"),
    ("tex_similarity", {"together": 0}, "together` is 0"),
    ("tex_similarity", {"similarity": "nothing"}, "similarity 'nothing'; allowed: "),
    ("plot_fields", {"stages": [[1, 0, 0]]}, r"stages\[1\]` is missing"),
    ("plot_fields", {"stages": [[1, 1, 0], [1, 0, 0]]}, "each one's weights sum to 1"),
    ("plot_fields", {"field_weights": {"datum": 1}}, "allowed: data, type, layout, text, colors"),
    ("plot_similarity", {"tolerance": 1}, "tolerance` is 1; it must be less than 1"),
    ("svg_similarity", {"text_weight": -1}, "text_weight` is -1"),
    ("svg_similarity", {"image_weight": 0}, "one that counts must be above 0"),
    ("svg_similarity", {"similarity": "psnr"}, "similarity 'psnr'; allowed: "),
    ("svg_similarity", {"item_s": 0}, "item_s` is 0"),
    ("novelty", {"combine": "max"}, r'combine` is "max"; allowed: product, sum, global, episodic'),
    ("novelty", {"features": "pieces"}, "features is 'pieces'; allowed: colours, objects"),
    ("novelty", {"ridge": 0}, "ridge` is 0"),
    ("novelty", {"within_episode": "leave_one_out", "episode": "prompt"}, "leave_one_out compares a group with itself"),
    ("goal_baseline_similarity", {"baseline": "a picture", "alpha": 1.5}, "alpha` is 1.5"),
    ("goal_baseline_similarity", {"baseline": "a picture", "window": 0}, "window` is 0"),
    ("set_distance", {"distance": "euclid"}, "allowed: chamfer, hausdorff"),
    ("set_distance", {"unmatched": 3}, "unmatched` is 3"),
    ("regularized_relevance", {"closed_range": [0, 1], "open_range": [0, 9]}, r"open_range\[1\]` is 9"),
    ("encoder_similarity", {"against": "caption"}, "allowed: prompt, reference"),
    ("policy_likelihood", {"delimiter": ""}, "delimiter is empty"),
    ("reference_score", {"reward": {"type": "sum_proxy"}, "index": -1}, "index` -1; number"),
    ("reasoning_nats", {"prior": COUNTED, "beta": 0}, "beta` is 0"),
    ("reasoning_nats", {"prior": COUNTED, "part": "answer"}, "allowed: thought, output"),
    ("reasoning_nats", {"prior": {"type": "gaussian"}}, "prior.type 'gaussian'; allowed: uniform, laplace, ngram, lm"),
    ("reasoning_nats", {"prior": {}}, "prior.type None; allowed: "),
    ("reasoning_nats", {"prior": {"type": "uniform"}}, "missing 1 required keyword-only argument: 'vocabulary'"),
    ("reasoning_nats", {"prior": {"type": "uniform", "vocabulary": 0}}, "vocabulary` is 0"),
    ("reasoning_nats", {"prior": {**COUNTED, "unit": "tokens"}}, "would need to know which ids are the reasoning"),
    ("reasoning_nats", {"prior": {"type": "laplace", "target": 3, "scale": 0}}, "scale` is 0"),
    ("reasoning_nats", {"prior": {"type": "ngram", "texts": [], "unit": "lines"}}, "allowed: words, characters"),
    ("reasoning_nats", {"prior": {"type": "ngram", "texts": [], "smoothing": 0}}, "smoothing` is 0"),
    ("reasoning_nats", {"prior": {"type": "lm", "modle": "x"}}, "unexpected keyword argument 'modle'"),
]


@pytest.mark.parametrize(("name", "options", "message"), SENSELESS)
def test_options_that_mean_nothing_are_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(PlauditError, match=message):
        find_reward("mine", name, options)


def test_the_message_names_the_key_in_the_recipe() -> None:
    with pytest.raises(RecipeError, match=r"^`rewards\.mine\.arguments\.limit` is 0; it must be greater than 0$"):
        find_reward("mine", f"{__name__}:Shorter", {"limit": 0})


@pytest.mark.parametrize("path", BUILT_IN.values(), ids=BUILT_IN)
def test_the_annotations_of_built_in_rewards_can_be_read(path: str) -> None:
    inspect.signature(import_dotted(path, "reward"), eval_str=True)


# --- of a reward of the user's own -----------------------------------------------------------------------------------


class Judge(Protocol):
    def ask(self, text: str) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Limits:
    low: float
    high: float = 1.0


class Shorter:
    def __init__(self, limit: Positive = 8) -> None:
        self.limit = limit

    def __call__(self, prompts: Sequence[str], outputs: Sequence[str]) -> list[float]:
        return [float(len(output) < self.limit) for output in outputs]


def makes(
    count: Positive = 1,
    share: Fraction | None = None,
    word: Literal["line", "page"] = "line",
    judge: Judge | None = None,
    sizes: tuple[int, int] = (1, 1),
    weights: Mapping[str, Annotated[float, Field(ge=0)]] | None = None,
    limits: Limits | None = None,
    plain=None,  # type: ignore[no-untyped-def]
) -> None: ...


def absent(limit: Positive, other: Absent) -> None: ...


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"count": 3, "share": None, "word": "page"}, {"count": 3, "share": None, "word": "page"}),
        ({"sizes": [2, 3], "plain": "as it is"}, {"sizes": (2, 3), "plain": "as it is"}),
        ({"judge": len}, {"judge": len}),
        ({"limits": {"low": 0}}, {"limits": Limits(low=0)}),
        ({"nothing": 1}, {"nothing": 1}),
    ],
)
def test_values_become_what_the_annotation_says(given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert checked("key", makes, given) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"count": 1.5}, "`key.count` is 1.5; it must be a valid integer"),
        ({"count": "many"}, '`key.count` is "many"; it must be a valid integer'),
        ({"share": 2}, "`key.share` is 2; it must be less than or equal to 1"),
        ({"word": "lin"}, '`key.word` is "lin"; allowed: line, page; did you mean line\\?'),
        ({"sizes": [1]}, r"`key.sizes\[1\]` is missing"),
        ({"weights": {"a": 1, "b": -1}}, "`key.weights.b` is -1"),
        ({"limits": {"high": 2}}, "`key.limits.low` is missing"),
    ],
)
def test_what_is_refused_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=f"^{message}"):
        checked("key", makes, given)


def test_annotations_for_type_checkers_only_are_not_read() -> None:
    assert checked("key", absent, {"limit": 0}) == {"limit": 0}
