"""What `rlvid rewards new` writes works before anything in it is changed."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rlvid.config import Recipe
from rlvid.launch.new_reward import write_new_reward
from rlvid.rewards.base import GroupReward
from rlvid.rewards.registry import open_scorer

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(("name", "is_group"), [("my_glow", False), ("my_rank", True)])
def test_the_written_test_passes_and_the_recipe_opens_the_reward(
    name: str, is_group: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a Python of its own, from the package's folder, as its README says."""
    write_new_reward(name, tmp_path, is_group=is_group)
    answer = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path / name,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout[-3000:]
    assert "2 passed" in answer.stdout
    tree = yaml.safe_load((tmp_path / name / "recipe.yaml").read_text())
    scorer = Recipe.model_validate({"name": "x", **tree}).rewards.scorers[1]
    monkeypatch.syspath_prepend(str(tmp_path / name))
    importlib.invalidate_caches()
    assert isinstance(open_scorer(scorer, "rewards.scorers.1"), GroupReward) == is_group


def test_the_written_code_is_clean(tmp_path: Path) -> None:
    """A template that the reader's linter complains about teaches bad habits."""
    write_new_reward("plain", tmp_path, is_group=False)
    write_new_reward("joint", tmp_path, is_group=True)
    ruff = [sys.executable, "-m", "ruff"]
    config = ["--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    for command in (["check", "--ignore", "I001"], ["format", "--check"]):
        answer = subprocess.run(
            [*ruff, *command, *config, str(tmp_path)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert answer.returncode == 0, answer.stdout + answer.stderr


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    written = write_new_reward("mine", tmp_path, is_group=False)
    written[1].write_text("my work")
    with pytest.raises(ValueError, match="mine is there already"):
        write_new_reward("mine", tmp_path, is_group=True)
    assert written[1].read_text() == "my work"


@pytest.mark.parametrize("name", ["My-Reward", "../escape", "class", "9lives", ""])
def test_a_name_that_is_no_module_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be a module"):
        write_new_reward(name, tmp_path, is_group=False)
    assert list(tmp_path.iterdir()) == []
