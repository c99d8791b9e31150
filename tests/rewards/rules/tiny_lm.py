"""A random Llama of a few thousand weights with a tokenizer of a few words, saved where `from_pretrained` finds it."""

from __future__ import annotations

from pathlib import Path

import torch

WORDS = ("go", "on", "stop", ".", "zebra", "7", "so", "Wait", "the", "sum", "is")


def save_tiny_lm(folder: Path, *, with_start: bool = True) -> str:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(("<s>", "</s>", "<unk>", *WORDS))}
    inner = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()
    ends = {"bos_token": "<s>", "eos_token": "</s>"} if with_start else {}
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", **ends).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    generator = torch.get_rng_state()
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    torch.set_rng_state(generator)
    model.save_pretrained(folder)
    return str(folder)
