"""The rewriter's LoRA adapter as a folder that inference servers load: peft's two files.

    <folder>/<name>/adapter_config.json, adapter_model.safetensors

The name carries the optimiser step and a digest of the values, so what answers under a name is what
was published under it, or nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from rlvid.config import LoraConfig
from rlvid.weights import digest_tensors

_PREFIX = "base_model.model."
"""peft's, before the name that a tensor has in the model."""
_DIGITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedAdapter:
    """An adapter on disk."""

    name: str
    """rewriter-<optimiser steps>-<digest of names and values>."""
    folder: Path
    """Absolute."""


def publish_adapter(
    folder: Path, tensors: Mapping[str, Tensor], config: LoraConfig, *, version: int, writes: bool
) -> PublishedAdapter:
    """Write an adapter below `folder`, whole or not at all, and take the ones before away.

    Args:
        tensors: canonical name to A [r, in] and B [out, r].
        version: optimiser steps it has had.
        writes: False only says what it is called, on ranks that do not write.
    """
    name = f"rewriter-{version:06d}-{digest_tensors(tensors)[:_DIGITS]}"
    folder = folder.resolve()
    published = PublishedAdapter(name=name, folder=folder / name)
    if writes and not published.folder.is_dir():
        part = folder / f"{name}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        _write(part, tensors, config)
        part.rename(published.folder)
        for other in folder.glob("rewriter-*"):
            if other != published.folder:
                shutil.rmtree(other)
    return published


def _write(folder: Path, tensors: Mapping[str, Tensor], config: LoraConfig) -> None:
    from safetensors.torch import save_file

    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": config.rank,
        "lora_alpha": config.alpha,
        "target_modules": list(config.target_modules),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=1) + "\n")
    # Contiguous copies, since safetensors writes no views.
    values = {_PREFIX + name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(values, folder / "adapter_model.safetensors", metadata={"format": "pt"})
