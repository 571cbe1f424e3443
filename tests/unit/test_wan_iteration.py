"""The benchmark of a whole iteration: every phase runs, and the planner plans the same."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

from rlvid.config import LearnerConfig, ModelConfig
from rlvid.launch.model_size import read_clip_flops, read_model_size, read_row_flops
from rlvid.launch.planner import forwards_per_step
from tests.bench.phase_clock import PhaseClock
from tests.bench.wan_iteration import parse, run_bench
from tests.bench.wan_iteration_figures import PHASES, Measured, figures
from tests.bench.wan_iteration_plan import (
    LORA,
    Counts,
    clip_decode_flops,
    iteration_recipe,
    model_size,
)
from tests.bench.wan_largest import find_largest, largest
from tests.bench.wan_model import flops_of_row

H100 = "NVIDIA H100 80GB HBM3"
WAN_COUNTS = Counts(transformer=1_418_996_800, trained=11_796_480, vae=126_892_531)
"""Of Wan2.1-T2V-1.3B with a LoRA of rank 16."""


def test_every_phase_runs_at_tiny_size_and_the_plan_counts_its_forwards() -> None:
    """Sampling and replay share batches and code, so on a CPU the ratio is exactly 1."""
    settings, _ = parse(["--size", "tiny", "--steps", "8"])
    result = run_bench(settings)
    assert list(result["phases"]) == list(PHASES)
    assert all(phase["seconds_median"] > 0.0 for phase in result["phases"].values())
    checks = result["checks"]
    assert checks["is_finite"]
    assert checks["replay_drift_max"] == 0.0
    assert checks["grad_norm"] > 0.0
    assert {name: len(values) for name, values in checks["scores"].items()} == {
        "motion_amount": 4,
        "physics": 4,
        "realism": 4,
    }
    rows = (2 * result["sampled_latents"], 2 * result["learned_latents"])
    assert rows == forwards_per_step(iteration_recipe(settings)) == (2 * (3 + 5 * 4), 2)
    # Nobody wrote down what a CPU could do, and a guess would look like a measurement.
    assert all(role["mfu"] is None is role["planned_s"] for role in result["roles"].values())
    assert list(result["critics"]) == ["motion_amount", "physics", "realism"]
    assert all(one["mfu"] is None is one["tflop"] for one in result["critics"].values())
    seconds = sum(one["seconds"] for one in result["critics"].values())
    assert seconds == pytest.approx(result["phases"]["critics"]["seconds_median"])
    assert result["iteration"]["seconds"] > result["iteration"]["seconds_planned_for"] > 0.0


@pytest.mark.parametrize("tile", [None, 256])
def test_sizes_made_here_are_those_the_planner_reads_of_the_published_pipeline(
    tile: int | None,
) -> None:
    settings, _ = parse(["--device", "cpu", "--dtype", "bfloat16"])
    settings = replace(settings, vae_tile=tile)
    folder = ModelConfig(
        path="Wan2.1-T2V-1.3B-Diffusers",
        dtype="bfloat16",
        num_frames=81,
        height=480,
        width=832,
        vae_tile=tile,
    )
    read = read_model_size(folder, LearnerConfig(lora=LORA))
    assert model_size(settings, WAN_COUNTS) == replace(read, text_encoder_parameters=0)
    assert flops_of_row(settings) == read_row_flops(folder)
    assert clip_decode_flops(settings) == read_clip_flops(folder).decode


def test_utilisation_of_a_known_gpu_at_the_planners_speed_is_what_it_assumes() -> None:
    """0.4 of sampling and 0.1 of the VAE; training counts recomputed layers as work."""
    settings, _ = parse(["--device", "cpu", "--dtype", "bfloat16"])
    clock = PhaseClock(torch.device("cpu"))
    measured = Measured(clocks=[clock], sampled_latents=62, learned_latents=1, device_name=H100)
    clock.seconds.update(dict.fromkeys(PHASES, 1.0))
    planned = figures(settings, WAN_COUNTS, measured)["roles"]
    clock.seconds.update(denoise=planned["actors"]["planned_s"])
    clock.seconds.update(decode=planned["decoder"]["planned_s"])
    clock.seconds.update(train=planned["learner"]["planned_s"] - 2.0)
    result = figures(settings, WAN_COUNTS, measured)
    roles = result["roles"]
    assert roles["actors"]["mfu"] == pytest.approx(0.4)
    assert roles["decoder"]["mfu"] == pytest.approx(0.1)
    assert 0.25 < roles["learner"]["mfu"] < 0.4
    assert all(role["planned_s_error_frac"] == pytest.approx(0.0) for role in roles.values())
    # Of the whole the planner leaves out guards and critics.
    whole = result["iteration"]
    assert whole["planned_s_error_frac"] == pytest.approx(0.0)
    assert whole["planned_s"] == pytest.approx(whole["seconds"] - 2.0)
    assert whole["planned_s_error_of_all_frac"] == pytest.approx(-2.0 / whole["seconds"])


def test_a_critic_has_its_own_seconds_and_utilisation_where_its_flops_are_known() -> None:
    """The median of three iterations; half a second of 98.95 TFLOP is a fifth of an H100."""
    settings, given = parse(["--device", "cpu", "--critic", "{use: clip_score, device: cuda}"])
    assert [one.label for one in given.critics][-1] == "clip_score"
    clock = PhaseClock(torch.device("cpu"))
    clock.seconds.update(dict.fromkeys(PHASES, 1.0))
    measured = Measured(
        clocks=[clock],
        sampled_latents=62,
        learned_latents=1,
        device_name=H100,
        critic_s=[{"clip_score": took, "physics": 1.0} for took in (0.5, 9.0, 0.4)],
        critic_flops={"clip_score": 98.95e12, "physics": None},
    )
    critics = figures(settings, WAN_COUNTS, measured)["critics"]
    assert critics["physics"] == {"seconds": 1.0, "tflop": None, "mfu": None}
    assert critics["clip_score"] == pytest.approx({"seconds": 0.5, "tflop": 98.95, "mfu": 0.2})


@pytest.mark.parametrize("limit", [1, 7, 29, 30, 31, 41, 100, 999])
def test_search_comes_within_an_eighth_below_the_limit(limit: int) -> None:
    asked: list[int] = []

    def fits(number: int) -> bool:
        asked.append(number)
        return number <= limit

    found = largest(fits, start=30)
    assert found <= limit < found + max(1, found // 8)
    assert len(asked) == len(set(asked)) <= 10


def test_search_ends_where_nothing_fits_and_at_the_most_it_may_ask() -> None:
    assert largest(lambda number: False, start=30) == 0
    assert largest(lambda number: True, start=30, most=100) == 100


def test_layers_are_doubled_up_to_the_limit_that_a_cpu_is_given() -> None:
    settings, given = parse(["--size", "tiny", "--largest", "--layers", "1"])
    result = find_largest(settings, given.most_layers)
    assert [trial["num_layers"] for trial in result["tried"]] == [1, 2, 4]
    assert result["ended_by"] == "most_layers"
    assert result["largest"]["num_layers"] == 4
    assert result["largest"]["train_s"] > 0.0
    assert result["largest"]["ended_in"] is None
    assert given.name == "cpu_tiny_5f_float32_largest"


def test_a_phase_stands_still_while_one_inside_of_it_runs() -> None:
    clock = PhaseClock(torch.device("cpu"))
    with clock.phase("outer"), clock.phase("inner"):
        time.sleep(0.05)
    assert clock.seconds["inner"] >= 0.05 > clock.seconds["outer"]
    assert not clock.peak_bytes
