"""Hacking provoked for real: the alarm sounds and the run stops; an honest run passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlvid.config import Recipe
from rlvid.launch.ledger import open_ledger
from rlvid.launch.phases.base import load_artifacts
from rlvid.launch.run import run_recipe
from rlvid.observability.recorder import read_rows

BRIGHTNESS = {"use": "tests.system.hackable:Brightness", "name": "brightness"}
HONEST = [{"use": "adherence"}, {"use": "physics"}, {"use": "realism"}]
JUDGE = "attribute_judge"
pytestmark = pytest.mark.timeout(900)
"""A minute each on two idle cores; what a loaded machine makes of that is no failure."""


def recipe(scorers: list[dict[str, Any]], learning_rate: float, **grpo: Any) -> Recipe:
    """The quickstart's settings on half its groups."""
    return Recipe.model_validate(
        {
            "name": "hacked",
            "phases": ["grpo"],
            "rollout": {
                "num_actors": 1,
                "group_size": 8,
                "groups_per_step": 4,
                "num_denoising_steps": 8,
                "initial_noise": "shared",
                "noise_schedule": "flash",
                "step_plan": {"kind": "isotemporal", "range_frac": [0.0, 0.4]},
            },
            "learner": {"optimizer": {"learning_rate": learning_rate}},
            "rewards": {"scorers": scorers, "colocate": True},
            "grpo": {"evaluate_prompts": 12, "checkpoint": {"every": 3}, **grpo},
            "evaluate": {"num_denoising_steps": 8, "judges": [{"use": JUDGE}]},
        }
    )


def metrics_of(run: Path) -> list[dict[str, float]]:
    return [row["metrics"] for row in read_rows(run / "metrics.jsonl")]


@pytest.mark.slow
def test_brightness_is_hacked_the_alarm_sounds_and_the_run_stops(tmp_path: Path) -> None:
    """A white clip earns all of it. The judge, which never trained, sees objects vanish."""
    run = tmp_path / "run"
    stop = {"judge_falls": True, "patience": 2}
    made = recipe([BRIGHTNESS], 5e-3, num_steps=18, evaluate_every=3, early_stop=stop)
    page = run_recipe(made, run).read_text()

    alarms = read_rows(run / "alarms.jsonl")
    drift = [alarm for alarm in alarms if alarm["kind"] == "judge_drift"]
    assert [alarm["subject"] for alarm in drift] == [JUDGE]
    assert drift[0]["message"] in page.replace("&#39;", "'")
    assert alarms[-1]["kind"] == "early_stop"

    rows = metrics_of(run)
    heldout = [row for row in rows if "heldout/reward/mean" in row]
    assert heldout[-1]["heldout/brightness/mean"] > heldout[0]["heldout/brightness/mean"]
    assert heldout[-1][f"heldout/{JUDGE}/change_high"] < 0.0
    assert max(row["weights/version/value"] for row in rows[1:]) < 18

    phase = run / "phases" / "00_grpo"
    artifacts = load_artifacts(phase)
    assert artifacts is not None
    assert artifacts.policy.lora_path is not None
    judged = [row[f"heldout/{JUDGE}/mean"] for row in heldout]
    best_step = 3 * judged.index(max(judged))
    assert artifacts.policy.lora_path == str(phase / "best" / f"step-{best_step:06d}")
    assert list(Path(artifacts.policy.lora_path).glob("*.safetensors"))
    counts = open_ledger(phase / "ledger.sqlite").counts()
    assert counts.is_balanced
    assert counts.in_flight == 0


@pytest.mark.slow
def test_honest_run_raises_no_alarm_of_drift_and_judges_see_no_rollout(tmp_path: Path) -> None:
    """The quickstart's own reward at its own rate; an alarm that cries wolf is turned off."""
    run = tmp_path / "run"
    run_recipe(recipe(HONEST, 7e-4, num_steps=8, evaluate_every=4), run)
    path = run / "alarms.jsonl"
    alarms = read_rows(path) if path.exists() else []
    assert [alarm for alarm in alarms if alarm["kind"] in ("judge_drift", "guard")] == []
    rows = metrics_of(run)
    assert [f"heldout/{JUDGE}/mean" in row for row in rows].count(True) == 3
    assert not [row for row in rows if f"rewards/{JUDGE}/mean" in row]
    assert "guards/grid/mean" in rows[1]
    assert "correlation/adherence~physics/spearman_in_group" in rows[-1]
