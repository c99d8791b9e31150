"""The build of the lab's captioner and encoder, for a few steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from plaudit.builds import encoder as module
from plaudit.builds.encoder import build_encoder
from plaudit.errors import RecipeError
from plaudit.lab.encoder_networks import Captioner, DualEncoder, PictureTower


@pytest.fixture(autouse=True)
def few_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    make_trial = module.make_trial
    monkeypatch.setattr(module, "make_trial", lambda split, count: make_trial(split, 12))


def test_a_build_is_a_function_of_its_seed(tmp_path: Path) -> None:
    first, again, other = (
        load_file(build_encoder("captioner", tmp_path / name, steps=3, seed=seed))
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)
    assert (tmp_path / "a" / "captioner.json").is_file()


def test_the_encoder_starts_from_the_captioners_tower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WEIGHTS", tmp_path / "nowhere")
    with pytest.raises(RecipeError, match="lab build captioner"):
        build_encoder("encoder", tmp_path, steps=1)
    captioner = load_file(build_encoder("captioner", tmp_path, steps=2))
    monkeypatch.setitem(module.RATE, "encoder", 1e-12)
    encoder = load_file(build_encoder("encoder", tmp_path, steps=1))
    tower = [key for key in captioner if key.startswith("picture.")]
    assert len(tower) == len(list(PictureTower().state_dict()))
    assert all(torch.equal(captioner[key], encoder[key]) for key in tower)


def test_weights_fit_into_two_megabytes() -> None:
    for network in (Captioner(), DualEncoder()):
        assert 2 * sum(value.numel() for value in network.state_dict().values()) < 2_000_000


def test_later_words_do_not_change_earlier_ones() -> None:
    network, images = Captioner().eval(), torch.rand(1, 3, 32, 32)
    short, long = torch.tensor([[1, 5, 11, 0]]), torch.tensor([[1, 5, 11, 22]])
    with torch.no_grad():
        a, b = network.log_probs(images, short), network.log_probs(images, long)
    torch.testing.assert_close(a[:, :3], b[:, :3])
    assert a.shape == (1, 5) and a[0, 4] == 0 and b[0, 4] < 0 and a[0, 3] != b[0, 3]
