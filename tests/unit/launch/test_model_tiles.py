"""Tiles of the VAE in the planner: their number, their FLOPs and their memory."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rlvid.config import LearnerConfig, ModelConfig
from rlvid.launch.model_size import read_clip_flops, read_model_size
from rlvid.launch.model_tiles import one_tile
from rlvid.models import load_model

TILED = ModelConfig(num_frames=5, height=48, width=72, device="cpu", vae_tile=32)
WHOLE = TILED.model_copy(update={"vae_tile": None})


def test_clip_of_one_tile_is_whole() -> None:
    model = TILED.model_copy(update={"vae_tile": 72})
    assert one_tile(model) == (model, 1.0)
    assert read_clip_flops(model).decode == read_clip_flops(WHOLE).decode


def test_tiles_at_the_edge_count_by_their_area() -> None:
    """Of 72 pixels, tiles of 32 begin at 0, 24 and 48, and have 32, 32 and 24."""
    part, times = one_tile(TILED)
    assert (part.height, part.width, part.vae_tile) == (32, 32, None)
    assert times == (32 + 24) * (32 + 32 + 24) / 32**2


def test_flops_of_decoding_are_those_of_the_model() -> None:
    model = load_model(TILED)
    latents = torch.randn(1, *model.latent_shape(5, 48, 72))
    with FlopCounterMode(display=False) as counter:
        model.decode(latents)
    tiled, whole = (read_clip_flops(config).decode for config in (TILED, WHOLE))
    assert tiled == pytest.approx(counter.get_total_flops(), rel=0.02)
    assert tiled > 1.3 * whole


def test_memory_of_decoding_is_that_of_a_tile_and_the_frames() -> None:
    """At the size of Wan 2.1, 81 frames of 480x832: 1.9 GiB in place of 7.6."""
    path = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    whole = ModelConfig(path=path, num_frames=81, height=480, width=832)
    tiled = whole.model_copy(update={"vae_tile": 256})
    held = [read_model_size(m, LearnerConfig()).decode_bytes / 2**30 for m in (tiled, whole)]
    assert held == pytest.approx([1.85, 7.65], abs=0.05)
