"""Names and shapes of the parameters of Wan pipelines, from their configuration alone.

So a Wan of any size is planned without diffusers or transformers, whose imports take seconds. A
test holds these lists to the classes themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rlvid.models.wan_vae_shapes import wan_vae

Shapes = dict[str, tuple[int, ...]]
"""Name of a parameter to its shape."""

_Named = Iterator[tuple[str, tuple[int, ...]]]


def closed_shapes(class_name: str, config: Mapping[str, Any]) -> Shapes | None:
    """Return the parameters of a part of that class; None where they are not written down here."""
    if class_name == "WanTransformer3DModel":
        return dict(_transformer(config))
    if class_name == "UMT5EncoderModel":
        return dict(_umt5(config))
    return wan_vae(config) if class_name == "AutoencoderKLWan" else None


def _transformer(config: Mapping[str, Any]) -> _Named:
    width = config["num_attention_heads"] * config["attention_head_dim"]
    patch, text, time = tuple(config["patch_size"]), config["text_dim"], config["freq_dim"]
    out = config["out_channels"] * patch[0] * patch[1] * patch[2]
    yield from _layer("patch_embedding", width, config["in_channels"], *patch)
    for name, given, made in (
        ("time_embedder.linear_1", time, width),
        ("time_embedder.linear_2", width, width),
        ("time_proj", width, 6 * width),
        ("text_embedder.linear_1", text, width),
        ("text_embedder.linear_2", width, width),
    ):
        yield from _layer(f"condition_embedder.{name}", made, given)
    image = config.get("image_dim")
    if image:
        embedder = "condition_embedder.image_embedder"
        if config.get("pos_embed_seq_len"):
            yield f"{embedder}.pos_embed", (1, config["pos_embed_seq_len"], image)
        yield from _norm(f"{embedder}.norm1", image)
        yield from _layer(f"{embedder}.ff.net.0.proj", image, image)
        yield from _layer(f"{embedder}.ff.net.2", width, image)
        yield from _norm(f"{embedder}.norm2", width)
    for layer in range(config["num_layers"]):
        yield from _block(f"blocks.{layer}", width, config)
    yield "scale_shift_table", (1, 2, width)
    yield from _layer("proj_out", out, width)


def _block(name: str, width: int, config: Mapping[str, Any]) -> _Named:
    yield f"{name}.scale_shift_table", (1, 6, width)
    for attention in ("attn1", "attn2"):
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            yield from _layer(f"{name}.{attention}.{part}", width, width)
        for part in ("norm_q", "norm_k"):
            yield f"{name}.{attention}.{part}.weight", (width,)
    added = config.get("added_kv_proj_dim")
    if added:
        for part in ("add_k_proj", "add_v_proj"):
            yield from _layer(f"{name}.attn2.{part}", width, added)
        yield f"{name}.attn2.norm_added_k.weight", (width,)
    if config.get("cross_attn_norm", True):
        yield from _norm(f"{name}.norm2", width)
    yield from _layer(f"{name}.ffn.net.0.proj", config["ffn_dim"], width)
    yield from _layer(f"{name}.ffn.net.2", width, config["ffn_dim"])


def _umt5(config: Mapping[str, Any]) -> _Named:
    width, inner = config["d_model"], config["num_heads"] * config["d_kv"]
    is_gated = config["feed_forward_proj"].startswith("gated-")
    yield "shared.weight", (config["vocab_size"], width)
    for layer in range(config["num_layers"]):
        name = f"encoder.block.{layer}.layer"
        for part in "qkv":
            yield f"{name}.0.SelfAttention.{part}.weight", (inner, width)
        yield f"{name}.0.SelfAttention.o.weight", (width, inner)
        buckets = config.get("relative_attention_num_buckets", 32)
        yield (
            f"{name}.0.SelfAttention.relative_attention_bias.weight",
            (buckets, config["num_heads"]),
        )
        yield f"{name}.0.layer_norm.weight", (width,)
        for part in ("wi_0", "wi_1") if is_gated else ("wi",):
            yield f"{name}.1.DenseReluDense.{part}.weight", (config["d_ff"], width)
        yield f"{name}.1.DenseReluDense.wo.weight", (width, config["d_ff"])
        yield f"{name}.1.layer_norm.weight", (width,)
    yield "encoder.final_layer_norm.weight", (width,)


def _layer(name: str, made: int, *given: int) -> _Named:
    """Yield a matrix or convolution, and its bias."""
    yield f"{name}.weight", (made, *given)
    yield f"{name}.bias", (made,)


def _norm(name: str, width: int) -> _Named:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)
