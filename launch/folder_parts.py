"""The parts of a pipeline folder: configuration, and the shapes of their parameters.

Shapes come from the headers of the weights; where there are none, from the configuration: closed
for Wan, and from diffusers' and transformers' classes without memory for the others.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from rlvid.config import ModelConfig
from rlvid.models import model_folder
from rlvid.models.published import published, published_shapes
from rlvid.models.wan_shapes import Shapes, closed_shapes

WAN_TRANSFORMER = "WanTransformer3DModel"
TRANSFORMERS = ("transformer", "transformer_2")
FROZEN = (
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "image_encoder",
    "connectors",
    "audio_vae",
    "vocoder",
)
"""Models beside transformer and VAE; every process that holds the pipeline holds those it has."""


def has_part(model: ModelConfig, part: str) -> bool:
    """Return whether the pipeline has a model of that name."""
    folder = model_folder(model)
    known = published(folder)
    if known:
        return getattr(known, part, None) is not None
    return _class_of(folder, part) is not None


def is_wan(model: ModelConfig) -> bool:
    """Return whether the transformer is Wan's, whose FLOPs have a formula."""
    return part_config(model, "transformer").get("_class_name") == WAN_TRANSFORMER


def part_config(model: ModelConfig, part: str) -> dict[str, Any]:
    """Return the configuration of a part of the pipeline.

    Raises:
        ValueError: the folder is missing or has no such part.
    """
    folder = model_folder(model)
    known = published(folder)
    return dict(getattr(known, part)) if known else read_json(folder / part / "config.json")


def part_shapes(model: ModelConfig, part: str) -> Shapes:
    """Return name and shape of every parameter of a part of the pipeline.

    Headers name buffers as well, as if they were parameters: some, and small, in VAEs and text
    encoders. Of a transformer they are told apart, for what trains must be counted exactly.

    Raises:
        ValueError: the folder is missing or has no such part.
    """
    folder = model_folder(model)
    if published(folder):
        return published_shapes(folder.name, part)
    return _folder_shapes(folder, part)


@lru_cache(maxsize=32)
def _folder_shapes(folder: Path, part: str) -> Shapes:
    class_name = _class_of(folder, part)
    if class_name is None:
        return dict(tensor_shapes(folder / part))
    has_weights = any((folder / part).glob("*.safetensors"))
    if has_weights and (part not in TRANSFORMERS or class_name == WAN_TRANSFORMER):
        return dict(tensor_shapes(folder / part))
    closed = closed_shapes(class_name, read_json(folder / part / "config.json"))
    if closed is not None:
        return closed
    from rlvid.models.meta import build_part

    return {name: tuple(p.shape) for name, p in build_part(folder, part).named_parameters()}


def _class_of(folder: Path, part: str) -> str | None:
    """Return the name of the class that model_index.json has for a part; None without one."""
    index = folder / "model_index.json"
    if not index.is_file():
        return None
    entry = json.loads(index.read_text(encoding="utf-8")).get(part)
    return entry[1] if isinstance(entry, list) else None


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
