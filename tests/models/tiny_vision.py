"""Tiny random vision-language models with a processor, and a world of questions about coloured pictures."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.models.tiny_causal import SMALL, build_tokenizer
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from plaudit.data.prompt import Prompt

SIDE, PATCH = 16, 8
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build(folder: Path) -> Path:
    """A LLaVA of 16 x 16 pixels, whose picture is four tokens."""
    tokenizer = build_tokenizer(template=TEMPLATE)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]}, replace_extra_special_tokens=False)
    size = {"height": SIDE, "width": SIDE}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    sight = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**sight, image_size=SIDE, patch_size=PATCH, projection_dim=16).to_dict(),
        text_config=LlamaConfig(**{**SMALL, "vocab_size": len(tokenizer)}).to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        network = LlavaForConditionalGeneration(config)
        for parameter in network.parameters():
            parameter.mul_(4) if parameter.ndim > 1 else parameter.add_(torch.randn_like(parameter) * 0.1)
        network.save_pretrained(folder)
        processor.save_pretrained(folder)
    return folder


def picture(colour: int) -> torch.Tensor:
    """Red, green or blue, with a little of the others."""
    pixels = torch.full((3, SIDE, SIDE), 0.1)
    pixels[colour % 3] = 0.9
    return pixels


class Colours:
    """Questions about one picture each; the fact is what should be answered."""

    def __init__(self, asked: str = "colour?") -> None:
        self.asked = asked

    def _prompt(self, colour: int) -> Prompt:
        inputs: dict[str, Any] = {"picture": picture(colour)}
        return Prompt(id="q", text=self.asked, inputs=inputs, facts={"answer": "rgb"[colour % 3]})

    def batch(self, step: int, count: int, seed: int) -> list[Prompt]:
        return [self._prompt(int(c)) for c in np.random.default_rng([seed, step]).integers(0, 3, count)]

    def evaluation(self, count: int) -> dict[str, list[Prompt]]:
        return {"heldout": [self._prompt(i) for i in range(count)]}


def says(prompts: Sequence[str], outputs: Sequence[str], answer: Sequence[str]) -> list[float]:
    """How much of an answer are plain letters or what is asked for, a smooth thing to learn for random weights."""
    return [
        sum(letter == wanted or (letter.isascii() and letter.isalpha()) for letter in text) / max(len(text), 1)
        for text, wanted in zip(outputs, answer, strict=True)
    ]
