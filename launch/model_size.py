"""How large a pipeline is and what it computes, from its folder's headers and configuration.

No weight is loaded. Wan's FLOPs are formulas (`rlvid.observability`); those of another family are
counted on a forward without memory (`rlvid.models.meta_flops`), for which diffusers is imported. A
published pipeline that is not on this machine has the sizes it is published with, so that a run can
be planned before anything is downloaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlvid.config import LearnerConfig, ModelConfig
from rlvid.launch.folder_parts import (
    FROZEN,
    TRANSFORMERS,
    count_parameters,
    has_part,
    is_wan,
    part_config,
    part_shapes,
    read_json,
)
from rlvid.launch.model_tiles import one_tile, tiles_bytes
from rlvid.models import clip_shape, model_folder
from rlvid.models.published import published
from rlvid.models.wan import MAX_SEQUENCE_LENGTH
from rlvid.models.wan_shapes import Shapes
from rlvid.observability.flops import RowFlops, WanSize, count_tokens, row_flops
from rlvid.observability.vae_flops import VaeSize, decode_bytes, decode_flops, encode_flops

if TYPE_CHECKING:
    from rlvid.models.meta_flops import CountedForward


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """Counts that memory and compute follow from."""

    transformer_parameters: int
    """Of both experts where there are two."""
    text_encoder_parameters: int
    """Of all frozen models beside transformer and VAE."""
    vae_parameters: int
    trainable_parameters: int
    width: int
    """Channels of a transformer token."""
    num_layers: int
    """That one row passes through."""
    tokens: int
    """Transformer tokens of one clip."""
    latent_numbers: int
    """Numbers in the latents of one clip."""
    clip_numbers: int
    """Numbers in the pixels of one clip."""
    inner_width: int
    """Channels of a token in the widest layer of a block, that of its MLP."""
    text_tokens: int
    """That every block sees beside the video's; 0 where a family's are not told apart."""
    decode_bytes: float
    """Most that decoding one clip holds at once beside weights, float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipFlops:
    """FLOPs around the transformer."""

    text: int
    """Encoding one prompt at full length; a first frame's encoder is left out."""
    decode: int
    """Latents of one clip to pixels, overlaps of tiles included."""
    model: ModelConfig

    @property
    def encode(self) -> int:
        """Pixels of one clip to latents, without tiles; few phases do it, so counted if asked."""
        vae = _wan_vae(self.model)
        if vae is not None:
            return encode_flops(vae, latent_frames(self.model))
        from rlvid.models.meta_flops import count_encode

        return count_encode(self.model)


def read_model_size(model: ModelConfig, learner: LearnerConfig) -> ModelSize:
    """Return the sizes of `model.path` for the recipe's clip.

    Raises:
        ValueError: the folder is missing or has no such parts, the clip does not divide, or the
            family does not say what its transformer is told.
    """
    config = part_config(model, "transformer")
    if is_wan(model):
        size = _wan_size(model)
        shape = latent_shape(model)
        width, num_layers, tokens = size.width, config["num_layers"], count_tokens(size, shape)
        inner_width, text_tokens = size.ffn_dim, size.text_tokens + size.image_tokens
    else:
        counted = _counted(model)
        shape = counted.latent_shape
        width, num_layers, tokens = counted.width, counted.num_layers, counted.tokens
        inner_width, text_tokens = counted.inner_width, 0
    shapes = trained_shapes(model)
    return ModelSize(
        transformer_parameters=count_parameters(shapes),
        text_encoder_parameters=sum(
            count_parameters(part_shapes(model, part)) for part in FROZEN if has_part(model, part)
        ),
        vae_parameters=count_parameters(part_shapes(model, "vae")),
        trainable_parameters=count_trainable(shapes, learner),
        width=width,
        num_layers=num_layers,
        tokens=tokens,
        latent_numbers=math.prod(shape),
        clip_numbers=3 * model.num_frames * model.height * model.width,
        inner_width=inner_width,
        text_tokens=text_tokens,
        decode_bytes=_decode_bytes(model),
    )


def read_row_flops(model: ModelConfig) -> RowFlops | None:
    """Return the FLOPs of one row of the recipe's clip: of one expert where there are two.

    None for a family of someone else's that does not say what its transformer is told. A first
    frame that a model may do without adds nothing here, and little there: Wan 2.2 TI2V then embeds
    the time of each token by itself.

    Raises:
        ValueError: the folder is missing or has no such parts.
    """
    if is_wan(model):
        size = _wan_size(model)
        return row_flops(size, count_tokens(size, latent_shape(model)))
    from rlvid.models.meta_flops import says_inputs

    return _counted(model).flops if says_inputs(model) else None


def read_clip_flops(model: ModelConfig) -> ClipFlops:
    """Return the FLOPs of text encoders and VAE for the recipe's clip.

    Raises:
        ValueError: the folder is missing or has no such parts.
    """
    return ClipFlops(text=_text_flops(model), decode=read_decode_flops(model), model=model)


def read_decode_flops(model: ModelConfig) -> int:
    """Return the FLOPs of decoding one clip, overlaps of tiles included.

    Raises:
        ValueError: the folder is missing or has no such parts.
    """
    tile, times = one_tile(model)
    vae = _wan_vae(tile)
    if vae is not None:
        return round(times * decode_flops(vae, latent_frames(tile)))
    from rlvid.models.meta_flops import count_decode

    return round(times * count_decode(tile))


def sizes_are_published(model: ModelConfig) -> str:
    """Return the hub id whose published sizes stand for a folder that is not there, else ""."""
    known = published(model_folder(model))
    return known.hub_id if known else ""


def latent_frames(model: ModelConfig) -> tuple[int, int, int]:
    """Return frames, height and width of the latents of the recipe's clip, or of a tile of it."""
    if not is_wan(model):
        return _counted(model).latent_shape[1:]
    temporal, spatial = _wan_compression(model)
    frames = (model.num_frames - 1) // temporal + 1
    return frames, model.height // spatial, model.width // spatial


def latent_shape(model: ModelConfig) -> tuple[int, int, int, int]:
    """Return (C, F, H, W) of the latents of the recipe's clip.

    Raises:
        ValueError: the clip does not divide.
    """
    if not is_wan(model):
        return _counted(model).latent_shape
    temporal, spatial = _wan_compression(model)
    _, *patch = part_config(model, "transformer")["patch_size"]
    return clip_shape.latent_shape(
        (model.num_frames, model.height, model.width),
        channels=part_config(model, "vae")["z_dim"],
        temporal=temporal,
        spatial=spatial,
        patch=(patch[0], patch[1]),
    )


def _wan_compression(model: ModelConfig) -> tuple[int, int]:
    """Return the frames and the pixels of a side that one latent position stands for."""
    vae = part_config(model, "vae")
    # The first Wan folders do not say these two: they are the defaults of AutoencoderKLWan.
    return vae.get("scale_factor_temporal", 4), vae.get("scale_factor_spatial", 8)


def trained_shapes(model: ModelConfig) -> Shapes:
    """Return name and shape of every parameter of the policy: of both experts where there are two.

    Raises:
        ValueError: the folder is missing or has no such parts.
    """
    parts = [part for part in TRANSFORMERS if part == "transformer" or has_part(model, part)]
    return {
        f"{part}.{name}": shape
        for part in parts
        for name, shape in part_shapes(model, part).items()
    }


def count_trainable(shapes: Shapes, learner: LearnerConfig) -> int:
    """Return the parameters the optimiser sees: all, or rank * (in + out) a LoRA target."""
    if learner.mode == "full":
        return count_parameters(shapes)
    endings = tuple(f"{name}.weight" for name in learner.lora.target_modules)
    targets = [shape for name, shape in shapes.items() if name.endswith(endings)]
    return sum(learner.lora.rank * (shape[0] + math.prod(shape[1:])) for shape in targets)


def _text_flops(model: ModelConfig) -> int:
    if is_wan(model):
        return _wan_text_flops(model)
    from rlvid.models.meta_flops import count_text

    return count_text(model)


def _decode_bytes(model: ModelConfig) -> float:
    tile, _ = one_tile(model)
    vae = _wan_vae(tile)
    if vae is not None:
        return decode_bytes(vae, latent_frames(tile)) + tiles_bytes(model)
    from rlvid.models.meta_flops import count_decode_bytes

    return count_decode_bytes(tile) + tiles_bytes(model)


def _wan_vae(model: ModelConfig) -> VaeSize | None:
    """Return the size of a VAE whose FLOPs and bytes are formulas; None where they are counted."""
    return VaeSize.of_config(part_config(model, "vae")) if is_wan(model) else None


def _wan_size(model: ModelConfig) -> WanSize:
    config = part_config(model, "transformer")
    channels = latent_shape(model)[0]
    return WanSize(
        name=model.path,
        num_heads=config["num_attention_heads"],
        head_dim=config["attention_head_dim"],
        num_layers=config["num_layers"],
        ffn_dim=config["ffn_dim"],
        text_dim=config["text_dim"],
        text_tokens=_wan_text_tokens(model),
        freq_dim=config["freq_dim"],
        channels=channels,
        patch_size=tuple(config["patch_size"]),
        given_channels=config["in_channels"] - channels,
        image_tokens=_wan_image_tokens(model) if config.get("image_dim") else 0,
        image_dim=config.get("image_dim") or 0,
    )


def _wan_image_tokens(model: ModelConfig) -> int:
    """Return the tokens of the pictures: patches and a class of each, two of first and last."""
    clip = part_config(model, "image_encoder")
    has_last = part_config(model, "transformer").get("pos_embed_seq_len") is not None
    # A whole CLIP has its vision half in a section of its own.
    vision = clip.get("vision_config", clip)
    patches: int = (vision["image_size"] // vision["patch_size"]) ** 2
    return (1 + has_last) * (1 + patches)


def _wan_text_tokens(model: ModelConfig) -> int:
    """Return the tokens that every prompt has, padding included."""
    folder = model_folder(model)
    known = published(folder)
    if known:
        return min(known.text_tokens, MAX_SEQUENCE_LENGTH)
    tokenizer = read_json(folder / "tokenizer" / "tokenizer_config.json")
    return int(min(tokenizer["model_max_length"], MAX_SEQUENCE_LENGTH))


def _wan_text_flops(model: ModelConfig) -> int:
    """Return two for each parameter and token, and 4 L L (heads * head size) of each layer."""
    shapes, config = part_shapes(model, "text_encoder"), part_config(model, "text_encoder")
    # Looking up a token or a relative position in a table is no product.
    tables = ("shared.weight", "embed_tokens.weight", "relative_attention_bias.weight")
    worked = {name: shape for name, shape in shapes.items() if not name.endswith(tables)}
    tokens = _wan_text_tokens(model)
    inner: int = config["num_heads"] * config["d_kv"] * config["num_layers"]
    attention = 4 * tokens**2 * inner
    return 2 * count_parameters(worked) * tokens + attention


def _counted(model: ModelConfig) -> CountedForward:
    """Return the forward of a family without formulas; the count is kept."""
    from rlvid.models.meta_flops import count_forward

    return count_forward(model)
