"""Tiny random Wan models beside the shipped one: I2V, first-last-frame, TI2V, VACE, experts."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
)
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from rlvid.models.tiny.build import (
    SIGMA_SHIFT,
    TinySize,
    build_text_encoder,
    build_tokenizer,
    build_vae,
)
from rlvid.models.tiny_families.t5 import WORDS
from rlvid.models.wan import MAX_SEQUENCE_LENGTH
from rlvid.models.wan_experts import WanExpertsModel
from rlvid.models.wan_i2v import WanImageToVideoModel
from rlvid.models.wan_ti2v import WanTextImageModel
from rlvid.models.wan_vace import WanControlModel

IMAGE_DIM, IMAGE_TOKENS = 16, 5
"""Of CLIP's view of a picture of 32 pixels in patches of 16."""
_SIZE = TinySize(
    max_sequence_length=16,
    text_dim=16,
    text_layers=1,
    latent_channels=4,
    vae_dim=4,
    num_heads=2,
    head_dim=12,
    num_layers=2,
    ffn_dim=32,
)


def build_i2v(
    *, has_last: bool = False, sees_images: bool = True, seed: int = 0
) -> WanImageToVideoPipeline:
    """Return an image-to-video pipeline.

    Args:
        has_last: of Wan 2.1's first-last-frame model, whose CLIP tokens have positions.
        sees_images: False for a transformer without CLIP's view, as Wan 2.2's are.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = _parts(MAX_SEQUENCE_LENGTH)
        dim = _SIZE.num_heads * _SIZE.head_dim
        parts["transformer"] = _transformer(
            in_channels=2 * _SIZE.latent_channels + 4,
            image_dim=IMAGE_DIM if sees_images else None,
            added_kv_proj_dim=dim if sees_images else None,
            pos_embed_seq_len=2 * IMAGE_TOKENS if has_last else None,
        )
        if has_last:
            parts["transformer"].condition_embedder.image_embedder.pos_embed.data.normal_()
        if sees_images:
            parts["image_encoder"] = _image_encoder()
            size = {"height": 32, "width": 32}
            parts["image_processor"] = CLIPImageProcessor(
                size={"shortest_edge": 32}, crop_size=size
            )
    return WanImageToVideoPipeline(**parts)


def build_ti2v(*, seed: int = 0) -> WanPipeline:
    """Return a text-to-video pipeline that is told a timestep for each token."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = _parts(_SIZE.max_sequence_length)
        parts["transformer"] = _transformer(in_channels=_SIZE.latent_channels)
    return WanPipeline(**parts, expand_timesteps=True)


def build_experts(*, seed: int = 0) -> WanPipeline:
    """Return a text-to-video pipeline of two experts, with Wan 2.2 A14B's boundary."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = _parts(_SIZE.max_sequence_length)
        for name in ("transformer", "transformer_2"):
            parts[name] = _transformer(in_channels=_SIZE.latent_channels)
    return WanPipeline(**parts, boundary_ratio=0.875)


def build_vace(*, seed: int = 0) -> WanVACEPipeline:
    """Return a pipeline of three blocks and a branch of two that is told a control clip."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = _parts(_SIZE.max_sequence_length)
        # WanVACEPipeline counts on four levels and no folded pixels, as Wan 2.1's VAE has them.
        unfolded = {"patch_size": None, "in_channels": 3, "out_channels": 3}
        levels = {"dim_mult": [1, 2, 2, 2], "temperal_downsample": [False, True, True]}
        vae = AutoencoderKLWan.from_config(parts["vae"].config, **unfolded, **levels)
        parts["vae"] = vae.requires_grad_(False).eval()
        parts["transformer"] = WanVACETransformer3DModel(
            **_settings(in_channels=_SIZE.latent_channels),
            num_layers=_SIZE.num_layers + 1,
            vace_layers=[0, 2],
            vace_in_channels=2 * _SIZE.latent_channels + vae.config.scale_factor_spatial**2,
        ).eval()
        # A random VAE tells little of a picture; louder, it is seen beyond rounding.
        parts["transformer"].vace_patch_embedding.weight.data.mul_(10.0)
    return WanVACEPipeline(**parts)


def tiny_i2v(seed: int = 0, *, sees_images: bool = True) -> WanImageToVideoModel:
    """Return Wan 2.1 I2V, tiny: it needs a first frame."""
    pipeline = build_i2v(sees_images=sees_images, seed=seed)
    return WanImageToVideoModel(pipeline, device=torch.device("cpu"))


def tiny_flf2v(seed: int = 0) -> WanImageToVideoModel:
    """Return Wan 2.1 first-last-frame, tiny: it needs both."""
    return WanImageToVideoModel(build_i2v(has_last=True, seed=seed), device=torch.device("cpu"))


def tiny_experts(seed: int = 0) -> WanExpertsModel:
    """Return Wan 2.2 A14B, tiny: two experts."""
    return WanExpertsModel(build_experts(seed=seed), device=torch.device("cpu"))


def tiny_ti2v(seed: int = 0) -> WanTextImageModel:
    """Return Wan 2.2 TI2V, tiny: it may have a first frame."""
    return WanTextImageModel(build_ti2v(seed=seed), device=torch.device("cpu"))


def tiny_vace(seed: int = 0) -> WanControlModel:
    """Return Wan VACE, tiny: it may have a control clip, a first and a last frame."""
    return WanControlModel(build_vace(seed=seed), device=torch.device("cpu"))


def _parts(max_sequence_length: int) -> dict[str, Any]:
    """Return what all of them have: tokenizer, text encoder, VAE and scheduler."""
    tokenizer = build_tokenizer([" ".join(WORDS)], max_sequence_length)
    vae = build_vae(_SIZE)
    vae.register_to_config(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[0.5, 1.5, 0.8, 1.2])
    return {
        "tokenizer": tokenizer,
        "text_encoder": build_text_encoder(len(tokenizer), _SIZE),
        "vae": vae.requires_grad_(False).eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=SIGMA_SHIFT),
    }


def _transformer(*, in_channels: int, **image: Any) -> WanTransformer3DModel:
    transformer: WanTransformer3DModel = WanTransformer3DModel(
        **_settings(in_channels=in_channels), num_layers=_SIZE.num_layers, **image
    )
    return transformer.eval()


def _settings(*, in_channels: int) -> dict[str, Any]:
    """Return what the transformers of all of them have but for the number of blocks."""
    return {
        "patch_size": (1, 2, 2),
        "num_attention_heads": _SIZE.num_heads,
        "attention_head_dim": _SIZE.head_dim,
        "in_channels": in_channels,
        "out_channels": _SIZE.latent_channels,
        "text_dim": _SIZE.text_dim,
        "freq_dim": 32,
        "ffn_dim": _SIZE.ffn_dim,
        "rope_max_seq_len": 32,
    }


def _image_encoder() -> CLIPVisionModel:
    config = CLIPVisionConfig(
        hidden_size=IMAGE_DIM,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    return CLIPVisionModel(config).requires_grad_(False).eval()
