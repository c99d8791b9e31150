"""Language models of transformers: logits must be those of the stock model, whatever the padding, cache or packing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from safetensors import safe_open
from tests.models.tiny_causal import CHATML, CLOSE, PAD, SPECIAL, WINDOW, build, build_gguf, build_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, T5Config, T5ForConditionalGeneration

from plaudit.data.prompt import Prompt
from plaudit.errors import DataError, RecipeError, RunError
from plaudit.models.causal import CausalTokenModel, padding_mask
from plaudit.models.growing import ROOM, GrowingLayer
from plaudit.models.lora import add_lora
from plaudit.recipe.models import LoraConfig, TransformersModel

ATTENTION_ONLY = ("llama", "gpt2", "mistral", "gemma2")
FAMILIES = (*ATTENTION_ONLY, "lfm2")
CLOSE_ID, END_ID, START_ID = SPECIAL.index(CLOSE), 2, 1
TOLERANCE = 2e-6


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: build(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


def load(folder: Path, **changes: Any) -> CausalTokenModel:
    return CausalTokenModel.from_config(TransformersModel(type="transformers", path=str(folder), **changes))


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, folders: dict[str, Path]) -> CausalTokenModel:
    return load(folders[request.param])


@pytest.fixture
def llama(folders: dict[str, Path]) -> CausalTokenModel:
    return load(folders["llama"])


def random_ids(length: int, seed: int) -> Tensor:
    return torch.randint(5, 260, (length,), generator=torch.Generator().manual_seed(seed))


def stock(model: CausalTokenModel, ids: Tensor) -> Tensor:
    """What the model itself gives for one row, alone and without padding."""
    with torch.no_grad():
        return model.network(input_ids=ids[None]).logits[0].float()


def causal(valid: Tensor, *, pads_see_themselves: bool) -> Tensor:
    length = valid.shape[1]
    visible = valid[:, None, :] & torch.ones(length, length, dtype=torch.bool).tril()
    own = torch.eye(length, dtype=torch.bool)
    return visible | own if pads_see_themselves else visible & valid[:, :, None]


def padded(rows: list[Tensor], side: str) -> tuple[Tensor, Tensor, Tensor]:
    """ids, positions, valid."""
    width = max(map(len, rows))
    ids, valid = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.bool)
    for n, row in enumerate(rows):
        here = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[n, here], valid[n, here] = row, True
    return ids, (valid.long().cumsum(1) - 1).clamp(min=0), valid


# --- logits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pads_see_themselves", [True, False])
@torch.no_grad()
def test_padding_changes_nothing(model: CausalTokenModel, side: str, pads_see_themselves: bool) -> None:
    rows = [random_ids(length, length) for length in (13, 7, 1)]
    ids, positions, valid = padded(rows, side)
    logits = model.logits(ids, positions, causal(valid, pads_see_themselves=pads_see_themselves))
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    for found, here, row in zip(logits, valid, rows, strict=True):
        torch.testing.assert_close(found[here], stock(model, row), atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_a_cache_changes_nothing(model: CausalTokenModel) -> None:
    """A prefill padded on the left, then one token at a time, then rows dropped, repeated and swapped."""
    rows = [random_ids(length, length) for length in (12, 9, 10)]
    prompts, drawn = [row[:-3] for row in rows], [row[-3:] for row in rows]
    ids, positions, valid = padded(prompts, "left")
    cache = model.new_cache()
    last = torch.tensor([ids.shape[1] - 1])
    logits = model.logits(ids, positions, causal(valid, pads_see_themselves=True), cache=cache, keep=last)[:, 0]
    order = [0, 1, 2]
    for t, next_order in enumerate(([0, 1, 2], [2, 0, 2, 2], [1, 3, 0])):
        for n, row in enumerate(order):
            expected = stock(model, rows[row][: len(prompts[row]) + t])[-1]
            torch.testing.assert_close(logits[n], expected, atol=TOLERANCE, rtol=0)
        select = torch.tensor(next_order)
        cache.select(select)
        order, valid, positions = [order[n] for n in next_order], valid[select], positions[select]
        token = torch.stack([drawn[row][t] for row in order])[:, None]
        valid = torch.cat([valid, torch.ones(len(order), 1, dtype=torch.bool)], dim=1)
        positions = positions[:, -1:] + 1
        logits = model.logits(token, positions, valid[:, None, :], cache=cache)[:, 0]
    for n, row in enumerate(order):
        torch.testing.assert_close(logits[n], stock(model, rows[row])[-1], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", ATTENTION_ONLY)
@torch.no_grad()
def test_packed_completions_are_as_if_alone(family: str, folders: dict[str, Path]) -> None:
    """[padding, prompt, first, second]: each completion sees the prompt and itself, at positions that go on from it. They
    are longer than the sliding windows."""
    model = load(folders[family])
    assert model.packs
    prompt, first, second = random_ids(6, 1), random_ids(WINDOW + 3, 2), random_ids(WINDOW + 1, 3)
    ids = torch.cat([torch.zeros(2, dtype=torch.long), prompt, first, second])
    positions = torch.tensor([0, 0, *range(6), *range(6, 6 + len(first)), *range(6, 6 + len(second))])
    segment = torch.tensor([-1] * 2 + [0] * 6 + [1] * len(first) + [2] * len(second))
    visible = ((segment[:, None] == segment) | (segment == 0)) & (segment >= 0)
    visible = visible & torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    keep = (segment > 0).nonzero()[:, 0]
    logits = model.logits(ids[None], positions[None], visible[None], keep=keep)[0]
    alone = [stock(model, torch.cat([prompt, part]))[6:] for part in (first, second)]
    assert logits.shape[0] == len(first) + len(second)
    torch.testing.assert_close(logits, torch.cat(alone), atol=TOLERANCE, rtol=0)


def test_recurrent_layers_do_not_pack(folders: dict[str, Path]) -> None:
    model = load(folders["lfm2"])
    assert not model.packs
    visible = torch.ones(1, 4, 4, dtype=torch.bool).tril()
    visible[0, 3, 1] = False  # a column that does not see an earlier token
    with pytest.raises(RunError, match="cannot share a row"):
        model.logits(random_ids(4, 0)[None], torch.arange(4)[None], visible)


def test_padding_is_recovered_from_masks() -> None:
    valid = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0]], dtype=torch.bool)
    assert torch.equal(padding_mask(causal(valid, pads_see_themselves=False)).bool(), valid)
    with_eye = padding_mask(causal(valid[[0, 2]], pads_see_themselves=True)).bool()
    assert torch.equal(with_eye, valid[[0, 2]])


def test_logits_are_wanted_where_keep_says(llama: CausalTokenModel) -> None:
    ids, keep = random_ids(8, 4)[None], torch.tensor([6, 0, 3])
    visible = torch.ones(1, 8, 8, dtype=torch.bool).tril()
    logits = llama.logits(ids, torch.arange(8)[None], visible, keep=keep)[0]
    torch.testing.assert_close(logits.detach(), stock(llama, ids[0])[keep], atol=TOLERANCE, rtol=0)


def test_gradients_are_those_of_the_stock_model(llama: CausalTokenModel) -> None:
    row = random_ids(9, 5)
    ids, positions, valid = padded([row, random_ids(12, 6)], "left")
    weight = torch.randn(9, llama.network.config.vocab_size, generator=torch.Generator().manual_seed(0))
    parameters = [p for p in llama.network.parameters() if p.requires_grad]
    (llama.network(input_ids=row[None]).logits[0] * weight).sum().backward()
    expected = [p.grad.clone() for p in parameters]
    llama.network.zero_grad()
    logits = llama.logits(ids, positions, causal(valid, pads_see_themselves=True))
    (logits[0, 3:] * weight).sum().backward()
    for parameter, wanted in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, wanted, atol=1e-5, rtol=1e-5)
        assert wanted.abs().max() > 1e-3


def test_dropout_stays_off(llama: CausalTokenModel) -> None:
    ids, visible = random_ids(8, 4)[None], torch.ones(1, 8, 8, dtype=torch.bool).tril()
    before = llama.logits(ids, torch.arange(8)[None], visible)
    llama.network.train()
    assert not torch.equal(llama.network(input_ids=ids).logits, before)  # it would show
    llama.network.train()
    assert torch.equal(llama.logits(ids, torch.arange(8)[None], visible), before)


@pytest.mark.parametrize("gradients", [False, True])
def test_growing_cache_is_the_ordinary_one(gradients: bool) -> None:
    """Over chunks that fit into what is free, fill it, and exceed it, with rows selected in between."""
    from transformers.cache_utils import DynamicLayer

    growing, ordinary = GrowingLayer(), DynamicLayer()
    generator = torch.Generator().manual_seed(0)
    rows = 2
    with torch.set_grad_enabled(gradients):
        for length, select in ((3, [1, 0, 1]), (1, None), (60, None), (ROOM, [2, 2]), (3 * ROOM, None), (1, None)):
            new = torch.randn(2, rows, 2, length, 5, generator=generator)
            found, expected = growing.update(*new), ordinary.update(*new)
            for a, b in zip(found, expected, strict=True):
                assert torch.equal(a, b)
            assert growing.get_seq_length() == ordinary.get_seq_length()
            if select is not None:
                rows = len(select)
                for layer in (growing, ordinary):
                    layer.reorder_cache(torch.tensor(select))


# --- text ------------------------------------------------------------------------------------------------------------


def test_prompt_and_completion_are_the_conversation(llama: CausalTokenModel) -> None:
    """Awkward on purpose: two line ends are one token of this vocabulary, and merges cross the text's ends."""
    for answer in ("7", "It is seven.", "older\n\nerr", "er", ""):
        prompt = Prompt(id="a", text="What is 3 + 4?\n")
        turns = [{"role": "user", "content": prompt.text}, {"role": "assistant", "content": answer}]
        whole = llama.tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
        ids = [*llama.encode([prompt])[0], *llama.encode_completion(answer)]
        assert whole[: len(ids)] == ids
        assert llama.tokenizer.decode(whole[len(ids) :]).strip() == ""
        assert ids[-1] == CLOSE_ID
        assert llama.decode(llama.encode_completion(answer)) == answer


def test_a_prompt_is_what_the_template_asks_with(llama: CausalTokenModel) -> None:
    (ids,) = llama.encode([Prompt(id="a", text="Hello")])
    assert llama.tokenizer.decode(ids) == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert llama.end_ids == {END_ID, CLOSE_ID}
    assert llama.pad_id == SPECIAL.index(PAD)


def test_conversations_and_system_messages(folders: dict[str, Path]) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    model = load(folders["llama"], system="Be brief.")
    rows = model.encode([Prompt(id="a", text="c", inputs={"messages": turns}), Prompt(id="b", text="Hello")])
    head, tail = "<|im_start|>system\nBe brief.<|im_end|>\n", "<|im_start|>assistant\n"
    middle = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in turns)
    assert model.tokenizer.decode(rows[0]) == head + middle + tail
    assert model.tokenizer.decode(rows[1]) == f"{head}<|im_start|>user\nHello<|im_end|>\n{tail}"
    own = [{"role": "system", "content": "Shout."}, *turns]
    (ids,) = model.encode([Prompt(id="a", text="c", inputs={"messages": own})])
    assert model.tokenizer.decode(ids) == f"<|im_start|>system\nShout.<|im_end|>\n{middle}{tail}"


def test_plain_text_has_one_start_and_no_end(tmp_path: Path) -> None:
    model = load(build(tmp_path, template=None, start=True))
    plain, started, empty = model.encode([Prompt(id=text, text=text) for text in ("Hello", "<s>Hello", "")])
    assert plain == started == (START_ID, *model.tokenizer("Hello", add_special_tokens=False).input_ids)
    assert empty == (START_ID,)
    assert model.encode_completion("er") == (*model.tokenizer("er", add_special_tokens=False).input_ids, END_ID)
    assert len(model.encode_completion("er")) == 2  # the merge was used
    assert model.decode((*plain, END_ID, 0)) == "Hello"
    assert model.end_ids == {END_ID}


def test_text_that_cannot_be_read_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'a'.*no tokens"):
        load(folders["llama"], chat="never").encode([Prompt(id="a", text="")])
    turns = [{"role": "user", "content": "a"}]
    with pytest.raises(DataError, match="chat template"):
        load(folders["llama"], chat="never").encode([Prompt(id="a", text="a", inputs={"messages": turns})])
    with pytest.raises(DataError, match=r"inputs\.messages"):
        load(folders["llama"]).encode([Prompt(id="a", text="a", inputs={"messages": "a"})])
    bare = build(tmp_path, template=None)
    with pytest.raises(RecipeError, match=r"model\.chat: always"):
        load(bare, chat="always")
    for changes in ({}, {"chat": "never"}):
        with pytest.raises(RecipeError, match=r"model\.system"):
            load(folders["llama"] if changes else bare, system="Be brief.", **changes)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            CHATML.replace("<|im_start|>assistant\n{% endif", "<|im_start|>assistant\n<think>{% endif"),
            "asks for an answer",
        ),
        (CHATML.replace("<|im_end|>", ""), "none of the tokens that end"),
    ],
)
def test_templates_that_cannot_take_a_completion_are_refused(template: str, message: str, tmp_path: Path) -> None:
    model = load(build(tmp_path, template=template))
    with pytest.raises(RecipeError, match=message):
        model.encode_completion("7")


def test_a_template_that_refuses_roles_says_so(tmp_path: Path) -> None:
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    model = load(build(tmp_path, template=template), system="Be brief.")
    with pytest.raises(DataError, match=r"no system.*model\.system"):
        model.encode([Prompt(id="a", text="a")])


def test_long_prompts_are_counted(llama: CausalTokenModel) -> None:
    prompts = [Prompt(id=str(n), text="x" * n) for n in (1, 200, 300)]
    with pytest.warns(UserWarning, match=r"2 of 3 prompts fill the model's context of 128 tokens \(longest 3\d\d\)"):
        assert max(map(len, llama.encode(prompts))) > 300


# --- loading and saving ----------------------------------------------------------------------------------------------


def test_lora_targets(folders: dict[str, Path]) -> None:
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert load(folders["llama"]).lora_targets == names
    assert set(load(folders["gpt2"]).lora_targets) == {"c_attn", "c_proj", "c_fc"}


def nudge(model: CausalTokenModel) -> None:
    with torch.no_grad():
        for parameter in model.network.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_full_weights_load_in_plain_transformers(family: str, folders: dict[str, Path], tmp_path: Path) -> None:
    model, row = load(folders[family]), random_ids(9, 1)
    before = stock(model, row)
    nudge(model)
    model.save(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(input_ids=row[None]).logits[0], stock(model, row))
    assert not torch.allclose(stock(model, row), before, atol=1e-2)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == CHATML


@pytest.mark.parametrize(("family", "dtype"), [("llama", "float32"), ("gpt2", "float32"), ("llama", "bfloat16")])
def test_adapters_load_in_plain_peft(family: str, dtype: str, folders: dict[str, Path], tmp_path: Path) -> None:
    from peft import PeftModel

    model, row = load(folders[family], dtype=dtype), random_ids(9, 1)
    before = stock(model, row)
    add_lora(model, LoraConfig(rank=3, alpha=7.0), seed=0)
    assert torch.equal(stock(model, row), before)
    nudge(model)
    model.save(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(folders[family], dtype=getattr(torch, dtype))
    again = PeftModel.from_pretrained(base, tmp_path).eval()
    assert torch.equal(again(input_ids=row[None]).logits[0].float(), stock(model, row))
    assert not torch.allclose(stock(model, row), before, atol=1e-2)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        assert not any("base_layer" in name for name in file.keys())  # noqa: SIM118
    assert again.peft_config["default"].base_model_name_or_path == str(folders[family])


def test_gguf_weights_are_saved_as_plain_ones(tmp_path: Path) -> None:
    """A GGUF is dequantised when loaded but still marked as quantised, which `save_pretrained` refuses."""
    pytest.importorskip("gguf")
    file = build_gguf(tmp_path / "tiny.gguf")
    model, row = load(file), random_ids(9, 1)
    assert model.decode(model.tokenizer("older", add_special_tokens=False).input_ids) == "older"
    before = stock(model, row)
    nudge(model)
    model.save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert torch.equal(stock(again, row), stock(model, row))
    assert not torch.allclose(stock(model, row), before, atol=1e-2)
    assert again.encode([Prompt(id="a", text="older")]) == model.encode([Prompt(id="a", text="older")])


def test_what_is_not_a_causal_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"model\.path: .*nowhere.* does not exist; give a folder"):
        load(tmp_path / "nowhere")
    network = T5ForConditionalGeneration(T5Config(vocab_size=300, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    with pytest.raises(RecipeError, match="encoder-decoder"):
        CausalTokenModel(network, build_tokenizer())
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(RecipeError, match=r"pip install 'plaudit\[transformers\]'"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("files", "said"),
    [((), "it is empty"), (("notes.txt",), r"it has notes\.txt"), (("adapter_config.json",), "it has adapters")],
)
def test_a_folder_without_a_model_says_what_it_lacks(files: tuple[str, ...], said: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(
        RecipeError, match=rf"model\.path: the folder .* holds no model: .* config\.json in it \({said}"
    ):
        load(tmp_path)
