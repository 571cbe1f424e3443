"""FLOPs and sizes of any family's model, counted by torch on a forward without weights.

What torch counts are matrix products and convolutions; norms, softmax and rotary positions are left
out, as in `rlvid.observability.flops`. Masks leave nothing out: prompts are as long as they can be.
Of equal blocks of a transformer or text encoder one is run (`rlvid.models.one_of_each`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rlvid.condition import Condition
from rlvid.config.model import ModelConfig
from rlvid.models import MODELS, model_folder
from rlvid.models.input_shapes import InputShapes
from rlvid.models.live_bytes import LiveBytes
from rlvid.models.meta import META, build_part, counting_flops, open_on_meta
from rlvid.models.one_of_each import one_of_each
from rlvid.models.pipeline_model import PipelineModel
from rlvid.observability.flops import RowFlops
from rlvid.plugins import resolve

_ATTENTION = (torch.ops.aten.bmm, torch.ops.aten.baddbmm)
"""Products of two activations; matrices with weights are mm, addmm or a convolution."""

Clip = tuple[int, int, int]
"""num_frames, height, width, in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedForward:
    """One row of a clip through the transformer."""

    flops: RowFlops
    """`linear` and `attention` of the blocks; `entry` is all that lies outside of them, the head
    too; `text` is 0, being among the others."""
    latent_shape: tuple[int, int, int, int]
    tokens: int
    """Of the video, as the first block has them."""
    width: int
    """Channels of a token there."""
    num_layers: int
    inner_width: int
    """Channels of the widest layer that a block's tokens pass through."""


def says_inputs(model: ModelConfig) -> bool:
    """Return whether the family says what its transformer is told, without which none is counted.

    Wan's do not: their FLOPs are a formula.
    """
    family = resolve(model.use, MODELS, where="model.use")
    if not (isinstance(family, type) and issubclass(family, PipelineModel)):
        return False
    return family.input_shapes is not PipelineModel.input_shapes


def count_forward(model: ModelConfig) -> CountedForward:
    """Return what a forward of one row of the model's clip takes.

    Raises:
        ValueError: the folder is not of the family, the clip does not divide, or the family does
            not say what its transformer is told.
    """
    return _count_forward(*_opened(model))


def count_decode(model: ModelConfig) -> int:
    """Return the FLOPs of decoding the latents of one clip, whole, without tiles."""
    return _count_decode(*_opened(model))[0]


def count_decode_bytes(model: ModelConfig) -> int:
    """Return the most bytes that it holds at once, weights aside."""
    return _count_decode(*_opened(model))[1]


def count_encode(model: ModelConfig) -> int:
    """Return the FLOPs of encoding one clip, whole, without tiles."""
    return _count_encode(*_opened(model))


def count_text(model: ModelConfig) -> int:
    """Return the FLOPs of reading one prompt of full length by all text encoders.

    Of a part that reads no token ids (LTX-2's connectors) they are two for each parameter and
    token, attention left out.
    """
    adapter, clip = _opened(model)
    told, folder = _inputs(adapter, clip), model_folder(model)
    return sum(_count_encoder(folder, part, n) for part, n in told.text_tokens.items())


def _opened(model: ModelConfig) -> tuple[PipelineModel, Clip]:
    family = resolve(model.use, MODELS, where="model.use")
    if not (isinstance(family, type) and issubclass(family, PipelineModel)):
        raise ValueError(
            f"model.use: {model.use!r} cannot be opened without its weights: expected a subclass "
            "of rlvid.models.pipeline_model.PipelineModel."
        )
    return open_on_meta(family, model_folder(model)), (model.num_frames, model.height, model.width)


def _inputs(adapter: PipelineModel, clip: Clip) -> InputShapes:
    told = adapter.input_shapes(adapter.latent_shape(*clip))
    if told is None:
        raise ValueError(
            f"model.use: {type(adapter).__name__} does not say what its transformer is told, so "
            "its FLOPs are not known. Write `input_shapes`; see rlvid.models.mochi."
        )
    return told


@lru_cache(maxsize=16)
def _count_forward(adapter: PipelineModel, clip: Clip) -> CountedForward:
    shape, told = adapter.latent_shape(*clip), _inputs(adapter, clip)
    condition = Condition({k: torch.empty(1, *v, device=META) for k, v in told.condition.items()})
    latents, sigma = torch.empty(1, *shape, device=META), torch.empty(1, device=META)
    blocks, seen = _blocks(adapter.transformer), list[torch.Tensor]()

    def note(block: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        seen.append(args[0] if args else inputs["hidden_states"])

    outputs = list[torch.Tensor]()
    layers = [part for part in blocks[0][1].modules() if isinstance(part, nn.Linear)]
    hooks = [part.register_forward_hook(lambda *call: outputs.append(call[2])) for part in layers]
    hooks.append(blocks[0][1].register_forward_pre_hook(note, with_kwargs=True))
    with one_of_each(adapter.transformer) as times, counting_flops() as counter:
        adapter.velocity(latents, sigma, condition)
    for hook in hooks:
        hook.remove()
    wide = [out.shape[-1] for out in outputs if out.dim() == 3 and out.shape[1] >= seen[0].shape[1]]
    return CountedForward(
        flops=_split(counter, adapter.transformer, times),
        latent_shape=shape,
        tokens=seen[0].shape[1],
        width=seen[0].shape[2],
        num_layers=len(blocks),
        inner_width=max(wide, default=4 * seen[0].shape[2]),
    )


@lru_cache(maxsize=16)
def _count_decode(adapter: PipelineModel, clip: Clip) -> tuple[int, int]:
    latents = torch.empty(1, *adapter.latent_shape(*clip), device=META)
    there = [latents, *adapter.vae.parameters(), *adapter.vae.buffers()]
    with counting_flops() as counter, LiveBytes(there) as alive:
        adapter.decode(latents)
    return int(counter.get_total_flops()), alive.peak


@lru_cache(maxsize=16)
def _count_encode(adapter: PipelineModel, clip: Clip) -> int:
    num_frames, height, width = clip
    with counting_flops() as counter:
        adapter.encode(torch.empty(1, num_frames, 3, height, width, device=META))
    return int(counter.get_total_flops())


@lru_cache(maxsize=16)
def _count_encoder(folder: Path, part: str, tokens: int) -> int:
    module = build_part(folder, part)
    if not part.startswith("text_encoder"):
        return 2 * tokens * sum(parameter.numel() for parameter in module.parameters())
    with one_of_each(module) as times, counting_flops() as counter:
        module(input_ids=torch.empty(1, tokens, dtype=torch.long, device=META))
    counts = _counts_of(counter, module)
    again = sum((n - 1) * sum(counts.get(name, {}).values()) for name, n in times.items())
    return int(counter.get_total_flops()) + again


def _blocks(transformer: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return name and module of the repeated blocks, those of all lists at the transformer's top.

    A block is called with the video's tokens [B, N, d] first, or as `hidden_states`.
    """
    lists = [(n, m) for n, m in transformer.named_children() if isinstance(m, nn.ModuleList)]
    return [(f"{name}.{i}", block) for name, blocks in lists for i, block in enumerate(blocks)]


def _split(counter: FlopCounterMode, transformer: nn.Module, times: Mapping[str, int]) -> RowFlops:
    """Return the count by what `RowFlops` knows.

    Args:
        times: how often a block that was run is there.
    """
    counts = _counts_of(counter, transformer)
    linear = attention = 0
    outside = int(counter.get_total_flops())
    for name, n in times.items():
        is_block = "." not in name.partition(".")[2]  # of a list at the transformer's top
        for product, flops in counts.get(name, {}).items():
            if not is_block:
                outside += (n - 1) * flops
                continue
            outside -= flops
            if product in _ATTENTION:
                attention += n * flops
            else:
                linear += n * flops
    return RowFlops(linear=linear, text=0, attention=attention, entry=outside, head=0)


def _counts_of(counter: FlopCounterMode, root: nn.Module) -> dict[str, Mapping[Any, int]]:
    """Return the counts of the parts of a module by their names in it, and by operation."""
    start = f"{type(root).__name__}."
    counts: Mapping[str, Mapping[Any, int]] = counter.get_flop_counts()
    return {name.removeprefix(start): by for name, by in counts.items() if name.startswith(start)}
