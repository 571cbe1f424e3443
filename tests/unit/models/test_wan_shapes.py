"""The lists of Wan's parameters are those of diffusers' and transformers' own classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rlvid.models.published import PUBLISHED
from rlvid.models.wan_shapes import closed_shapes

PIPELINE = PUBLISHED["Wan2.1-T2V-1.3B-Diffusers"]
TRANSFORMER = {
    **PIPELINE.transformer,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_layers": 2,
    "ffn_dim": 32,
    "in_channels": 36,
}
IMAGE = {"image_dim": 8, "added_kv_proj_dim": 24, "pos_embed_seq_len": 10}
TEXT = {**PIPELINE.text_encoder, "num_layers": 2, "d_model": 16, "d_ff": 32, "vocab_size": 9}
SMALL_VAE = {
    **PIPELINE.vae,
    "base_dim": 8,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True],
}


def built(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    import diffusers
    from transformers import UMT5Config, UMT5EncoderModel

    settings = {name: value for name, value in config.items() if name != "_class_name"}
    with torch.device("meta"):
        if config["_class_name"] == "UMT5EncoderModel":
            module: Any = UMT5EncoderModel(UMT5Config(**settings))
        else:
            module = getattr(diffusers, config["_class_name"])(**settings)
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


@pytest.mark.parametrize(
    "config",
    [TRANSFORMER, {**TRANSFORMER, **IMAGE}, TEXT, dict(PIPELINE.vae), SMALL_VAE],
    ids=["transformer", "image_to_video", "text_encoder", "vae", "small_vae"],
)
def test_names_and_shapes_are_those_of_the_class(config: dict[str, Any]) -> None:
    assert closed_shapes(config["_class_name"], config) == built(config)


def test_other_classes_are_not_written_down() -> None:
    assert closed_shapes("MochiTransformer3DModel", {}) is None
    assert closed_shapes("AutoencoderKLWan", {**PIPELINE.vae, "is_residual": True}) is None
