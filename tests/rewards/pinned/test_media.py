"""Pinned outputs are the same everywhere, and what their words say."""

from __future__ import annotations

import pytest
import torch

from plaudit.errors import DataError
from plaudit.rewards.pinned.media import make, noise


def test_noise_is_uniform_and_known() -> None:
    drawn = noise((100, 1000))
    assert drawn.flatten()[:3].tolist() == noise((3,)).tolist()
    assert -1 <= drawn.min() < -0.999 and 0.999 < drawn.max() <= 1
    assert drawn.mean().abs() < 0.01 and drawn.var() == pytest.approx(1 / 3, abs=0.01)


def test_speech_has_syllables_pauses_and_a_formant() -> None:
    signal = make({"speech": 100, "seconds": 1.25}).double()
    quarters = signal.view(5, -1).square().mean(dim=1)
    assert quarters[4] == 0 and (quarters[:4] > 0.01).all()
    assert (signal.view(5, -1)[:, :200].abs().amax(dim=1) < 0.1).all(), "syllables begin softly"
    spectrum = torch.fft.rfft(signal).abs()
    assert 400 < spectrum.argmax() / 1.25 < 600, "the harmonics around the first formant are the loudest"
    assert torch.equal(make({"speech": 100, "gain": 0.5}), 0.5 * make({"speech": 100}))


def test_noise_is_added_to_speech_as_told() -> None:
    added = make({"speech": 100, "noise": 0.1}) - make({"speech": 100})
    torch.testing.assert_close(added, 0.1 * noise(added.shape).float(), atol=1e-6, rtol=0)


def test_unknown_outputs_are_named() -> None:
    with pytest.raises(
        DataError, match="a mapping with one of scene, objects, shade, ramp, checks, line, tones, speech"
    ):
        make({"song": "la"})
