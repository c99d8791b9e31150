"""What a flow model is, in one convention for every adapter.

Time t runs from 1 (noise) to 0 (data): x_t = (1 - t) x_0 + t e and v = e - x_0. An adapter states four things: how prompts
become a condition, the velocity, how a clean latent becomes a picture, and which times its sampler visits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from plaudit.data.prompt import Prompt
from plaudit.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What the network reads of the prompts: named tensors with the batch first."""

    tensors: Mapping[str, Tensor]

    def select(self, rows: Tensor) -> Condition:
        return Condition(tensors={name: tensor[rows] for name, tensor in self.tensors.items()})

    def expand(self, count: int) -> Condition:
        """One row, repeated without a copy."""
        return Condition(tensors={name: t.expand(count, *t.shape[1:]) for name, t in self.tensors.items()})

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    @staticmethod
    def cat(parts: Sequence[Condition]) -> Condition:
        """Rows of one shape: an embedding may not have the length of its own prompt."""
        names = parts[0].tensors
        for name in names:
            shapes = sorted({tuple(part.tensors[name].shape[1:]) for part in parts})
            if len(shapes) > 1:
                raise RecipeError(
                    f"the model's encode gave `{name}` in the shapes {', '.join(map(str, shapes[:3]))}; all prompts need one: "
                    "pad to a fixed length, and add a mask as a tensor where the network would read the padding"
                )
        return Condition(tensors={name: torch.cat([part.tensors[name] for part in parts]) for name in names})


class FlowModel(Protocol):
    """A text-to-image flow model. `network` holds every parameter that training may touch."""

    network: nn.Module
    latent_shape: tuple[int, ...]

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """Endings of the module names that LoRA adapts when the recipe does not say."""
        ...

    def encode(self, prompts: Sequence[Prompt]) -> Condition:
        """Conditions of the prompts; the prompt with the empty text is the unconditional one."""
        ...

    def velocity(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Velocity at `x [B, *latent_shape]` and times `t [B]`."""
        ...

    def decode(self, x0: Tensor) -> Tensor:
        """Pictures `[B, 3, H, W]` in [0, 1]."""
        ...

    def latents(self, pictures: Tensor) -> Tensor:
        """Clean latents `[B, *latent_shape]` of pictures; only models that learn from given pictures need it."""
        ...

    def schedule(self, steps: int, shift: float | None) -> Tensor:
        """Times `[steps + 1]` from 1 to 0; `shift` None is the model's own."""
        ...

    def save(self, folder: Path) -> None:
        """Write the trained weights the way the model's users load them."""
        ...


EMPTY_PROMPT = Prompt(id="", text="")


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """A batch's conditions with the guidance that goes with them. Rollout and replay read the same object."""

    condition: Condition
    unconditional: Condition | None = None  # one row; encoded once and kept
    guidance: float = 1.0

    def select(self, rows: Tensor) -> Conditioning:
        return Conditioning(
            condition=self.condition.select(rows), unconditional=self.unconditional, guidance=self.guidance
        )

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Batches of one guidance."""
        condition = Condition.cat([part.condition for part in parts])
        return Conditioning(condition=condition, unconditional=parts[0].unconditional, guidance=parts[0].guidance)

    @property
    def calls_per_velocity(self) -> int:
        return 1 if self.guidance == 1.0 else 2


OUTSIDE = 0.01  # of 0..1, for what decoders round


def guided_velocity(model: FlowModel, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
    """Classifier-free guidance: v_empty + g (v_prompt - v_empty), both branches in one call; g = 1 needs one branch."""
    if conditioning.guidance == 1.0:
        return _like(x, model.velocity(x, t, conditioning.condition))
    assert conditioning.unconditional is not None, "guidance needs the unconditional condition"
    both = Condition.cat([conditioning.condition, conditioning.unconditional.expand(len(x))])
    twice = torch.cat([x, x])
    with_prompt, without = _like(twice, model.velocity(twice, torch.cat([t, t]), both)).chunk(2)
    return without + conditioning.guidance * (with_prompt - without)


def _like(x: Tensor, v: Tensor) -> Tensor:
    if not isinstance(v, Tensor) or v.shape != x.shape:
        shown = list(v.shape) if isinstance(v, Tensor) else type(v).__name__
        raise RecipeError(f"the model's velocity gave {shown} for latents {list(x.shape)}; both must have one shape")
    return v


def shifted_times(steps: int, shift: float) -> Tensor:
    """`steps + 1` times from 1 to 0, bent toward noise by t -> s t / (1 + (s - 1) t)."""
    t = torch.linspace(1.0, 0.0, steps + 1)
    return shift * t / (1 + (shift - 1) * t)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Shape `[B]` values so that they broadcast over a batch `[B, ...]`."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def decoded(model: FlowModel, x0: Tensor) -> Tensor:
    """The model's pictures; clips are refused until the parts that look at outputs know them."""
    outputs = model.decode(x0)
    if not isinstance(outputs, Tensor) or outputs.ndim != 4 or len(outputs) != len(x0):
        shown = (
            f"outputs of the shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        )
        raise RecipeError(
            f"the model's decode gave {shown} for {len(x0)} latents; pictures are [{len(x0)}, 3, H, W], and clips are not "
            "supported yet: decode one frame"
        )
    low, high = (limit.item() for limit in outputs.detach().aminmax())
    if low < -OUTSIDE or high > 1 + OUTSIDE:
        raise RecipeError(f"the model's decode gave pixels from {low:.3g} to {high:.3g}; pictures lie in 0..1")
    return outputs


def times_of(model: FlowModel, steps: int, shift: float | None) -> Tensor:
    """The model's schedule, checked to be one."""
    times = model.schedule(steps, shift)
    falling = isinstance(times, Tensor) and times.shape == (steps + 1,) and bool((times.diff() < 0).all())
    if not falling or times[-1] != 0 or times[0] > 1:
        shown = f"{[round(t, 4) for t in times.flatten().tolist()][:8]}" if isinstance(times, Tensor) else repr(times)
        raise RecipeError(
            f"the model's schedule({steps}, {shift}) gave {shown[:120]}; it must be a tensor of {steps + 1} times that fall from "
            "1 (noise) to 0"
        )
    return times


def clean_prediction(x: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """x_0 = x - t v."""
    return x - per_sample(t, x) * v
