"""A FLUX pipeline of a few hundred thousand random weights, made without any download."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from tests.models.tiny_sd3 import WIDTH, autoencoder, clip_encoder, clip_tokenizer, t5_encoder, t5_tokenizer
from transformers import CLIPTextModel


def build(folder: Path, *, guidance: bool) -> Path:
    """Write the pipeline with `save_pretrained`, with or without distilled guidance (dev or schnell); the folder to load."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clip, t5 = clip_tokenizer(folder / "clip"), t5_tokenizer()
        pipe = FluxPipeline(
            transformer=FluxTransformer2DModel(
                in_channels=64,  # 16 channels of the VAE in patches of 2 x 2
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=2 * WIDTH,
                pooled_projection_dim=WIDTH,
                guidance_embeds=guidance,
                axes_dims_rope=(4, 6, 6),
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=guidance),
            vae=autoencoder(),
            text_encoder=CLIPTextModel(clip_encoder(clip).config),
            tokenizer=clip,
            text_encoder_2=t5_encoder(t5),
            tokenizer_2=t5,
        )
    pipe.save_pretrained(folder / "pipeline")
    return folder / "pipeline"
