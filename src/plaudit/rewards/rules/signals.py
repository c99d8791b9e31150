"""Rewards of sounds and other signals, most of them against the clean signal (`reference`, in the prompt's `inputs`).

Shape legend: T samples. A signal is `[T]`; its rate is 16 kHz unless the prompt has a `sample_rate`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from plaudit.optional import require
from plaudit.rewards.base import Card, Score, Status, card, missing

SAMPLE_RATE = 16_000
FLOOR = 1e-30  # of a denominator: its square must not underflow in the slope
SILENCE = 1e-10  # mean square; 100 dB below full scale
TOO_SHORT_FOR_STOI = 1e-5  # what pystoi returns, as a number, when fewer than 30 frames are not silent
PESQ_RANGE = (0.999, 4.644)  # the lower end of P.862.2's curve, and its value at the raw score 4.5 of equal signals

Signals = Sequence[Tensor]
References = Sequence[Tensor | None]
Decibels = Annotated[float, Field(gt=0, le=60)]
Result = Tensor | Score


def compared(
    outputs: Signals, reference: References, compare: Callable[[Tensor, Tensor], Result]
) -> Tensor | list[Result]:
    """`compare(signal, reference)` of each; a missing score where the reference is absent, silent or unlike in length."""
    results = [_judged(output, clean, compare) for output, clean in zip(outputs, reference, strict=True)]
    values = [result for result in results if isinstance(result, Tensor)]
    return torch.stack(values) if values and len(values) == len(results) else results


def _judged(output: Tensor, reference: Tensor | None, compare: Callable[[Tensor, Tensor], Result]) -> Result:
    if reference is None:
        return missing(Status.NOT_APPLICABLE, "the prompt has no reference signal")
    return _refusal(output, reference) or compare(output, reference)


def _refusal(output: Tensor, reference: Tensor) -> Score | None:
    if output.shape != reference.shape or output.ndim != 1:
        return missing(Status.ERRORED, f"the reference is {list(reference.shape)}, the signal {list(output.shape)}")
    if not output.isfinite().all():
        return missing(Status.ERRORED, "the signal has samples that are not finite")
    if is_silent(reference):
        return missing(Status.NOT_APPLICABLE, "the reference is silent")
    return None


def is_silent(signal_T: Tensor) -> bool:
    return len(signal_T) == 0 or (signal_T - signal_T.mean()).square().mean().item() <= SILENCE


# --- arithmetic ------------------------------------------------------------------------------------------------------


def si_sdr_db(estimate_T: Tensor, reference_T: Tensor, limit_db: float) -> Tensor:
    """Scale-invariant signal-to-distortion ratio within +-`limit_db` (Le Roux et al. 2019), means removed.

    10 log10(|a s|^2 / |e - a s|^2) with a = <e, s> / |s|^2, which is 10 log10(c / (1 - c)) with c the squared cosine of e and
    s. A silent estimate has the floor.
    """
    estimate, reference = ((x - x.mean()) for x in (estimate_T.double(), reference_T.double()))
    energies = estimate.square().sum() * reference.square().sum()
    squared_cosine = (estimate @ reference).square() / energies.clamp_min(FLOOR)
    least = 10 ** (-limit_db / 10)
    return 10 * (squared_cosine.clamp_min(least) / (1 - squared_cosine).clamp_min(least)).log10()


class SiSdr:
    """Scale-invariant signal-to-distortion ratio in dB, clipped to +-`limit_db`: a perfect signal would have infinity."""

    card = Card(
        summary="scale-invariant signal-to-distortion ratio in dB", low=-60, high=60, kind="audio", differentiable=True,
        systems=("S093",), cost_ms=0.3,
    )  # fmt: skip

    def __init__(self, limit_db: Decibels = 60) -> None:
        self.limit_db = limit_db

    def __call__(self, prompts: Sequence[str], outputs: Signals, reference: References) -> Tensor | list[Result]:
        return compared(outputs, reference, lambda x, y: si_sdr_db(x, y.to(x), self.limit_db))


def magnitudes(signal_T: Tensor, window: int) -> Tensor:
    """Short-time spectrum `[window / 2 + 1, frames]`: Hann windows that overlap by three quarters."""
    taper = torch.hann_window(window, dtype=signal_T.dtype, device=signal_T.device)
    return torch.stft(signal_T, window, window // 4, window=taper, center=False, return_complex=True).abs()


def correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's; 0 where one of them is constant."""
    x, y = x - x.mean(), y - y.mean()
    return (x * y).sum() / (x.norm() * y.norm()).clamp_min(FLOOR)


class SpectralCorrelation:
    """Correlation of the short-time magnitudes of signal and reference: blind to phase and to loudness."""

    card = Card(
        summary="correlation with the reference's short-time spectrum", low=-1, high=1, kind="audio",
        differentiable=True, systems=("S093",), cost_ms=3,
    )  # fmt: skip

    def __init__(self, window: Annotated[int, Field(ge=8, multiple_of=4)] = 512) -> None:
        self.window = window

    def __call__(self, prompts: Sequence[str], outputs: Signals, reference: References) -> Tensor | list[Result]:
        return compared(outputs, reference, self._one)

    def _one(self, signal_T: Tensor, reference_T: Tensor) -> Result:
        if len(signal_T) < self.window:
            return missing(Status.NOT_APPLICABLE, f"{len(signal_T)} samples are shorter than a window of {self.window}")
        x, y = (magnitudes(each.double(), self.window) for each in (signal_T, reference_T))
        return correlation(x, y)


def _energy_match(signal_T: Tensor, reference_T: Tensor) -> Tensor:
    x, y = signal_T.double().square().mean(), reference_T.double().square().mean()
    return torch.minimum(x, y) / torch.maximum(x, y)


@card(low=0, high=1, kind="audio", differentiable=True, systems=("S093",), cost_ms=0.1)
def energy_match(prompts: Sequence[str], outputs: Signals, reference: References) -> Tensor | list[Result]:
    """Ratio of the smaller to the larger of the energies of signal and reference."""
    return compared(outputs, reference, _energy_match)


@card(low=0, high=1, kind="audio", differentiable=True, systems=("S093",), cost_ms=0.1)
def smoothness(prompts: Sequence[str], outputs: Signals) -> list[Result]:
    """1 - energy of the steps between samples / (4 x energy): needs no reference, and silence is perfectly smooth."""
    return [_smoothness(signal) for signal in outputs]


def _smoothness(signal_T: Tensor) -> Result:
    if signal_T.ndim != 1 or len(signal_T) < 2 or not signal_T.isfinite().all():
        return missing(
            Status.ERRORED, f"a signal is one channel of two samples or more, all finite, not {list(signal_T.shape)}"
        )
    signal = signal_T.double()
    return 1 - signal.diff().square().sum() / (4 * signal.square().sum()).clamp_min(FLOOR)


# --- published measures of speech ------------------------------------------------------------------------------------


class Stoi:
    """Short-time objective intelligibility (Taal et al. 2011) by the package pystoi."""

    card = Card(
        summary="short-time objective intelligibility of speech", low=-1, high=1, kind="audio", systems=("S093",),
        extra="audio", cost_ms=5,
    )  # fmt: skip

    def __init__(self) -> None:
        self.stoi = require("pystoi", extra="audio", who="reward stoi").stoi

    def __call__(
        self,
        prompts: Sequence[str],
        outputs: Signals,
        reference: References,
        sample_rate: Sequence[int | None] | None = None,
    ) -> list[Result]:
        return _by_package(outputs, reference, sample_rate, self._one)

    def _one(self, signal_T: Tensor, reference_T: Tensor, rate: int) -> Score:
        value = float(self.stoi(reference_T.double().cpu().numpy(), signal_T.double().cpu().numpy(), rate))
        if value == TOO_SHORT_FOR_STOI:
            return missing(Status.NOT_APPLICABLE, "too little that is not silent for STOI: it needs 0.4 s")
        return Score(value=value)


class Pesq:
    """Perceptual speech quality by ITU-T P.862.2 (wideband, 16 kHz; 8 kHz signals are judged narrowband), package pesq."""

    card = Card(
        summary="perceptual speech quality, a mean opinion from 1 to 4.64", low=PESQ_RANGE[0], high=PESQ_RANGE[1],
        kind="audio", systems=("S093",), extra="audio", cost_ms=30,
    )  # fmt: skip

    def __init__(self) -> None:
        self.package = require("pesq", extra="audio", who="reward pesq")

    def __call__(
        self,
        prompts: Sequence[str],
        outputs: Signals,
        reference: References,
        sample_rate: Sequence[int | None] | None = None,
    ) -> list[Result]:
        return _by_package(outputs, reference, sample_rate, self._one)

    def _one(self, signal_T: Tensor, reference_T: Tensor, rate: int) -> Score:
        if rate not in (8_000, SAMPLE_RATE):
            return missing(Status.NOT_APPLICABLE, f"PESQ is defined at 16 and 8 kHz, not at {rate} Hz")
        if is_silent(signal_T):
            return Score(value=PESQ_RANGE[0], note="silence, where speech was asked for, is the worst there is")
        clean, heard = (each.float().cpu().numpy() for each in (reference_T, signal_T))
        try:
            return Score(value=float(self.package.pesq(rate, clean, heard, "wb" if rate == SAMPLE_RATE else "nb")))
        except self.package.PesqError as error:  # too short, or no utterance found
            text = error.args[0] if error.args else error
            return missing(Status.NOT_APPLICABLE, text.decode() if isinstance(text, bytes) else str(text))


def _by_package(
    outputs: Signals,
    reference: References,
    sample_rate: Sequence[int | None] | None,
    measure: Callable[..., Score],
) -> list[Result]:
    rates = [rate or SAMPLE_RATE for rate in sample_rate or [None] * len(outputs)]
    return [
        _judged(signal, clean, functools.partial(measure, rate=rate))
        for signal, clean, rate in zip(outputs, reference, rates, strict=True)
    ]
