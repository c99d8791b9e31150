"""The characters of the `sums` world as a tokenizer that transformers reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from plaudit.lab.sums.grammar import END, PAD, VOCABULARY


def tokenizer_json() -> dict[str, Any]:
    """`tokenizer.json`: every character is a word. The unknown token is not in the vocabulary, so other characters are an
    error, never mistaken for one of ours."""
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": VOCABULARY[token], "content": token} | special for token in (PAD, END)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False},
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": dict(VOCABULARY), "unk_token": "<unknown>"},
    }


def tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "eos_token": END,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 256,
        "padding_side": "left",
    }


def write_tokenizer(folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("tokenizer.json", tokenizer_json()), ("tokenizer_config.json", tokenizer_config())):
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
