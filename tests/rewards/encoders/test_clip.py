"""CLIP and SigLIP families, on tiny random models: what transformers' own processors and calls give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.rewards.encoders.gradients import check_picture_gradient

from plaudit.errors import RecipeError
from plaudit.rewards.encoders.base import TruncationWarning

transformers = pytest.importorskip("transformers")

TEXTS = ["a cat", "two dogs", "a"]


@pytest.fixture(scope="module", params=["clip", "siglip"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.rewards.encoders import tiny_clip

    made = tmp_path_factory.mktemp(request.param)
    {"clip": tiny_clip.save_tiny_clip, "siglip": tiny_clip.save_tiny_siglip}[request.param](made)
    return made


def smooth_pictures(count: int, height: int, width: int) -> torch.Tensor:
    coarse = torch.rand(count, 3, 5, 6, generator=torch.Generator().manual_seed(1))
    pictures = F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    return (pictures * 255).round() / 255


def test_pictures_are_prepared_as_the_models_processor_does(folder: Path) -> None:
    from PIL import Image

    from plaudit.rewards.encoders.clip import ClipEncoder

    images = smooth_pictures(2, 40, 56)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    pils = [Image.fromarray(np.uint8(image.permute(1, 2, 0) * 255)) for image in images]
    expected = processor(images=pils, return_tensors="pt")["pixel_values"]
    own = ClipEncoder(str(folder)).pixel_values(images)
    eight_bits = 1 / 255 / min(processor.image_std)
    torch.testing.assert_close(own, expected, atol=1.1 * eight_bits, rtol=0)
    assert (own - expected).abs().mean() < 0.5 * eight_bits
    assert (own - expected.flip(1)).abs().mean() > 5 * eight_bits, "red and blue were swapped"


def test_embeddings_are_the_models_own(folder: Path) -> None:
    from plaudit.rewards.encoders.load import load_encoder

    encoder = load_encoder(f"clip:{folder}")
    assert load_encoder(f"clip:{folder}") is encoder
    model, tokenizer = (
        transformers.AutoModel.from_pretrained(folder),
        transformers.AutoTokenizer.from_pretrained(folder),
    )
    images = smooth_pictures(3, 28, 28)
    length = model.config.text_config.max_position_embeddings
    padding = "max_length" if model.config.model_type == "siglip" else True
    tokens = tokenizer(TEXTS, padding=padding, truncation=True, max_length=length, return_tensors="pt")
    mask = {} if model.config.model_type == "siglip" else {"attention_mask": tokens["attention_mask"]}
    with torch.no_grad():
        out = model(input_ids=tokens["input_ids"], pixel_values=encoder.pixel_values(images), **mask)
    texts, pictures = encoder.embed_texts(TEXTS), encoder.embed_images(images)
    torch.testing.assert_close(texts, out.text_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(pictures, out.image_embeds, atol=1e-5, rtol=0)
    assert (texts @ texts.T - torch.eye(3)).abs()[0, 1] < 0.99, "the texts look alike: the test shows nothing"


def test_one_text_is_embedded_as_among_others(folder: Path) -> None:
    from plaudit.rewards.encoders.load import load_encoder

    encoder = load_encoder(f"clip:{folder}")
    alone = torch.cat([encoder.embed_texts([text]) for text in TEXTS])
    torch.testing.assert_close(encoder.embed_texts(TEXTS), alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.embed_texts(TEXTS[::-1]), alone.flip(0), atol=1e-5, rtol=0)


def test_gradients_reach_the_pictures(folder: Path) -> None:
    from plaudit.rewards.encoders.load import load_encoder

    encoder = load_encoder(f"clip:{folder}")
    target = encoder.embed_texts(["a cat"])
    check_picture_gradient(lambda images: (encoder.embed_images(images) * target).sum(-1), smooth_pictures(1, 32, 36))


def test_a_cut_text_is_warned_of(folder: Path) -> None:
    from plaudit.rewards.encoders.load import load_encoder

    encoder = load_encoder(f"clip:{folder}")
    with pytest.warns(TruncationWarning, match=rf"reads {encoder.max_tokens} tokens: 1 of 2 texts"):
        long, _ = encoder.embed_texts(["a " * 40, "b"])
    with pytest.warns(TruncationWarning):
        torch.testing.assert_close(encoder.embed_texts(["a " * 50 + "dog"])[0], long)


def test_what_is_no_encoder_is_refused(tmp_path: Path) -> None:
    from plaudit.rewards.encoders.load import load_encoder

    with pytest.raises(RecipeError, match="clip:NAME"):
        load_encoder("clip")
    with pytest.raises(RecipeError, match="built in: clip, lab, minilm, picture"):
        load_encoder("nothing")
    with pytest.raises(RecipeError, match="not a plaudit"):
        load_encoder("collections:Counter")
    transformers.BertModel(
        transformers.BertConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8
        )
    ).save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="does not embed pictures"):
        load_encoder(f"clip:{tmp_path}")
