"""How large a pipeline is, read from its folder's headers without loading a weight."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlvid.config import LearnerConfig, ModelConfig
from rlvid.models import model_folder
from rlvid.models.wan import MAX_SEQUENCE_LENGTH
from rlvid.observability.flops import RowFlops, WanSize, count_tokens, row_flops


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


def read_model_size(model: ModelConfig, learner: LearnerConfig) -> ModelSize:
    """Return the sizes of `model.path` for the recipe's clip.

    Raises:
        ValueError: the folder is missing or has no such parts.
    """
    folder = model_folder(model)
    transformer = read_json(folder / "transformer" / "config.json")
    shapes = dict(tensor_shapes(folder / "transformer"))
    latent = latent_frames(model, folder)
    patch = transformer["patch_size"]
    return ModelSize(
        transformer_parameters=sum(math.prod(shape) for shape in shapes.values()),
        text_encoder_parameters=count_parameters(folder / "text_encoder"),
        vae_parameters=count_parameters(folder / "vae"),
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
    folder = model_folder(model)
    config = read_json(folder / "transformer" / "config.json")
    if config.get("_class_name") != "WanTransformer3DModel":
        return None
    tokenizer = read_json(folder / "tokenizer" / "tokenizer_config.json")
    size = WanSize(
        name=model.path,
        num_heads=config["num_attention_heads"],
        head_dim=config["attention_head_dim"],
        num_layers=config["num_layers"],
        ffn_dim=config["ffn_dim"],
        text_dim=config["text_dim"],
        text_tokens=int(min(tokenizer["model_max_length"], MAX_SEQUENCE_LENGTH)),
        freq_dim=config["freq_dim"],
        channels=config["in_channels"],
        patch_size=tuple(config["patch_size"]),
    )
    return row_flops(size, count_tokens(size, (size.channels, *latent_frames(model, folder))))


def latent_frames(model: ModelConfig, folder: Path) -> tuple[int, int, int]:
    """Return frames, height and width of the latents of the recipe's clip."""
    vae = read_json(folder / "vae" / "config.json")
    spatial, temporal = vae["scale_factor_spatial"], vae["scale_factor_temporal"]
    return (
        (model.num_frames - 1) // temporal + 1,
        model.height // spatial,
        model.width // spatial,
    )


def count_trainable(shapes: dict[str, tuple[int, ...]], learner: LearnerConfig) -> int:
    """Return the parameters the optimiser sees: all, or rank * (in + out) a LoRA target."""
    if learner.mode == "full":
        return sum(math.prod(shape) for shape in shapes.values())
    endings = tuple(f"{name}.weight" for name in learner.lora.target_modules)
    targets = [shape for name, shape in shapes.items() if name.endswith(endings)]
    return sum(learner.lora.rank * (shape[0] + math.prod(shape[1:])) for shape in targets)


def count_parameters(folder: Path) -> int:
    """Return the number of parameters in a folder's safetensors files."""
    return sum(math.prod(shape) for _, shape in tensor_shapes(folder))


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
