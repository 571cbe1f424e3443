"""Shapes of published pipelines whose files are not here, for planning a run before a download.

The configurations are those of the pipelines' own config.json, written down; names and shapes of
the tensors follow from them (`rlvid.models.wan_shapes`). Nothing here can be loaded or trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from rlvid.models.wan_shapes import Shapes, closed_shapes

_WAN = {
    "_class_name": "WanTransformer3DModel",
    "patch_size": [1, 2, 2],
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
}
_WAN_VAE = {
    "_class_name": "AutoencoderKLWan",
    "base_dim": 96,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
    "z_dim": 16,
    "in_channels": 3,
    "out_channels": 3,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 8,
}
_UMT5_XXL = {
    "_class_name": "UMT5EncoderModel",
    "vocab_size": 256384,
    "d_model": 4096,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "d_kv": 64,
    "feed_forward_proj": "gated-gelu",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedPipeline:
    """Configurations of a pipeline's parts."""

    hub_id: str
    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    text_tokens: int
    """`model_max_length` of its tokenizer."""
    transformer_2: Mapping[str, Any] | None = None
    """The second expert's, where there are two."""


def _wan(name: str, *, has_experts: bool = False, **transformer: int) -> PublishedPipeline:
    return PublishedPipeline(
        hub_id=f"Wan-AI/{name}",
        transformer={**_WAN, **transformer},
        vae=_WAN_VAE,
        text_encoder=_UMT5_XXL,
        text_tokens=512,
        transformer_2={**_WAN, **transformer} if has_experts else None,
    )


PUBLISHED = {
    "Wan2.1-T2V-1.3B-Diffusers": _wan(
        "Wan2.1-T2V-1.3B-Diffusers", num_attention_heads=12, num_layers=30, ffn_dim=8960
    ),
    "Wan2.1-T2V-14B-Diffusers": _wan(
        "Wan2.1-T2V-14B-Diffusers", num_attention_heads=40, num_layers=40, ffn_dim=13824
    ),
    "Wan2.2-T2V-A14B-Diffusers": _wan(
        "Wan2.2-T2V-A14B-Diffusers",
        has_experts=True,
        num_attention_heads=40,
        num_layers=40,
        ffn_dim=13824,
    ),
}
"""Name of the folder to what is published under it."""


def published(folder: Path) -> PublishedPipeline | None:
    """Return the pipeline of a folder's name while there is no such folder, else None."""
    return None if folder.is_dir() else PUBLISHED.get(folder.name)


@lru_cache(maxsize=8)
def published_shapes(name: str, part: str) -> Shapes:
    """Return name and shape of every tensor of a part that the pipeline has, e.g. vae."""
    config: Mapping[str, Any] = getattr(PUBLISHED[name], part)
    shapes = closed_shapes(config["_class_name"], config)
    assert shapes is not None, "a part whose shapes nobody wrote down cannot be in PUBLISHED"
    return shapes
