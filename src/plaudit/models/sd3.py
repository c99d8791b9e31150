"""Stable Diffusion 3.x as a flow model, through the pipeline of diffusers.

Latents and velocities are float32 on the CPU, where the rollout keeps its states and draws its noise; each call moves
them to where the pipeline lies (the first GPU if there is one) and to its precision, and the result back.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from plaudit.data.prompt import Prompt
from plaudit.errors import RecipeError
from plaudit.models.flow import Condition
from plaudit.models.loading import components, must_be_there, quiet, without_safetensors
from plaudit.models.lora import ADAPTER
from plaudit.recipe.models import Sd3Model

if TYPE_CHECKING:
    from diffusers import StableDiffusion3Pipeline

PICTURES_PER_DECODE = 4  # a full-size decoder needs gigabytes for each picture


class Sd3FlowModel:
    """The pipeline's transformer is the network; its text encoders and its VAE are frozen."""

    lora_targets = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    )

    def __init__(self, pipe: StableDiffusion3Pipeline, *, height: int, width: int, max_sequence_length: int) -> None:
        self.pipe = pipe
        self.network: nn.Module = pipe.transformer
        self.precision: torch.dtype = pipe.transformer.dtype  # of the base weights; adapters may have another
        self.latent_shape: tuple[int, ...] = _latent_shape(pipe, height, width)
        self.max_sequence_length = max_sequence_length
        for part in pipe.components.values():
            if isinstance(part, nn.Module) and part is not self.network:
                part.requires_grad_(False)

    @classmethod
    def from_config(cls, config: Sd3Model) -> Sd3FlowModel:
        pipe = _load(config.path, getattr(torch, config.dtype))
        pipe.to("cuda" if torch.cuda.is_available() else "cpu")
        return cls(pipe, height=config.height, width=config.width, max_sequence_length=config.max_sequence_length)

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt]) -> Condition:
        """One prompt at a time: an embedding that depended on its neighbours would differ after a resume."""
        texts = [prompt.text for prompt in prompts]
        self._warn_of_truncation(texts)
        embeddings, pooled = zip(*map(self._encode, texts), strict=True)
        return Condition(tensors={"embeddings": torch.cat(embeddings), "pooled": torch.cat(pooled)})

    def _encode(self, text: str) -> tuple[Tensor, Tensor]:
        every_encoder = {"prompt": text, "prompt_2": text, "prompt_3": text}
        embeddings, _, pooled, _ = self.pipe.encode_prompt(
            **every_encoder, do_classifier_free_guidance=False, max_sequence_length=self.max_sequence_length
        )
        return embeddings.cpu(), pooled.cpu()

    def _warn_of_truncation(self, texts: Sequence[str]) -> None:
        clip, t5 = self.pipe.tokenizer_max_length, self.max_sequence_length
        for name, limit in (("tokenizer", clip), ("tokenizer_2", clip), ("tokenizer_3", t5)):
            tokenizer = getattr(self.pipe, name)
            lengths = [len(tokenizer(text, verbose=False).input_ids) for text in texts] if tokenizer else []
            if cut := sum(length > limit for length in lengths):
                found = f"{cut} of {len(texts)} prompts are cut by {name} at {limit} tokens (longest {max(lengths)})"
                remedy = "shorten them (model.max_sequence_length is the limit of tokenizer_3)"
                warnings.warn(f"{found}; its encoder does not read what comes later: {remedy}", stacklevel=2)

    def velocity(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        device, precision = self.network.device, self.precision
        velocity = self.network(
            hidden_states=x.to(device, precision),
            timestep=t.to(device) * self.pipe.scheduler.config.num_train_timesteps,  # stays float32, as upstream
            encoder_hidden_states=condition.tensors["embeddings"].to(device, precision),
            pooled_projections=condition.tensors["pooled"].to(device, precision),
            return_dict=False,
        )[0]
        return velocity.to(x.device, torch.float32)

    def decode(self, x0: Tensor) -> Tensor:
        vae = self.pipe.vae
        latents = (x0 / vae.config.scaling_factor + vae.config.shift_factor).to(vae.device, vae.dtype)
        pictures = torch.cat([vae.decode(few, return_dict=False)[0] for few in latents.split(PICTURES_PER_DECODE)])
        return (pictures.to(x0.device, torch.float32) / 2 + 0.5).clamp(0, 1)

    def latents(self, pictures: Tensor) -> Tensor:
        """The middle of the encoder's distribution, in the units that `decode` takes."""
        vae = self.pipe.vae
        few = (pictures * 2 - 1).to(vae.device, vae.dtype).split(PICTURES_PER_DECODE)
        latents = torch.cat([vae.encode(part).latent_dist.mode() for part in few])
        return ((latents - vae.config.shift_factor) * vae.config.scaling_factor).to(pictures.device, torch.float32)

    def schedule(self, steps: int, shift: float | None) -> Tensor:
        """Noise levels of a fresh scheduler, whose state nobody shares; `shift` replaces its own, dynamic or not."""
        changes: dict[str, Any] = {} if shift is None else {"shift": shift, "use_dynamic_shifting": False}
        scheduler = type(self.pipe.scheduler).from_config(self.pipe.scheduler.config, **changes)
        scheduler.set_timesteps(steps, mu=self._dynamic_shift() if scheduler.config.use_dynamic_shifting else None)
        return scheduler.sigmas

    def _dynamic_shift(self) -> float:
        """The pipeline's own, from the number of patches."""
        from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

        patches = self.latent_shape[1] * self.latent_shape[2] // self.pipe.transformer.config.patch_size**2
        ends = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        return calculate_shift(patches, *(self.pipe.scheduler.config[name] for name in ends))

    def save(self, folder: Path) -> None:
        """Adapters for `pipe.load_lora_weights(folder)`, or the whole transformer for `from_pretrained(folder)`."""
        if not hasattr(self.network, "peft_config"):
            self.network.save_pretrained(folder)
            return
        from peft import get_peft_model_state_dict

        self.pipe.save_lora_weights(
            folder,
            transformer_lora_layers=get_peft_model_state_dict(self.network, adapter_name=ADAPTER),
            # Without it diffusers takes alpha to be the rank and applies the adapters with another strength.
            transformer_lora_adapter_metadata=self.network.peft_config[ADAPTER].to_dict(),
        )


def _load(path: str, dtype: torch.dtype) -> StableDiffusion3Pipeline:
    try:
        from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

        must_be_there(path)
        with quiet():
            parts = components(StableDiffusion3Pipeline, path, dtype)
            pipe = StableDiffusion3Pipeline.from_pretrained(path, dtype=dtype, use_safetensors=True, **parts)
    except ImportError as error:
        remedy = "run `pip install 'plaudit[diffusers]'`"
        raise RecipeError(f"model.type: sd3 needs diffusers and transformers ({error}); {remedy}") from error
    except (OSError, ValueError) as error:  # what diffusers raises for absent, gated, incomplete or foreign pipelines
        raise RecipeError(
            f"model.path: {path!r} is no Stable Diffusion 3 pipeline that loads: {error}"
            f"{without_safetensors(path)}\nGive a folder with a "
            "model_index.json, or a hub name such as stabilityai/stable-diffusion-3.5-medium (accept its licence on "
            "the hub and run `hf auth login` first)"
        ) from error
    if not isinstance(pipe.scheduler, FlowMatchEulerDiscreteScheduler):
        remedy = "times are read from a FlowMatchEulerDiscreteScheduler: save the pipeline with one"
        raise RecipeError(f"model.path: {path!r} has a {type(pipe.scheduler).__name__}; {remedy}")
    return pipe


def _latent_shape(pipe: StableDiffusion3Pipeline, height: int, width: int) -> tuple[int, int, int]:
    scale, unit = pipe.vae_scale_factor, pipe.vae_scale_factor * pipe.transformer.config.patch_size
    for key, size in (("height", height), ("width", width)):
        if size % unit:
            raise RecipeError(f"model.{key}: {size} is not a multiple of {unit}; take {(size // unit + 1) * unit}")
    return pipe.transformer.config.in_channels, height // scale, width // scale
