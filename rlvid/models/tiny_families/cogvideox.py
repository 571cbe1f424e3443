"""A tiny random CogVideoX: about 60 thousand parameters."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)

from rlvid.models.cogvideox import CogVideoXModel
from rlvid.models.cogvideox_i2v import CogVideoXImageToVideoModel
from rlvid.models.tiny_families.t5 import t5_encoder, t5_tokenizer

MAX_SEQUENCE_LENGTH = 16


def build_pipeline(
    *,
    patch_size_t: int | None = None,
    has_rotary: bool = True,
    takes_image: bool = False,
    seed: int = 0,
) -> CogVideoXPipeline | CogVideoXImageToVideoPipeline:
    """Return a pipeline whose clips are 4 times fewer latent frames and 8 times fewer pixels.

    Args:
        patch_size_t: 2 for CogVideoX 1.5.
        has_rotary: False for the 2B, whose positions are added.
        takes_image: of image-to-video; its positions are added and learned in 1.0.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = t5_tokenizer(max_length=MAX_SEQUENCE_LENGTH)
        encoder = t5_encoder(len(tokenizer))
        transformer = CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=8 if takes_image else 4,
            out_channels=4,
            time_embed_dim=16,
            text_embed_dim=encoder.config.d_model,
            num_layers=2,
            sample_width=4,
            sample_height=4,
            sample_frames=9,
            patch_size=2,
            patch_size_t=patch_size_t,
            max_text_seq_length=MAX_SEQUENCE_LENGTH,
            ofs_embed_dim=16 if takes_image and patch_size_t else None,
            use_rotary_positional_embeddings=has_rotary,
            use_learned_positional_embeddings=takes_image and not patch_size_t,
        )
        vae = AutoencoderKLCogVideoX(
            block_out_channels=(8, 8, 8, 8),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
            temporal_compression_ratio=4,
            invert_scale_latents=takes_image and patch_size_t is not None,
        )
    # The published scheduler's settings (THUDM/CogVideoX-2b).
    scheduler = CogVideoXDDIMScheduler(
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=3.0,
        timestep_spacing="trailing",
    )
    family = CogVideoXImageToVideoPipeline if takes_image else CogVideoXPipeline
    return family(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=vae,
        transformer=transformer.eval(),
        scheduler=scheduler,
    )


def build_model(
    seed: int = 0, *, patch_size_t: int | None = None, has_rotary: bool = True
) -> CogVideoXModel:
    """Return the tiny adapter; clips of 9x32x32 pixels are [4, 3, 4, 4] latents."""
    pipeline = build_pipeline(patch_size_t=patch_size_t, has_rotary=has_rotary, seed=seed)
    return CogVideoXModel(pipeline, device=torch.device("cpu"))


def build_image_model(
    seed: int = 0, *, patch_size_t: int | None = None
) -> CogVideoXImageToVideoModel:
    """Return the tiny image-to-video adapter; of 1.0 it takes clips of 9x32x32 pixels alone."""
    pipeline = build_pipeline(patch_size_t=patch_size_t, takes_image=True, seed=seed)
    return CogVideoXImageToVideoModel(pipeline, device=torch.device("cpu"))
