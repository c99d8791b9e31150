"""The price of reasoning in nats: each prior against the obvious computation, and what the price may and may not do."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from tests.rewards.rules.tiny_lm import save_tiny_lm

from plaudit.data.prompt import Prompt
from plaudit.errors import RecipeError, RewardError
from plaudit.rewards.base import Score, Status
from plaudit.rewards.calling.call import call_reward
from plaudit.rewards.likelihood.surprisal import CausalLM, Laplace, Ngram, ReasoningNats, Uniform, reasoning

TEXTS = ["go on . go on . stop .", "the sum is 7", "", "zebra zebra zebra", "go"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_lm(tmp_path_factory.mktemp("tiny"))


def score(reward: ReasoningNats, outputs: Sequence[str], right: Sequence[float | None], text: str = "?") -> list[Score]:
    prompts = [Prompt(id=str(i), text=text, facts={"correct": r}) for i, r in enumerate(right)]
    return call_reward("x", reward, prompts, list(outputs))


def totals(prior, texts: Sequence[str] = TEXTS) -> list[float]:
    return [float(row.sum()) for row in prior.log_prob(texts)]


def test_the_reasoning_is_what_stands_before_the_answer() -> None:
    assert reasoning("<think>so 7</think>7", "thought") == "so 7"
    assert reasoning("so 7</think>7 </think>", "thought") == "so 7"
    assert reasoning(" <think>never ends", "thought") == "never ends"
    assert reasoning("</think>7", "thought") == "" and reasoning("", "thought") == ""
    assert reasoning("<think>so 7</think>7", "output") == "<think>so 7</think>7"


def test_a_uniform_prior_is_a_linear_length_penalty() -> None:
    assert totals(Uniform(vocabulary=50)) == pytest.approx([-n * math.log(50) for n in (8, 4, 0, 3, 1)])
    assert totals(Uniform(vocabulary=50, unit="characters"))[3] == pytest.approx(-17 * math.log(50))


def test_a_laplace_prior_is_the_distance_to_a_length() -> None:
    assert totals(Laplace(target=4, scale=2)) == pytest.approx([-2, 0, -2, -0.5, -1.5])


def test_an_ngram_prior_sums_to_one_and_prefers_what_it_has_read() -> None:
    prior = Ngram(["a b", "a c a b"], smoothing=0.5)
    kinds = ["a", "b", "c", "anything else"]
    for context in ("", "a ", "c "):
        chances = [math.exp(float(prior.log_prob([context + kind.replace(" ", "")])[0][-1])) for kind in kinds]
        assert sum(chances) == pytest.approx(1)
    assert math.exp(float(prior.log_prob(["a b"])[0][1])) == pytest.approx((2 + 0.5) / (3 + 0.5 * 4))
    assert totals(prior, ["a b"])[0] > max(totals(prior, ["b a", "x y"]))
    assert totals(Ngram(["aab"], order=1, unit="characters"), ["ab"])[0] == pytest.approx(math.log(3 / 6 * 2 / 6))


def test_the_language_model_gives_the_log_probs_of_its_own_softmax(folder: str) -> None:
    prior = CausalLM(folder, batch=2)
    tokenizer, model = prior.loaded()
    for text, found in zip(TEXTS, prior.log_prob(TEXTS), strict=True):
        ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]
        expected = []
        for t in range(1, len(ids)):
            logits = model(torch.tensor([ids[:t]])).logits[0, -1]
            expected.append(float(logits.log_softmax(0)[ids[t]]))
        assert found.tolist() == pytest.approx(expected, abs=1e-5)
    assert len(set(prior.log_prob(["zebra zebra zebra"])[0].tolist())) == 3  # it does read what came before
    assert not any(p.requires_grad for p in model.parameters())


def test_the_language_model_gives_the_same_alone_and_in_any_batch(folder: str) -> None:
    wide, narrow = totals(CausalLM(folder, batch=8)), totals(CausalLM(folder, batch=1))
    assert wide == pytest.approx(narrow, abs=1e-5)
    assert totals(CausalLM(folder), TEXTS[::-1])[::-1] == pytest.approx(wide, abs=1e-5)


def test_the_prior_does_not_see_the_prompt(folder: str) -> None:
    reward = ReasoningNats({"type": "lm", "model": folder}, beta=0.1)
    outputs = ["<think>go on</think>7", "<think>zebra</think>7"]
    first, second = score(reward, outputs, [1, 1], "go on"), score(reward, outputs, [1, 1], "zebra")
    assert [s.value for s in first] == [s.value for s in second]


def test_the_price_of_tokens_adds_up_to_the_score(folder: str) -> None:
    for prior in (
        {"type": "lm", "model": folder},
        {"type": "ngram", "texts": TEXTS},
        {"type": "uniform", "vocabulary": 9},
    ):
        reward = ReasoningNats(prior, beta=0.01)
        log_probs = reward.prior.log_prob(["go on .", "zebra"])
        found = score(reward, ["<think>go on .</think>7", "<think>zebra</think>7"], [1, 0])
        for one, right, lp in zip(found, (1, 0), log_probs, strict=True):
            assert one.dense.tolist() == pytest.approx((0.01 * lp).tolist())
            assert one.value == pytest.approx(right + 0.01 * float(lp.sum()))
            assert one.components["price"] == pytest.approx(one.value - right)
            assert one.components["nats"] == pytest.approx(-float(lp.sum())) and one.components["nats"] > 0


def test_thinking_never_pays_by_itself_and_the_answer_is_free() -> None:
    reward = ReasoningNats({"type": "ngram", "texts": TEXTS}, beta=1e-3)
    right = [s.value for s in score(reward, ["</think>7", "<think>go</think>7", "<think>go on .</think>7"], [1, 1, 1])]
    assert right[0] == 1 and right[0] > right[1] > right[2]
    assert score(reward, ["</think>7", "</think>7 " + "because " * 50], [1, 1])[1].value == 1
    assert score(ReasoningNats({"type": "uniform", "vocabulary": 9}, part="output"), ["a", "a b"], [1, 1])[1].value < 1


def test_what_was_expected_is_cheaper_at_equal_length() -> None:
    """The point of the paper: a uniform price cannot tell filler from thought, a learned one can."""
    familiar, strange = "<think>go on . go on</think>", "<think>zebra is so sum 7</think>"
    learned = score(ReasoningNats({"type": "ngram", "texts": TEXTS}), [familiar, strange], [1, 1])
    uniform = score(ReasoningNats({"type": "uniform", "vocabulary": 12}), [familiar, strange], [1, 1])
    assert learned[0].value > learned[1].value and uniform[0].value == uniform[1].value


def test_what_cannot_be_judged_has_no_score(folder: str) -> None:
    reward = ReasoningNats({"type": "lm", "model": folder, "max_tokens": 4})
    found = score(reward, ["<think>go</think>", "<think>go</think>", "<think>go on go on go</think>"], [1, None, 1])
    assert [s.status for s in found] == [Status.OK, Status.NOT_APPLICABLE, Status.ERRORED]
    assert "at most 4" in found[2].note
    with pytest.raises(RewardError, match="correct"):
        call_reward("x", reward, [Prompt(id="0", text="?")], ["go"])


def test_a_model_without_a_first_token_is_refused(tmp_path) -> None:
    prior = CausalLM(save_tiny_lm(tmp_path, with_start=False))
    with pytest.raises(RecipeError, match="neither a begin nor an end"):
        prior.log_prob(["go"])
