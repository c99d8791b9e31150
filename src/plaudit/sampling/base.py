"""What the trainer, the measurements and search know of a family: how samples come about and what was decided on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.sampling.noise import SampleKey

Outputs = Any  # Tensor [B, ...], or a list with one output each


class Decisions(Protocol):
    """The stochastic decisions of a batch: denoising steps or tokens. Shape legend: B samples, D decisions."""

    @property
    def log_prob(self) -> Tensor:
        """`[B, D]`, of the policy that drew."""
        ...

    @property
    def mask(self) -> Tensor:
        """`[B, D]` bool: a decision was drawn here."""
        ...

    @property
    def limit(self) -> int:
        """How many decisions a sample could have had."""
        ...

    @property
    def rounding(self) -> float:
        """How many times a float32 rounding error may show in a log-ratio."""
        ...


class Samples(Protocol):
    """What a batch of outputs was made of, as far as replay needs it."""

    @property
    def decisions(self) -> Decisions | None: ...

    @property
    def network_calls(self) -> int: ...

    def select(self, rows: Tensor) -> Samples: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Samples with the outputs that rewards see."""

    samples: Samples
    outputs: Outputs
    ids: Sequence[Sequence[int]] | None = None  # of completions

    def __len__(self) -> int:
        return len(self.samples)

    def select(self, rows: Tensor) -> Piece:
        def picked(values: Outputs) -> Outputs:
            return values[rows] if isinstance(values, Tensor) else [values[i] for i in rows.tolist()]

        ids = None if self.ids is None else picked(self.ids)
        return Piece(samples=self.samples.select(rows), outputs=picked(self.outputs), ids=ids)


class Drawer(Protocol):
    """Draws with the weights that are in the model at the time."""

    def training(
        self, prompts: Sequence[Prompt], keys: Sequence[SampleKey], first_of_group: Sequence[SampleKey]
    ) -> Iterator[Piece]:
        """Pieces of a training batch, in order, with their decisions recorded. `first_of_group` holds for each sample the
        key of the first member of its group, from which what the group shares is drawn."""
        ...

    def evaluation(self, prompts: Sequence[Prompt], keys: Sequence[SampleKey]) -> Piece:
        """Outputs for a measurement, at noise that belongs to the keys."""
        ...

    def join(self, pieces: Sequence[Piece]) -> Piece: ...
