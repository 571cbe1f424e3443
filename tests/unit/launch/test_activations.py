"""The planner's activations against bytes counted on fake tensors, at real size and at tiny."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest

from rlvid.config import LearnerConfig, ModelConfig
from rlvid.launch.model_size import ModelSize, latent_frames, read_model_size
from tests.bench.activation_bytes import Case, count, decode_case, predicted
from tests.bench.wan_flops import WAN_1_3B, WanSize

ACCEPTED = 0.15
SIZE = replace(WAN_1_3B, num_layers=4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("mode", "checkpoints"),
    [("denoise", False), ("lora", False), ("lora", True), ("full", False), ("full", True)],
)
def test_activations_are_those_counted_at_the_size_of_wan(
    dtype: Literal["float32", "bfloat16"],
    mode: Literal["denoise", "lora", "full"],
    checkpoints: bool,
) -> None:
    """Four layers of Wan 1.3B and 81 frames of 480x832: 32,760 tokens and 512 of the text."""
    case = Case(size=SIZE, dtype=dtype, mode=mode, checkpoints=checkpoints)
    assert predicted(case) == pytest.approx(count(case), rel=ACCEPTED)


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_zero_3_keeps_no_more_than_other_stages(mode: Literal["lora", "full"]) -> None:
    """Weights are leaves, and what a frozen layer was given is kept by none."""
    case = Case(size=SIZE, dtype="bfloat16", mode=mode)
    assert count(replace(case, zero_stage=3)) <= count(case)


@pytest.mark.parametrize("mode", ["denoise", "lora", "full"])
def test_activations_are_those_counted_at_the_tiny_default(
    mode: Literal["denoise", "lora", "full"],
) -> None:
    """Its text is a third as long as its clip, and its MLP narrow."""
    model = ModelConfig()
    tiny = tiny_size(read_model_size(model, LearnerConfig()))
    latent = latent_frames(model)
    case = Case(size=tiny, dtype="float32", mode=mode, rows=16, latent=latent, lora_rank=8)
    assert predicted(case) == pytest.approx(count(case), rel=ACCEPTED)


def tiny_size(size: ModelSize) -> WanSize:
    """Return the shape of the embedded transformer."""
    return WanSize(
        name="tiny",
        num_heads=4,
        head_dim=size.width // 4,
        num_layers=size.num_layers,
        ffn_dim=size.inner_width,
        text_dim=64,
        text_tokens=size.text_tokens,
        freq_dim=64,
        patch_size=(1, 1, 1),
    )


@pytest.mark.parametrize("latent", [(3, 60, 104), (21, 30, 52)])
def test_decoding_holds_what_is_counted(latent: tuple[int, int, int]) -> None:
    """Frames go through a few at a time, so the picture's size is what counts."""
    counted, formula = decode_case(latent)
    assert formula == pytest.approx(counted, rel=ACCEPTED)


def test_decoding_in_tiles_holds_what_is_counted() -> None:
    """A quarter of what the whole picture takes."""
    latent = (2, 60, 104)
    counted, formula = decode_case(latent, tile=256)
    assert formula == pytest.approx(counted, rel=ACCEPTED)
    assert counted < 0.25 * decode_case(latent)[0]
