"""The job of the benchmark `memory_cap`, at tiny size."""

from __future__ import annotations

import json
from pathlib import Path

from tests.bench.memory_cap import job_settings, parse_arguments
from tests.bench.memory_cap_job import Job, run_job


def test_job_on_disk_writes_a_line_a_step_and_changes_its_weights(
    tmp_path: Path,
) -> None:
    arguments = parse_arguments(
        ["--size", "tiny", "--clip", "5", "32", "32", "--steps", "2", "--folder", str(tmp_path)]
    )
    settings = job_settings(arguments, "bfloat16, offload disk")
    run_job(Job(**settings), tmp_path / "lines")
    opening, *steps = (json.loads(line) for line in (tmp_path / "lines").read_text().splitlines())
    assert opening["dtypes"] == ["bfloat16", "float32"]
    assert [step["step"] for step in steps] == [0, 1]
    for step in steps:
        assert step["replay_drift_max"] == 0.0
        assert step["weight_changed_frac"] > 0.0
    assert steps[0]["published_digest"] != steps[1]["published_digest"]
