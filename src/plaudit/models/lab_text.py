"""The lab's language network as a token model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.lab.language import KeyValues, LanguageNetwork, Shape, config, load_language
from plaudit.lab.sums import grammar
from plaudit.lab.sums.grammar import END_ID, PAD_ID
from plaudit.lab.sums.tokenizer import write_tokenizer
from plaudit.models.lab import merged_state
from plaudit.models.tokens import Ids


class LabTokenModel:
    """`sums`: sums with a scratchpad, one token a character."""

    end_ids = frozenset({END_ID})
    pad_id = PAD_ID
    context = Shape().longest
    packs = True
    lora_targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    def __init__(self, weights: str | None = None, network: LanguageNetwork | None = None) -> None:
        self.network = network or load_language(Path(weights) if weights else None)

    def encode(self, prompts: Sequence[Prompt]) -> list[Ids]:
        return [grammar.encode(prompt.text) for prompt in prompts]

    def encode_completion(self, text: str) -> Ids:
        return (*grammar.encode(text), END_ID)

    def decode(self, ids: Sequence[int]) -> str:
        return grammar.decode(ids)

    def new_cache(self) -> KeyValues:
        return KeyValues()

    def logits(
        self,
        ids: Tensor,
        positions: Tensor,
        visible: Tensor,
        *,
        cache: KeyValues | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        return self.network(ids, positions, visible, cache, keep)

    def save(self, folder: Path) -> None:
        """A folder that `AutoModelForCausalLM` and `AutoTokenizer` read, as does `model.weights` its safetensors file;
        adapters are merged into the layers they adapt."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(merged_state(self.network), folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config(), indent=1), encoding="utf-8")
        write_tokenizer(folder)
