"""A whole GRPO iteration of Wan's real width on a GPU, and the search for what trains on it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.bench.wan_iteration import parse, run_bench
from tests.bench.wan_largest import find_largest

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason="needs a CUDA device: torch.cuda.is_available() is False",
    ),
]
SHORT = ["--layers", "2", "--frames", "17", "--steps", "4", "--group", "2", "--dtype", "bfloat16"]


def test_every_phase_has_a_peak_and_the_replay_stays_within_the_clip_range() -> None:
    settings, _ = parse([*SHORT, "--vae-tile", "256"])
    result = run_bench(settings)
    assert all(phase["peak_memory_gib"] > 0.0 for phase in result["phases"].values())
    assert result["checks"]["is_finite"]
    assert result["checks"]["grad_norm"] > 0.0
    assert result["checks"]["replay_drift_max"] <= result["checks"]["clip_range"]


def test_search_ends_where_the_device_is_out_of_memory() -> None:
    """Of a GPU of which torch may have 8 GiB."""
    settings, _ = parse([*SHORT, "--largest"])
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, 8 * 2**30 / total))
    try:
        result = find_largest(replace(settings, num_frames=5), None)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert result["ended_by"] == "out of memory"
    assert result["largest"]["num_layers"] > 2
    assert result["largest"]["peak_memory_gib"] <= 8.0
