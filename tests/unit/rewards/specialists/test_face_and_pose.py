"""The mediapipe scorer, in its own environment."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path

import pytest

from rlvid.rewards.specialists.face_and_pose import FaceAndPose
from rlvid.rewards.specialists.needs import MissingPartError

ROOT = Path(__file__).resolve().parents[4]

CONTRACT = """
from rlvid.rewards.specialists.face_and_pose import FaceAndPose
from rlvid.testing import check_reward
reward = FaceAndPose(FaceAndPose.Config(num_frames=2))
check_reward(reward, num_frames=5, height=64, width=64)
import numpy, torch
print(numpy.__version__, reward.score(torch.zeros(1, 5, 3, 64, 64), []).tolist())
"""


def test_it_runs_beside_a_numpy_that_rlvid_has_outgrown() -> None:
    """Nobody in an empty clip, the contract kept, under numpy 1."""
    python = os.environ.get("RLVID_MEDIAPIPE_PYTHON")
    if not python:
        pytest.skip("RLVID_MEDIAPIPE_PYTHON names no interpreter; launch/environment/mediapipe.sh")
    done = subprocess.run(
        [python, "-c", CONTRACT],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1."), done.stdout
    assert done.stdout.strip().endswith("[0.0]")


@pytest.mark.skipif(importlib.util.find_spec("mediapipe") is not None, reason="mediapipe is here")
def test_without_mediapipe_the_error_names_the_script() -> None:
    with pytest.raises(MissingPartError, match=r"bash launch/environment/mediapipe\.sh"):
        FaceAndPose(FaceAndPose.Config())
