"""What the report shows, from a run folder made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rlvid.config import Recipe
from rlvid.data.video_files import write_mp4
from rlvid.launch.ledger import open_ledger
from rlvid.launch.local_disk import LEDGER
from rlvid.launch.phases.base import Artifacts
from rlvid.launch.report_data import report_data
from rlvid.launch.run_folder import RunFolder, open_run_folder
from rlvid.models.policy import Policy
from rlvid.observability.report import build_report
from rlvid.observability.trace import Trace
from tests.unit.launch.hand_made import recipe

TINY = Policy(model_path="tiny")


def _comparison(name: str, trained: bool) -> dict[str, Any]:
    return {
        "name": name, "trained": trained, "before": 0.25, "after": 0.5, "difference": 0.25,
        "low": 0.125, "high": 0.375, "win_rate": 0.75, "num_pairs": 4, "num_missing": 0,
    }  # fmt: skip


def _pair(position: int, seed_index: int, reward: float) -> dict[str, Any]:
    return {
        "position": position, "seed_index": seed_index, "prompt": f"prompt {position}",
        "scores": {"reward": [0.0, reward]},
    }  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> tuple[RunFolder, Recipe, Artifacts]:
    """A finished run: metrics, a trace, an evaluation of two prompts, one clip without a score."""
    made = recipe()
    folder = open_run_folder(tmp_path / "run", made, resume=False)
    row = {"phase": "00_grpo", "step": 1, "time_s": 0.0, "metrics": {"rollout/reward/mean": 0.5}}
    (folder.path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    Trace(folder.phase(0, "grpo") / "trace.json").add("learner", "learn", 0.0, 2.0)
    phase = folder.phase(1, "evaluate")
    (phase / "clips").mkdir(parents=True)
    for position in (0, 1, 2):
        for label, level in (("base", 0.0), ("after", 1.0)):
            clip = torch.full((2, 3, 16, 16), level)
            write_mp4(phase / "clips" / f"{position:02d}_{label}.mp4", clip, 8)
    rows = [_comparison("reward", True), _comparison("adherence", True), _comparison("j", False)]
    pairs = [_pair(0, 0, 0.5), _pair(0, 1, 0.9), _pair(2, 0, 0.7)]
    evaluation = phase / "evaluation.json"
    evaluation.write_text(json.dumps({"confidence": 0.9, "rows": rows, "pairs": pairs}))
    artifacts = Artifacts(
        base_policy=TINY, policy=TINY, evaluation=str(evaluation), timings_s={"00_grpo": 12.0}
    )
    return folder, made, artifacts


def test_report_reads_metrics_evaluation_and_times(
    run: tuple[RunFolder, Recipe, Artifacts],
) -> None:
    data = report_data(*run)
    assert [row["step"] for row in data.rows] == [1]
    assert [(row.scorer, row.trained_on) for row in data.evaluation] == [
        ("reward", True),
        ("adherence", True),
        ("j", False),
    ]
    assert (data.evaluation[0].mean_difference, data.confidence) == (0.25, 0.9)
    assert [(total.role, total.work, total.seconds) for total in data.timings] == [
        ("phase", "00_grpo", 12.0),
        ("learner", "learn", 2.0),
    ]
    assert "name: hand-made" in data.recipe
    assert "torch" in data.versions


def test_summary_has_the_reward_and_the_judge_but_no_single_trained_scorer(
    run: tuple[RunFolder, Recipe, Artifacts],
) -> None:
    """What was trained on rises by itself; the judge is what a reader should see."""
    reward, judge, _, times = report_data(*run).summary
    assert reward.startswith("Held-out reward 0.250 -> 0.500: +0.250, 90% interval [+0.125,")
    assert judge.startswith("Held-out j (did not train) 0.250 -> 0.500")
    assert times == "Wall time from the first start to the end: 00_grpo 12 s."


def test_the_mean_of_the_dimensions_stands_for_its_judges_at_the_head(
    run: tuple[RunFolder, Recipe, Artifacts],
) -> None:
    path = Path(run[2].evaluation or "")
    tree = json.loads(path.read_text())
    [judge] = [row for row in tree["rows"] if row["name"] == "j"]
    tree["rows"].append(judge | {"name": "dimensions"})
    path.write_text(json.dumps(tree))
    data = report_data(*run)
    reward, mean, *_ = data.summary
    assert reward.startswith("Held-out reward ")
    assert mean.startswith("Held-out mean of the dimensions (did not train) 0.250 -> 0.500")
    assert not any("Held-out j" in line for line in data.summary)
    assert "j" in [row.scorer for row in data.evaluation]


def test_clips_are_shown_beside_their_own_scores(
    run: tuple[RunFolder, Recipe, Artifacts],
) -> None:
    """Scores are found by place: prompt 1 was not scored, so its clip is not shown."""
    clips = report_data(*run).clips
    assert [clip.prompt for clip in clips] == ["prompt 0", "prompt 2"]
    assert [clip.scores["reward"] for clip in clips] == [(0.0, 0.5), (0.0, 0.7)]
    assert float(clips[0].before.mean()) < 0.1
    assert float(clips[0].after.mean()) > 0.9


def test_run_without_evaluation_has_a_report(run: tuple[RunFolder, Recipe, Artifacts]) -> None:
    folder, made, _ = run
    (folder.path / "metrics.jsonl").unlink()
    data = report_data(folder, made, Artifacts(base_policy=TINY, policy=TINY))
    assert (data.evaluation, data.clips, data.rows) == ([], [], [])
    assert "rlvid run hand-made" in build_report(data)


def test_summary_names_quarantined_prompts(run: tuple[RunFolder, Recipe, Artifacts]) -> None:
    """A prompt that no longer trains is what a reader of the curves must know."""
    folder, *_ = run
    ledger = open_ledger(folder.phase(0, "grpo") / LEDGER)
    ledger.quarantine("b", "group 000001-0002 (prompt 'b') lost 3 actors")
    ledger.close()
    assert report_data(*run).summary[-1] == (
        "Quarantined a prompt: group 000001-0002 (prompt 'b') lost 3 actors."
    )
