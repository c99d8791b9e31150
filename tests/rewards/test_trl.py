"""TRL's own trainer with our rewards, and a TRL reward function in our run."""

from __future__ import annotations

import re

import pytest
import torch

from plaudit.data.prompt import Prompt
from plaudit.recipe.rewards import RewardConfig
from plaudit.rewards.adapters import ForTrl
from plaudit.rewards.base import Status, card, missing
from plaudit.rewards.calling.call import Caller
from plaudit.rewards.calling.request import make_request
from plaudit.rewards.load import Reward, load_reward
from plaudit.rewards.scoring import score

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")


def tiny_model() -> tuple:
    """A random Llama of ten words and its tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", "one", "two", "three", "four", "plus", "is", "red", "blue"]
    vocabulary = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=vocabulary, pad_token="<pad>", eos_token="<eos>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=1,
    )
    return LlamaForCausalLM(config), tokenizer


@card(kind="text", low=0, high=1)
def says(prompts, outputs, answer):
    """Share of the words that are the answer; silence cannot be judged."""
    words = [output.split() for output in outputs]
    return [
        sum(word == a for word in said) / len(said) if said else missing(Status.NOT_APPLICABLE)
        for said, a in zip(words, answer, strict=True)
    ]


def test_our_reward_drives_trls_trainer(tmp_path) -> None:
    model, tokenizer = tiny_model()
    seen: list[tuple[int, list]] = []
    reward = ForTrl(Reward(name="says", caller=Caller("says", says)))

    class Watched(ForTrl):
        def __call__(self, prompts, completions, **columns):
            found = super().__call__(prompts, completions, **columns)
            seen.append((columns["trainer_state"].global_step, found))
            return found

    watched = Watched(reward.reward)
    rows = datasets.Dataset.from_list(
        [{"prompt": "one plus one is", "answer": "two"}, {"prompt": "red", "answer": "red"}]
    )
    arguments = trl.GRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=4,
        max_steps=2,
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )
    trainer = trl.GRPOTrainer(
        model=model, processing_class=tokenizer, reward_funcs=[watched], args=arguments, train_dataset=rows
    )
    trainer.train()
    assert [step for step, _ in seen] == [0, 1] and all(len(found) == 4 for _, found in seen)
    logged = [entry for entry in trainer.state.log_history if "rewards/says/mean" in entry]
    for (_, found), entry in zip(seen, logged, strict=True):
        there = [value for value in found if value is not None]
        assert entry["rewards/says/mean"] == pytest.approx(sum(there) / len(there))


def trl_style(prompts, completions, completion_ids=None, answer=None, trainer_state=None, log_metric=None, **kwargs):
    """As in TRL's documentation: the reward reads the last message and a column of the data set."""
    contents = [completion[0]["content"] if isinstance(completion, list) else completion for completion in completions]
    found = [re.search(r"\\boxed\{(.*?)\}", content) for content in contents]
    if log_metric is not None:
        log_metric("boxed", sum(f is not None for f in found) / len(found))
    return [None if f is None else float(f.group(1) == a) for f, a in zip(found, answer, strict=True)]


def test_a_trl_function_runs_unchanged_on_texts_and_conversations() -> None:
    facts = [{"answer": "2"}, {"answer": "4"}, {"answer": "6"}]
    said = [r"\boxed{2}", r"\boxed{5}", "six"]
    asked = [Prompt(id=str(i), text="q", facts=f) for i, f in enumerate(facts)]
    path = f"{__name__}:trl_style"
    batch = score(asked, said, path)
    assert batch.total[:2].tolist() == [1, 0] and batch.total[2].isnan()
    chats = [
        Prompt(id=str(i), text="q", facts=f, inputs={"messages": [{"role": "user", "content": "q"}]})
        for i, f in enumerate(facts)
    ]
    reward = load_reward("r", RewardConfig(type=path))
    found = reward(chats, [[{"role": "assistant", "content": text}] for text in said])
    assert [s.status for s in found] == [Status.OK, Status.OK, Status.NOT_APPLICABLE]
    assert reward.caller.meter.take_metrics() == {"boxed": pytest.approx(2 / 3)}


SAID = [r"<think>a</think>\boxed{2}", r"\boxed{2}", r"<think>a</think>\boxed{5}"]
IDS = [[1, 2, 3, 4], [5] * 8, [6, 7] * 8]
EVERY = {  # arguments, and what a conversation is scored
    "accuracy_reward": ({}, [1, 1, 0]),
    "reasoning_accuracy_reward": ({}, [1, 0, 0]),
    "think_format_reward": ({}, [1, 0, 1]),
    "get_cosine_scaled_reward": ({"max_len": 16}, [0.926777, 0.75, -1 + 0.5]),
    "get_repetition_penalty_reward": ({"ngram_size": 2}, [0, -6 / 7, -13 / 15]),
    "get_soft_overlong_punishment": ({"max_completion_len": 12, "soft_punish_cache": 8}, [0, -0.5, -1]),
}
READ_IDS_ALONE = ("get_repetition_penalty_reward", "get_soft_overlong_punishment")


@pytest.mark.parametrize("chat", (True, False), ids=("chat", "plain"))
@pytest.mark.parametrize("name", EVERY)
def test_every_reward_of_trl_runs_unchanged(name: str, chat: bool) -> None:
    """In a chat run completions go on with the conversation; in a plain one they are texts, which those that read messages
    refuse, as they do in TRL's trainers."""
    if "accuracy" in name or "cosine" in name:
        pytest.importorskip("math_verify")
    arguments, expected = EVERY[name]
    inputs = {"messages": [{"role": "user", "content": "1 + 1?"}]} if chat else {}
    asked = [Prompt(id="a", text="1 + 1?", facts={"solution": "$2$"}, inputs=inputs)] * len(SAID)
    reward = load_reward("r", RewardConfig(type=f"trl.rewards:{name}", arguments=arguments))
    found = reward(asked, SAID, completion_ids=IDS)
    if chat or name in READ_IDS_ALONE:
        assert [score.value for score in found] == pytest.approx(expected, abs=1e-6)
    else:
        assert {score.note.partition(":")[0] for score in found} == {"TypeError"}


def test_the_table_has_every_reward_of_trl() -> None:
    assert set(EVERY) == {name for name in dir(trl.rewards) if "reward" in name or "punishment" in name} - {
        module for module in dir(trl.rewards) if module.endswith("_rewards")
    }


def test_conversations_and_texts_of_one_batch_keep_their_forms() -> None:
    """Whatever else stands in the batch: of a part of it a reward gets the same."""
    chat = Prompt(id="a", text="q", inputs={"messages": [{"role": "user", "content": "q"}]})
    plain = Prompt(id="b", text="q")
    seen: list = []
    caller = Caller("r", lambda prompts, completions: seen.append((prompts, completions)) or [0.0] * len(prompts))
    caller(make_request([chat, plain], ["x", "y"]))
    answer = [{"role": "assistant", "content": "x"}]
    assert seen == [([chat.inputs["messages"], "q"], [answer, "y"])]
    seen.clear()
    caller(make_request([chat], [answer]))
    assert seen == [([chat.inputs["messages"]], [answer])]
