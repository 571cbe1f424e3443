"""The main job end to end: real Ray actors, real DeepSpeed, the tiny real model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlvid.config import Recipe
from rlvid.launch.ledger import open_ledger
from rlvid.launch.run import run_recipe
from rlvid.observability.recorder import read_rows
from tests.system.conftest import SMALL, merged
from tests.system.same_run import differences

pytestmark = pytest.mark.slow

ON_TWO_ACTORS = {"rollout": {"num_actors": 2}}


@pytest.fixture(scope="module")
def tree() -> dict[str, Any]:
    """Four steps on two actors, an average beside the policy, an evaluation, and all that the
    driver remembers from step to step: running statistics of the rewards, held-out curves."""
    aggregation = {
        "kind": "weighted_sum",
        "running": {"momentum": 0.8},
        "curriculum": {"realism": [[0, 0.0], [3, 1.0]]},
        "gates": [{"scorer": "physics", "below": 0.5, "caps": {"realism": None}}],
    }
    return merged(
        SMALL,
        ON_TWO_ACTORS,
        {
            "learner": {"ema": {"every": 1}},
            "rewards": {"aggregation": aggregation},
            "grpo": {"evaluate_every": 2},
        },
    )


@pytest.fixture(scope="module")
def whole(tree: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("main_job") / "whole"
    run_recipe(Recipe.model_validate(tree), folder)
    return folder


def test_run_samples_scores_learns_publishes_and_reports(whole: Path) -> None:
    """One run, and the promises of design.md section 7 that a finished run can be held to."""
    rows = [r for r in read_rows(whole / "metrics.jsonl") if r["phase"] == "00_grpo"]
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    for row in rows[1:]:
        metrics = row["metrics"]
        # Before the update the learner scores what it sampled itself: the ratio is 1, exactly.
        assert metrics["learner/replay_drift/max"] == 0.0
        assert metrics["rollout/staleness/max"] == 0.0
        assert metrics["weights/version/value"] == row["step"]
        assert metrics["learner/grad_norm/total"] > 0.0
    counts = open_ledger(whole / "phases" / "00_grpo" / "ledger.sqlite").counts()
    heldout = 3 * 2  # before the first step and after every second one, of two prompts
    assert (counts.issued, counts.in_flight) == (8 + heldout, 0)
    assert counts.consumed + counts.dropped == 8 + heldout
    checkpoint = whole / "phases" / "00_grpo" / "checkpoints" / "step-00000002"
    driver = json.loads((checkpoint / "driver.json").read_text())
    assert driver["running"]["realism"]["num_steps"] == 2

    evaluation = json.loads((whole / "phases" / "01_evaluate" / "evaluation.json").read_text())
    assert evaluation["sampler"]["kind"] == "euler"
    assert any(not row["trained"] for row in evaluation["rows"])
    assert all(row["num_pairs"] == 8 for row in evaluation["rows"])
    page = (whole / "report.html").read_text()
    assert "data:video/mp4;base64," in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_killed_and_resumed_run_on_another_number_of_actors_equals_the_uninterrupted_one(
    whole: Path, tree: dict[str, Any], tmp_path: Path
) -> None:
    """Weights, optimiser, average, RNG, ledger, held-out curves and statistics, bit for bit.

    All seeds are in the tasks, so fewer actors may change the time and nothing else.
    """
    recipe, broken = tmp_path / "recipe.yaml", tmp_path / "broken"
    on_one_actor = {"phases": ["grpo"], "rollout": {"num_actors": 1}}
    recipe.write_text(yaml.safe_dump(merged(tree, on_one_actor)))
    command = [sys.executable, "-m", "rlvid.launch.cli", "run", str(recipe)]
    command += ["--run-folder", str(broken)]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        _wait_for_step(broken, 2, process)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
    assert not list(broken.glob("phases/*/artifacts.json")), "it finished before it was killed"
    subprocess.run([*command, "--resume"], check=True, timeout=280)

    assert differences(whole, broken) == []
    rows = [r["step"] for r in read_rows(broken / "metrics.jsonl") if r["phase"] == "00_grpo"]
    assert rows == [0, 1, 2, 3, 4]


def _wait_for_step(run: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    """Return when the run has written the metrics of `step`."""
    give_up = time.monotonic() + 200.0
    while time.monotonic() < give_up:
        assert process.poll() is None, "the run ended before it could be killed"
        path = run / "metrics.jsonl"
        if path.exists() and any(row["step"] >= step for row in read_rows(path)):
            return
        time.sleep(0.05)
    raise AssertionError(f"no step {step} within 200 s")


def test_killed_actor_loses_no_group(tmp_path: Path) -> None:
    """A dead rollout actor is replaced, brought to the current weights, and its group sampled."""
    from rlvid.launch.cluster import open_cluster
    from rlvid.launch.groups import pinned_task
    from rlvid.launch.heldout import heldout_prompts
    from rlvid.launch.loop.line import Issue
    from rlvid.launch.roles import open_sampling
    from rlvid.models.policy import Policy

    recipe = Recipe.model_validate(merged(SMALL, ON_TWO_ACTORS))
    with (
        open_cluster(recipe),
        open_sampling(recipe, Policy(model_path="tiny"), None, tmp_path / "ledger.sqlite") as roles,
    ):
        tasks = [
            pinned_task(recipe, prompt, label="t", position=position, num_seeds=2)
            for position, prompt in enumerate(heldout_prompts(recipe, 6))
        ]
        roles.wait_ready()
        first, *others = [Issue(task=task, step=0, trains=False) for task in tasks]
        roles.line.issue(first)
        end = time.monotonic() + 60.0
        while not (working := [a for a in roles.rollouts.actors() if a.group_id]):
            assert time.monotonic() < end, "nobody samples the first group"
        roles.rollouts.kill_actor(int(working[0].actor_id.partition("-")[2].partition(".")[0]))
        scored = roles.run_issues(others) + roles.line.take(["t-000"])
        assert sorted(group.task.group_id for group in scored) == [t.group_id for t in tasks]
        assert roles.rollouts.num_lost == 1
        assert roles.ledger.num_leases("t-000") == 2
