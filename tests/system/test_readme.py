"""The README is true: its commands run, its recipes load, its reward keeps the contract."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from rlvid.config import Recipe
from rlvid.config.rewards import ScorerConfig
from rlvid.launch.cli import app
from rlvid.launch.control.status import RunStatus, read_status
from rlvid.launch.preemption import EXIT_STATUS
from rlvid.rewards.registry import open_scorer
from rlvid.testing import check_reward

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
OF_THEIR_OWN = ("run", "evaluate", "compare", "doctor", "optimise")
"""Commands that start Ray or compile, which a user does in a process of its own."""


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def _commands() -> list[str]:
    lines = [line for block in _blocks("bash") for line in block.splitlines() if line.strip()]
    return [line for line in lines if line.startswith("rlvid ")]


def _run(command: list[str], cwd: Path) -> None:
    bin_folder = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}\n{done.stderr[-3000:]}"


def _call(words: list[str]) -> None:
    """Run a command of ours in this process, which has imported what it needs."""
    called = CliRunner().invoke(app, words)
    assert called.exit_code == 0, f"{words}: {called.output[-2000:]}\n{called.exception!r}"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_rlvid_command_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the README's order, from an empty folder, since later ones use what earlier ones wrote."""
    commands = [shlex.split(command)[1:] for command in _commands()]
    assert len(commands) >= 7
    monkeypatch.chdir(tmp_path)
    for words in commands:
        if words[0] in OF_THEIR_OWN and "--dry-run" not in words:
            _run([sys.executable, "-m", "rlvid.launch.cli", *words], tmp_path)
        else:
            _call(words)
    assert list(tmp_path.glob("*.mp4"))
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_commands_for_a_live_run_are_obeyed(tmp_path: Path) -> None:
    """The first of the console's commands runs; the others watch it, change it and end it.

    On smaller steps than the recipe's: what is watched is not their size.
    """
    [block] = _blocks("console")
    start, top, scale, drain = (
        [sys.executable, "-m", "rlvid.launch.cli", *shlex.split(line.removeprefix("$ rlvid "))]
        for line in block.splitlines()
    )
    smaller = ["grpo.evaluate_prompts=4", "rollout.groups_per_step=4"]
    with subprocess.Popen([*start, *smaller], cwd=tmp_path, stderr=subprocess.DEVNULL) as run:
        try:
            _wait_until(tmp_path / "runs" / "live", lambda now: now.step >= 1)
            _run([*top, "--once"], tmp_path)
            _run(scale, tmp_path)
            _wait_until(tmp_path / "runs" / "live", lambda now: now.actors_wanted == 3)
            _run(drain, tmp_path)
            assert run.wait(timeout=240) == EXIT_STATUS
        finally:
            run.terminate()
    assert list(tmp_path.glob("runs/live/phases/*_grpo/checkpoints/step-*"))


def _wait_until(run: Path, is_so: Callable[[RunStatus], bool]) -> None:
    end = time.monotonic() + 300.0
    while not ((run / "status.json").exists() and is_so(read_status(run))):
        assert time.monotonic() < end, "it did not come to that within 300 s"
        time.sleep(0.1)


@pytest.mark.slow
def test_first_command_checks_its_recipe_and_starts(tmp_path: Path) -> None:
    """`bash launch/quickstart.sh` in the present environment, stopped before the first phase."""
    assert "bash launch/quickstart.sh" in "\n".join(_blocks("bash"))
    venv = Path(sys.executable).parent.parent
    environment = {**os.environ, "RLVID_VENV": str(venv)}
    done = subprocess.run(
        ["bash", "launch/quickstart.sh", "--dry-run", "--run-folder", str(tmp_path / "run")],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "recipe.yaml").is_file()


def test_ci_calls_the_test_command_of_the_readme() -> None:
    """What the README tells a reader to run is what guards main."""
    assert "bash tests/run.sh" in "\n".join(_blocks("bash"))
    assert "tests/run.sh" in (ROOT / ".ci" / "run").read_text()


def test_reward_of_the_readme_keeps_the_contract() -> None:
    """The twelve lines a reader copies must pass the test that the README points to."""
    [code] = [block for block in _blocks("python") if "class Brightness" in block]
    module = types.ModuleType("readme_reward")
    exec(compile(code, "README.md", "exec"), vars(module))
    check_reward(module.Brightness())
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= 12


def test_reward_of_the_readme_runs_in_an_environment_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry with `python`, here the present interpreter, on the twelve lines in a file."""
    [code] = [block for block in _blocks("python") if "class Brightness" in block]
    (tmp_path / "mylab").mkdir()
    (tmp_path / "mylab" / "rewards.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    scorers = [entry for text in _blocks("yaml") for entry in _scorers(text) if entry.python]
    [entry] = scorers
    reward = open_scorer(entry.model_copy(update={"python": sys.executable}), "rewards.scorers.1")
    check_reward(reward)


def _scorers(text: str) -> tuple[ScorerConfig, ...]:
    return Recipe.model_validate({"name": "readme", **yaml.safe_load(text)}).rewards.scorers


def test_recipe_of_the_readme_loads() -> None:
    """A reader's first own recipe must not fail on a key that was renamed since."""
    for block in _blocks("yaml"):
        Recipe.model_validate({"name": "readme", **yaml.safe_load(block)})


def test_files_named_in_the_readme_exist() -> None:
    """A path in the README that is gone sends the reader nowhere."""
    paths = set(
        re.findall(r"`((?:rlvid|actors|learners|rewards|launch|configs|tests)/[\w./-]+)`", README)
    )
    assert paths
    missing = sorted(path for path in paths if not (ROOT / path).exists())
    assert missing == []
