"""The particle core against a chain small enough to sum over all its paths."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.reference.enumerated import Chain, total_variation
from torch import Tensor

from plaudit.search import weights as smc

CHAIN = Chain(start=(0.6, 0.3, 0.1), move=((0.7, 0.2, 0.1), (0.3, 0.4, 0.3), (0.2, 0.3, 0.5)), steps=4)
SCORE = (0.0, -0.5, 2.0)
ALPHA = {"difference": 1.5, "max": 0.6, "sum": 0.25}  # the others tilt far beyond the target on the way: heavy tails


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- weights ---------------------------------------------------------------------------------------------------------


def test_weights_by_hand() -> None:
    log_w = rows([0.0, math.log(3.0), -math.inf, math.log(4.0)], [700.0, 700.0, -math.inf, -math.inf])
    torch.testing.assert_close(smc.normalised(log_w), rows([1 / 8, 3 / 8, 0, 1 / 2], [0.5, 0.5, 0, 0]))
    torch.testing.assert_close(smc.log_normaliser(log_w), torch.tensor([math.log(2.0), 700 - math.log(2)]).double())
    torch.testing.assert_close(smc.effective_size(log_w), torch.tensor([64 / 26, 2.0]).double())


def test_a_row_without_living_particles_says_nothing() -> None:
    dead = rows([-math.inf] * 3)
    assert smc.normalised(dead).isnan().all() and smc.log_normaliser(dead).item() == -math.inf
    assert smc.effective_size(dead).item() == 0
    assert smc.resample(dead, rows([0.1, 0.5, 0.9])).tolist() == [[0, 1, 2]]
    kept = smc.resample_below(dead, rows([0.9, 0.9, 0.9]), 0.5)
    assert not kept.happened.any() and (kept.log_w == -math.inf).all()


def test_log_weights_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(AssertionError):
        smc.normalised(rows([0.0, math.nan]))


# --- resampling ------------------------------------------------------------------------------------------------------


def test_ancestors_by_hand() -> None:
    log_w = rows([-math.inf, math.log(1.0), math.log(3.0), -math.inf])
    points = rows([0.0, 0.2499, 0.25, 0.9999999])
    assert smc.resample(log_w, points).tolist() == [[1, 1, 2, 2]]
    assert smc.resample(log_w, rows([1.0, 1.0, 1.0, 1.0])).tolist() == [[2, 2, 2, 2]]  # never a dead one


def test_comb_gives_each_particle_its_share_but_for_one() -> None:
    rng = np.random.default_rng(0)
    log_w = torch.from_numpy(rng.normal(size=(50, 16))) * 2
    points = smc.comb(torch.from_numpy(rng.random(50)), 16)
    counts = torch.nn.functional.one_hot(smc.resample(log_w, points), 16).sum(1)
    assert ((counts - 16 * smc.normalised(log_w)).abs() < 1).all()
    assert (counts > 1).any()


@pytest.mark.parametrize("systematic", (True, False))
def test_resampling_keeps_every_average(systematic: bool) -> None:
    """Counts are right in expectation, for both kinds of points; four standard errors."""
    rng, N, draws = np.random.default_rng(1), 5, 20_000
    log_w = torch.from_numpy(rng.normal(size=(1, N))).expand(draws, N)
    uniform = torch.from_numpy(rng.random((draws, N)))
    points = smc.comb(uniform[:, 0], N) if systematic else uniform
    counts = torch.nn.functional.one_hot(smc.resample(log_w, points), N).sum(1).double()
    error = (counts.mean(0) - N * smc.normalised(log_w)[0]).abs() / (counts.std(0) / draws**0.5 + 1e-12)
    assert (error < 4).all()


def test_only_problems_with_uneven_weights_are_resampled() -> None:
    log_w = rows([0.0, 0.0, 0.0, 0.1], [0.0, -9.0, -9.0, -9.0])
    points = smc.comb(torch.tensor([0.5, 0.5]), 4)
    after = smc.resample_below(log_w, points, 0.5)
    assert after.happened.tolist() == [False, True]
    assert after.ancestors.tolist() == [[0, 1, 2, 3], [0, 0, 0, 0]]
    assert torch.equal(after.log_w[0], log_w[0])
    torch.testing.assert_close(smc.log_normaliser(after.log_w), smc.log_normaliser(log_w))
    assert (after.log_w[1] == after.log_w[1, 0]).all()


# --- potentials ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("potential", "expected"), (("difference", [1.0, -3.0, 4.0]), ("max", [1.0, 1.0, 2.0]), ("sum", [1.0, -1.0, 1.0]))
)
def test_increments_by_hand_and_their_product_is_the_last_reward(potential: str, expected: list[float]) -> None:
    lineage = smc.begin(1, 1, potential)
    total = 0.0
    for score, want in zip((1.0, -2.0, 2.0), expected, strict=True):
        weighed = smc.weigh(potential, 0.5, rows([score]), lineage)
        assert weighed.increment.item() == pytest.approx(0.5 * want)
        total, lineage = total + weighed.increment.item(), weighed.lineage
    assert total + smc.correct(0.5, rows([7.0]), lineage).item() == pytest.approx(0.5 * 7.0)


@pytest.mark.parametrize("potential", smc.POTENTIALS)
def test_a_missing_score_leaves_weight_and_lineage_as_they_are(potential: str) -> None:
    lineage = smc.weigh(potential, 2.0, rows([1.0, -1.0]), smc.begin(1, 2, potential)).lineage
    lost = smc.weigh(potential, 2.0, rows([math.nan, 3.0]), lineage)
    assert lost.increment[0, 0].item() == 0 and lost.increment[0, 1].item() != 0
    assert lost.lineage.product[0, 0] == lineage.product[0, 0] and lost.lineage.running[0, 0] == lineage.running[0, 0]
    assert smc.correct(2.0, rows([math.nan, 3.0]), lineage).isneginf().tolist() == [[True, False]]


# --- a whole run -----------------------------------------------------------------------------------------------------


def run(
    potential: str, P: int, N: int, seed: int, threshold: float = 0.5, alpha: float | None = None
) -> tuple[Tensor, Tensor]:
    """P runs of SMC on the chain with N particles: last states and log-weights `[P, N]`. On the way the score of the state
    itself is the guess of the last one's."""
    alpha = ALPHA[potential] if alpha is None else alpha
    rng = np.random.default_rng(seed)
    move, score = torch.tensor(CHAIN.move).double(), torch.tensor(SCORE).double()

    def drawn(probability: Tensor) -> Tensor:
        number = torch.from_numpy(rng.random(probability.shape[:-1]))[..., None]
        return (probability.cumsum(-1) < number).sum(-1)

    state = drawn(torch.tensor(CHAIN.start).double().expand(P, N, 3))
    log_w, lineage = torch.zeros(P, N, dtype=torch.float64), smc.begin(P, N, potential)
    for _ in range(CHAIN.steps):
        weighed = smc.weigh(potential, alpha, score[state], lineage)
        points = smc.comb(torch.from_numpy(rng.random(P)), N)
        after = smc.resample_below(log_w + weighed.increment, points, threshold)
        log_w, lineage = after.log_w, weighed.lineage.select(after.ancestors)
        state = drawn(move[state.gather(1, after.ancestors)])
    return state, log_w + smc.correct(alpha, score[state], lineage)


def histogram(state: Tensor, log_w: Tensor) -> Tensor:
    """Weighted shares `[P, 3]` of the states."""
    return (torch.nn.functional.one_hot(state, 3) * smc.normalised(log_w)[..., None]).sum(1)


@pytest.mark.parametrize("potential", smc.POTENTIALS)
def test_particles_target_the_enumerated_distribution(potential: str) -> None:
    target = CHAIN.tilted(ALPHA[potential], SCORE)
    assert total_variation(target, CHAIN.tilted(0.0, SCORE)) > 0.1  # far from where the chain itself ends
    errors = []
    for N in (16, 256, 4096):
        shares = histogram(*run(potential, 40, N, seed=N))
        errors.append(float(np.mean([total_variation(row, target) for row in shares.tolist()])))
    assert errors[2] < errors[1] / 2 < errors[0] / 4  # like 1 / sqrt(N), which is a quarter per step
    assert errors[2] < 0.02


@pytest.mark.parametrize("potential", smc.POTENTIALS)
def test_the_mean_weight_estimates_the_constant_without_bias(potential: str) -> None:
    """Even with few particles, resampled at every step: within four standard errors."""
    _, log_w = run(potential, 20_000, 6, seed=3, threshold=1.1)
    estimate = smc.log_normaliser(log_w).exp()
    error = estimate.std() / len(estimate) ** 0.5
    constant = CHAIN.constant(ALPHA[potential], SCORE)
    assert abs(estimate.mean() - constant) < 4 * error < 0.2 * constant


def test_without_tilt_nothing_is_resampled_and_weights_stay_equal() -> None:
    state, log_w = run("difference", 3, 50, seed=4, alpha=0.0)
    assert (log_w == 0).all() and total_variation(histogram(state, log_w)[0].tolist(), CHAIN.tilted(0, SCORE)) < 0.25
