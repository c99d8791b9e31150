"""Noise-predicting, variance-preserving models with a table of discrete timesteps (DDPM, DDIM) as flow models.

With a = sqrt(alpha-bar) and s = sqrt(1 - alpha-bar), a latent x_vp = a x_0 + s e lies on the flow's line at

    x = x_vp / (a + s),   t = s / (a + s),   v = e - x_0 = (a + s) (e - x) / a

so the Euler step of the flow is DDIM with eta 0, and kernel `ddim_eta` is DDIM with noise. The last step goes to t = 0,
as with diffusers' `set_alpha_to_one=True`. Departure: with trailing spacing a step ends where the next one begins, even
when the number of steps does not divide the table. Times start at the table's end, short of 1, where the start of the
stock sampler, x_vp ~ N(0, 1), is x ~ N(0, (1 - t)^2 + t^2).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from plaudit.data.prompt import Prompt
from plaudit.errors import RecipeError
from plaudit.models.flow import Condition, per_sample

TIME_TOLERANCE = 1e-5  # rounding of float32 times is 6e-8; neighbours in the usual tables of 1000 are 2e-4 apart


class EpsilonFlowModel(ABC):
    """Velocity and schedule from a noise prediction; an adapter of a model states the rest of `FlowModel`."""

    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")

    def __init__(
        self,
        network: nn.Module,
        alphas_cumprod: Tensor,
        latent_shape: tuple[int, ...],
        *,
        spacing: Literal["leading", "trailing"] = "leading",
        steps_offset: int = 0,
    ) -> None:
        kept = alphas_cumprod.double()
        if not (kept.min() > 0 and kept.max() < 1 and (kept.diff() < 0).all()):
            raise RecipeError(
                "alphas_cumprod must fall from below 1 to above 0; a noise prediction says nothing of the picture at 0 "
                "(zero terminal SNR): use a table without it"
            )
        self.network, self.latent_shape = network, latent_shape
        self.spacing, self.steps_offset = spacing, steps_offset
        self.signal, self.noise = kept.sqrt(), (1 - kept).sqrt()
        self.times = self.noise / (self.signal + self.noise)

    @abstractmethod
    def encode(self, prompts: Sequence[Prompt]) -> Condition: ...

    @abstractmethod
    def predict_noise(self, x_vp: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """The network's noise at variance-preserving latents and integer timesteps `[B]`."""

    @abstractmethod
    def decode(self, x0: Tensor) -> Tensor: ...

    @abstractmethod
    def save(self, folder: Path) -> None: ...

    def timestep(self, t: Tensor) -> Tensor:
        """The table's timestep `[B]` of flow times `[B]`."""
        distance, nearest = (t.double()[:, None] - self.times).abs().min(1)
        if (distance > TIME_TOLERANCE).any():
            raise RecipeError(
                f"time {t[distance.argmax()].item():.6f} is none of the network's {len(self.times)} timesteps; choose "
                "an objective that learns at the sampler's own times, such as grpo with sampler.kernel ddim_eta"
            )
        return nearest

    def velocity(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        timestep = self.timestep(t)
        signal, noise = (table[timestep].to(x.dtype) for table in (self.signal, self.noise))
        epsilon = self.predict_noise(x * per_sample(signal + noise, x), timestep, condition)
        return (epsilon - x) * per_sample((signal + noise) / signal, x)

    def schedule(self, steps: int, shift: float | None) -> Tensor:
        """Flow times of DDIM's timesteps, then 0."""
        if shift is not None:
            raise RecipeError(f"sampler.shift: {shift} has no meaning for a table of timesteps; leave the key out")
        timesteps = self._timesteps(steps)
        if steps > len(self.times) or timesteps.max() >= len(self.times):
            raise RecipeError(f"sampler.steps: {steps} do not fit {len(self.times)} timesteps; take fewer")
        return torch.cat([self.times[timesteps], torch.zeros(1)]).float()

    def _timesteps(self, steps: int) -> Tensor:
        count = len(self.times)
        if self.spacing == "leading":
            return torch.arange(steps).flip(0) * (count // steps) + self.steps_offset
        return torch.arange(count, 0, -count / steps, dtype=torch.float64)[:steps].round().long() - 1
