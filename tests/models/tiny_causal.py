"""Tiny random language models of several families, with a byte-level tokenizer that has a ChatML template."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

START, END, TURN, CLOSE, PAD = "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<pad>"
SPECIAL = [PAD, START, END, TURN, CLOSE]
MERGES = [("e", "r"), ("Ċ", "Ċ"), ("Ġ", "a")]  # some tokens of more than one byte
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WINDOW = 5


def build_tokenizer(*, template: str | None = CHATML, start: bool = False) -> PreTrainedTokenizerFast:
    """`start`: a beginning-of-text token goes before, and an end after, every text encoded with special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*SPECIAL, *alphabet, *(a + b for a, b in MERGES)]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if start:
        ends = [(START, SPECIAL.index(START)), (END, SPECIAL.index(END))]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=ends)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=START if start else None,
        eos_token=END,
        additional_special_tokens=[TURN, CLOSE],
    )
    fast.chat_template = template
    return fast


VOCABULARY = len(build_tokenizer())
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def build_network(family: str) -> PreTrainedModel:
    """`mistral` has a sliding window in every layer, `gemma2` in every other and soft-capped logits, `lfm2` a convolution
    in every other."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        match family:
            case "llama":
                return LlamaForCausalLM(LlamaConfig(**SMALL, attention_dropout=0.5))
            case "gpt2":
                sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
                ends = {"bos_token_id": 1, "eos_token_id": 2}
                return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **sizes, **ends))
            case "mistral":
                return MistralForCausalLM(MistralConfig(**SMALL, sliding_window=WINDOW))
            case "gemma2":
                layers = ["sliding_attention", "full_attention"]
                caps = {"final_logit_softcapping": 1.0, "query_pre_attn_scalar": 5}
                config = Gemma2Config(**SMALL, sliding_window=WINDOW, layer_types=layers, **caps)
                return Gemma2ForCausalLM._from_config(config, attn_implementation="eager")
            case "lfm2":
                return Lfm2ForCausalLM(Lfm2Config(**SMALL, layer_types=["conv", "full_attention"]))
            case _:
                raise ValueError(family)


def build(folder: Path, family: str = "llama", **tokenizer: Any) -> Path:
    network = build_network(family)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for parameter in network.parameters():  # the initial weights make all logits nearly alike
            parameter.mul_(4) if parameter.ndim > 1 else parameter.add_(torch.randn_like(parameter) * 0.1)
    network.save_pretrained(folder)
    build_tokenizer(**tokenizer).save_pretrained(folder)
    return folder


def build_gguf(file: Path) -> Path:
    """A one-layer Llama in llama.cpp's format."""
    import gguf
    import numpy as np

    tokens = build_tokenizer().convert_ids_to_tokens(range(VOCABULARY))
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    shapes = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32)}
    shapes |= {"ffn_gate": (48, 32), "ffn_up": (48, 32), "ffn_down": (32, 48), "attn_norm": (32,), "ffn_norm": (32,)}
    named = {f"blk.0.{name}.weight": shape for name, shape in shapes.items()}
    named |= {"token_embd.weight": (VOCABULARY, 32), "output_norm.weight": (32,), "output.weight": (VOCABULARY, 32)}
    noise = np.random.default_rng(0)
    for name, shape in named.items():
        writer.add_tensor(name, noise.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
