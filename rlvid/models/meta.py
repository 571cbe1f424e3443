"""A pipeline folder opened without its weights: parts of their configuration on the meta device.

Shapes are all there is, so a 14B model takes no memory, and its forward a second of Python. What a
forward asks of values is answered once for all: every token of a mask is valid, every test holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from rlvid.models.pipeline_model import PipelineModel, read_index

META = torch.device("meta")
_PARTS = ("transformer", "transformer_2", "vae", "connectors", "image_encoder")
"""Parts that the adapters of rlvid ask for shapes and settings; the others are left out."""
_aten = torch.ops.aten


@lru_cache(maxsize=32)
def build_part(folder: Path, part: str) -> nn.Module:
    """Build a part of a pipeline folder of its config.json, on the meta device.

    Raises:
        ValueError: the folder lacks it, or it is of a class that diffusers and transformers lack.
    """
    library, class_name = read_index(folder).get(part) or (None, None)
    if not (folder / part / "config.json").is_file():
        raise ValueError(
            f"model.path: no {part}/config.json in {str(folder)!r}; expected a pipeline folder in "
            "diffusers layout. Copy the folder again, complete."
        )
    modules = {"diffusers": "diffusers", "transformers": "transformers"}
    # A part that only one pipeline has is named by the folder of that pipeline in diffusers.
    module = import_module(modules.get(str(library), f"diffusers.pipelines.{library}"))
    kind = getattr(module, str(class_name), None)
    if kind is None:
        raise ValueError(
            f"model.path: {folder / 'model_index.json'} names {library}.{class_name} as {part}: "
            "expected a class of the diffusers and transformers installed here. Install newer ones."
        )
    with META:
        if library == "transformers":
            built: nn.Module = kind(kind.config_class.from_pretrained(folder / part))
        else:
            built = kind.from_config(kind.load_config(folder / part))
    return built.eval()


@lru_cache(maxsize=4)
def open_on_meta(family: type[PipelineModel], folder: Path) -> PipelineModel:
    """Return the adapter of a folder whose transformer and VAE have no memory; cached.

    Its text encoders are missing, so it encodes no prompt.

    Raises:
        ValueError: the folder is not of that family, or lacks a part.
    """
    model = family(pipeline_without_weights(family, folder), device=META)
    for part in (model.transformer, model.vae):
        part.to(META)
    return model


def pipeline_without_weights(family: type[PipelineModel], folder: Path) -> Any:
    """Return a folder's pipeline with its own scheduler and tokenizers, and parts without memory.

    Raises:
        ValueError: the folder is not of that family, or lacks a part.
    """
    family.check_folder(folder)
    import diffusers
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    built: dict[str, Any] = dict.fromkeys(family.ENCODERS)
    index = read_index(folder)
    there = [part for part in _PARTS if index.get(part, [None])[0] is not None]
    built |= {part: build_part(folder, part) for part in there}
    _fill_buffers(built["vae"])
    return getattr(diffusers, family.PIPELINE).from_pretrained(
        folder, local_files_only=True, **built, **family.parts_beside()
    )


@contextmanager
def counting_flops() -> Iterator[FlopCounterMode]:
    """Count the products of what runs on the meta device inside."""
    counter = FlopCounterMode(display=False)
    plain = sdpa_kernel(SDPBackend.MATH)  # of attention kernels torch counts some and not others
    with torch.no_grad(), plain, _no_autocast(), counter, _AllValid():
        yield counter


class _AllValid(TorchDispatchMode):
    """Answers what depends on values, which the meta device has none of.

    A mask picks all tokens and its inverse none, so that what is split by a mask keeps its length.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._inverted: list[Tensor] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if first is None or not first.is_meta:
            return func(*args, **(kwargs or {}))
        if func is _aten._local_scalar_dense.default:
            return first.dtype == torch.bool or 1
        if func is _aten.nonzero.default:
            return first.new_empty((self._picked(first), first.dim()), dtype=torch.long)
        if func is _aten.index.Tensor and _is_mask(args[1][0]):
            mask = args[1][0]
            return first.new_empty((self._picked(mask), *first.shape[mask.dim() :]))
        result = func(*args, **(kwargs or {}))
        if func is _aten.bitwise_not.default:
            self._inverted.append(result)
        return result

    def _picked(self, mask: Tensor) -> int:
        return 0 if any(mask is inverted for inverted in self._inverted) else mask.numel()


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype == torch.bool


@contextmanager
def _no_autocast() -> Iterator[None]:
    """Let `torch.autocast` do nothing: it refuses the meta device, where nothing is rounded.

    It is the process's while this lasts; the planner computes nothing else beside.
    """
    autocast = torch.autocast
    torch.autocast = _Nothing  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        torch.autocast = autocast  # type: ignore[misc]


class _Nothing:
    """A context, and a decorator, that does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass

    def __call__(self, function: Any) -> Any:
        return function


def _fill_buffers(module: nn.Module) -> None:
    """Give the buffers zeros: adapters read statistics of latents there (LTX)."""
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            part.register_buffer(name, torch.zeros(buffer.shape, dtype=buffer.dtype))
