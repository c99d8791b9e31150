from __future__ import annotations

import itertools
import math
import statistics

import pytest
import torch
from hypothesis import strategies as st
from tests.rewards.compose.batches import NAN, law, numbers, parts, same, tensor

from plaudit.rewards.compose import shapers as sh
from plaudit.rewards.compose.operators import cme

REFERENCES = [tensor(0.5, -1.0, 0.0, 3.0), tensor(-0.5, 2.0, 1.0, 0.0)]
RISING = {
    "clip": lambda s: sh.clip(s, low=-1, high=1.5),
    "ceiling": lambda s: sh.clip(s, high=1),
    "rescale": lambda s: sh.rescale(s, low=-4, high=4),
    "sigmoid": lambda s: sh.sigmoid(s, slope=3, at=0.5),
    "tanh": lambda s: sh.tanh(s, slope=0.5),
    "par": lambda s: sh.par(s, [torch.zeros_like(s), torch.ones_like(s)]),
    "par_tanh": lambda s: sh.par_tanh(s, [torch.zeros_like(s), torch.ones_like(s)]),
    "centred_on": lambda s: sh.centred_on(s, [torch.ones_like(s)]),
    "lsc": lambda s: sh.lsc(s, [torch.zeros_like(s), torch.ones_like(s)]),
    "dead_zone": lambda s: sh.dead_zone(s, low=0.5, high=0.75),
    "tiers": sh.tiers,
}
BOUNDS = {
    "clip": (-1, 1.5),
    "sigmoid": (0, 1),
    "tanh": (-1, 1),
    "par": (0, 1),
    "par_tanh": (-1, 1),
    "dead_zone": (0, 1),
    "tiers": (0, 1),
}


@pytest.mark.parametrize("name", RISING)
@law(batch=parts(1))
def test_order_is_kept_and_missing_stays_missing(name, batch) -> None:
    scores = batch[0]
    shaped = RISING[name](scores)
    assert torch.equal(shaped.isnan(), scores.isnan())
    order = scores[~scores.isnan()].argsort()
    assert (shaped[~scores.isnan()][order].diff() >= 0).all()
    low, high = BOUNDS.get(name, (-math.inf, math.inf))
    assert (shaped.nan_to_num(nan=low) >= low).all() and (shaped.nan_to_num(nan=high) <= high).all()


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "par", "par_tanh", "centred_on", "lsc", "rescale"])
def test_gradients(name) -> None:
    assert torch.autograd.gradcheck(RISING[name], tensor(-2.0, -0.1, 0.4, 3.0).requires_grad_())


def test_shapers_by_hand() -> None:
    scores = tensor(-2, 0.25, 1, NAN)
    assert same(sh.clip(scores, low=-1, high=0.5), tensor(-1, 0.25, 0.5, NAN))
    assert same(
        sh.sigmoid(scores, slope=2, at=0.25), tensor(1 / (1 + math.exp(4.5)), 0.5, 1 / (1 + math.exp(-1.5)), NAN)
    )
    assert same(sh.tanh(scores, slope=2, at=0.25), tensor(math.tanh(-4.5), 0, math.tanh(1.5), NAN))


# --- references (S101) -----------------------------------------------------------------------------------------------


def test_par_is_the_mean_of_sigmoids_and_not_the_sigmoid_of_the_mean() -> None:
    score = tensor(0.0)
    result = sh.par(score, [tensor(0.0), tensor(4.0)])
    assert same(result, tensor((0.5 + 1 / (1 + math.exp(4))) / 2))
    assert abs(result.item() - 1 / (1 + math.exp(2))) > 0.1


def test_par_by_a_loop() -> None:
    scores = tensor(0.1, 1.0, -2.0, 5.0)
    expected = [
        statistics.fmean(1 / (1 + math.exp(-2 * (s - ref[i].item()))) for ref in REFERENCES)
        for i, s in enumerate(scores.tolist())
    ]
    assert same(sh.par(scores, REFERENCES, slope=2), tensor(*expected))
    assert sh.par(REFERENCES[0], [REFERENCES[0]]).tolist() == [0.5] * 4
    tanhs = [
        statistics.fmean(math.tanh(s - ref[i].item()) for ref in REFERENCES) for i, s in enumerate(scores.tolist())
    ]
    assert same(sh.par_tanh(scores, REFERENCES), tensor(*tanhs))


def test_a_missing_reference_is_never_the_raw_score() -> None:
    result = sh.par(tensor(9.0, 9.0), [tensor(0.0, NAN), tensor(0.0, 0.0)])
    assert result.isnan().tolist() == [False, True]
    for shaper in (sh.par, sh.par_tanh, sh.centred_on, sh.lsc):
        with pytest.raises(ValueError, match="no reference"):
            shaper(tensor(9.0), [])


def test_lsc_and_centring_by_hand() -> None:
    references = [tensor(1.0), tensor(3.0)]  # mean 2, population std 1
    assert same(sh.lsc(tensor(3.036), references), tensor(math.log(0.5)))
    assert same(sh.lsc(tensor(2.036), references), tensor(-math.log(1 + math.e)))
    assert same(sh.centred_on(tensor(5.0), references), tensor(3.0))


@law(shift=st.floats(-100, 100))
def test_only_the_distance_to_the_references_counts(shift) -> None:
    scores = tensor(0.1, 1.0, -2.0, 5.0)
    for shaper in (sh.par, sh.par_tanh, sh.centred_on, sh.lsc):
        assert same(shaper(scores + shift, [r + shift for r in REFERENCES]), shaper(scores, REFERENCES), atol=1e-7)


# --- rules -----------------------------------------------------------------------------------------------------------


def test_dead_zone_by_hand() -> None:
    """S053: 0 below the first threshold, 1 above the second, itself at and between them; GIoU may be negative."""
    scores = tensor(-0.4, 0.49, 0.5, 0.6, 0.75, 0.76, NAN)
    assert same(sh.dead_zone(scores, low=0.5, high=0.75), tensor(0, 0, 0.5, 0.6, 0.75, 1, NAN))
    assert same(sh.dead_zone(scores, low=0.75, high=0.9), tensor(0, 0, 0, 0, 0.75, 0.76, NAN))


def test_tiers_by_hand() -> None:
    scores = tensor(0, 0.2499, 0.25, 0.5, 0.7499, 0.75, 1, NAN)
    assert same(sh.tiers(scores), tensor(0, 0, 0.25, 0.5, 0.5, 1, 1, NAN))
    assert same(sh.tiers(scores, thresholds=(0.5,), values=(0.0, 1.0)), tensor(0, 0, 0, 1, 1, 1, 1, NAN))


@law(success=numbers(0, 1), failure=numbers(0, 1), alpha=st.floats(0, 0.99))
def test_any_success_beats_any_failure(success, failure, alpha) -> None:
    """S041, for any quality of either."""
    won = sh.tiered(tensor(1.0), tensor(success), alpha=alpha)
    assert won > sh.tiered(tensor(0.0), tensor(failure), alpha=alpha)


def test_grades_of_one_to_five_close_the_gate_only_when_rescaled_from_one() -> None:
    """S044: s / 5 leaves 0.2 of the gate open for the worst grade."""
    worst, best = tensor(1.0), tensor(5.0)
    assert cme(sh.rescale(worst, low=1, high=5), sh.rescale(best, low=1, high=5)).item() == 0
    assert cme(worst / 5, best / 5).item() == pytest.approx(0.2)


# --- schedules -------------------------------------------------------------------------------------------------------


def test_schedules_by_hand() -> None:
    steps = (0, 10, 15, 20, 99)
    assert [sh.linear(1, 3, 10, after=10, step=s) for s in steps] == [1, 1, 2, 3, 3]
    assert [sh.cosine(1, 3, 10, after=10, step=s) for s in steps] == pytest.approx([1, 1, 2, 3, 3])
    assert sh.cosine(0, 1, 3, step=1) == pytest.approx(0.25)
    assert [sh.warmup(5000, step=s) for s in (0, 2500, 5000, 9000)] == [0, 0.5, 1, 1]
    assert [sh.staged((1500, 2000), (0.5, 0.75, 0.9), step=s) for s in (1499, 1500, 2000)] == [0.5, 0.75, 0.9]


@law(start=st.floats(-5, 5), end=st.floats(-5, 5), steps=st.integers(1, 50))
def test_schedules_go_one_way_between_their_ends(start, end, steps) -> None:
    for schedule in (sh.linear, sh.cosine):
        path = [schedule(start, end, steps, step=s) for s in range(steps + 2)]
        assert path[0] == start and path[-1] == pytest.approx(end, abs=1e-12)
        assert all((b - a) * (end - start) >= -1e-12 for a, b in itertools.pairwise(path))


@pytest.mark.parametrize(
    "senseless",
    [
        lambda s: sh.clip(s, low=1, high=0),
        lambda s: sh.rescale(s, low=1, high=1),
        lambda s: sh.sigmoid(s, slope=-1),
        lambda s: sh.tanh(s, slope=0),
        lambda s: sh.dead_zone(s, low=0.8, high=0.5),
        lambda s: sh.dead_zone(s, low=0.5, high=1.5),
        lambda s: sh.tiers(s, values=(0, 1)),
        lambda s: sh.tiers(s, values=(0, 0.5, 0.25, 1)),
        lambda s: sh.tiers(s, thresholds=(0.5, 0.5, 0.75)),
        lambda s: sh.tiered(s, s, alpha=1.0),
        lambda s: sh.linear(0, 1, 0, step=1),
        lambda s: sh.staged((5, 5), (1, 2, 3), step=1),
        lambda s: sh.staged((5,), (1,), step=1),
    ],
)
def test_senseless_options_are_refused(senseless) -> None:
    with pytest.raises(ValueError):
        senseless(tensor(0.5))


def test_calibration_lifts_low_scores_only() -> None:
    score, pattern = tensor(0.0, 0.49, 0.5, 1.0, NAN), tensor(1.0, 0.5, 1.0, 1.0, 1.0)
    assert same(sh.calibrated(score, pattern), tensor(0.1, 0.54, 0.5, 1.0, NAN))
    assert sh.calibrated(score[:1], pattern[:1], weight=0.3).item() == pytest.approx(0.3)
