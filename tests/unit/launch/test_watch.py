"""What the driver remembers of a run, and what it says when a reward is gamed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlvid.algorithms.running_stats import RunningStats
from rlvid.evaluation.monitor import Memory
from rlvid.launch.driver_state import FILE, DriverState, load_driver_state
from rlvid.launch.watch import Watch, best_folder, correlation_table, drop_all_but_best
from rlvid.observability.progress import open_progress
from rlvid.observability.recorder import Recorder, read_rows
from tests.unit.launch.hand_made import measurement, recipe

TEXTS = ("a", "b", "c")
PAIRS = [(text, index) for text in TEXTS for index in (0, 1)]


def test_driver_state_reads_back_the_same_bits(tmp_path: Path) -> None:
    """A resumed run must normalise and alarm exactly as an uninterrupted one."""
    state = DriverState(
        running={"physics": RunningStats(mean=0.1, variance=1.0 / 3.0, num_steps=7)},
        memory=Memory(first={"judge": {("p", 1): 0.1 + 0.2}}, best=1e-17, best_step=4),
        unmeasured={"rollout/reward/mean": 0.1 + 0.2},
    )
    (tmp_path / FILE).write_text(json.dumps(state.to_json()))
    assert load_driver_state(tmp_path) == state


def test_checkpoint_without_driver_state_says_so(tmp_path: Path) -> None:
    """Starting the statistics anew in silence would change the run from there on."""
    with pytest.raises(ValueError, match=r"driver\.json: expected the driver's state"):
        load_driver_state(tmp_path)


def test_fallen_judge_is_in_alarms_file_with_its_step(tmp_path: Path) -> None:
    made = recipe(
        rewards={"scorers": [{"use": "adherence"}]},
        evaluate={"judges": [{"use": "attribute_judge"}]},
    )
    with Recorder(tmp_path, "grpo") as recorder, open_progress("grpo", 9) as progress:
        watch = Watch(made, Memory(), recorder, progress)
        low, high = dict.fromkeys(PAIRS, 0.25), dict.fromkeys(PAIRS, 0.75)
        first = measurement(TEXTS, reward=low, adherence=low, attribute_judge=high)
        assert watch.after_heldout(0, first).alarms == []
        second = measurement(TEXTS, reward=high, adherence=high, attribute_judge=low)
        watch.after_heldout(5, second)
    [row] = read_rows(tmp_path / "alarms.jsonl")
    assert (row["step"], row["kind"], row["subject"]) == (5, "judge_drift", "attribute_judge")


def test_correlation_table_is_markdown_with_a_row_a_pair() -> None:
    metrics = {
        "correlation/a~b/pearson": 0.25,
        "correlation/a~b/spearman_in_group": -0.5,
        "rewards/a/mean": 1.0,
    }
    lines = correlation_table(metrics).splitlines()
    assert lines[2] == "| a~b | - | -0.50 | +0.25 | - |"
    assert correlation_table({"rewards/a/mean": 1.0}) == ""


def test_only_the_best_policy_and_its_average_are_kept(tmp_path: Path) -> None:
    for step in (0, 10):
        for suffix in ("", "_ema"):
            folder = best_folder(tmp_path, step)
            folder.with_name(folder.name + suffix).mkdir(parents=True)
    drop_all_but_best(tmp_path, 10)
    left = sorted(path.name for path in (tmp_path / "best").iterdir())
    assert left == ["step-000010", "step-000010_ema"]
