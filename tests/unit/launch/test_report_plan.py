"""The plan beside what was reached: rows of a run on CPUs, and of one whose GPUs are known."""

from __future__ import annotations

from dataclasses import replace
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


def test_what_decoder_and_scorers_reached_stands_beside_the_plan() -> None:
    """Of a scorer that computes by itself the plan says its memory, and no seconds."""
    chosen = recipe(rewards={"scorers": [{"use": "physics", "num_cpus": 1}, {"use": "realism"}]})
    reached = {
        "mfu/decoder/frac": 0.05,
        "rewards/physics/busy_s": 3.0,
        "rewards/physics/replicas": 2.0,
        "rewards/physics/mfu_frac": 0.125,
    }
    _, decoder, _, physics = plan_rows(chosen, rows(**reached))
    assert decoder.reached_mfu == 0.05
    assert (physics.role, physics.measured_s, physics.reached_mfu) == (
        "rewards: physics", 1.5, 0.125,
    )  # fmt: skip
    assert (physics.planned_s, physics.assumed_mfu) == (None, None)
    planned = {role.role: role.host_total_mib for role in plan(chosen).roles}
    assert physics.planned_mib == planned["rewards: physics"]
    assert physics.cells()[1:5] == ["-", "1.50", "-", "12.5%"]
    assert replace(physics, reached_mfu=None).cells()[4] == "-"


def test_a_role_of_which_nothing_was_measured_has_no_row() -> None:
    row = {"time/step/seconds": 4.0, "time/learner_busy/seconds": 0.5}
    found = plan_rows(recipe(), [{"phase": "00_grpo", "step": 1, "metrics": row}])
    assert [one.role for one in found] == ["learner rank"]


@pytest.mark.parametrize("num_judges", [1, 2])
def test_a_judge_has_the_planned_seconds_of_a_server_that_no_other_asks(num_judges: int) -> None:
    judge = {"use": "vlm_judge", "server": "eyes", "config": {"prompts": "adherence"}}
    labels = [f"judge_{number}" for number in range(num_judges)]
    chosen = recipe(
        rewards={
            "servers": {"eyes": {"model": "Qwen/Qwen2.5-VL-7B-Instruct", "num_gpus": 1.0}},
            "scorers": [{**judge, "name": label} for label in labels],
        },
        learner={"num_gpus": 1.0},
    )
    counted = count_model(chosen, Assumptions())
    assert counted is not None
    work = next(item for item in grpo_work(chosen, counted) if item.role == "eyes")
    assert work.flops is not None
    busy = {f"rewards/{label}/busy_s": 2.0 for label in labels}
    found = plan_rows(chosen, rows(**busy, **{"learner/devices/peak_tflops": 989.5}))[3:]
    assert [row.measured_s for row in found] == [2.0] * num_judges
    of_a_step = work.flops / chosen.grpo.num_steps / (989.5e12 * work.mfu)
    planned = [pytest.approx(of_a_step)] if num_judges == 1 else [None, None]
    assert [row.planned_s for row in found] == planned
    assert [row.cells()[4] for row in found] == ["-"] * num_judges  # not a lack of peak


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
