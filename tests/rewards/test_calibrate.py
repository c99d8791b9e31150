"""Scales: what each does to scores, that missing ones stay missing, and that they survive being written down."""

from __future__ import annotations

import json
import math

import pytest
import torch

from plaudit.errors import RecipeError
from plaudit.recipe.rewards import RewardConfig
from plaudit.rewards.base import Card, Reference
from plaudit.rewards.calibrate import fit, from_json, needs_outputs, to_json, unit_of

SCORES = torch.tensor([3.0, 5.0, math.nan, 7.0, 9.0, 11.0, 13.0, 15.0, 17.0], dtype=torch.float64)
CARD = Card(summary="", low=0, high=20, reference=Reference(mean=4.0, std=2.0, on="somewhere"))


def config(**calibrate) -> RewardConfig:
    return RewardConfig(type="x", calibrate=calibrate)


def fitted(card: Card | None = CARD, scores=SCORES, **calibrate):
    return fit("r", config(**calibrate), card, scores)


def test_zscore_has_mean_0_and_deviation_1_on_what_it_measured() -> None:
    scaled = fitted(type="zscore")(SCORES)
    there = scaled[~scaled.isnan()]
    assert there.mean().item() == pytest.approx(0) and there.std().item() == pytest.approx(1)
    assert torch.equal(scaled.isnan(), SCORES.isnan())


def test_minmax_reaches_from_0_to_1() -> None:
    scaled = fitted(type="minmax")(SCORES)
    assert scaled[0] == 0 and scaled[-1] == 1 and scaled[3].item() == pytest.approx(4 / 14)
    assert fitted(type="minmax", low=0.0)(SCORES)[0].item() == pytest.approx(3 / 17)


def test_quantile_is_the_share_below_with_ties_counted_half() -> None:
    scale = fitted(type="quantile", scores=torch.tensor([1.0, 2, 2, 2, 3, 4, 5, 6]))
    asked = torch.tensor([0.0, 1, 2, 3.5, 6, 9, math.nan], dtype=torch.float64)
    assert scale(asked)[:6].tolist() == [0, 0.5 / 8, (1 + 1.5) / 8, 5 / 8, 7.5 / 8, 1] and scale(asked)[6].isnan()
    order = scale(SCORES[~SCORES.isnan()])
    assert (order.diff() >= 0).all(), "it keeps the order"


def test_reference_reads_the_card_and_given_numbers_need_no_outputs() -> None:
    assert fitted(type="reference", scores=None)(torch.tensor([8.0])).item() == 2
    assert fitted(type="zscore", mean=1.0, std=4.0, scores=None)(torch.tensor([9.0])).item() == 2
    assert fitted(type="minmax", low=1.0, high=5.0, scores=None)(torch.tensor([2.0])).item() == 0.25
    assert fit("r", RewardConfig(type="x"), CARD, SCORES) is None
    open_ones = [c for c in ({"type": "zscore"}, {"type": "minmax", "low": 0.0}, {"type": "quantile"})]
    assert all(needs_outputs(config(**c)) for c in open_ones)
    assert not needs_outputs(config(type="reference")) and not needs_outputs(RewardConfig(type="x"))


@pytest.mark.parametrize(
    ("calibrate", "card", "scores", "message"),
    [
        ({"type": "reference"}, Card(summary=""), None, "rewards.r.calibrate: this reward's card has no reference"),
        ({"type": "reference"}, None, None, "no reference; allowed: zscore, minmax, quantile"),
        ({"type": "zscore"}, CARD, torch.full((9,), 2.0), "spread over 0, so there is nothing to divide by"),
        ({"type": "minmax"}, CARD, torch.full((9,), 2.0), "spread over 0"),
        ({"type": "minmax", "low": 3.0, "high": 1.0}, CARD, None, "spread over -2"),
        ({"type": "zscore"}, CARD, torch.full((9,), math.nan), "only 0 of 9 calibration outputs have a score"),
        ({"type": "quantile"}, CARD, SCORES[:5], "only 4 of 5 .* at least 8"),
    ],
)
def test_what_cannot_be_measured_is_said(calibrate, card, scores, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        fitted(card=card, scores=scores, **calibrate)


@pytest.mark.parametrize("kind", ("zscore", "minmax", "quantile", "reference"))
def test_scales_survive_json(kind: str) -> None:
    scale = fitted(type=kind)
    again = from_json(json.loads(json.dumps(to_json(scale))))
    assert again == scale and torch.equal(again(SCORES).nan_to_num(-9), scale(SCORES).nan_to_num(-9))
    assert unit_of(config(type=kind), CARD) == ((0, 1) if kind == "quantile" else kind)


def test_without_a_scale_the_card_says_the_unit() -> None:
    assert unit_of(RewardConfig(type="x"), CARD) == (0, 20)
    assert unit_of(RewardConfig(type="x"), None) is None and unit_of(RewardConfig(type="x"), Card(summary="")) is None
