"""A reward package whose environment conflicts with rlvid's, in the main job."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

import pytest

from rlvid.config.rewards import ScorerConfig
from rlvid.rewards.isolation.scorer import IsolatedReward
from rlvid.rewards.registry import open_scorer

ROOT = Path(__file__).resolve().parents[2]
OLD = "1.0.8"
"""A msgpack that rlvid does not have; the pipes to the scorer speak it on one side only."""

REWARD = '''
"""A reward of another lab, which works with an old msgpack only."""

import sys
from dataclasses import dataclass

import msgpack
from rlvid.rewards.base import ClipSpec

if msgpack.version[:2] != (1, 0):
    raise ImportError(f"other_lab works with msgpack 1.0 only, found {msgpack.version}")


class Glow:
    clip_spec = ClipSpec(min_frames=2)

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        note: str

    def __init__(self, config: Config) -> None:
        self._note = config.note

    def score(self, videos, prompts):
        with open(self._note, "w") as file:
            print(".".join(map(str, msgpack.version)), sys.executable, file=file)
        return videos.mean(dim=(1, 2, 3, 4))
'''


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An environment with the package and an old msgpack; the rest is borrowed, after its own."""
    folder = tmp_path_factory.mktemp("environment")
    make = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
    subprocess.run(make, check=True, timeout=120)
    [packages] = folder.glob("lib/python3*/site-packages")
    install = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-input"),
            *("--disable-pip-version-check", "--target", str(packages), f"msgpack=={OLD}"),
        ],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if install.returncode:
        pytest.skip(f"no package index gives msgpack {OLD}: {install.stderr[-200:]}")
    (packages / "other_lab").mkdir()
    (packages / "other_lab" / "__init__.py").write_text("")
    (packages / "other_lab" / "rewards.py").write_text(REWARD)
    # Lines of a .pth file go behind the environment's own packages, so those win.
    (packages / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return str(folder / "bin" / "python")


@pytest.mark.slow
def test_each_side_has_its_own_version(python: str, tmp_path: Path) -> None:
    """And where the package is not, it cannot be imported at all."""
    config = {"note": str(tmp_path / "note")}
    with pytest.raises(ValueError, match="cannot import 'other_lab.rewards'"):
        open_scorer(ScorerConfig(use="other_lab.rewards:Glow", config=config), "rewards.scorers.0")
    entry = ScorerConfig(use="other_lab.rewards:Glow", config=config, python=python)
    scorer = open_scorer(entry, "rewards.scorers.0")
    assert isinstance(scorer, IsolatedReward)
    assert scorer.versions["msgpack"] == OLD
    assert version("msgpack") != OLD
    assert "other_lab" not in sys.modules
    scorer.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_trains_in_the_quickstart(python: str, tmp_path: Path) -> None:
    """The recipe's own command, from preflight over the pool to the metrics of each step."""
    note = tmp_path / "note"
    scorers = [
        {"use": "adherence"},
        {
            **{"use": "other_lab.rewards:Glow", "name": "glow", "weight": 0.5},
            **{"python": python, "config": {"note": str(note)}},
        },
    ]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "rlvid.launch.cli", "run", "quickstart_cpu", "phases=[grpo]"),
            *("rollout.group_size=4", "rollout.groups_per_step=2", "rollout.num_actors=1"),
            *("rollout.num_denoising_steps=4", "grpo.num_steps=2", "grpo.evaluate_every=0"),
            *(f"rewards.scorers={json.dumps(scorers)}", "--run-folder", str(tmp_path / "run")),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert note.read_text().split() == [OLD, python]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line)["metrics"] for line in lines]
    steps = [row for row in rows if "rewards/glow/mean" in row]
    assert len(steps) == 2
    assert all(row["rewards/glow/missing_frac"] == 0.0 for row in steps)
    assert all(0.0 < row["rewards/glow/mean"] < 1.0 for row in steps)
