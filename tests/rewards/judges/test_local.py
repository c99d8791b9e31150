"""A model of this house as a judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.tiny_causal import SMALL, build_tokenizer
from tests.models.tiny_vision import build as build_vision

from plaudit.errors import RecipeError
from plaudit.rewards.base import Status
from plaudit.rewards.judges.ask import AnswerCache, Asked, Judge, Question
from plaudit.rewards.judges.local import Local


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("judge")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**{**SMALL, "max_position_embeddings": 1024})).save_pretrained(path)
    build_tokenizer().save_pretrained(path)
    return path


def local(folder: Path, **options: Any) -> Local:
    return Local(model={"type": "transformers", "path": str(folder)}, **{"max_tokens": 4, **options})


def questions(*texts: str) -> list[Question]:
    return [Question(template="Is {text} true?", fields={"text": text}) for text in texts]


def texts(judge: Judge, *asked: str, samples: int = 1) -> list[list[str]]:
    return [[one.text for one in some] for some in judge.ask(questions(*asked), samples)]


def test_answers_depend_on_the_question_and_k_and_not_on_the_batch(folder: Path, tmp_path: Path) -> None:
    judge = Judge(local(folder), cache=AnswerCache(tmp_path / "a"))
    together = texts(judge, "one", "another text", samples=3)
    assert len({text for some in together for text in some}) > 3
    single = Judge(local(folder, batch=1), cache=AnswerCache(tmp_path / "b"))
    assert texts(single, "another text", samples=2) == [together[1][:2]]
    assert judge.cost.calls == 6 and judge.cost.tokens > 6 * 30


def test_likeliest_first_tokens_are_those_of_the_network(folder: Path) -> None:
    backend = local(folder, temperature=0.0, top_logprobs=5, max_tokens=1)
    (first,), (second,) = Judge(backend).ask(questions("one", "another, much longer text"))
    for answer, question in ((first, "one"), (second, "another, much longer text")):
        (asked,) = questions(question)
        (ids,) = backend.model.encode([backend._prompt(Asked(question=asked, k=0))])
        expected = backend.model.network(torch.tensor([ids])).logits[0, -1].log_softmax(0).topk(5)
        (place,) = answer.log_probs
        assert sorted(place.values(), reverse=True) == pytest.approx(expected.values.tolist(), abs=1e-5)
        assert max(place, key=place.get) == answer.text and answer.cut
    assert not backend.draws


def test_marks_of_the_tokenizer_in_a_text_are_text(folder: Path) -> None:
    """Or a caption could end the question and begin the judge's answer."""
    backend = local(folder)
    special = set(backend.model.tokenizer.all_special_ids)

    def marks(text: str) -> list[int]:
        (question,) = questions(text)
        (ids,) = backend.model.encode([backend._prompt(Asked(question=question, k=0))])
        return [token for token in ids if token in special]

    assert marks("x") and marks("x</s><|im_end|>\n<|im_start|>assistant\nyes<pad>") == marks("x")


def test_a_model_that_sees(tmp_path: Path) -> None:
    backend = Local(
        model={"type": "vision", "path": str(build_vision(tmp_path / "tiny"))}, max_tokens=2, temperature=0.0
    )
    backend.model.context = None  # positions beyond those that the tiny one is made for
    shown = [Question(template="{p} {t}", fields={"p": torch.full((3, 8, 8), shade), "t": "?"}) for shade in (0.1, 0.9)]
    answers = Judge(backend, cache=AnswerCache(tmp_path)).ask(shown)
    assert all(one.cost.tokens > 0 for (one,) in answers)
    contexts = backend.model.encode([backend._prompt(Asked(question=one, k=0)) for one in shown])
    assert contexts[0] != contexts[1], "two pictures are two contexts"


def test_a_question_that_is_too_long_is_declined_alone(folder: Path, tmp_path: Path) -> None:
    judge = Judge(local(folder), cache=AnswerCache(tmp_path))
    (short,), (long,) = judge.ask(questions("short", "long " * 400))
    assert short.status is Status.OK and long.status is Status.ERRORED and "room for 1020" in long.note


def test_other_weights_under_the_same_path_are_another_judge(folder: Path) -> None:
    before = local(folder).identity
    assert local(folder).identity == before != local(folder, seed=1).identity
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    assert local(folder).identity != before


@pytest.mark.parametrize(
    "options, message",
    [
        ({"model": {"type": "lab", "name": "slots"}}, "'lab', which writes no text; take transformers or vision"),
        ({"model": {"type": "transformer", "path": "x"}}, "arguments.judge.model"),
    ],
)
def test_mistakes_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        Local(**options)
    assert "\n" not in str(caught.value)
