"""Every mistake of a user is one line on standard error: path, value, way out; exit status 2."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.system.conftest import merged
from tests.system.sleeping_run import SLEEPING

BROKEN_REWARDS = '''
import torch
from rlvid.rewards.base import ClipSpec


class WrongShape:
    """Returns half of what it owes."""

    clip_spec = ClipSpec()

    def score(self, videos, prompts):
        return torch.zeros(len(videos) // 2)


class AlwaysNan:
    """Never finds a number."""

    clip_spec = ClipSpec()

    def score(self, videos, prompts):
        return torch.full((len(videos),), float("nan"))
'''


def _run(tmp_path: Path, tree: dict[str, object], *extra: str) -> str:
    """Run a recipe that must be refused and return what it said."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"name": "bad", **tree}))
    (tmp_path / "broken_rewards.py").write_text(BROKEN_REWARDS)
    command = [sys.executable, "-m", "rlvid.launch.cli", "run", str(recipe), *extra]
    if "--run-folder" not in extra:
        command += ["--run-folder", str(tmp_path / "run")]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env={**_environment(), "PYTHONPATH": f"{tmp_path}:{Path.cwd()}"},
    )
    assert done.returncode == 2, done.stderr
    [line] = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert "Traceback" not in done.stderr
    return line


def _environment() -> dict[str, str]:
    import os

    return dict(os.environ)


def test_unknown_key(tmp_path: Path) -> None:
    line = _run(tmp_path, {"rollout": {"group_sise": 4}})
    assert "rollout.group_sise: unknown key; did you mean 'group_size'?" in line


def test_wrong_type(tmp_path: Path) -> None:
    line = _run(tmp_path, {"rollout": {"eta": "much"}})
    assert "rollout.eta: expected float, got 'much'" in line


def test_group_size_one(tmp_path: Path) -> None:
    line = _run(tmp_path, {"rollout": {"group_size": 1}})
    assert "group_size must be at least 2" in line


def test_missing_model_folder(tmp_path: Path) -> None:
    line = _run(tmp_path, {"model": {"path": str(tmp_path / "nowhere")}})
    assert "model.path: no pipeline at" in line
    assert "nowhere" in line


def test_unwritable_run_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = _run(tmp_path, {}, "--run-folder", str(tmp_path / "file" / "run"))
    assert "cannot be written" in line
    assert "--run-folder" in line


def test_used_run_folder(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("")
    line = _run(tmp_path, {})
    assert "already in use; add --resume" in line
    assert (tmp_path / "run" / "precious").exists()


@pytest.mark.slow
def test_more_gpus_than_there_are(tmp_path: Path) -> None:
    line = _run(tmp_path, {"learner": {"num_gpus": 8}})
    assert "learner.num_gpus" in line
    assert "8 GPUs" in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # One group of four, or both in a batch: whichever the pool had ready.
        (
            "WrongShape",
            r"returned shape \((2,\) for 4|4,\) for 8) videos; score\(\) must return one number",
        ),
        ("AlwaysNan", r"gave no score for 8 of 8 videos"),
    ],
)
def test_reward_that_breaks_its_contract(tmp_path: Path, name: str, expected: str) -> None:
    mine = {
        "rollout": {"group_size": 4, "groups_per_step": 2},
        "rewards": {"scorers": [{"use": f"broken_rewards:{name}", "name": "mine"}]},
        "grpo": {"num_steps": 1},
    }
    line = _run(tmp_path, merged(SLEEPING, mine))
    assert "'mine'" in line
    assert re.search(expected, line)
