"""What a token model is, in one convention for every adapter.

An adapter states how prompts become ids, the logits at given places, what a cache keeps, and how ids become text. Drawing,
replay, packing and search are written once, on top of it.

Shape legend: N rows, L columns handed in, S keys (those in the cache, then the L new ones), K columns whose logits are wanted,
V entries of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from plaudit.data.prompt import Prompt

Ids = tuple[int, ...]


class Context(tuple[int, ...]):
    """What a network reads before a completion: ids, and media that some of them stand for. Equal ids under other media are
    another context; without media it is the ids alone."""

    media: Mapping[str, Tensor]
    key: str

    def __new__(cls, ids: Iterable[int], media: Mapping[str, Tensor], key: str) -> Context:
        """`key` tells the media apart, such as the prompt's."""
        made = super().__new__(cls, ids)
        made.media, made.key = media, key
        return made

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Context) and other.key == self.key and super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((self.key, tuple(self)))

    def __reduce__(self) -> tuple[Any, ...]:
        return Context, (tuple(self), dict(self.media), self.key)


def with_media(contexts: Sequence[Ids]) -> dict[str, Any]:
    """The argument `contexts` of `logits`, where the contexts have media; models of texts have none."""
    return {"contexts": contexts} if any(isinstance(one, Context) for one in contexts) else {}


class TokenCache(Protocol):
    """Keys and values of what the network has read."""

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order; a row named twice is copied."""
        ...


class TokenModel(Protocol):
    """A causal language model. `network` holds every parameter that training may touch."""

    network: nn.Module
    end_ids: frozenset[int]
    """Any of these ends a completion, and is its last token."""
    pad_id: int
    context: int | None
    """Tokens that prompt and completion may have together; None where there is no limit."""
    packs: bool
    """Whether `visible` may be any mask, so that completions of one prompt can share a row; recurrent layers cannot."""

    @property
    def lora_targets(self) -> tuple[str, ...]: ...

    def encode(self, prompts: Sequence[Prompt]) -> list[Ids]:
        """What the network reads before a completion, with the chat template where there is one."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a completion, without special tokens."""
        ...

    def encode_completion(self, text: str) -> Ids:
        """The ids of a given completion, with the end it would have had if it had been drawn."""
        ...

    def new_cache(self) -> TokenCache: ...

    def logits(
        self,
        ids: Tensor,
        positions: Tensor,
        visible: Tensor,
        *,
        cache: TokenCache | None = None,
        keep: Tensor | None = None,
        **contexts: Sequence[Ids],
    ) -> Tensor:
        """`[N, K, V]` for `ids [N, L]` at `positions [N, L]`, where `visible [N, L, S]` says which keys a column attends to.
        With a cache the new keys are added to it. `keep [K]` names columns; None wants all. A model that
        reads media is handed the `contexts` of the rows where they begin."""
        ...

    def save(self, folder: Path) -> None:
        """Write the trained weights the way the model's users load them."""
        ...
