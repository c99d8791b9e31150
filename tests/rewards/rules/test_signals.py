"""Measures of signals against slow arithmetic, the packages they come from, and signals whose values are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.rewards.base import Score, Status
from plaudit.rewards.calling.call import call_reward
from plaudit.rewards.pinned.media import make
from plaudit.rewards.rules.signals import (
    PESQ_RANGE,
    Pesq,
    SiSdr,
    SpectralCorrelation,
    Stoi,
    energy_match,
    si_sdr_db,
    smoothness,
)

pytest.importorskip("pystoi")
pytest.importorskip("pesq")

SPEECH = {"speech": 120, "seconds": 1.5}
COMPARING = (SiSdr(), SpectralCorrelation(), energy_match, Stoi(), Pesq())
SMOOTH = (SiSdr(), SpectralCorrelation(64), energy_match)


def scored(reward, outputs: list[Tensor], references: list[Tensor | None], **facts) -> list[Score]:
    prompts = [Prompt(id="", text="", inputs={"reference": wanted}, facts=facts) for wanted in references]
    return call_reward("mine", reward, prompts, outputs)


def random_signal(length: int, seed: int = 0) -> Tensor:
    return torch.randn(length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- arithmetic ------------------------------------------------------------------------------------------------------


def slow_si_sdr(estimate: np.ndarray, clean: np.ndarray) -> float:
    estimate, clean = estimate - estimate.mean(), clean - clean.mean()
    target = (estimate @ clean) / (clean @ clean) * clean
    return 10 * math.log10((target @ target) / ((estimate - target) @ (estimate - target)))


@pytest.mark.parametrize("noise", (1e-2, 0.3, 1.0, 10.0))
def test_si_sdr_equals_its_definition(noise: float) -> None:
    clean = random_signal(777)
    estimate = clean + noise * random_signal(777, seed=1) + 0.5
    assert float(si_sdr_db(estimate, clean, 60)) == pytest.approx(
        slow_si_sdr(estimate.numpy(), clean.numpy()), abs=1e-9
    )


def test_si_sdr_ignores_scale_sign_and_offset() -> None:
    clean, estimate = random_signal(500), random_signal(500) + random_signal(500, seed=1)
    value = float(si_sdr_db(estimate, clean, 60))
    assert value == pytest.approx(0, abs=1)
    for other in (1e-6 * estimate, -3 * estimate, estimate + 7):
        assert float(si_sdr_db(other, clean, 60)) == pytest.approx(value, abs=1e-6)
    assert float(si_sdr_db(estimate, 100 * clean, 60)) == pytest.approx(value, abs=1e-9)


def test_si_sdr_is_clipped_at_both_ends() -> None:
    clean = random_signal(500)
    assert float(si_sdr_db(clean, clean, 60)) == pytest.approx(60)
    assert float(si_sdr_db(clean.float() * 0.3, clean.float(), 30)) == pytest.approx(30)
    assert float(si_sdr_db(torch.zeros(500), clean, 60)) == -60


def test_spectral_correlation_ignores_phase_and_loudness_but_not_pitch() -> None:
    tone, quiet = make({"tones": [440]}), 0.1 * make({"tones": [440]})
    shifted = torch.cat([tone[9:], tone[:9]])
    other = make({"tones": [880]})
    values = [s.value for s in scored(SpectralCorrelation(), [quiet, -tone, shifted, other, 0 * tone], [tone] * 5)]
    assert values[:2] == pytest.approx([1, 1]) and values[2] > 0.99
    assert values[3] < 0.1 and values[4] == 0


def test_smoothness_of_a_tone_is_a_cosine() -> None:
    """1 - sin^2(pi f / rate), and silence, which needs no signal, has the most: that is how it is gamed."""
    for hz in (200, 1000, 3000, 7000):
        value = float(smoothness([""], [make({"tones": [hz]})])[0])
        assert value == pytest.approx(math.cos(math.pi * hz / 16_000) ** 2, abs=1e-4)
    assert float(smoothness([""], [torch.zeros(100)])[0]) == 1


def test_the_rewards_disagree_about_silence() -> None:
    """What S093 is about: the measure without a reference is content with nothing, those with one are not."""
    noisy, clean = make({**SPEECH, "noise": 0.1}), make(SPEECH)
    silence = torch.zeros_like(clean)
    assert float(smoothness([""], [silence])[0]) > float(smoothness([""], [noisy])[0])
    for reward in (SiSdr(), SpectralCorrelation(), energy_match, Stoi()):
        better, worse = scored(reward, [noisy, silence], [clean, clean])
        assert better.value > worse.value + 0.3


@pytest.mark.parametrize("reward", SMOOTH)
def test_gradients_equal_finite_differences(reward) -> None:
    clean, estimate = random_signal(130), random_signal(130, seed=1).requires_grad_()
    assert reward.card.differentiable
    assert torch.autograd.gradcheck(lambda x: reward([""], [x], [clean])[0], estimate, eps=1e-6, atol=1e-5)


def test_the_gradient_of_smoothness_equals_finite_differences() -> None:
    signal = random_signal(40).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: smoothness([""], [x])[0], signal, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("reward", SMOOTH)
def test_gradients_at_silence_and_at_the_target_are_finite(reward) -> None:
    clean = random_signal(130)
    for start in (clean, torch.zeros(130, dtype=torch.float64)):
        signal = start.clone().requires_grad_()
        reward([""], [signal], [clean])[0].backward()
        assert signal.grad.isfinite().all()


# --- published measures ----------------------------------------------------------------------------------------------


def test_published_measures_equal_their_packages_and_take_the_clean_signal_first() -> None:
    import pesq
    import pystoi

    clean, noisy = make(SPEECH), make({**SPEECH, "noise": 0.05})
    x, y = clean.numpy(), noisy.numpy()
    stoi, quality = (scored(reward, [noisy], [clean])[0].value for reward in (Stoi(), Pesq()))
    assert (
        stoi == pytest.approx(pystoi.stoi(x, y, 16_000), abs=1e-6) != pytest.approx(pystoi.stoi(y, x, 16_000), abs=1e-4)
    )
    assert quality == pytest.approx(pesq.pesq(16_000, x, y, "wb"), abs=1e-6)


@pytest.mark.parametrize("reward", (SiSdr(), SpectralCorrelation(), Stoi(), Pesq()))
def test_more_noise_is_worse(reward) -> None:
    clean = make(SPEECH)
    levels = (0.0, 0.002, 0.02, 0.2)
    noisy = [make({**SPEECH, "noise": level}) for level in levels]
    values = [score.value for score in scored(reward, noisy, [clean] * 4)]
    assert values == sorted(values, reverse=True) and len(set(values)) == 4
    assert values[0] == pytest.approx(reward.card.high, abs=1e-3)


def test_rates() -> None:
    clean = make(SPEECH)
    assert scored(Pesq(), [clean], [clean], sample_rate=8_000)[0].value > 4.5
    score = scored(Pesq(), [clean], [clean], sample_rate=44_100)[0]
    assert score.status is Status.NOT_APPLICABLE and "44100" in score.note
    noisy = make({**SPEECH, "noise": 0.1})
    assert scored(Stoi(), [noisy], [clean], sample_rate=None)[0] == scored(Stoi(), [noisy], [clean])[0]
    assert scored(Stoi(), [noisy], [clean], sample_rate=10_000)[0].value != scored(Stoi(), [noisy], [clean])[0].value


@pytest.mark.filterwarnings("ignore:Not enough STFT frames")
def test_too_short_or_silent_is_missing_never_a_number() -> None:
    """pystoi would return 0.00001 for a short signal, and pesq raise."""
    short, clean = make({**SPEECH, "seconds": 0.2}), make(SPEECH)
    for reward in (Stoi(), Pesq()):
        assert scored(reward, [short], [short])[0].status is Status.NOT_APPLICABLE
    assert scored(Pesq(), [0 * clean], [clean])[0].value == PESQ_RANGE[0], "silence earns the least, and is not excused"
    assert scored(SpectralCorrelation(), [clean[:100]], [clean[:100]])[0].status is Status.NOT_APPLICABLE
    for signal in (clean[:1], torch.stack([clean, -clean])):
        assert call_reward("mine", smoothness, [Prompt(id="", text="")], [signal])[0].status is Status.ERRORED


@pytest.mark.parametrize("reward", COMPARING)
def test_what_cannot_be_compared_is_missing_and_harms_no_other(reward) -> None:
    clean, noisy = make(SPEECH), make({**SPEECH, "noise": 0.05})
    broken = noisy.clone()
    broken[5] = float("nan")
    scores = scored(reward, [noisy, noisy, noisy, broken, noisy], [clean, None, 0 * clean, clean, clean[:-1]])
    assert [score.status for score in scores] == [
        Status.OK, Status.NOT_APPLICABLE, Status.NOT_APPLICABLE, Status.ERRORED, Status.ERRORED,
    ]  # fmt: skip
    assert scores[0] == scored(reward, [noisy], [clean])[0]


def test_each_signal_meets_its_own_reference() -> None:
    signals = [
        make({**SPEECH, "speech": pitch, "seconds": length}) for pitch, length in ((100, 1), (150, 1.5), (200, 1.2))
    ]
    for reward in COMPARING:
        values = [score.value for score in scored(reward, signals, signals)]
        assert values == pytest.approx([reward.card.high] * 3, abs=1e-3)
