"""D2-Align: the correction's algebra, what fitting does, and the shipped direction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tests.rewards.encoders.gradients import check_picture_gradient

from plaudit.builds.encoder import pictures_of
from plaudit.errors import RecipeError, RewardError
from plaudit.lab.scenes.grammar import sample_prompts
from plaudit.rewards.encoders.direction import DirectionalSimilarity, corrected_text, fit_direction
from plaudit.rewards.encoders.load import load_encoder
from plaudit.rewards.encoders.similarity import EncoderSimilarity


def unit_rows(count: int, seed: int, dimensions: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, dimensions, generator=generator, dtype=torch.float64), dim=-1)


def test_no_direction_changes_nothing() -> None:
    texts = unit_rows(5, 0)
    torch.testing.assert_close(corrected_text(texts, torch.zeros(8, dtype=torch.float64), 1.5), texts)


def test_weight_1_is_plus_weight_0_is_minus_and_more_goes_beyond() -> None:
    texts, b = unit_rows(5, 0), unit_rows(1, 1)[0]
    plus, minus = F.normalize(texts + b, dim=-1), F.normalize(texts - b, dim=-1)
    torch.testing.assert_close(corrected_text(texts, b, 1.0), plus)
    torch.testing.assert_close(corrected_text(texts, b, 0.0), minus)
    beyond = corrected_text(texts, b, 1.5)
    torch.testing.assert_close(beyond, F.normalize(1.5 * plus - 0.5 * minus, dim=-1))
    assert (beyond @ b > plus @ b).all() and (plus @ b > minus @ b).all()


def test_fitting_finds_what_all_pictures_share() -> None:
    """Pictures lean toward a style that no prompt names; the fitted direction points there, and nothing else moves."""
    texts, style = unit_rows(200, 0).float(), unit_rows(1, 1)[0].float()
    images = F.normalize(texts + 1.5 * style, dim=-1)
    direction = fit_direction(texts, images, steps=300)
    before = (texts * images).sum(-1).mean()
    after = (corrected_text(texts, direction, 1.5) * images).sum(-1).mean()
    assert after > before + 0.05
    assert F.cosine_similarity(direction, style, dim=0) > 0.95
    torch.testing.assert_close(fit_direction(texts, images, steps=300), direction), "the same seed fits the same"


def test_the_shipped_direction_fits_the_labs_generator() -> None:
    from plaudit.builds.direction import generated

    prompts = sample_prompts("heldout", 24, np.random.default_rng(7))
    images = generated(prompts, steps=8, seed=9)
    texts = [prompt.text for prompt in prompts]
    with torch.no_grad():
        plain, corrected = EncoderSimilarity()(texts, images), DirectionalSimilarity()(texts, images)
    assert corrected.mean() > plain.mean()
    assert (corrected - plain).abs().max() > 0.01
    assert torch.corrcoef(torch.stack([plain, corrected]))[0, 1] > 0.5, "what the prompt asks for is lost"


def test_a_direction_of_ones_own(tmp_path: Path) -> None:
    direction = torch.zeros(128)
    save_file({"direction": direction}, tmp_path / "b.safetensors")
    prompts = sample_prompts("train", 3, np.random.default_rng(8))
    images, texts = pictures_of(prompts, np.random.default_rng(9)), [p.text for p in prompts]
    zero = DirectionalSimilarity(direction=str(tmp_path / "b.safetensors"))
    torch.testing.assert_close(zero(texts, images), EncoderSimilarity()(texts, images), atol=1e-5, rtol=0)
    with pytest.raises(RewardError, match="does not exist"):
        DirectionalSimilarity(direction=str(tmp_path / "none.safetensors"))
    with pytest.raises(RecipeError, match="fitted for the encoder"):
        DirectionalSimilarity(encoder="tests.rewards.encoders.test_direction:Other")


class Other(type(load_encoder("lab"))):  # type: ignore[misc]
    name = "other"


def test_gradients_reach_the_pictures() -> None:
    prompts = sample_prompts("train", 2, np.random.default_rng(8))
    images = pictures_of(prompts, np.random.default_rng(9)).clamp(0.05, 0.95)
    reward = DirectionalSimilarity()
    check_picture_gradient(lambda x: reward([p.text for p in prompts], x), images)
