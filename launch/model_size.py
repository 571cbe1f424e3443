"""How large a pipeline is, read from its folder's headers without loading a weight.

A published pipeline that is not on this machine has the sizes it is published with, so that a run
can be planned before anything is downloaded.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlvid.config import LearnerConfig, ModelConfig
from rlvid.models import model_folder
from rlvid.models.published import Shapes, published, published_shapes
from rlvid.models.wan import MAX_SEQUENCE_LENGTH
from rlvid.observability.flops import RowFlops, WanSize, count_tokens, row_flops
from rlvid.observability.vae_flops import VaeSize, decode_flops, encode_flops


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """Counts that memory and compute follow from."""

    transformer_parameters: int
    text_encoder_parameters: int
    vae_parameters: int
    trainable_parameters: int
    width: int
    """Channels of a transformer token."""
    num_layers: int
    tokens: int
    """Transformer tokens of one clip."""
    latent_numbers: int
    """Numbers in the latents of one clip."""
    clip_numbers: int
    """Numbers in the pixels of one clip."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipFlops:
    """FLOPs around the transformer; None where the part is built in a way that nobody counted."""

    text: int
    """Encoding one prompt at full length: two for each parameter and token, attention left out."""
    decode: int | None
    """Latents of one clip to pixels."""
    encode: int | None


def read_model_size(model: ModelConfig, learner: LearnerConfig) -> ModelSize:
    """Return the sizes of `model.path` for the recipe's clip.

    Raises:
        ValueError: the folder is missing or has no such parts.
    """
    transformer = part_config(model, "transformer")
    shapes = part_shapes(model, "transformer")
    latent = latent_frames(model)
    patch = transformer["patch_size"]
    return ModelSize(
        transformer_parameters=count_parameters(shapes),
        text_encoder_parameters=count_parameters(part_shapes(model, "text_encoder")),
        vae_parameters=count_parameters(part_shapes(model, "vae")),
        trainable_parameters=count_trainable(shapes, learner),
        width=transformer["num_attention_heads"] * transformer["attention_head_dim"],
        num_layers=transformer["num_layers"],
        tokens=math.prod(n // p for n, p in zip(latent, patch, strict=True)),
        latent_numbers=transformer["in_channels"] * math.prod(latent),
        clip_numbers=3 * model.num_frames * model.height * model.width,
    )


def read_row_flops(model: ModelConfig) -> RowFlops | None:
    """Return the FLOPs of one row of the recipe's clip; None for a transformer that is not Wan's.

    Raises:
        ValueError: the folder is missing or has no such parts.
    """
    config = part_config(model, "transformer")
    if config.get("_class_name") != "WanTransformer3DModel":
        return None
    size = WanSize(
        name=model.path,
        num_heads=config["num_attention_heads"],
        head_dim=config["attention_head_dim"],
        num_layers=config["num_layers"],
        ffn_dim=config["ffn_dim"],
        text_dim=config["text_dim"],
        text_tokens=text_tokens(model),
        freq_dim=config["freq_dim"],
        channels=config["in_channels"],
        patch_size=tuple(config["patch_size"]),
    )
    return row_flops(size, count_tokens(size, (size.channels, *latent_frames(model))))


def read_clip_flops(model: ModelConfig) -> ClipFlops:
    """Return the FLOPs of text encoder and VAE for the recipe's clip.

    Raises:
        ValueError: the folder is missing or has no such parts.
    """
    vae = VaeSize.of_config(part_config(model, "vae"))
    latent = latent_frames(model)
    shapes = part_shapes(model, "text_encoder")
    # Looking a token up in the table is no product.
    worked = {
        n: s for n, s in shapes.items() if not n.endswith(("shared.weight", "embed_tokens.weight"))
    }
    return ClipFlops(
        text=2 * count_parameters(worked) * text_tokens(model),
        decode=decode_flops(vae, latent) if vae else None,
        encode=encode_flops(vae, latent) if vae else None,
    )


def sizes_are_published(model: ModelConfig) -> str:
    """Return the hub id whose published sizes stand for a folder that is not there, else ""."""
    known = published(model_folder(model))
    return known.hub_id if known else ""


def latent_frames(model: ModelConfig) -> tuple[int, int, int]:
    """Return frames, height and width of the latents of the recipe's clip."""
    vae = part_config(model, "vae")
    spatial, temporal = vae["scale_factor_spatial"], vae["scale_factor_temporal"]
    return (
        (model.num_frames - 1) // temporal + 1,
        model.height // spatial,
        model.width // spatial,
    )


def text_tokens(model: ModelConfig) -> int:
    """Return the tokens that every prompt has, padding included."""
    folder = model_folder(model)
    known = published(folder)
    if known:
        return min(known.text_tokens, MAX_SEQUENCE_LENGTH)
    tokenizer = read_json(folder / "tokenizer" / "tokenizer_config.json")
    return int(min(tokenizer["model_max_length"], MAX_SEQUENCE_LENGTH))


def part_config(model: ModelConfig, part: Literal["transformer", "vae"]) -> dict[str, Any]:
    """Return the configuration of a part of the pipeline."""
    folder = model_folder(model)
    known = published(folder)
    return dict(getattr(known, part)) if known else read_json(folder / part / "config.json")


def part_shapes(model: ModelConfig, part: str) -> Shapes:
    """Return name and shape of every tensor of a part of the pipeline."""
    folder = model_folder(model)
    if published(folder):
        return published_shapes(folder.name, part)
    return dict(tensor_shapes(folder / part))


def count_trainable(shapes: Shapes, learner: LearnerConfig) -> int:
    """Return the parameters the optimiser sees: all, or rank * (in + out) a LoRA target."""
    if learner.mode == "full":
        return count_parameters(shapes)
    endings = tuple(f"{name}.weight" for name in learner.lora.target_modules)
    targets = [shape for name, shape in shapes.items() if name.endswith(endings)]
    return sum(learner.lora.rank * (shape[0] + math.prod(shape[1:])) for shape in targets)


def count_parameters(shapes: Shapes) -> int:
    """Return the number of parameters of tensors of these shapes."""
    return sum(math.prod(shape) for shape in shapes.values())


def tensor_shapes(folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield (name, shape) of every tensor; a safetensors file starts with a JSON header."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(
            f"model.path: no *.safetensors in {str(folder)!r}; expected a pipeline folder in "
            "diffusers layout (model_index.json, transformer/, vae/, text_encoder/)"
        )
    for path in files:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header: dict[str, Any] = json.loads(file.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                yield name, tuple(entry["shape"])


def read_json(path: Path) -> dict[str, Any]:
    """Return a config file of the pipeline."""
    if not path.is_file():
        raise ValueError(
            f"model.path: no {path.parent.name}/{path.name} in {str(path.parents[1])!r}; expected "
            "a pipeline folder in diffusers layout, or 'tiny'"
        )
    tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return tree
