"""The lab's language network: a small Llama, weight for weight, that attends by any mask.

Its parameters have the names and the shapes of transformers' `LlamaForCausalLM`, so a folder with `config()` as `config.json`
and these weights as `model.safetensors` loads there.

Shape legend: N rows, L columns handed in, S keys (those in the cache, then the L new ones), K columns whose logits are wanted,
D width, H heads, E width of a head, V entries of the vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plaudit.errors import DataError, RecipeError
from plaudit.lab.sums.grammar import END_ID, PAD_ID, VOCABULARY
from plaudit.storage import load_weights

WEIGHTS = Path(__file__).parent / "weights" / "sums.safetensors"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a network."""

    vocabulary: int = len(VOCABULARY)
    width: int = 128
    inner: int = 352
    layers: int = 5
    heads: int = 4
    theta: float = 10_000.0
    eps: float = 1e-5
    longest: int = 256


SPARE = 32  # columns


class KeyValues:
    """Keys and values of every layer, `[N, H, S, E]`: what the network has read.

    Columns are written into spare room in place, except under autograd, which needs the earlier tensors as they were.
    """

    def __init__(self) -> None:
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._filled: list[int] = []

    @property
    def length(self) -> int:
        return self._filled[-1] if self._filled else 0

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add a layer's new columns; returns all that it has."""
        if layer == len(self._filled):
            self._keys.append(key)
            self._values.append(value)
            self._filled.append(key.shape[2])
            return key, value
        filled = self._filled[layer]
        self._keys[layer] = appended(self._keys[layer], filled, key)
        self._values[layer] = appended(self._values[layer], filled, value)
        self._filled[layer] = length = filled + key.shape[2]
        return self._keys[layer][:, :, :length], self._values[layer][:, :, :length]

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order; a row named twice is copied."""
        self._keys = [key[rows] for key in self._keys]
        self._values = [value[rows] for value in self._values]


def appended(buffer: Tensor, filled: int, new: Tensor) -> Tensor:
    """The first `filled` columns of the buffer, then the new ones, then room."""
    length = filled + new.shape[2]
    if buffer.requires_grad or new.requires_grad:
        return torch.cat([buffer[:, :, :filled], new], dim=2)
    if length > buffer.shape[2]:
        N, H, _, E = buffer.shape
        buffer = torch.cat([buffer[:, :, :filled], buffer.new_zeros(N, H, length - filled + SPARE, E)], dim=2)
    buffer[:, :, filled:length] = new
    return buffer


def rotation(positions: Tensor, width: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine `[N, 1, L, E]` of the rotary embedding (rotate-half layout)."""
    frequency = theta ** (-torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width)
    angle = positions[:, None, :, None].float() * torch.cat([frequency, frequency])
    return angle.cos(), angle.sin()


def rotated(x_NHLE: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x_NHLE.chunk(2, dim=-1)
    return x_NHLE * cos + torch.cat([-second, first], dim=-1) * sin


def seeing(visible_NLS: Tensor) -> Tensor:
    """The mask in which a column that sees nothing (padding) sees itself, so that its softmax is defined."""
    L, S = visible_NLS.shape[1:]
    own = torch.eye(L, dtype=torch.bool, device=visible_NLS.device)
    own = F.pad(own, (S - L, 0))
    return visible_NLS | (own & ~visible_NLS.any(-1, keepdim=True))


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.q_proj = nn.Linear(shape.width, shape.width, bias=False)
        self.k_proj = nn.Linear(shape.width, shape.width, bias=False)
        self.v_proj = nn.Linear(shape.width, shape.width, bias=False)
        self.o_proj = nn.Linear(shape.width, shape.width, bias=False)

    def forward(
        self, x_NLD: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor, cache: KeyValues | None, layer: int
    ) -> Tensor:
        N, L, D = x_NLD.shape
        q, k, v = (
            project(x_NLD).view(N, L, self.heads, D // self.heads).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotated(q, *turn), rotated(k, *turn)
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(mixed.transpose(1, 2).reshape(N, L, D))


class FeedForward(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.inner, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.inner, bias=False)
        self.down_proj = nn.Linear(shape.inner, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = FeedForward(shape)
        self.input_layernorm = nn.RMSNorm(shape.width, eps=shape.eps)
        self.post_attention_layernorm = nn.RMSNorm(shape.width, eps=shape.eps)

    def forward(
        self, x_NLD: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor, cache: KeyValues | None, layer: int
    ) -> Tensor:
        x_NLD = x_NLD + self.self_attn(self.input_layernorm(x_NLD), turn, mask, cache, layer)
        return x_NLD + self.mlp(self.post_attention_layernorm(x_NLD))


class Trunk(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, eps=shape.eps)


class LanguageNetwork(nn.Module):
    def __init__(self, shape: Shape = Shape()) -> None:
        super().__init__()
        self.shape = shape
        self.model = Trunk(shape)
        self.lm_head = nn.Linear(shape.width, shape.vocabulary, bias=False)

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        visible: Tensor,
        cache: KeyValues | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Logits `[N, K, V]` for `ids [N, L]` at `positions [N, L]`, where `visible [N, L, S]` says which keys a column
        attends to. With a cache the new keys are added to it. `keep [K]` names columns; None wants all."""
        N, L = ids.shape
        expected = (N, L, (cache.length if cache is not None else 0) + L)
        if positions.shape != ids.shape or visible.shape != expected:
            raise DataError(
                f"language network: ids {tuple(ids.shape)}, positions {tuple(positions.shape)}, visible "
                f"{tuple(visible.shape)}; positions must be shaped like ids and visible {expected} (rows, columns, cached "
                "and new keys)"
            )
        x = self.model.embed_tokens(ids)
        turn = rotation(positions, self.shape.width // self.shape.heads, self.shape.theta)
        mask = seeing(visible)[:, None]
        for index, layer in enumerate(self.model.layers):
            x = layer(x, turn, mask, cache, index)
        return self.lm_head(self.model.norm(x if keep is None else x[:, keep]))


def initialise(network: LanguageNetwork, generator: torch.Generator) -> LanguageNetwork:
    """Weights of deviation 0.02 as Llama draws them, those into the residual stream scaled down by its depth (GPT-2)."""
    into_stream = 0.02 / math.sqrt(2 * network.shape.layers)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
            else:
                std = into_stream if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
                parameter.normal_(0.0, std, generator=generator)
    return network


def load_language(weights: Path | None = None) -> LanguageNetwork:
    """The pretrained network of the `sums` world, or one of its shape from another file, in evaluation mode."""
    path = weights or WEIGHTS
    if not path.is_file():
        raise RecipeError(
            f"model.weights: {path} does not exist; build it with `plaudit lab build sums` or leave the key out"
        )
    network = LanguageNetwork()
    load_weights(network, path, "model.weights")
    return network.eval()


def config(shape: Shape = Shape()) -> dict[str, Any]:
    """`config.json` of this network for transformers."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "head_dim": shape.width // shape.heads,
        "max_position_embeddings": shape.longest,
        "hidden_act": "silu",
        "rms_norm_eps": shape.eps,
        "rope_theta": shape.theta,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": END_ID,
        "pad_token_id": PAD_ID,
        "dtype": "float32",
        "torch_dtype": "float32",
    }
