"""The benchmark of Wan's shape: its FLOP formula, its real shape, and that every stage runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rlvid.config import AlgorithmConfig, LoraConfig, RolloutConfig
from rlvid.models.lora import add_lora
from tests.bench.wan_flops import TINY, WAN_1_3B, count_tokens, latent_shape, row_flops
from tests.bench.wan_model import BenchSettings, ShapeModel, build_transformer
from tests.bench.wan_shape import (
    accumulate,
    learner_batch,
    measure_rollout,
    parse_settings,
    run_bench,
)


def test_flops_of_one_layer_are_those_counted_by_hand() -> None:
    """Product by product, with N = 8 video and L = 8 text tokens, d = 24, f = 32, p = 64."""
    flops = row_flops(replace(TINY, num_layers=1), tokens=8)
    self_attention = 4 * (2 * 8 * 24 * 24)
    cross_attention = 2 * (2 * 8 * 24 * 24)
    mlp = 2 * 8 * 24 * 32 + 2 * 8 * 32 * 24
    assert flops.linear == self_attention + cross_attention + mlp == 79872
    assert flops.text == 2 * (2 * 8 * 24 * 24) == 18432
    # Scores and weighted sum: over 8 video tokens, then over 8 text tokens.
    assert flops.attention == 2 * (2 * 8 * 8 * 24) + 2 * (2 * 8 * 8 * 24) == 12288
    patches, head = 2 * 8 * 64 * 24, 2 * 8 * 24 * 64
    text = 2 * 8 * 16 * 24 + 2 * 8 * 24 * 24
    time = 2 * 32 * 24 + 2 * 24 * 24 + 2 * 24 * (6 * 24)
    assert (flops.entry, flops.head) == (patches + text + time, head)
    assert flops.trained == 3 * 79872 + 2 * 18432 + 4 * 12288 + flops.entry + 2 * head


def test_flops_are_those_torch_counts() -> None:
    """torch counts what is dispatched, so a product that the formula forgot would show."""
    shape = latent_shape(TINY, num_frames=9, height=32, width=48)
    transformer: Any = build_transformer(TINY, torch.device("cpu"), torch.float32)
    counter = FlopCounterMode(display=False)
    # The fused attention of the CPU has no count; this one is made of plain products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        transformer(
            hidden_states=torch.randn(1, *shape),
            timestep=torch.tensor([500.0]),
            encoder_hidden_states=torch.randn(1, TINY.text_tokens, TINY.text_dim),
        )
    assert counter.get_total_flops() == row_flops(TINY, count_tokens(TINY, shape)).forward


def test_trained_flops_are_nearly_those_torch_counts() -> None:
    """With the second forward of checkpointing; off by the first layer's input and the LoRA."""
    size = replace(TINY, num_heads=4, head_dim=48, ffn_dim=1024, num_layers=8)
    settings = BenchSettings(
        size=size,
        num_frames=5,
        height=32,
        width=32,
        rollout=RolloutConfig(group_size=2, num_denoising_steps=2, shift=3.0),
        repeats=1,
    )
    model = ShapeModel(settings)
    add_lora(model.transformer, LoraConfig(rank=1))
    group, _ = measure_rollout(model, settings)
    cast(Any, model.transformer).enable_gradient_checkpointing()
    batch = learner_batch(group, AlgorithmConfig(), model.device)
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        accumulate(model, batch, AlgorithmConfig(), settings.rollout.guidance_scale)
    tokens = count_tokens(size, model.latent_shape(5, 32, 32))
    expected = settings.branches * batch.unique_rows.numel() * row_flops(size, tokens).trained
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.03)


def test_large_size_has_the_parameters_and_tokens_of_wan_1_3b() -> None:
    """The parameters were added up by hand, layer by layer; a wrong setting changes the sum."""
    shape = latent_shape(WAN_1_3B, num_frames=81, height=480, width=832)
    assert shape == (16, 21, 60, 104)
    assert count_tokens(WAN_1_3B, shape) == 32760
    transformer: WanTransformer3DModel = build_transformer(
        WAN_1_3B, torch.device("meta"), torch.bfloat16
    )
    assert sum(parameter.numel() for parameter in transformer.parameters()) == 1_418_996_800


def test_clip_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="clip 32 x 480 x 832: expected a multiple of 4 plus 1"):
        latent_shape(WAN_1_3B, num_frames=32, height=480, width=832)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_stage_runs_at_tiny_size_and_the_first_ratio_is_one(dtype: str) -> None:
    """Sampling and replay share batches and code, so on a CPU the ratio is exactly 1."""
    result = run_bench(
        BenchSettings(
            size=TINY,
            num_frames=5,
            height=32,
            width=32,
            dtype=dtype,
            rollout=RolloutConfig(group_size=2, num_denoising_steps=4, shift=3.0),
            repeats=1,
        )
    )
    checks = result["checks"]
    assert checks["is_finite"]
    assert checks["replay_drift_max"] == 0.0
    assert checks["grad_norm_first"] > 0.0
    # The optimiser did move the policy: warm-up and one timed step on the same group.
    assert checks["ratio_deviation_last"] > 0.0
    for stage in ("denoising_forward", "rollout", "training_step"):
        assert result[stage]["seconds_median"] > 0.0
        assert result[stage]["peak_memory_gib"] is None
    # One noise for the group: the trained step is forwarded once, for both branches.
    assert result["training_step"]["latent_forwards"] == 1
    assert result["environment"]["hardware"].endswith("CPU, no GPU")


def test_tiny_size_is_measured_on_the_cpu_and_says_so() -> None:
    """Its figures must not pass for a GPU's."""
    settings, name = parse_settings(["--size", "tiny", "--device", "cuda"])
    assert settings.device == "cpu"
    assert name == "cpu_tiny_5f_float32"
