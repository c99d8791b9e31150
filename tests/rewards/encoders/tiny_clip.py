"""CLIP and SigLIP folders with random weights and a tokenizer of single letters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

LETTERS = "abcdefghijklmnopqrstuvwxyz,."
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = SMALL | {"image_size": 28, "patch_size": 14}


def save_tiny_clip(folder: Path) -> None:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    vocabulary = {token: i for i, token in enumerate([*LETTERS, *(letter + "</w>" for letter in LETTERS)])}
    begin, end = len(vocabulary), len(vocabulary) + 1
    vocabulary |= {"<|startoftext|>": begin, "<|endoftext|>": end}
    CLIPTokenizer(vocabulary, [], model_max_length=16).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    text = SMALL | {"vocab_size": end + 1, "max_position_embeddings": 16, "bos_token_id": begin, "eos_token_id": end}
    torch.manual_seed(0)
    _save(CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8)), folder)


def save_tiny_siglip(folder: Path) -> None:
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    letter_tokenizer().save_pretrained(folder)
    SiglipImageProcessor(size={"height": 28, "width": 28}).save_pretrained(folder)
    text = SMALL | {"vocab_size": 40, "max_position_embeddings": 12}
    torch.manual_seed(0)
    _save(SiglipModel(SiglipConfig(text_config=text, vision_config=VISION)), folder)


def letter_tokenizer(**special: str) -> Any:
    """One token per letter, space and digit-free mark; `<pad>` is 0 and `</s>` 1."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<pad>", "</s>", "<unk>", *LETTERS, " ", "=", "+", "?", "\n", *special.values()]
    inner = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", extra_special_tokens=special
    )


def _save(model: Any, folder: Path) -> None:
    """Weights larger than the initial ones, so that unlike inputs have unlike embeddings."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
