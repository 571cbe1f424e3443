"""Hacking provoked for real: the alarm sounds and the run stops; an honest run passes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

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


@pytest.mark.slow
def test_running_statistics_and_monitor_resume_bit_for_bit(tmp_path: Path) -> None:
    """Steps 3 and 4 of a run, done again from its checkpoint at 2, have the very same numbers."""
    made = recipe(HONEST, 7e-4, num_steps=4, evaluate_every=2)
    aggregation = {
        "kind": "weighted_sum",
        "running": {"momentum": 0.8},
        "curriculum": {"realism": [[0, 0.0], [3, 1.0]]},
        "gates": [{"scorer": "physics", "below": 0.5, "caps": {"realism": None}}],
    }
    tree = made.model_dump(mode="json")
    tree["rewards"]["aggregation"] = aggregation
    tree["rollout"] |= {"groups_per_step": 2, "group_size": 4, "num_denoising_steps": 4}
    tree["grpo"] |= {"evaluate_prompts": 4, "checkpoint": {"every": 2, "keep": 2}}
    tree["evaluate"]["num_denoising_steps"] = 4
    made = Recipe.model_validate(tree)
    whole, again = tmp_path / "whole", tmp_path / "again"
    run_recipe(made, whole)

    shutil.copytree(whole, again)
    phase = again / "phases" / "00_grpo"
    (phase / "artifacts.json").unlink()
    shutil.rmtree(phase / "policy")
    shutil.rmtree(phase / "checkpoints" / "step-00000004")
    driver = json.loads((phase / "checkpoints" / "step-00000002" / "driver.json").read_text())
    assert driver["running"]["realism"]["num_steps"] == 2
    run_recipe(made, again, resume=True)

    def comparable(run: Path) -> list[dict[str, float]]:
        """Return what is a function of the recipe: no times, no counts of the pool."""
        kept = (
            "learner/", "heldout/", "correlation/", "guards/", "alarms/", "rollout/reward/",
            "rollout/groups/consumed", "rollout/groups/uniform", "rollout/staleness/",
            "rollout/forwards/",
        )  # fmt: skip
        return [
            {
                name: value
                for name, value in row.items()
                if (name.startswith(kept) and not name.endswith(("peak_mb", "/seconds")))
                or (name.startswith("rewards/") and name.endswith(("/mean", "/weight")))
            }
            for row in metrics_of(run)
        ]

    assert comparable(again) == comparable(whole)
    files = [run / "phases" / "00_grpo" / "policy" for run in (whole, again)]
    [one], [two] = (list(folder.glob("*.safetensors")) for folder in files)
    first, second = load_file(one), load_file(two)
    assert first.keys() == second.keys()
    assert [name for name in first if not first[name].equal(second[name])] == []
