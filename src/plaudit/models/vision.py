"""A vision-language model of transformers as a token model: prompts may have pictures among their inputs.

A picture's place in the ids, and the tensors that the network reads for it, are the processor's. They make the prompt's context,
so that two pictures under one text never share what was read of them.

Left out: networks whose positions have several axes (M-RoPE, as in Qwen2-VL), since positions here are a line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.errors import DataError, RecipeError
from plaudit.models.causal import CausalTokenModel
from plaudit.models.loading import must_be_there, pretrained, quiet, without_safetensors
from plaudit.models.tokens import Context, Ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

    from plaudit.recipe.models import VisionModel

PLACEHOLDERS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
READ_AS_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


class VisionTokenModel(CausalTokenModel):
    """`AutoModelForImageTextToText` and its processor."""

    def __init__(self, network: PreTrainedModel, processor: ProcessorMixin, *, system: str | None = None) -> None:
        self.processor: Any = processor
        if processor.tokenizer.chat_template is None:
            processor.tokenizer.chat_template = self.processor.chat_template
        super().__init__(network, processor.tokenizer, chat="always", system=system)
        named = {getattr(network.config, name, None) for name in PLACEHOLDERS}
        self.placeholders = sorted(token for token in named if isinstance(token, int))
        rope = getattr(self.config, "rope_parameters", None) or getattr(self.config, "rope_scaling", None) or {}
        if "mrope_section" in rope:
            raise RecipeError(
                f"model.path: {type(network).__name__} has positions of several axes (mrope_section), which are not supported; "
                "take a model whose positions are a line, such as SmolVLM, LLaVA or InternVL"
            )

    @classmethod
    def from_config(cls, config: VisionModel) -> VisionTokenModel:  # type: ignore[override]
        network, processor = _load(config.path, getattr(torch, config.dtype))
        network.to("cuda" if torch.cuda.is_available() else "cpu")
        return cls(network, processor, system=config.system)

    def encode(self, prompts: Sequence[Prompt]) -> list[Ids]:
        """Prompts without a picture are read as text."""
        return [self._context(p) if pictures_of(p) else super(VisionTokenModel, self).encode([p])[0] for p in prompts]

    def _context(self, prompt: Prompt) -> Context:
        pictures = pictures_of(prompt)
        if prompt.inputs.get("messages") is not None:
            raise DataError(f"prompt {prompt.id!r} has pictures and `messages`; give pictures and a `text`")
        content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": prompt.text}]
        messages = [{"role": "user", "content": content}]
        if self.text.system is not None:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": self.text.system}]})
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        read = self.processor(text=[text], images=[pictures], return_tensors="pt", add_special_tokens=False)
        media = {name: value for name, value in read.items() if name not in READ_AS_TEXT and isinstance(value, Tensor)}
        return Context(read["input_ids"][0].tolist(), media, prompt.key)

    def _media(self, contexts: Sequence[Ids]) -> dict[str, Tensor]:
        """The media of some rows, in their order."""
        found: dict[str, list[Tensor]] = {}
        for context in contexts:
            for name, value in context.media.items() if isinstance(context, Context) else ():
                found.setdefault(name, []).append(value)
        return {name: _joined(name, values).to(self.network.device) for name, values in found.items()}


def pictures_of(prompt: Prompt) -> list[Any]:
    """Pictures among a prompt's inputs, by the order of their names."""
    from PIL import Image

    found = []
    for _, value in sorted(prompt.inputs.items()):
        if isinstance(value, Image.Image):
            found.append(value.convert("RGB"))
        elif isinstance(value, Tensor) and value.ndim == 3 and value.shape[0] == 3:
            pixels = (value.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
            found.append(Image.fromarray(pixels))
    return found


def _joined(name: str, values: Sequence[Tensor]) -> Tensor:
    if len({value.shape[1:] for value in values}) > 1:
        shapes = ", ".join(str(list(value.shape)) for value in values[:3])
        raise DataError(
            f"pictures of one batch make `{name}` of several shapes ({shapes}); give every prompt as many pictures of one "
            "size"
        )
    return torch.cat(list(values))


def _load(path: str, dtype: torch.dtype) -> tuple[PreTrainedModel, ProcessorMixin]:
    try:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        must_be_there(path)
        with quiet():
            processor = AutoProcessor.from_pretrained(path)
            network = pretrained(AutoModelForImageTextToText, path, dtype=dtype)
    except ImportError as error:
        raise RecipeError(
            f"model.type: transformers cannot be used here ({error}); run `pip install 'plaudit[transformers]'`"
        ) from error
    except (OSError, ValueError, KeyError) as error:
        raise RecipeError(
            f"model.path: {path!r} is no vision-language model that loads: {error}{without_safetensors(path)}\nGive a folder "
            "with config.json, weights and processor, or a hub name such as HuggingFaceTB/SmolVLM-256M-Instruct"
        ) from error
    if not hasattr(processor, "image_processor"):
        raise RecipeError(f"model.path: {path!r} reads no pictures; use model.type: transformers")
    return network, processor
