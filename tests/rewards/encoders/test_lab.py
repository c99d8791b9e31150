"""The lab's dual encoder: what it knows, and what an encoder owes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.rewards.encoders.gradients import check_picture_gradient
from tests.rewards.encoders.needs import needs_minilm
from tests.rewards.encoders.toy import TOY

from plaudit.builds.encoder import edited, make_trial, meaning, measure_encoder, pictures_of, surely_false
from plaudit.data.prompt import Prompt
from plaudit.errors import RecipeError, RewardError
from plaudit.lab.scenes.check import check
from plaudit.lab.scenes.grammar import sample_prompts
from plaudit.rewards.base import Status
from plaudit.rewards.calling.call import call_reward
from plaudit.rewards.encoders.base import TruncationWarning, embed_once
from plaudit.rewards.encoders.lab import LabEncoder
from plaudit.rewards.encoders.load import load_encoder
from plaudit.rewards.encoders.similarity import EncoderSimilarity


@pytest.fixture(scope="module")
def encoder() -> LabEncoder:
    return LabEncoder()


@pytest.fixture(scope="module")
def scenes() -> tuple[list[Prompt], torch.Tensor]:
    prompts = sample_prompts("heldout", 8, np.random.default_rng(3))
    return prompts, pictures_of(prompts, np.random.default_rng(4), spoil=False)


def test_it_finds_the_caption_of_a_picture(encoder: LabEncoder) -> None:
    """Of 100 captions of distinct content, and between the true caption and one with another count, colour or shape."""
    measured = measure_encoder(encoder.network, 100)
    for split, recall, edits in (("heldout", 0.85, 0.95), ("compositional", 0.6, 0.75)):
        found = measured[split]
        assert found["r_at_1_picture_to_caption"] > recall, found  # type: ignore[index]
        assert min(found["true_above_edited"][kind] for kind in ("count", "color", "shape")) > edits  # type: ignore[index]


def test_edited_captions_are_false_and_unlike_ones_are_known_to_be() -> None:
    trial = make_trial("heldout", 40)
    for rows, wrong in trial.wrong.values():
        assert rows, "an edit that is never possible tests nothing"
        assert not any(verdict.correct for verdict in check(trial.images[rows], wrong))
        assert all(surely_false([trial.prompts[i]], [p]).item() for i, p in zip(rows, wrong, strict=True))
    assert all(verdict.correct for verdict in check(trial.images, trial.prompts))
    assert not surely_false(trial.prompts, trial.prompts).diagonal().any()


def test_captions_that_say_the_same_are_no_negatives() -> None:
    def caption(first: str, second: str, relation: str | None) -> Prompt:
        objects = [{"count": 1, "color": word.split()[0], "shape": word.split()[1]} for word in (first, second)]
        return Prompt(id="", text="", facts={"objects": objects, "relation": relation})

    left = caption("red circle", "blue square", "left")
    same, contrary = caption("blue square", "red circle", "right"), caption("red circle", "blue square", "right")
    open_, listed = caption("red circle", "blue square", "above"), caption("blue square", "red circle", None)
    assert meaning(left) == meaning(same) != meaning(contrary)
    assert surely_false([left], [same, contrary, open_, listed]).tolist() == [[False, True, False, False]]
    assert edited(listed, "relation", ("train",), np.random.default_rng(0)) is None


def test_unit_vectors_one_by_one_and_together(encoder: LabEncoder, scenes: tuple) -> None:
    prompts, images = scenes
    texts = [prompt.text for prompt in prompts]
    for together, alone in (
        (encoder.embed_texts(texts), torch.cat([encoder.embed_texts([text]) for text in texts])),
        (encoder.embed_images(images), torch.cat([encoder.embed_images(image[None]) for image in images])),
        (embed_once(encoder, texts + texts), encoder.embed_texts(texts + texts)),
    ):
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
        torch.testing.assert_close(together.norm(dim=-1), torch.ones(len(together)))


def test_patches_and_tokens_average_to_the_whole(encoder: LabEncoder, scenes: tuple) -> None:
    prompts, images = scenes
    assert encoder.embed_patches(images).shape == (8, 64, 128)
    raw = encoder.network.patches(images).mean(1)
    torch.testing.assert_close(raw / raw.norm(dim=-1, keepdim=True), encoder.embed_images(images), atol=1e-5, rtol=0)
    tokens = encoder.embed_tokens([prompts[0].text, ""])
    assert [len(own) for own in tokens] == [len(prompts[0].text.split()), 0]


def test_cut_and_unknown_words_are_warned_of(encoder: LabEncoder) -> None:
    twelve = "a red circle , a blue square and a green triangle and"
    with pytest.warns(TruncationWarning, match="reads 12 tokens: 1 of 2 texts"):
        cut, _ = encoder.embed_texts([twelve + " two white squares", "a red circle"])
    torch.testing.assert_close(cut, encoder.embed_texts([twelve])[0], atol=1e-5, rtol=0)
    with pytest.warns(UserWarning, match="does not know 2 of the words: dog, ünder"):
        strange = encoder.embed_texts(["a red dog ünder a blue square"])
    assert torch.isfinite(strange).all()


def test_other_sizes_are_resized_and_other_shapes_refused(encoder: LabEncoder, scenes: tuple) -> None:
    _, images = scenes
    larger = images.repeat_interleave(4, 2).repeat_interleave(4, 3)
    similarity = (encoder.embed_images(larger) * encoder.embed_images(images)).sum(-1)
    assert similarity.min() > 0.98
    with pytest.raises(RewardError, match=r"\[B, 3, H, W\]"):
        encoder.embed_images(images[:, :1])


# --- the reward --------------------------------------------------------------------------------------------------


def test_similarity_is_the_cosine_and_follows_its_prompt(encoder: LabEncoder, scenes: tuple) -> None:
    prompts, images = scenes
    values = torch.tensor([s.value for s in call_reward("s", EncoderSimilarity(), prompts, images)])
    a, b = encoder.embed_images(images).double(), encoder.embed_texts([p.text for p in prompts]).double()
    expected = (a * b).sum(-1) / a.norm(dim=-1) / b.norm(dim=-1)
    torch.testing.assert_close(values.double(), expected, atol=1e-6, rtol=0)
    mismatched = torch.tensor([s.value for s in call_reward("s", EncoderSimilarity(), prompts, images.roll(1, 0))])
    assert (values > mismatched).all(), "the pictures of other prompts score as high"


def test_gradients_reach_the_pictures(scenes: tuple) -> None:
    prompts, images = scenes
    reward = EncoderSimilarity()
    assert reward.card.differentiable
    check_picture_gradient(lambda x: reward([p.text for p in prompts[:2]], x), images[:2].clamp(0.05, 0.95))


def test_texts_against_prompt_or_reference() -> None:
    prompts = [Prompt(id=str(i), text="cat dog", facts={"reference": r}) for i, r in enumerate(["cat", "bird", None])]
    outputs = ["cat cat", "cat dog", "fish"]
    to_prompt = call_reward("s", EncoderSimilarity(encoder=TOY, kind="text"), prompts, outputs)
    assert [s.value for s in to_prompt] == pytest.approx([2**-0.5, 1.0, 0.0], abs=1e-6)
    to_reference = call_reward("s", EncoderSimilarity(encoder=TOY, kind="text", against="reference"), prompts, outputs)
    assert [s.value for s in to_reference[:2]] == pytest.approx([1.0, 0.0], abs=1e-6)
    assert to_reference[2].status is Status.NOT_APPLICABLE
    with pytest.raises(RewardError, match="'reference'"):
        EncoderSimilarity(encoder=TOY, kind="text", against="reference")(["a"], ["b"])


def test_encoders_without_eyes_are_refused_for_pictures() -> None:
    with pytest.raises(RecipeError, match="sees no pictures"):
        EncoderSimilarity(encoder=TOY)
    with pytest.raises(RewardError, match="sees no pictures"):
        load_encoder(TOY).embed_images(torch.zeros(1, 3, 8, 8))


@needs_minilm
def test_real_sentences() -> None:
    prompts = [Prompt(id="", text="A kitten sleeps on the sofa.")] * 2
    outputs = ["A small cat is napping on a couch.", "The stock market fell on Monday."]
    same, other = (
        s.value for s in call_reward("s", EncoderSimilarity(encoder="minilm", kind="text"), prompts, outputs)
    )
    assert same > 0.6 and other < 0.2
