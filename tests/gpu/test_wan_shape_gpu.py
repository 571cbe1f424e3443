"""A transformer of Wan's real width on a GPU: rollout, loss and optimiser step in bfloat16."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rlvid.config import RolloutConfig
from tests.bench.wan_flops import WAN_1_3B
from tests.bench.wan_model import BenchSettings
from tests.bench.wan_shape import run_bench

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason="needs a CUDA device: torch.cuda.is_available() is False",
    ),
]


@pytest.mark.parametrize("initial_noise", ["shared", "independent"])
def test_bfloat16_replay_stays_within_the_clip_range(initial_noise: str) -> None:
    """On the policy that sampled, |ratio - 1| is rounding; above the clip range it would clip.

    Two layers of the real width at 33 frames: 14040 tokens, the kernels a real run would take.
    """
    result = run_bench(
        BenchSettings(
            size=replace(WAN_1_3B, num_layers=2),
            num_frames=33,
            height=480,
            width=832,
            dtype="bfloat16",
            device="cuda",
            rollout=RolloutConfig.model_validate(
                {"group_size": 2, "num_denoising_steps": 4, "initial_noise": initial_noise}
            ),
            repeats=1,
        )
    )
    assert result["latents"] == [16, 9, 60, 104]
    assert result["checks"]["is_finite"]
    assert result["checks"]["grad_norm_first"] > 0.0
    assert result["checks"]["replay_drift_max"] <= result["checks"]["clip_range"]
    assert result["training_step"]["peak_memory_gib"] > 0.0
