"""A causal language model of transformers as a token model.

Attention layers take any mask, so completions of one prompt can share a row; layers with a sliding window get theirs by
position. A model with other layers (recurrent, convolutional, ALiBi) is run its own way, with a mask that only says which
tokens are padding.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from plaudit.data.prompt import Prompt
from plaudit.errors import RecipeError, RunError
from plaudit.models.chat import ChatText, end_of_turn
from plaudit.models.loading import must_be_there, pretrained, quiet, without_safetensors
from plaudit.models.lora import ADAPTER
from plaudit.models.tokens import Ids, TokenCache

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from plaudit.recipe.models import TransformersModel

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
ANY_MASK = ("sdpa", "eager")  # implementations of attention that take the mask they are given


class CausalCache:
    """What every layer has read, and the positions of it, which sliding windows need."""

    def __init__(self, states: DynamicCache) -> None:
        self.states = states
        self.positions: Tensor | None = None

    def select(self, rows: Tensor) -> None:
        self.states.reorder_cache(rows)
        if self.positions is not None:
            self.positions = self.positions.index_select(0, rows.to(self.positions.device))

    def extend(self, positions: Tensor) -> Tensor:
        """Positions of all keys, the new ones last."""
        past = [] if self.positions is None else [self.positions]
        self.positions = torch.cat([*past, positions], dim=1)
        return self.positions


class CausalTokenModel:
    """`AutoModelForCausalLM` and its tokenizer. The network is always in evaluation mode: dropout in the rollout or the
    replay would make their ratio noise."""

    placeholders: Sequence[int] = ()
    """Ids that stand for media, which no completion has."""

    def __init__(
        self,
        network: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        chat: str = "auto",
        system: str | None = None,
    ) -> None:
        self.network: Any = network.eval()
        self.tokenizer = tokenizer
        self.config = network.config.get_text_config(decoder=True)
        self.context: int | None = getattr(self.config, "max_position_embeddings", None)
        self.accepts = frozenset(inspect.signature(network.forward).parameters)
        if refusal := _refusal(network.config, self.accepts):
            raise RecipeError(f"model.path: {type(network).__name__} {refusal}; take a decoder-only language model")
        self.layers = _layer_kinds(self.config)
        self.packs = _takes_any_mask(self.config, self.accepts, self.layers)
        self.lora_targets = _lora_targets(network)
        template = _uses_chat(tokenizer, chat, system)
        self.end_ids = _end_ids(network, tokenizer, template)
        self.text = ChatText(tokenizer=tokenizer, chat=template, system=system, end_ids=self.end_ids)
        self.pad_id: int = min(self.end_ids) if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    @classmethod
    def from_config(cls, config: TransformersModel) -> CausalTokenModel:
        network, tokenizer = _load(config.path, getattr(torch, config.dtype))
        network.to("cuda" if torch.cuda.is_available() else "cpu")
        return cls(network, tokenizer, chat=config.chat, system=config.system)

    # --- text --------------------------------------------------------------------------------------------------------

    def encode(self, prompts: Sequence[Prompt]) -> list[Ids]:
        rows = [self.text.encode(prompt) for prompt in prompts]
        limit = self.context
        lengths = [len(ids) for ids in rows]
        if limit is not None and (over := sum(length >= limit for length in lengths)):
            found = f"{over} of {len(rows)} prompts fill the model's context of {limit} tokens (longest {max(lengths)})"
            warnings.warn(
                f"{found}; none is cut, but what the model makes of them is undefined: shorten them", stacklevel=2
            )
        return rows

    def decode(self, ids: Sequence[int]) -> str:
        return self.text.decode(ids)

    def encode_completion(self, text: str) -> Ids:
        return self.text.encode_completion(text)

    # --- logits ------------------------------------------------------------------------------------------------------

    def new_cache(self) -> CausalCache:
        from transformers import DynamicCache

        from plaudit.models.growing import growing_cache

        # Windows are in the masks that we pass: a cache that knew of them would drop keys of its own.
        return CausalCache(growing_cache() if self.packs else DynamicCache(config=self.config))

    def logits(
        self,
        ids: Tensor,
        positions: Tensor,
        visible: Tensor,
        *,
        cache: TokenCache | None = None,
        keep: Tensor | None = None,
        contexts: Sequence[Ids] = (),
    ) -> Tensor:
        """float32, where the network lies. Columns that see nothing attend to themselves: they are padding."""
        assert cache is None or isinstance(cache, CausalCache), "a cache of another model"
        if self.network.training:
            self.network.eval()
        device = self.network.device
        positions, visible = positions.to(device), visible.to(device)
        keys = positions if cache is None else cache.extend(positions)
        arguments: dict[str, Any] = {"attention_mask": self._mask(visible, positions, keys), **self._media(contexts)}
        if "position_ids" in self.accepts:
            arguments["position_ids"] = positions
        if keep is not None:
            arguments["logits_to_keep"] = keep.to(device)
        if cache is not None:
            arguments["past_key_values"] = cache.states
        found = self.network(input_ids=ids.to(device), use_cache=cache is not None, return_dict=True, **arguments)
        logits: Tensor = found.logits.float()
        if self.placeholders:
            logits[..., self.placeholders] = -torch.inf
        return logits

    def _media(self, contexts: Sequence[Ids]) -> dict[str, Tensor]:
        """What the network is handed besides the ids of some rows."""
        return {}

    def _mask(self, visible: Tensor, queries: Tensor, keys: Tensor) -> Tensor | dict[str, Tensor]:
        if not self.packs:
            return padding_mask(visible)
        masks = {kind: self._additive(visible, queries, keys, kind) for kind in sorted(self.layers)}
        # Models with one kind of layer take the mask itself, those with several one for each kind.
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _additive(self, visible: Tensor, queries: Tensor, keys: Tensor, kind: str) -> Tensor:
        if kind == "sliding_attention":
            visible = visible & (queries[:, :, None] - keys[:, None, :] < self.config.sliding_window)
        visible = with_self(visible)
        mask = torch.zeros(visible.shape, dtype=self.network.dtype, device=visible.device)
        return mask.masked_fill_(~visible, -torch.inf)[:, None]

    # --- results -----------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Adapters for `peft.PeftModel.from_pretrained(base, folder)`, or a whole model for `from_pretrained(folder)`."""
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(folder)
        if hasattr(self.network, "peft_config"):
            _save_adapters(self.network, folder)
        else:
            self.network.save_pretrained(folder)


def with_self(visible: Tensor) -> Tensor:
    """`visible [N, L, S]`, with each column that sees nothing seeing itself: a softmax over nothing is NaN."""
    num_columns, num_keys = visible.shape[1:]
    own = torch.ones(num_columns, num_keys, dtype=torch.bool, device=visible.device)
    own = own.triu(num_keys - num_columns).tril(num_keys - num_columns)
    return visible | (own & ~visible.any(-1, keepdim=True))


def padding_mask(visible: Tensor) -> Tensor:
    """`[N, S]`, 1 where a key is no padding, of masks `[N, L, S]` that are causal but for padding; others are refused.
    Padding is what no other column sees; whether it sees itself, and on the right what came before, is left open."""
    num_columns, num_keys = visible.shape[1:]
    past = num_keys - num_columns
    ones = torch.ones(num_columns, num_keys, dtype=torch.bool, device=visible.device)
    causal, own = ones.tril(past), ones.tril(past).triu(past)
    sees = visible.any(2).long()
    last = sees.cumsum(1) == sees.sum(1, keepdim=True)  # nobody later sees anything, so nobody could see this one
    valid = (visible & ~(own & ~last[:, :, None])).any(1)
    reads = valid[:, past:, None]
    if not torch.equal(visible & reads, causal & valid[:, None, :] & reads):
        raise RunError(
            "this model has layers that read every token in order, and a column was to see something else than all "
            "earlier ones: completions cannot share a row (its `packs` is false)"
        )
    return valid.long()


def _layer_kinds(config: PreTrainedConfig) -> frozenset[str]:
    from transformers.cache_utils import get_layer_types_and_kwargs

    return frozenset(get_layer_types_and_kwargs(config)[0])


def _takes_any_mask(config: PreTrainedConfig, accepts: frozenset[str], layers: frozenset[str]) -> bool:
    attention_only = layers <= {"full_attention", "sliding_attention"}
    by_position = "position_ids" in accepts and not getattr(config, "alibi", False)
    return attention_only and by_position and config._attn_implementation in ANY_MASK


def _refusal(config: PreTrainedConfig, accepts: frozenset[str]) -> str | None:
    if getattr(config, "is_encoder_decoder", False):
        return "is an encoder-decoder, whose prompt and completion are not one sequence"
    if missing := sorted({"past_key_values", "logits_to_keep"} - accepts):
        return f"takes no {' and no '.join(missing)}, without which it cannot be drawn from token by token"
    return None


def _lora_targets(network: PreTrainedModel) -> tuple[str, ...]:
    """The projections of attention and MLP under their usual names, or else every linear layer but the head."""
    from transformers.pytorch_utils import Conv1D

    head = network.get_output_embeddings()
    linear = [name for name, m in network.named_modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]
    endings = dict.fromkeys(name.rpartition(".")[2] for name in linear)
    if endings.keys() >= set(ATTENTION):
        return tuple(name for name in (*ATTENTION, *MLP) if name in endings)
    return tuple(endings)


def _end_ids(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chat: bool) -> frozenset[int]:
    sources = (getattr(network, "generation_config", None), network.config.get_text_config(decoder=True), tokenizer)
    named = [getattr(source, "eos_token_id", None) for source in sources]
    found = {token for ids in named if ids is not None for token in ([ids] if isinstance(ids, int) else ids)}
    found |= end_of_turn(tokenizer) if chat else set()
    found = {token for token in found if 0 <= token < network.get_input_embeddings().weight.shape[0]}
    if not found:
        remedy = "set eos_token_id in its generation_config.json"
        raise RecipeError(f"model.path: {network.name_or_path!r} names no token that ends a text; {remedy}")
    return frozenset(found)


def _uses_chat(tokenizer: PreTrainedTokenizerBase, chat: str, system: str | None) -> bool:
    has_template = tokenizer.chat_template is not None
    if chat == "always" and not has_template:
        remedy = "take an instruction-tuned model, or set model.chat: never"
        raise RecipeError(f"model.chat: always, but {tokenizer.name_or_path!r} has no chat template; {remedy}")
    used = has_template and chat != "never"
    if system is not None and not used:
        why = f"model.chat is {chat}" if has_template else f"{tokenizer.name_or_path!r} has no chat template"
        raise RecipeError(f"model.system: {system!r} would not be read, for {why}; leave it out")
    return used


def _load(path: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """`FOLDER/FILE.gguf` reads that file, dequantised."""
    folder, _, file = path.rpartition("/") if path.endswith(".gguf") else (path, "", None)
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        must_be_there(folder or ".")
        if file is None and Path(path).is_dir():
            _must_hold_a_model(Path(path))
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder or ".", gguf_file=file)
            network = pretrained(AutoModelForCausalLM, folder or ".", gguf_file=file, dtype=dtype)
    except ImportError as error:
        remedy = "run `pip install 'plaudit[transformers]'` (and gguf for a .gguf file)"
        raise RecipeError(f"model.type: transformers cannot be used here ({error}); {remedy}") from error
    except (OSError, ValueError, KeyError) as error:  # what transformers raises for absent, gated or foreign models
        raise RecipeError(
            f"model.path: {path!r} is no causal language model that loads: {error}"
            f"{without_safetensors(path)}\nGive a folder with config.json, "
            "weights and tokenizer, a .gguf file, or a hub name such as HuggingFaceTB/SmolLM2-135M-Instruct"
        ) from error
    if file is not None:  # plain weights by now, but `save_pretrained` would refuse them as quantised
        network.hf_quantizer = None
        del network.config.quantization_config
    return network, tokenizer


def _must_hold_a_model(folder: Path) -> None:
    """transformers would look for a tokenizer first, and advise to install others."""
    names = sorted(path.name for path in folder.iterdir())
    if "config.json" in names:
        return
    found = f"it has {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else "it is empty"
    if "adapter_config.json" in names:
        found = "it has adapters, without the model that they belong to"
    raise RecipeError(
        f"model.path: the folder {str(folder)!r} holds no model: there is no config.json in it ({found}); give a folder with "
        "config.json, weights and tokenizer, a .gguf file, or a hub name such as HuggingFaceTB/SmolLM2-135M-Instruct"
    )


def _save_adapters(network: Any, folder: Path) -> None:
    """The layout of `PeftModel.save_pretrained`, for adapters that were inserted without a PeftModel."""
    import copy

    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    config = copy.copy(network.peft_config[ADAPTER])
    config.base_model_name_or_path = network.name_or_path
    config.task_type, config.inference_mode = "CAUSAL_LM", True
    config.save_pretrained(folder)
    adapters = get_peft_model_state_dict(network, adapter_name=ADAPTER)
    tensors = {f"base_model.model.{name}": value.contiguous().cpu() for name, value in adapters.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
