"""The plan beside what was reached: rows of a run on CPUs, and of one whose GPUs are known."""

from __future__ import annotations

from typing import Any

import pytest

from rlvid.config import Recipe
from rlvid.launch.estimate.assumptions import Assumptions
from rlvid.launch.estimate.records import count_model
from rlvid.launch.estimate.training import grpo_work
from rlvid.launch.planner import plan
from rlvid.launch.report_plan import plan_rows
from rlvid.observability.memory_peak import peak_mib
from rlvid.observability.metrics import check_names
from rlvid.observability.plan_section import NO_PEAK
from rlvid.observability.report import ReportData, build_report

MEASURED = {
    "time/step/seconds": 4.0,
    "time/rollout_actors/seconds": 6.0,
    "time/learner_busy/seconds": 0.5,
    "reward_pool/decode/seconds": 1.0,
    "rollout/memory/peak_mb": 600.0,
    "reward_pool/memory/peak_mb": 590.0,
    "learner/memory/peak_mb": 700.0,
}


def recipe(**sections: Any) -> Recipe:
    return Recipe.model_validate({"name": "r", "phases": ["grpo"], **sections})


def rows(**more: float) -> list[dict[str, Any]]:
    metrics = {**MEASURED, **more}
    check_names(metrics)
    return [{"phase": "00_grpo", "step": 1, "metrics": metrics}]


def test_a_run_on_cpus_has_memory_and_no_made_up_utilisation() -> None:
    chosen = recipe(rollout={"num_actors": 2})
    actor, decoder, learner = plan_rows(chosen, rows())
    assert (actor.planned_s, actor.reached_mfu, actor.measured_s) == (None, None, 3.0)
    assert (decoder.measured_s, learner.measured_s) == (1.0, 0.5)
    planned = {role.role: role.host_total_mib for role in plan(chosen).roles}
    assert (actor.planned_mib, actor.measured_mib) == (planned["rollout actor"], 600.0)
    assert actor.cells()[1] == NO_PEAK
    page = build_report(ReportData(title="r", summary=(), rows=rows(), planned=[actor]))
    assert NO_PEAK in page
    assert "rollout actor" in page


def test_a_run_on_known_gpus_has_seconds_of_its_peak() -> None:
    """Two actors of a GPU each: half the work over 40 % of 989.5 TFLOP/s."""
    chosen = recipe(
        rollout={"num_actors": 2, "num_gpus": 1.0}, learner={"num_gpus": 1.0, "num_ranks": 2}
    )
    reached = {"learner/devices/peak_tflops": 2 * 989.5, "mfu/rollout/frac": 0.25}
    actor, _, learner = plan_rows(chosen, rows(**reached))
    counted = count_model(chosen, Assumptions())
    assert counted is not None
    denoise = next(item for item in grpo_work(chosen, counted) if item.what == "denoise")
    assert denoise.flops is not None
    of_a_step = denoise.flops / chosen.grpo.num_steps
    assert actor.planned_s == pytest.approx(of_a_step / (989.5e12 * 0.4 * 2))
    assert (actor.assumed_mfu, actor.reached_mfu) == (0.4, 0.25)
    assert learner.planned_mib == plan(chosen).roles[-1].total_mib


def test_a_gpu_of_unknown_peak_gives_no_seconds() -> None:
    chosen = recipe(rollout={"num_gpus": 1.0}, learner={"num_gpus": 1.0})
    found = plan_rows(chosen, rows(**{"learner/devices/peak_tflops": 123.0}))
    assert [row.planned_s for row in found] == [None, None, None]


def test_a_run_without_a_step_has_no_rows() -> None:
    assert plan_rows(recipe(), []) == []
    assert plan_rows(recipe(phases=["sft"]), rows()) == []


def test_the_peak_is_of_this_process_and_never_falls() -> None:
    """A process with torch holds more than 100 MiB; 512 MiB that were written are in it."""
    before = peak_mib()
    taken = bytearray(b"x") * (512 * 2**20)
    held = peak_mib()
    assert len(taken) / 2**20 <= held
    del taken
    assert 100.0 < before <= held <= peak_mib()
