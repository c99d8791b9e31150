"""A Stable Diffusion 3 pipeline of a few hundred thousand random weights, made without any download."""

from __future__ import annotations

import json
import string
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

CLIP_TOKENS = 32  # one for each letter, and two for start and end
WIDTH = 32  # of every text encoder

CHARACTERS = string.ascii_letters + string.digits + string.punctuation


def clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """One token for each character."""
    folder.mkdir(parents=True)
    tokens = [*CHARACTERS, *(f"{c}</w>" for c in CHARACTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=CLIP_TOKENS)


def t5_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte, and an end."""
    special = ["<pad>", "</s>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*special, *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


def clip_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CLIP_TOKENS,
        projection_dim=WIDTH,
        bos_token_id=len(tokenizer) - 2,
        eos_token_id=len(tokenizer) - 1,
        pad_token_id=len(tokenizer) - 1,
    )
    return CLIPTextModelWithProjection(config)


def t5_encoder(tokenizer: PreTrainedTokenizerFast) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(tokenizer), d_model=2 * WIDTH, d_kv=16, d_ff=64, num_layers=2, num_heads=2, pad_token_id=0
    )
    return T5EncoderModel(config)


def transformer() -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=2 * WIDTH,
        out_channels=16,
        pos_embed_max_size=16,
    )


def autoencoder() -> AutoencoderKL:
    """Downsamples by 2, so that a picture of 32 x 32 has a latent of 16 x 16."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=16,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 16),
        layers_per_block=1,
        norm_num_groups=8,
        shift_factor=0.0609,
        scaling_factor=1.5305,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def build(folder: Path) -> Path:
    """Write the pipeline with `save_pretrained`; returns the folder to load."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clip, t5 = clip_tokenizer(folder / "clip"), t5_tokenizer()
        pipe = StableDiffusion3Pipeline(
            transformer=transformer(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=autoencoder(),
            text_encoder=clip_encoder(clip),
            tokenizer=clip,
            text_encoder_2=clip_encoder(clip),
            tokenizer_2=clip,
            text_encoder_3=t5_encoder(t5),
            tokenizer_3=t5,
        )
    pipe.save_pretrained(folder / "pipeline")
    return folder / "pipeline"
